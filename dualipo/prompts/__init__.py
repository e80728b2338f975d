"""Structured prompts: enumerated vocabularies, exact target shares, rules, and an audit (Dual-IPO, appendix F).

Which subject, attribute, action or scene appears is decided here and nowhere else; no language model chooses.
"""

from __future__ import annotations

from dualipo.config import Prompts
from dualipo.errors import UserError
from dualipo.prompts.sampler import draw_prompts, sample_prompts, write_pool
from dualipo.prompts.space import PromptSpace, load_space

__all__ = ["PromptSpace", "draw_prompts", "load_space", "round_target", "sample_prompts", "write_pool"]


def round_target(section: Prompts, round_name: str) -> tuple[PromptSpace, dict[str, dict[str, float]]]:
    """The space of a round and its target: the space's own shares, the section's over them, the schedule's on top.

    The schedule is Dual-IPO's move from simple to difficult actions (appendix F.3). Raises UserError where a share
    names an unknown category or value, or a category's shares do not sum to 1.
    """
    space = load_space(section.space)
    override = dict(section.target)
    if section.schedule:
        if "difficulty" not in space.categories:
            raise UserError(
                f"prompts.schedule: space {space.name!r} has no category 'difficulty' to schedule; "
                f"its categories are {', '.join(space.categories)}"
            )
        for name, shares in section.schedule.items():
            space.target({"difficulty": shares}, f"prompts.schedule.{name}")
        if round_name in section.schedule:
            override["difficulty"] = section.schedule[round_name]
    return space, space.target(override, "prompts.target")
