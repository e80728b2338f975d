"""Runs steps: binds their ports to files, skips what is up to date, publishes whole outputs only, resumes after a kill.

Beside the outputs an experiment's folder holds `.dualipo/`:
  done/<round>-<step>.json   what a finished step was made from, and the digests of what it made
  staging/<key>/             outputs on their way; `ready.json` there says that they are complete
  work/<key>/                the step's scratch folder (`Job.work`): survives a kill, removed on success
  locks/                     one lock for each step of a round, and one for `run`
  spool/                     records that wait until MLflow answers again (dualipo/tracking/spool.py)
where <key> is <step>-<round>-<fingerprint>.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualipo import __version__
from dualipo.artifacts import Digest, copy, digest, digest_of_json, move, remove, replace, write_json
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.hub import fetch_model
from dualipo.quality.evidence import Course, load
from dualipo.runtime import chunk_threads, disk_full, disk_trouble, git_commit, lock, prepare_torch, seed_everything
from dualipo.steps import BASE, COURSE, GIVEN, GRAPH, Job, Port, Step, Summary, derive_seed
from dualipo.steps.sharding import Shard, put_together, write_part
from dualipo.steps.standing_in import SKIPPED, stand_in

if TYPE_CHECKING:
    from dualipo.tracking import Artifact

STATE = ".dualipo"
WHOLE = "run"
"""Stands for the round of a step that follows all rounds."""


@dataclass(frozen=True)
class Outcome:
    """What became of one step."""

    step: str
    round: str
    fingerprint: str
    skipped: bool
    """Nothing had changed, so nothing was done."""
    outputs: dict[str, Path]
    digests: dict[str, Digest]
    """Of the outputs, by port."""
    summary: Summary
    seconds: float
    waits: str = ""
    """One line where MLflow did not answer and the step's record waits for it."""

    def __str__(self) -> str:
        title = step_title(self.step, self.round)
        if SKIPPED in self.summary.tags and not self.skipped:
            return f"{title}: not run, {self.summary.tags[SKIPPED]}"
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in list(self.summary.metrics.items())[:4])
        done = f"{self.seconds:.1f} s" + (f" ({metrics})" if metrics else "")
        return f"{title}: {'up to date' if self.skipped else done}" + (f"; {self.waits}" if self.waits else "")


def execute(
    step: Step,
    config: Config,
    root: str | Path = ".",
    round_name: str | None = None,
    bindings: Mapping[str, str | Path] | None = None,
    force: bool = False,
    track: bool = True,
    data: str | Path = "data",
    parts: Sequence[Path] = (),
    given: Path | None = None,
    lenders: Sequence[Path] = (),
    ephemeral: bool = False,
) -> Outcome:
    """Runs one step of one round in the experiment's folder `root`, or finds that nothing has changed.

    `bindings` puts other paths in the place of ports' own; `data` is the data folder, relative to `root` or absolute;
    `parts` are what `execute_shard` made of every shard of this very call, in place of the work in them; `given` is a
    file or folder of results that the step goes on from (`steps.GIVEN`), as far as it knows such; `lenders` are folders
    of other experiments: what one of them made of the same inputs, parameters and seed is copied from there;
    `ephemeral` says that the folder goes with the process, so that no record may wait in it for MLflow.
    Outputs appear only complete, and by renaming: who is killed, or runs out of disk, leaves the outputs of before or
    none, and the same call completes the work. Raises UserError where an input is missing, the round is unknown, the
    same step is already running here, or the disk is full.
    """
    where = Path(root), *_rounds(step, config, round_name)
    call = _Call(step, config, *where, parts=parts, given=given, ephemeral=ephemeral)
    call.bind(data, bindings or {})
    with disk_trouble(call.title, call.root), lock(call.lock, call.title):
        call.require_inputs()
        skipped = not force and call.is_done()
        if force:
            remove(call.staging)
            remove(call.work)
        if not skipped and not call.is_ready() and not call.borrow(lenders):
            call.make()
        untracked = track and not call.record["recorded"]
        if untracked:
            call.track()
        if untracked or not skipped:
            call.publish()
        call.clear(everything=not skipped)
        return call.outcome(skipped)


