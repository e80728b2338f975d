"""Blind study of two generators: win, tie and loss on the same prompts and seeds (Dual-IPO, figure 3b)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dualipo.annotation.items import Ask, Place
from dualipo.annotation.session import Recorded, Side
from dualipo.annotation.sources import Pool, round_robin
from dualipo.artifacts import digest
from dualipo.config import Config
from dualipo.critic.voting import majority
from dualipo.errors import UserError
from dualipo.media.store import MANIFEST, ClipStore

BENCHMARK_CLIPS = "benchmark_clips"
_COUNTS = {"win": "wins", "tie": "ties", "loss": "losses"}


def find_side(root: Path, config: Callable[[], Config], reference: str) -> tuple[Side, Path]:
    """The generator meant by `reference` and the folder of its benchmark clips.

    A folder of clips, or a registered version (`generator@champion`, NAME/VERSION): then the clips are those that the
    step which measured it recorded. Raises UserError where there is no such version, it was never measured, or its
    clips are gone or changed.
    """
    folder = Path(reference)
    if (folder / MANIFEST).is_file():
        return Side(reference=reference, clips=str(folder), label=reference, md5=digest(folder).md5), folder
    if folder.exists():
        raise UserError(f"{folder}: no {MANIFEST} here; name a folder of benchmark clips, or a registered version")
    from dualipo.tracking import Tracker

    tracker = Tracker(root, config())
    version = tracker.resolve(reference)
    measured = [
        (run.started, run.outputs[BENCHMARK_CLIPS])
        for run in tracker.step_runs()
        if BENCHMARK_CLIPS in run.outputs
        and any(
            link.md5 == version.md5 and link.kind == "generator"
            for link in (*run.inputs.values(), *run.outputs.values())
        )
    ]
    if not measured:
        raise UserError(
            f"{version.label}: no step is recorded that measured it; run `dualipo evaluate`, or name its clips"
        )
    for _, link in sorted(measured, key=lambda found: found[0], reverse=True):
        clips = root / link.path
        if (clips / MANIFEST).is_file() and digest(clips).md5 == link.md5:
            return Side(reference=reference, clips=link.path, label=version.label, md5=version.md5), clips
    raise UserError(
        f"{version.label}: its benchmark clips ({measured[-1][1].path}) are not here any more, or have changed; bring "
        "them back with `dvc pull` or `dualipo evaluate`, or name a folder of them"
    )


def study_pool(first: Path, second: Path, seed: int) -> Pool:
    """A pair of clips for each prompt and seed that both generators were given; clip a is the first's.

    Raises UserError where the two have none in common, or differ in a prompt's text.
    """
    sides = [{(clip.prompt_id, clip.seed): clip for clip in ClipStore(folder).clips} for folder in (first, second)]
    shared = [key for key in sides[0] if key in sides[1]]
    if not shared:
        raise UserError(f"{first} and {second}: no clip of the same prompt and seed; both must be of one benchmark")
    asks = []
    for key in shared:
        a, b = (side[key] for side in sides)
        if a.prompt != b.prompt:
            raise UserError(
                f"{first} and {second}: prompt {key[0]} reads {a.prompt!r} in one and {b.prompt!r} in the other"
            )
        asks.append(Ask(a.prompt_id, a.prompt, (Place(first, a.file), Place(second, b.file))))
    return Pool([], round_robin(asks, seed))


def study_result(session: Recorded, without: Sequence[str] = ()) -> dict[str, Any]:
    """Win, tie and loss from the point of view of `a`, the generator named first.

    Of the items that have all the annotators they need, each settled by their majority: `wins`, `ties` and `losses` as
    counts, `win`, `tie` and `loss` as shares, `interval` of win - loss, bootstrapped over prompts. At the top stand the
    overall ones; shares are null while no item is settled. `dimensions` has the same for each.
    """
    assert session.settings.study
    names = [side.label for side in session.settings.study]
    votes: dict[str, dict[str, list[str]]] = {}
    for answer in session.answers:
        if not answer.skipped and answer.annotator not in without and not session.items[answer.item].golden:
            for dimension, verdict in answer.verdicts.items():
                votes.setdefault(answer.item, {}).setdefault(dimension, []).append(verdict)
    settled = {
        item: {dimension: majority(own, "choice") for dimension, own in said.items()}
        for item, said in votes.items()
        if all(len(own) >= session.settings.annotators for own in said.values())
    }
    by_dimension = {
        dimension: _shares(session, {item: said[dimension] for item, said in settled.items()})
        for dimension in session.settings.dimensions
    }
    asked = sum(not item.golden for item in session.items.values())
    return {
        "a": session.settings.study[0].model_dump(),
        "b": session.settings.study[1].model_dump(),
        "names": names,
        "items": len(settled),
        "asked": asked,
        "annotators": session.settings.annotators,
        **by_dimension["overall"],
        "dimensions": by_dimension,
    }


def _shares(session: Recorded, verdicts: dict[str, str | None]) -> dict[str, Any]:
    from dualipo.evaluation.bootstrap import interval

    if not verdicts:
        return {**dict.fromkeys(_COUNTS), **dict.fromkeys(_COUNTS.values(), 0), "interval": None}
    words = list(verdicts.values())
    by_word = {"win": "a", "tie": "tie", "loss": "b"}
    gains = [{"a": 1.0, "b": -1.0}.get(str(word), 0.0) for word in words]
    prompts = [session.items[item].prompt_id for item in verdicts]
    return {
        **{name: words.count(word) / len(words) for name, word in by_word.items()},
        **{_COUNTS[name]: words.count(word) for name, word in by_word.items()},
        "interval": interval(gains, prompts, session.settings.seed),
    }


def format_study(result: dict[str, Any]) -> str:
    """A line on the outcome overall and one for each dimension."""
    first, second = result["names"]
    lines = [f"{first} against {second}, {result['items']} of {result['asked']} items settled"]
    if result["interval"] is None:
        return f"{lines[0]}: nothing to tell yet"
    for dimension, found in sorted(result["dimensions"].items(), key=lambda entry: entry[0] != "overall"):
        shares = ", ".join(f"{name} {found[name]:.1%}" for name in ("win", "tie", "loss"))
        shares += f" ({found['wins']} / {found['ties']} / {found['losses']})"
        mean, low, high = (f"{100 * found['interval'][key]:+.1f}" for key in ("mean", "low", "high"))
        lines.append(f"  {dimension:12} {shares}; win - loss {mean} points [{low}, {high}]")
    return "\n".join(lines)
