"""What a set of prompts really holds, against what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from dualipo.records import Prompt


def audit_prompts(
    prompts: Iterable[Prompt],
    target: Mapping[str, Mapping[str, float]],
    dropped: Mapping[str, int] | None = None,
    remapped: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Counts the prompts themselves, whoever drew them.

    `categories`: category -> value -> share and target, fractions of 1, for every value of the target and every other
    one that appears (target 0). `max_error`: largest |share - target|. `factors`: factor -> value -> prompts, so that
    balance inside a category can be read too. `repeated`: prompts whose text stood earlier. `dropped`, `remapped`: as
    given, tuples by rule.
    """
    total, texts = 0, set()
    categories: dict[str, Counter[str]] = {category: Counter() for category in target}
    factors: dict[str, Counter[str]] = {}
    for prompt in prompts:
        total += 1
        texts.add(prompt.text)
        for category, value in prompt.categories.items():
            categories.setdefault(category, Counter())[value] += 1
        for factor, value in prompt.attributes.items():
            factors.setdefault(factor, Counter())[value] += 1
    table = {
        category: {
            value: {"share": counts[value] / max(total, 1), "target": target.get(category, {}).get(value, 0.0)}
            for value in [*target.get(category, {}), *sorted(counts.keys() - target.get(category, {}).keys())]
        }
        for category, counts in categories.items()
    }
    errors = [abs(entry["share"] - entry["target"]) for values in table.values() for entry in values.values()]
    return {
        "count": total,
        "categories": table,
        "max_error": max(errors, default=0.0),
        "factors": {factor: dict(sorted(counts.items())) for factor, counts in factors.items()},
        "repeated": total - len(texts),
        "dropped": dict(dropped or {}),
        "remapped": dict(remapped or {}),
    }