def execute_shard(
    step: Step,
    config: Config,
    shard: Shard,
    part: Path,
    root: str | Path = ".",
    round_name: str | None = None,
    bindings: Mapping[str, str | Path] | None = None,
    data: str | Path = "data",
) -> None:
    """Makes the folder `part`: one shard's chunks of a step, for `execute(parts=...)` of the same step, round,
    parameters and inputs, on this machine or another. Resumes after a kill; raises UserError as `execute`."""
    call = _Call(step, config, Path(root), *_rounds(step, config, round_name), shard=shard)
    call.bind(data, bindings or {})
    with disk_trouble(call.title, call.root), lock(call.lock, call.title):
        call.require_inputs()
        call.make_part(part)


def plan(config: Config) -> list[tuple[Step, str]]:
    """Every step of the experiment with its round, in the order of `run`."""
    scopes: dict[str, list[Step]] = {"base": [], "round": [], "run": []}
    for step in GRAPH.values():
        scopes[step.scope].append(step)
    rounds = [(step, name) for name in config.rounds for step in scopes["round"]]
    return [(step, BASE) for step in scopes["base"]] + rounds + [(step, WHOLE) for step in scopes["run"]]


def run(
    config: Config,
    root: str | Path = ".",
    until: str | None = None,
    data: str | Path = "data",
    force: bool = False,
    track: bool = True,
    lenders: Sequence[Path] = (),
) -> list[Outcome]:
    """Runs the whole experiment: the base models' measures, the rounds, the report; up-to-date steps are skipped.

    `until` stops after a round (`"2"`) or after a step of it (`"2/align"`); `lenders` as in `execute`. Draws one
    progress bar on stderr. Raises UserError as `execute` does, and where another run is going on in `root`.
    """
    from dualipo.progress import Progress

    root = Path(root)
    steps = plan(config)
    if until is not None:
        last = [i for i, (step, name) in enumerate(steps) if until in (name, f"{name}/{step.name}")]
        if not last:
            raise UserError(f"until {until!r}: no such round or step; use a round such as 1, or a step such as 1/align")
        steps = steps[: last[-1] + 1]
    outcomes = []
    expected = [(step.name, _expected_seconds(root, step, name)) for step, name in steps]
    with (
        disk_trouble("the run", root),
        lock(root / STATE / "locks" / f"{WHOLE}.lock", "a run"),
        Progress(expected) as progress,
    ):
        for step, name in steps:
            with progress.step(step_title(step.name, name)) as tell:
                outcomes.append(execute(step, config, root, name, force=force, track=track, data=data, lenders=lenders))
                tell(outcomes[-1])
    return outcomes


def step_title(step: str, round_name: str) -> str:
    """How messages name a step."""
    return step if round_name in (BASE, WHOLE) else f"round {round_name}, {step}"


