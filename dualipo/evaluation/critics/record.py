"""A critic on the record: asked, measured, written, and where wanted logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dualipo.artifacts import digest, remove
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.evaluation.critics.answers import Answer, Judge, open_judge
from dualipo.evaluation.critics.measures import STATED, measure
from dualipo.evaluation.critics.sets import KINDS, LabelledSet, read_set
from dualipo.evaluation.critics.writing import write_record
from dualipo.formats.budget import Budget
from dualipo.steps import derive_seed


def benchmark_critic(
    config: Config,
    critic: Path,
    sets: Sequence[str],
    clips: Sequence[str],
    out: Path,
    paths: str,
    prompts: int | None,
    max_broken: str,
    tracked: Path | None,
) -> dict[str, Any]:
    """What `dualipo benchmark-critic` does; `tracked` is the experiment's folder where the record is logged.

    Raises UserError where `out` is there already, an option is malformed, a set or the critic is, or MLflow knows no
    version with this critic's bytes.
    """
    if out.exists():
        raise UserError(f"{out}: already there; choose another folder for the record")
    sweep, sources, folders = _sweep(paths), _named("--set", sets), _named("--clips", clips)
    if unknown := [kind for kind in folders if kind not in sources or kind == "own"]:
        raise UserError(f"--clips {unknown[0]}=...: goes with --set {unknown[0]}=TABLE of a public layout")
    budget = Budget.parse(max_broken)
    read = [read_set(kind, source, folders.get(kind), budget, prompts) for kind, source in sources.items()]
    seed, asked, batch = config.experiment.seed, config.label, config.check_critic.batch_size
    from dualipo.runtime import prepare_torch

    prepare_torch()
    judge = open_judge(critic, sweep[-1], asked.temperature, asked.max_new_tokens, batch, seed)
    how: dict[str, Any] = {"seed": seed}
    if judge.kind == "generative":
        how |= {"paths": list(sweep), "temperature": asked.temperature, "max_new_tokens": asked.max_new_tokens}
        how |= {"orders": 2}
    log = None
    if tracked is not None:
        from dualipo.tracking.critics import find_version, log_record

        log = partial(log_record, tracked, config, find_version(tracked, config, critic))
    record = record_critic(judge, critic, read, sweep, how, seed, out)
    if log is not None:
        log(record, out)
    return record


def record_critic(
    judge: Judge,
    critic: Path,
    sets: Sequence[LabelledSet],
    sweep: Sequence[int],
    how: Mapping[str, Any],
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Asks the critic every question of the sets, writes the folder `out`, and returns record.json.

    A record that was stopped goes on where it was: answers lie beside `out` until it is whole. Raises UserError as
    `Judge.answer`, and where the critic answers no question of a set.
    """
    answers: dict[str, list[Answer]] = {}
    identity, works = judge.identity(), []
    for labels in sets:
        asked = "\n".join(repr((i.question, i.verdict)) for i in labels.answered)
        key = derive_seed(seed, identity, labels.name, asked, sorted(how.items()))
        works.append(out.with_name(f".{out.name}.{key:016x}.work"))
        answers[labels.name] = judge.answer(labels, works[-1])
        if not answers[labels.name]:
            raise UserError(f"{labels.source}: the critic judges none of its dimensions; give a set that it can judge")
    record = {
        "critic": {"path": str(critic), "kind": judge.kind, "md5": identity},
        "protocol": {**how, "normalisation": judge.normalisation, "stated": STATED},
        "sets": {
            labels.name: {
                "source": str(labels.source),
                "md5": digest(labels.source).md5,
                "annotators": list(labels.annotators),
                "asked_prompts": labels.asked_prompts,
                "skipped": len(labels.skipped),
                **measure(answers[labels.name], sweep, judge.calibration, derive_seed(seed, "bootstrap")),
            }
            for labels in sets
        },
    }
    write_record(out, record, answers)
    for work in works:
        remove(work)
    return record


def _sweep(text: str) -> tuple[int, ...]:
    words = text.split(",")
    found = tuple(int(word) for word in words if word.strip().isdecimal())
    if len(found) != len(words) or list(found) != sorted(set(found)) or found[0] < 1:
        raise UserError(f"--paths {text}: write rising numbers of paths, e.g. 1,3,5")
    return found


def _named(option: str, values: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for value in values:
        kind, separator, path = value.partition("=")
        if not separator or not path or kind not in KINDS:
            raise UserError(f"{option} {value}: write KIND=PATH, where KIND is one of {', '.join(KINDS)}")
        if kind in found:
            raise UserError(f"{option} {value}: {kind} is given twice; give it once")
        found[kind] = Path(path)
    return found
