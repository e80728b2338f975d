"""The connection to MLflow: where it is, its runs, and what is written on them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from dualipo.errors import UserError
from dualipo.runtime import disk_full
from dualipo.tracking.entries import Artifact, Link, StepRun

T = TypeVar("T")
PREFIX = "dualipo."
_PARENT = "mlflow.parentRunId"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_TRANSIENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
"""What MLflow says of itself, or of a database or an artifact store behind it, that may be well again soon."""
_OUTRUN = ("IntegrityError", "StaleDataError", "0 were matched")
_INSISTENCE = 8
_LONGEST_PAUSE = 15.0
_SPEAKERS = ("mlflow", "requests", "urllib3", "boto3", "botocore")
"""Packages whose exceptions speak of MLflow and its stores."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else SQLite in the experiment's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def now() -> int:
    """Milliseconds since the epoch, as MLflow counts."""
    return time.time_ns() // 1_000_000


class Unreachable(UserError):
    """MLflow, or the artifact store behind it, does not answer or is not well: the same may succeed later."""


class Outrun(Unreachable):
    """Of two who write the same entry of MLflow's database at once, one is refused so. Asked again, it goes through."""


class Store:
    """One MLflow experiment. Nothing is contacted before it is needed, and nothing is created by reading.

    `patience`: seconds for which `patiently` goes on trying; `known`: MLflow at this address has answered before.
    """

    def __init__(self, root: Path, experiment: str, patience: float = 0, known: bool = False):
        self.root = root.resolve()
        self.experiment = experiment
        self.patience = patience
        self.answered = known
        """Whether anything ever answered at `uri`; where not, that may be a wrong address."""
        self.uri = tracking_uri(self.root)
        database = re.fullmatch(r"sqlite:///(.+)", self.uri)
        self.home = Path(database[1]).resolve().parent if database else self.root
        """Artifacts of a bare database lie here, and the lock on it: beside it, whatever folder records into it."""

    @cached_property
    def client(self) -> Any:
        """MlflowClient. Raises UserError where a server does not answer."""
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        if self.remote:
            _must_answer(self.uri)
        import logging

        from mlflow import MlflowClient

        for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        with self.errors():
            client = MlflowClient(self.uri)
        self.answered = True
        return client

    @property
    def remote(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns exceptions of MLflow and of the network under it into UserError, Unreachable where waiting may help."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _SPEAKERS:
                raise
            said = f"MLflow at {self.uri}: {' '.join(str(error).split())}"
            # whoever guards a server answers in words of its own, which the client takes for an internal error.
            if "PERMISSION_DENIED" in said:
                said += f"; on a cluster the experiment {self.experiment!r} needs rights to its models: docs/cluster.md"
            if any(sign in said for sign in _OUTRUN):
                raise Outrun(said) from error
            transient = isinstance(error, MlflowException) and error.error_code in _TRANSIENT
            if (transient or _of_network(error)) and "PERMISSION_DENIED" not in said and not disk_full(error):
                raise Unreachable(said) from error
            raise UserError(said) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One writer at a time in this folder: finding a run and creating it must not be interleaved."""
        from filelock import FileLock

        lock = self.home / ".dualipo" / "tracking.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock), _unrepeated(), self.errors():
            yield

    def patiently(self, call: Callable[[], T]) -> T:
        """Calls what may be cut off anywhere and called again, until it gets through, with growing pauses.

        Raises the last Unreachable once `patience` is over, and at once where nothing has ever answered.
        """
        end, pause = time.monotonic() + self.patience, 0.5
        while True:
            try:
                return call()
            except Unreachable:
                if not self.answered or time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def insist(self, call: Callable[[], T]) -> T:
        """Sets a tag or an alias, which somebody else may be setting at this moment."""
        for _ in range(_INSISTENCE):
            with contextlib.suppress(Outrun), self.errors():
                return call()
        with self.errors():
            return call()

    def create_registered_model(self, name: str) -> None:
        """Makes it if need be."""
        from mlflow.exceptions import MlflowException

        if self.client.search_registered_models(f"name = '{name}'"):
            return
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @cached_property
    def experiment_id(self) -> str | None:
        """None where nothing has been recorded yet."""
        database = re.fullmatch(r"sqlite:///(.+)", self.uri)
        if database and not Path(database[1]).exists():
            return None
        with self.errors():
            found = self.client.get_experiment_by_name(self.experiment)
        if found and found.lifecycle_stage != "active":
            raise UserError(
                f"MLflow at {self.uri}: experiment {self.experiment!r} was deleted; choose another experiment.name, "
                f"or bring it back with `mlflow experiments restore -x {found.experiment_id}`"
            )
        return found.experiment_id if found else None

    def create_experiment(self) -> str:
        """Id of the experiment, made if need be."""
        if self.experiment_id is None:
            from mlflow.exceptions import MlflowException

            # A server knows its own artifact store; a bare database would take the working directory.
            location = (self.home / "mlartifacts").as_uri() if _is_database(self.uri) else None
            try:
                created = self.client.create_experiment(self.experiment, artifact_location=location)
            except MlflowException as error:
                found = self.client.get_experiment_by_name(self.experiment)
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                    raise
                created = found.experiment_id
            self.__dict__["experiment_id"] = created
        assert self.experiment_id is not None
        return self.experiment_id

    # Runs

    def find_runs(self, **tags: str) -> list[Any]:
        """Runs that bear all these tags (without the prefix), oldest first."""
        if self.experiment_id is None:
            return []
        query = " and ".join(f"tags.`{PREFIX}{key}` = '{value}'" for key, value in tags.items())
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        with self.errors():
            return list(
                pages(lambda token: self.client.search_runs([self.experiment_id], query, 1, 1000, order, token))
            )

    def open_run(
        self, name: str, parent: str | None, start: int, more: Mapping[str, str], key: Mapping[str, str]
    ) -> tuple[Any, bool]:
        """The run that bears the tags `key`, and whether it was made now; `more` are tags of a new one."""
        found = self.find_runs(**key)
        if found:
            return found[0], False
        tags = {PREFIX + k: v for k, v in key.items()} | dict(more)
        if parent is not None:
            tags[_PARENT] = parent
        made = self.client.create_run(self.create_experiment(), start_time=start, tags=tags, run_name=name)
        # Another machine may have made the same run meanwhile: the oldest stays, for everyone.
        first = self.find_runs(**key)[0]
        if first.info.run_id != made.info.run_id:
            self.client.delete_run(made.info.run_id)
        return first, first.info.run_id == made.info.run_id

    def step_runs(self) -> list[StepRun]:
        """All steps recorded whole, oldest first."""
        return [_step_run(run) for run in self.find_runs(level="step", complete="true")]

    # What is written on a run

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for chunk in _chunks([RunTag(key, value) for key, value in tags.items()], 100):
            self.client.log_batch(run_id, tags=chunk, synchronous=True)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        texts = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in params.items()}
        for chunk in _chunks([Param(key, value) for key, value in texts.items()], 100):
            self.client.log_batch(run_id, params=chunk, synchronous=True)

    def log_metrics(
        self,
        run_id: str,
        series: Mapping[str, Iterable[tuple[int, float]]],
        timestamp: int,
        model_id: str | None = None,
        dataset: Artifact | None = None,
    ) -> None:
        """Series of (step, value). The same series at the same timestamp is stored once."""
        from mlflow.entities import Metric

        about = (model_id, dataset.dataset, dataset.digest.md5) if dataset else (model_id, None, None)
        metrics = [
            Metric(re.sub(r"[^\w./ -]", "_", key), float(value), timestamp, int(step), *about)
            for key, values in series.items()
            for step, value in values
        ]
        for chunk in _chunks(metrics, 1000):
            self.client.log_batch(run_id, metrics=chunk, synchronous=True)

    def log_datasets(self, run_id: str, context: str, artifacts: Mapping[str, Artifact]) -> None:
        """Datasets whose digest is DVC's md5 (36 characters for a folder: just MLflow's limit)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entries = [
            DatasetInput(
                Dataset(
                    name=artifact.dataset,
                    digest=artifact.digest.md5,
                    source_type="local",
                    source=json.dumps({"uri": artifact.path}),
                    profile=json.dumps({"size": artifact.digest.size, "files": artifact.digest.files}),
                ),
                [InputTag("mlflow.data.context", context), InputTag(f"{PREFIX}port", port)],
            )
            for port, artifact in artifacts.items()
        ]
        if entries:
            self.client.log_inputs(run_id, entries)

    def log_file(self, run_id: str, source: Path, target: str) -> None:
        """Keeps a file or folder as the run's artifact `target`, whatever `source` is called."""
        if source.is_dir():
            self.client.log_artifacts(run_id, str(source), target)
            return
        folder, _, name = target.rpartition("/")
        if source.name == name:
            self.client.log_artifact(run_id, str(source), folder or None)
            return
        with tempfile.TemporaryDirectory() as staging:
            shutil.copyfile(source, Path(staging) / name)
            self.client.log_artifact(run_id, str(Path(staging) / name), folder or None)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers of nested mappings, under dotted keys."""
    flat: dict[str, float] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def _step_run(run: Any) -> StepRun:
    tags = run.data.tags

    def links(direction: str) -> dict[str, Link]:
        start = f"{PREFIX}{direction}."
        entries = {key.removeprefix(start): json.loads(value) for key, value in tags.items() if key.startswith(start)}
        return {port: Link(entry["path"], entry["md5"], entry["kind"]) for port, entry in sorted(entries.items())}

    return StepRun(
        run_id=run.info.run_id,
        step=tags[f"{PREFIX}step"],
        round=tags[f"{PREFIX}round"],
        config_digest=tags[f"{PREFIX}config_digest"],
        git_commit=tags.get("mlflow.source.git.commit"),
        started=run.info.start_time,
        inputs=links("input"),
        outputs=links("output"),
    )


def _is_database(uri: str) -> bool:
    return uri.split("://")[0].split("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextlib.contextmanager
def _unrepeated() -> Iterator[None]:
    """Keeps MLflow from sending a request again whose answer was lost: what was to be made might be made twice.

    Who is cut off looks first at what there is, and goes on from there.
    """
    before = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_RETRIES]
        else:
            os.environ[_RETRIES] = before


def _of_network(error: BaseException | None) -> bool:
    """Whether a server could not be reached or broke down. Libraries wrap one another's errors: causes count too."""
    import requests
    import urllib3

    kinds: tuple[type[BaseException], ...] = (
        requests.exceptions.ConnectionError,
        requests.exceptions.Timeout,
        urllib3.exceptions.HTTPError,
    )
    botocore = sys.modules.get("botocore.exceptions")
    if botocore:
        kinds += (botocore.ConnectionError, botocore.HTTPClientError)
    while error is not None:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", 0)
        if isinstance(response, Mapping):  # botocore's
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if isinstance(error, kinds) or status >= 500:
            return True
        error = error.__cause__ or error.__context__
    return False


def _must_answer(uri: str) -> None:
    """MLflow itself retries for minutes; a wrong address should be told at once."""
    import requests

    try:
        requests.head(uri, timeout=20)
    except requests.exceptions.SSLError:
        return  # reachable: MLflow's own settings say what to trust
    except requests.exceptions.RequestException as error:
        reason = type(error).__name__
        raise Unreachable(
            f"MLFLOW_TRACKING_URI={uri}: the MLflow server does not answer ({reason}); start it or unset the variable"
        ) from None