@dataclass
class _Call:
    """One call of a step: its files, what identifies it, and the stages from made to published."""

    step: Step
    config: Config
    root: Path
    round: str
    prev: str
    parts: Sequence[Path] = ()
    shard: Shard | None = None
    given: Path | None = None
    ephemeral: bool = False
    waits: str = ""

    def bind(self, data: str | Path, bindings: Mapping[str, str | Path]) -> None:
        unknown = set(bindings) - set(self.step.inputs) - set(self.step.outputs)
        if unknown:
            known = ", ".join([*self.step.inputs, *self.step.outputs])
            raise UserError(f"{self.step.name} has no port {min(unknown)!r}; known: {known}")

        def paths(ports: dict[str, Port]) -> dict[str, Path]:
            # `root /` leaves an absolute data folder as it is.
            models = self.config.models
            own = {n: self.root / port.bind(str(data), self.round, self.prev, models) for n, port in ports.items()}
            return {name: Path(bindings.get(name, path)) for name, path in own.items()}

        self.inputs, self.outputs = paths(self.step.inputs), paths(self.step.outputs)

    @property
    def title(self) -> str:
        return step_title(self.step.name, self.round)

    @property
    def lock(self) -> Path:
        return self.root / STATE / "locks" / f"{self.step.name}-{self.round}{self._suffix}.lock"

    @property
    def _suffix(self) -> str:
        return f"-{self.shard.number}of{self.shard.count}" if self.shard else ""

    def require_inputs(self) -> None:
        for name, path in self.inputs.items():
            if name == COURSE and name not in self.step.takes:
                continue  # a step alone needs no word of a round before it: none says stop
            fetch_model(self.config.models, self.step.inputs[name], self.root, path)
            if not path.exists():
                remedy = _remedy(self.step.inputs[name], self.round, self.prev)
                raise UserError(f"{path}: missing, {self.title} needs it; {remedy}")

    # ---- identity

    @cached_property
    def seed(self) -> int:
        # a step that names no `experiment` section draws no random numbers and must not re-run with another seed.
        root_seed = self.config.experiment.seed if "experiment" in self.step.sections else 0
        return derive_seed(root_seed, self.round, self.step.name)

    @cached_property
    def input_digests(self) -> dict[str, Digest]:
        return {port: _course_digest(path) if port == COURSE else _digest(path) for port, path in self.inputs.items()}

    @cached_property
    def fingerprint(self) -> str:
        identity = {
            "step": self.step.name,
            "sections": {name: self.config.identity(name) for name in self.step.sections},
            "seed": self.seed,
            "inputs": {port: found.md5 for port, found in self.input_digests.items()},
            "version": __version__,
        }
        return hashlib.md5(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _state(self, kind: str) -> Path:
        return self.root / STATE / kind / f"{self.step.name}-{self.round}-{self.fingerprint}{self._suffix}"

    @property
    def work(self) -> Path:
        return self._state("work")

    @property
    def staging(self) -> Path:
        return self._state("staging")

    def staged(self, port: str) -> Path:
        return self.staging / port / self.outputs[port].name

    @cached_property
    def course(self) -> Course | None:
        """What the round before said of this one; None where it has said nothing, and outside of rounds."""
        path = self.inputs.get(COURSE)
        return load(Course, path) if path and path.exists() else None

    @property
    def taken(self) -> dict[str, Path]:
        """The inputs that the step's function takes."""
        return {name: path for name, path in self.inputs.items() if name in self.step.takes}

    # ---- stages

    def is_done(self) -> bool:
        """Whether the outputs are where they are wanted, made from the same inputs, and as they were made."""
        record = _read(_done(self.root, self.step, self.round))
        if not record or record["fingerprint"] != self.fingerprint:
            return False
        self.record = record
        return all(self._is_published(port) for port in self.outputs)

    def is_ready(self) -> bool:
        """Whether a publication was cut short that can be completed: each output is staged, or in its place."""
        record = _read(self.staging / "ready.json")
        if not record:
            return False
        self.record = record
        return all(self.staged(port).exists() or self._is_published(port) for port in self.outputs)

    def _is_published(self, port: str) -> bool:
        path, made = self.outputs[port], self.record["outputs"].get(port)
        return bool(made) and path.exists() and made == _entry(path, self.root, _digest(path))

    def borrow(self, lenders: Sequence[Path]) -> bool:
        """Stages what another experiment made of the same; whether one had it, whole and unchanged."""
        for lender in lenders:
            record = _read(_done(lender, self.step, self.round))
            if not record or record["fingerprint"] != self.fingerprint:
                continue
            theirs = {port: lender / record["outputs"][port]["path"] for port in self.outputs}
            digests = {port: _digest(path) for port, path in theirs.items() if path.exists()}
            if any(digests.get(port) != _as_digest(record["outputs"][port]) for port in self.outputs):
                continue
            remove(self.staging)
            for port, path in theirs.items():
                copy(path, self.staged(port))
            outputs = {port: _entry(self.outputs[port], self.root, found) for port, found in digests.items()}
            inputs = {port: _entry(path, self.root, self.input_digests[port]) for port, path in self.inputs.items()}
            # pictures lay in the other's scratch folder.
            summary = {**record["summary"], "pictures": {}}
            self.record = {**record, "inputs": inputs, "outputs": outputs, "summary": summary, "recorded": False}
            write_json(self.staging / "ready.json", self.record)
            return True
        return False

    def make(self) -> None:
        """Calls the step, and says beside its staged outputs that they are whole."""
        # nobody else works on these: the lock of this step of this round is held.
        for stale in self.staging.parent.glob(f"{self.step.name}-{self.round}-*"):
            remove(stale)
        staged = {port: self.staged(port) for port in self.outputs}
        try:
            for path in [self.work, *(path.parent for path in staged.values())]:
                path.mkdir(parents=True, exist_ok=True)
            begin = time.monotonic()
            if self.course and self.course.stop:
                summary = stand_in(self.step, self.course, self.inputs, staged)
            else:
                if self.parts:
                    put_together(self.parts, self.step, self.fingerprint, self.work)
                if self.given:
                    copy(self.given, self.work / GIVEN)
                job = self._job()
                begin = time.monotonic()
                summary = self._run(job, staged)
            seconds = time.monotonic() - begin
            for port, path in staged.items():
                if not path.exists():
                    raise RuntimeError(f"step {self.step.name} returned without writing its output {port!r}")
            self.record = {
                "step": self.step.name,
                "round": self.round,
                "version": __version__,
                "fingerprint": self.fingerprint,
                "inputs": {p: _entry(path, self.root, self.input_digests[p]) for p, path in self.inputs.items()},
                "outputs": {p: _entry(path, self.root, _digest(staged[p])) for p, path in self.outputs.items()},
                "summary": summary.packed(),
                "seconds": seconds,
                "recorded": False,
            }
            write_json(self.staging / "ready.json", self.record)
        except BaseException:
            remove(self.staging)
            raise

    @cached_property
    def launched(self) -> bool:
        """Whether a TrainJob does the work, on other machines: this one needs no torch then."""
        asked = self.config.train_job.launcher == "kubeflow" and self.step.trains
        return asked and not self.step.idle(self.config, self.course)

    def _run(self, job: Job, outputs: dict[str, Path]) -> Summary:
        if self.launched:
            from dualipo.cluster.launch import launch

            return launch(self.step.name, self.config, job, self.fingerprint, self.taken, outputs)
        with self._beside(job):
            return self.step.function(self.config, job, **self.taken, **outputs)

    def _beside(self, job: Job) -> contextlib.AbstractContextManager[None]:
        """Lets other processes of this machine make chunks of the step's loop, where it has one."""
        if self.step.shards == "no":
            return contextlib.nullcontext()
        from dualipo.beside import Loop, helped

        return helped(Loop(self.step.name, self.config, job, self.taken))

    def _job(self) -> Job:
        here = self.step.gpu and not self.launched
        if here:
            prepare_torch(None if self.step.shards == "no" else chunk_threads())
        seed_everything(self.seed, torch_too=here)
        return Job(self.round, self.seed, self.work)

    def make_part(self, part: Path) -> None:
        """Computes the shard's chunks, none in a round that does not happen, and moves them to `part`."""
        assert self.shard
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.course and self.course.stop):
            self._make_chunks(self.shard)()
        write_part(self.work, self.step, self.fingerprint, self.shard)
        part.parent.mkdir(parents=True, exist_ok=True)
        move(self.work, part)

    def _make_chunks(self, shard: Shard) -> Callable[[], None]:
        """Computes the shard's chunks; returns what it does then, when the models that made them are gone."""
        job = self._job()
        chunks = self.step.chunks(self.config, job, **self.taken)
        if chunks.before:
            chunks.before()
        indices = shard.indices(len(chunks))
        with self._beside(job):
            chunks.make(indices)
        return functools.partial(chunks.after, list(chunks.stream_of(indices))) if chunks.after else lambda: None

    def track(self) -> None:
        """Tells MLflow, before anything is published: an output in its place is a recorded one, or its record waits.

        Telling it twice, as after a kill at the end of this, changes nothing there.
        """
        from dualipo.tracking.spool import Record, deliver

        inputs = {port: self._artifact(port, path) for port, path in self.inputs.items()}
        outputs = {
            p: self._artifact(p, s if (s := self.staged(p)).exists() else path) for p, path in self.outputs.items()
        }
        summary, seconds = Summary.unpacked(self.record["summary"]), self.record["seconds"]
        try:
            told = (self.step, self.round, self.prev, inputs, outputs, summary, seconds, git_commit(self.root))
            self.waits = deliver(self.root, self.config, Record(*told), self.ephemeral)
        except Exception as error:
            if disk_full(error):
                # gives the room back; a training resumes from its scratch folder.
                remove(self.staging)
                raise OSError(errno.ENOSPC, str(error)) from error
            if isinstance(error, UserError):
                raise UserError(
                    f"{self.title}: done but not recorded: {error}; run it again, it only records"
                ) from error
            raise
        self.record["recorded"] = not self.waits

    def _artifact(self, port: str, location: Path) -> Artifact:
        from dualipo.tracking import Artifact

        entry = self.record["inputs" if port in self.inputs else "outputs"][port]
        kind = (self.step.inputs | self.step.outputs)[port].kind
        return Artifact(path=entry["path"], location=location, digest=_as_digest(entry), kind=kind)

    def publish(self) -> None:
        done = _done(self.root, self.step, self.round)
        # gone before the first renaming: a publication cut short never passes for a finished one.
        remove(done)
        for port, path in self.outputs.items():
            if self.staged(port).exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                move(self.staged(port), path)
        write_json(self.staging / "done.json", self.record)
        done.parent.mkdir(parents=True, exist_ok=True)
        replace(self.staging / "done.json", done)

    def clear(self, everything: bool) -> None:
        """Removes what this call staged and noted, or what any call of this step of this round did."""
        pattern = f"{self.step.name}-{self.round}-{'*' if everything else self.fingerprint}"
        for kind in ("staging", "work"):
            for path in (self.root / STATE / kind).glob(pattern):
                remove(path)

    def outcome(self, skipped: bool) -> Outcome:
        digests = {port: _as_digest(entry) for port, entry in self.record["outputs"].items()}
        summary, seconds = Summary.unpacked(self.record["summary"]), self.record["seconds"]
        told = (skipped, self.outputs, digests, summary, seconds, self.waits)
        return Outcome(self.step.name, self.round, self.fingerprint, *told)


