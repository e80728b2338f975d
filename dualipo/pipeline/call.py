"""What the bodies of the components call: one step, one of its shards, or the gathering of a round.

A task gets its inputs as files of any name. They are linked under their own names, as GRAPH has them, into a folder of
the task, and there `dualipo.engine.execute` runs as on a laptop: same fingerprints, same records, same registry.

What a task cannot get as a parameter without spoiling the cache of finished tasks comes by environment variables, the
first two of which are annotations of its pod:
  DUALIPO_CONFIG    the whole configuration, by which MLflow knows the experiment; parameters replace their sections
  DUALIPO_COMMIT    the library's commit
  DUALIPO_SCRATCH   a folder that outlives the pod, for checkpoints; else the system's temporary one
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualipo.artifacts import move, read_json, remove
from dualipo.config import Config, parse_config
from dualipo.engine import execute, execute_shard
from dualipo.errors import UserError
from dualipo.pipeline.index import Entry, gather_runs, read_index
from dualipo.steps import BASE, GRAPH, Step
from dualipo.steps.sharding import Shard

PARAMETERS = "_params"
"""The parameter `align_params` holds the section `align` as JSON."""


def call(name: str, values: Mapping[str, Any]) -> None:
    """Runs step `name`. `values` are a component's arguments by name: a JSON string for each section that the step
    reads (`align_params`), an artifact for each of its ports, `round_name`, and `parts` of shards."""
    step, config = GRAPH[name], _config(values)
    parts = [Path(part.path) for part in values.get("parts") or ()]
    with _folder(step, values, config) as root:
        outcome = execute(step, config, root, values.get("round_name"), parts=parts, ephemeral=True)
        for port, path in outcome.outputs.items():
            artifact = values[port]
            remove(artifact.path)  # of an attempt before this one
            move(path, Path(artifact.path))
            at = path.relative_to(root).as_posix()
            artifact.metadata.update(path=at, kind=step.outputs[port].kind, **asdict(outcome.digests[port]))
            _show(artifact, outcome.summary.metrics)
    if "run_id" in values:
        _publish_index(values, config)


def call_shard(name: str, values: Mapping[str, Any]) -> None:
    """Makes the artifact `part`: shard `shard` (as in `0/8`) of step `name`; other arguments as of `call`."""
    step, config, part = GRAPH[name], _config(values), Path(values["part"].path)
    remove(part)
    with _folder(step, values, config) as root:
        execute_shard(step, config, Shard.parse(values["shard"]), part, root, values.get("round_name"))


def gather(values: Mapping[str, Any]) -> None:
    """Makes the artifact `runs` (see `gather_runs`) from `before`, where there is one, and from every other artifact;
    leaves its index in MLflow under the pipeline run's id `run_id`."""
    runs, before = Path(values["runs"].path), values.get("before")
    remove(runs)
    gather_runs(runs, Path(before.path) if before else None, [a for k, a in values.items() if _is_made(k, a)])
    _publish(values["run_id"], read_index(runs), _config(values))


def load_data(values: Mapping[str, Any]) -> None:
    """Fetches the data folder `data` (a URI, of md5 `data_md5` where that is not empty) into one artifact a member, and
    models of the hub into theirs."""
    from dualipo.pipeline.data import fetch, sources

    where = sources(_config(values).models)
    targets = {name: Path(artifact.path) for name, artifact in values.items() if hasattr(artifact, "uri")}
    for member, found in fetch(values["data"], values["data_md5"], targets, where).items():
        values[member].metadata.update(path=where[member], kind="data", **asdict(found))


def _config(values: Mapping[str, Any]) -> Config:
    content = json.loads(os.environ.get("DUALIPO_CONFIG") or "{}")
    for name, value in values.items():
        if name.endswith(PARAMETERS):
            content[name.removesuffix(PARAMETERS)] = json.loads(value)
    return parse_config(content, "the pipeline's parameters")


@contextlib.contextmanager
def _folder(step: Step, values: Mapping[str, Any], config: Config) -> Iterator[Path]:
    """The task's folder, its inputs linked into it. The same for another attempt at the same task, so that it finds
    its checkpoints; gone when the task has succeeded."""
    given = sorted((port, values[port].uri) for port in step.inputs)
    texts = sorted((name, value) for name, value in values.items() if isinstance(value, str))
    key = hashlib.md5(json.dumps([given, texts]).encode()).hexdigest()[:16]
    scratch = Path(os.environ.get("DUALIPO_SCRATCH") or Path(tempfile.gettempdir()) / "dualipo")
    round_name = BASE if step.scope == "base" else values.get("round_name", "")
    root = scratch / "-".join(filter(None, [step.name, round_name, key]))
    prev = config.rounds[round_name].prev if round_name in config.rounds else ""
    for port, there in step.inputs.items():
        link = root / there.bind("data", round_name, prev, config.models)
        link.parent.mkdir(parents=True, exist_ok=True)
        remove(link)
        link.symlink_to(Path(values[port].path).absolute())
    yield root
    remove(root)


def _show(artifact: Any, metrics: Mapping[str, float]) -> None:
    """What the pipeline's user interface shows of the numbers behind a Metrics or ClassificationMetrics artifact."""
    if hasattr(artifact, "log_confusion_matrix"):
        confusion = read_json(artifact.path).get("confusion")
        if confusion:
            words = sorted({*confusion, *(word for row in confusion.values() for word in row)})
            matrix = [[confusion.get(row, {}).get(column, 0) for column in words] for row in words]
            artifact.log_confusion_matrix(words, matrix)
    elif hasattr(artifact, "log_metric"):
        for name, value in metrics.items():
            if math.isfinite(value):
                artifact.log_metric(name, value)


def _is_made(name: str, value: Any) -> bool:
    return hasattr(value, "metadata") and name not in ("runs", "before")


def _publish_index(values: Mapping[str, Any], config: Config) -> None:
    """The index of a whole run: what was gathered, and the page made of it."""
    index = read_index(Path(values["runs"].path))
    page = Entry.of(values["page"])
    _publish(values["run_id"], index | {page.path: page}, config)


def _publish(run_id: str, index: Mapping[str, Entry], config: Config) -> None:
    from dualipo.tracking import Tracker

    if not run_id:
        raise UserError("a pipeline's run has no id; pass run_id")
    Tracker(tempfile.gettempdir(), config, known=True).log_index(
        run_id, {path: asdict(entry) for path, entry in index.items()}
    )
