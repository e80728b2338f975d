"""A critic's record in MLflow: a run of its own, its numbers bound to the critic's version and to each set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualipo.artifacts import Digest, digest
from dualipo.config import Config
from dualipo.critic.videoreward.settings import is_videoreward
from dualipo.errors import UserError
from dualipo.tracking.entries import Artifact, Version
from dualipo.tracking.registry import Registry
from dualipo.tracking.store import Store, flatten, now


def find_version(folder: Path, config: Config, critic: Path) -> Version:
    """The newest version of the experiment's critics, or VideoRewards, that holds the bytes of the folder `critic`.

    Raises UserError where there is none.
    """
    model = f"{config.experiment.name}-{'reward' if is_videoreward(critic) else 'critic'}"
    store = Store(folder, config.experiment.name)
    md5 = digest(critic).md5
    same = [version for version in Registry(store).versions(model) if version.md5 == md5]
    if not same:
        raise UserError(
            f"{critic}: MLflow at {store.uri} has no version of {model} with these bytes; run the experiment that "
            "makes it first, or leave --log out"
        )
    return same[-1]


def log_record(folder: Path, config: Config, version: Version, record: Mapping[str, Any], out: Path) -> str:
    """Logs every number of record.json as `critic_record/<set>.<...>`, and the files of `out`; returns the run's id.

    Logging the same record again changes nothing.
    """
    store = Store(folder, config.experiment.name)
    content = hashlib.md5(json.dumps(record, sort_keys=True).encode()).hexdigest()
    with store.writing():
        key = {"level": "critic_record", "critic": version.md5, "record": content}
        more = {"dualipo.version": version.label, "mlflow.source.name": "dualipo benchmark-critic"}
        run, _ = store.open_run(f"critic record {version.label}", None, now(), more, key)
        run_id = run.info.run_id
        if run.data.tags.get("dualipo.complete") == "true":
            return run_id
        protocol = {k: v for k, v in record["protocol"].items() if k != "stated"}
        store.log_params(run_id, {f"protocol.{name}": value for name, value in protocol.items()})
        for name, found in record["sets"].items():
            data = Artifact(found["source"], Path(found["source"]), Digest(found["md5"], 0, 0), "data")
            store.log_datasets(run_id, "input", {name: data})
            numbers = flatten(found, f"critic_record/{name}.")
            series = {metric: [(0, value)] for metric, value in numbers.items()}
            for kind in ("choices", "ratings"):
                # A sweep is a curve over the number of paths.
                for row in found.get(f"self_consistency_{kind}", ()):
                    for metric, value in flatten(row, f"critic_record/{name}.self_consistency_{kind}.").items():
                        series.setdefault(metric, []).append((row["paths"], value))
            store.log_metrics(run_id, series, run.info.start_time, version.model_id, data)
        store.log_file(run_id, out, "critic_record")
        store.client.set_terminated(run_id, "FINISHED", now())
        store.set_tags(run_id, {"dualipo.complete": "true"})
    return run_id