def _rounds(step: Step, config: Config, round_name: str | None) -> tuple[str, str]:
    """The names of the step's round and of the one before it."""
    if step.scope != "round":
        return (BASE if step.scope == "base" else WHOLE), ""
    known = ", ".join(config.rounds)
    if round_name is None:
        raise UserError(f"{step.name} belongs to a round; name it with --round, known: {known}")
    if round_name not in config.rounds:
        raise UserError(f"round {round_name!r} is not among the parameters' rounds; known: {known}")
    return round_name, config.rounds[round_name].prev


def _remedy(port: Port, round_name: str, prev: str) -> str:
    """How to come by a missing input."""
    if port.path.startswith("{data}"):
        return "fetch the data with `dvc pull data.dvc`, or name a folder that holds it with --data"
    source = prev if "{prev}" in port.path else round_name
    if port.path.startswith(f"runs/{BASE}/"):
        source = BASE
    path = port.bind("data", source, source)
    for maker in GRAPH.values():
        outputs = {output.bind("data", source, "") for output in maker.outputs.values()}
        if path in outputs and (maker.scope == "base") == (source == BASE):
            option = f" --round {source}" if maker.scope == "round" else ""
            return f"run `dualipo {maker.name}{option}` first"
    return "run `dualipo run` first"


# ---- digests and records

_digests: dict[tuple[object, ...], Digest] = {}


def _digest(path: Path) -> Digest:
    """`artifacts.digest`, computed once in a process while names, sizes, inodes and times of change stay the same."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files]
    signature = tuple((name, s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)
    key = (str(path.absolute()), signature)
    if key not in _digests:
        _digests[key] = digest(path)
    return _digests[key]


def _course_digest(path: Path) -> Digest:
    """Of a course, or of the one that goes on where there is none yet: it will make no difference."""
    return _digest(path) if path.exists() else digest_of_json(Course(stop=False).model_dump())


def _entry(path: Path, root: Path, found: Digest) -> dict[str, Any]:
    """A file as records name it: its path inside the experiment's folder where it lies there, and its digest."""
    location = path.as_posix()
    with contextlib.suppress(ValueError):
        location = path.absolute().relative_to(root.absolute()).as_posix()
    return {"path": location, **asdict(found)}


def _as_digest(entry: dict[str, Any]) -> Digest:
    return Digest(entry["md5"], entry["size"], entry["files"])


def _done(root: Path, step: Step, round_name: str) -> Path:
    return root / STATE / "done" / f"{round_name}-{step.name}.json"


def _read(path: Path) -> dict[str, Any] | None:
    """A record of ours, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _expected_seconds(root: Path, step: Step, round_name: str) -> float:
    """How long this step took the last time, in this round or another; a guess before the first time."""
    records = [_done(root, step, round_name), *sorted((root / STATE / "done").glob(f"*-{step.name}.json"))]
    found = next((record for path in records if (record := _read(path))), None)
    return max(found["seconds"], 0.1) if found else (30.0 if step.gpu else 2.0)
