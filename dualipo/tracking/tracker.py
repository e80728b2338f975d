"""What is recorded of a finished step, and where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualipo.artifacts import read_json
from dualipo.config import Config, config_json
from dualipo.errors import UserError
from dualipo.steps import BASE, HANDED_ON, Step, Summary, steps_of
from dualipo.steps.standing_in import SKIPPED
from dualipo.tracking.entries import KEPT, MODELS, Artifact, StepRun, Version
from dualipo.tracking.evidence import EVIDENCE, Evidence, gather
from dualipo.tracking.history import Kind
from dualipo.tracking.registry import AWAITING, Registry
from dualipo.tracking.store import PREFIX, Store, flatten, now

_DATASETS = ("data", "clips", "dataset")
_SCORED = {"agreement": ("critic", "test_labels"), "scores": ("generator", "benchmark")}
"""Output port of a score -> the kind of model it speaks of, and the input port of the data it was measured on."""
DECISION = "decision"
_BASELINES = "baselines"
_SETTLEMENT = "settlement"
_AS_IT_CAME = {"promoted": True, "reasons": ["the base model, as it came"]}


@dataclass(frozen=True)
class _Record:
    """One step being recorded on the run `run_id`, which bears `started` as the time of everything logged."""

    step: Step
    round: str
    inputs: Mapping[str, Artifact]
    outputs: Mapping[str, Artifact]
    git_commit: str | None
    run_id: str
    started: int


class Tracker:
    """Records the steps of one experiment, and reads them back.

    `MLFLOW_TRACKING_URI` says where; without it SQLite in `root`, artifacts in `root`/mlartifacts. `known`: that place
    has answered before, so what is recorded is worth waiting for. Every method raises UserError where MLflow refuses or
    does not answer.
    """

    def __init__(self, root: str | Path, config: Config, known: bool = False):
        self.root = Path(root).resolve()
        self.config = config
        self.config_digest = config.digest()
        self.store = Store(self.root, config.experiment.name, config.tracking.patience, known)
        self.registry = Registry(self.store)

    @property
    def uri(self) -> str:
        return self.store.uri

    def model_name(self, kind: str) -> str:
        return f"{self.config.experiment.name}-{kind}"

    def versions(self, model: str) -> list[Version]:
        """All versions of a registered model, oldest first; none where it is not registered."""
        return self.registry.versions(model)

    def resolve(self, reference: str) -> Version:
        """The version meant by `name@alias`, `name/3`, `name:3` or `name`; raises UserError where there is none."""
        return self.registry.resolve(reference)

    def download(self, version: Version, target: str | Path) -> Path:
        """Copies the version's files into the folder `target`; returns it."""
        return self.registry.download(version, Path(target))

    def step_runs(self, output_md5: str | None = None) -> list[StepRun]:
        """Steps recorded whole, of every configuration of the experiment, oldest first; by an output where asked."""
        runs = self.store.step_runs()
        if output_md5 is None:
            return runs
        return [run for run in runs if any(link.md5 == output_md5 for link in run.outputs.values())]

    def read_artifact(self, run_id: str, path: str) -> str | None:
        """A text file that a run keeps; None where the run has none of that name."""
        from mlflow.artifacts import load_text
        from mlflow.exceptions import MlflowException

        with self.store.errors():
            folder, _, _ = path.rpartition("/")
            try:
                if path not in {item.path for item in self.store.client.list_artifacts(run_id, folder or None)}:
                    return None
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
            return load_text(f"{self.store.client.get_run(run_id).info.artifact_uri}/{path}")

    def step_params(self, run_id: str) -> dict[str, str]:
        """Parameters of a recorded step, e.g. `align.beta`; a text as it is, anything else as JSON."""
        with self.store.errors():
            return dict(self.store.client.get_run(run_id).data.params)

    def log_index(self, pipeline_run: str, index: Mapping[str, Any]) -> None:
        """Keeps where the artifacts of a pipeline's run lie, on the experiment's run; a later index replaces it."""

        def log() -> None:
            with self.store.writing():
                experiment, _ = self._parents(steps_of("run")[0], "run", now())
                self.store.client.log_dict(experiment, dict(index), f"pipeline/{pipeline_run}.json")
                self.store.set_tags(experiment, {f"{PREFIX}pipeline.{pipeline_run}": "index"})

        self.store.patiently(log)

    def read_index(self, pipeline_run: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `log_index` kept of a pipeline's run, and the configuration it ran with."""
        from mlflow.artifacts import load_dict

        runs = self.store.find_runs(**{f"pipeline.{pipeline_run}": "index"})
        if not runs:
            raise UserError(
                f"MLflow at {self.uri} knows no pipeline run {pipeline_run!r} of experiment "
                f"{self.config.experiment.name!r}, or none of its rounds has ended; check the id, experiment.name and "
                "MLFLOW_TRACKING_URI"
            )
        with self.store.errors():
            root = runs[0].info.artifact_uri
            return load_dict(f"{root}/pipeline/{pipeline_run}.json"), load_dict(f"{root}/config.json")

    def record(
        self,
        step: Step,
        round_name: str,
        prev: str,
        inputs: dict[str, Artifact],
        outputs: dict[str, Artifact],
        summary: Summary,
        seconds: float,
        git_commit: str | None,
        ended: int | None = None,
    ) -> str:
        """Records a step that finished at `ended` (milliseconds since the epoch; None: now); returns its run's id.

        Recording the same step of the same configuration with the same inputs and outputs again changes nothing; a
        recording that was cut off is completed, which is tried for `tracking.patience` seconds.
        """
        end = ended or now()
        what = (step, round_name, prev, inputs, outputs, summary, seconds, git_commit, end)
        return self.store.patiently(lambda: self._record(*what))

    def _record(
        self,
        step: Step,
        round_name: str,
        prev: str,
        inputs: dict[str, Artifact],
        outputs: dict[str, Artifact],
        summary: Summary,
        seconds: float,
        git_commit: str | None,
        end: int,
    ) -> str:
        started = end - round(seconds * 1000)
        with self.store.writing():
            experiment, parent = self._parents(step, round_name, started)
            key = {"level": "step", "step": step.name, "round": round_name, "config_digest": self.config_digest}
            key["record"] = record_key(inputs, outputs)
            more = {f"{PREFIX}prev": prev, "mlflow.source.name": f"dualipo {step.name}", "mlflow.source.type": "LOCAL"}
            if git_commit:
                more["mlflow.source.git.commit"] = git_commit
            run, _ = self.store.open_run(f"{step.name} {round_name}", parent, started, more, key)
            run_id = run.info.run_id
            if run.data.tags.get(f"{PREFIX}complete") == "true":
                return run_id
            record = _Record(step, round_name, inputs, outputs, git_commit, run_id, run.info.start_time)
            self._log_links(record)
            scored = set() if SKIPPED in summary.tags else self._move_models(record)
            self._log_summary(record, {"seconds": seconds, **summary.metrics}, scored, summary)
            if SKIPPED not in summary.tags:
                self._log_headline(record, experiment)
            self.store.client.set_terminated(run_id, "FINISHED", end)
            if step.name == steps_of(step.scope)[-1].name:
                self.store.client.set_terminated(parent, "FINISHED", end)
            self.store.set_tags(run_id, {f"{PREFIX}complete": "true"})
        return run_id

    def _parents(self, step: Step, round_name: str, started: int) -> tuple[str, str]:
        """Ids of the experiment's run and of the run that the step's run belongs under."""
        self.store.create_experiment()
        key = {"level": "experiment", "config_digest": self.config_digest}
        run, made = self.store.open_run(self.config.experiment.name, None, started, {}, key)
        experiment = run.info.run_id
        if made:
            self.store.client.log_text(experiment, config_json(self.config), "config.json")
        if step.scope == "run":
            return experiment, experiment
        key |= {"level": "round", "round": round_name}
        name = BASE if round_name == BASE else f"round {round_name}"
        return experiment, self.store.open_run(name, experiment, started, {}, key)[0].info.run_id

    def _log_links(self, record: _Record) -> None:
        """Parameters, configuration, and every input and output with its md5."""
        from dualipo.evaluation.suites import CLIP_SCORES

        run_id = record.run_id
        sections = {name: self.config.identity(name) for name in record.step.sections}
        params = {f"{section}.{key}": value for section, content in sections.items() for key, value in content.items()}
        self.store.log_params(run_id, params)
        self.store.client.log_text(run_id, config_json(self.config), "config.json")
        tags: dict[str, str] = {}
        for direction, artifacts in (("input", record.inputs), ("output", record.outputs)):
            tags |= {f"{PREFIX}{direction}.{port}": artifact.as_tag() for port, artifact in artifacts.items()}
            datasets = {port: artifact for port, artifact in artifacts.items() if artifact.kind in _DATASETS}
            self.store.log_datasets(run_id, direction, datasets)
        self.store.set_tags(run_id, tags)
        for port, artifact in record.outputs.items():
            if artifact.kind in KEPT:
                name = port if artifact.location.is_dir() else Path(artifact.path).name
                self.store.log_file(run_id, artifact.location, f"outputs/{name}")
            elif artifact.kind == "clips" and (artifact.location / CLIP_SCORES).is_file():
                self.store.log_file(run_id, artifact.location / CLIP_SCORES, f"outputs/{port}/{CLIP_SCORES}")

    def _log_summary(self, record: _Record, metrics: dict[str, float], scored: set[str], summary: Summary) -> None:
        single = {key: [(0, value)] for key, value in metrics.items() if key not in scored}
        curves = {f"curves/{key}": values for key, values in summary.curves.items()}
        self.store.log_metrics(record.run_id, single | curves, record.started)
        for name, picture in summary.pictures.items():
            if not Path(picture).exists():
                continue  # recorded long after it was made: scratch folders are gone
            self.store.log_file(record.run_id, Path(picture), f"pictures/{name}{Path(picture).suffix}")
        self.store.set_tags(record.run_id, summary.tags)

    def _log_headline(self, record: _Record, experiment: str) -> None:
        """The scores of what goes on to the next round, as curves over rounds on the experiment's run."""
        for port in sorted(_SCORED.keys() & record.outputs.keys()):
            if record.step.outputs[port].path.removeprefix("runs/{round}/") not in HANDED_ON:
                continue
            number = 0 if record.round == BASE else list(self.config.rounds).index(record.round) + 1
            content = read_json(record.outputs[port].location)
            scores = flatten(content, f"{content.get('namespace', '')}{port}.")
            headline = {key: [(number, v)] for key, v in scores.items() if key.endswith(".mean")}
            self.store.log_metrics(experiment, headline, record.started)

    def _move_models(self, record: _Record) -> set[str]:
        """Registers, promotes or takes back what the step is about; returns the keys of the scores logged."""
        if _SETTLEMENT in record.outputs and record.step.scope == "round":
            self._settle(record)
            return set()
        return self._promote(record) if DECISION in record.outputs else self._register(record)

    def _settle(self, record: _Record) -> None:
        """Where the critic was rolled back: makes the former one champion again, if the round's was."""
        settlement: dict[str, Any] = read_json(record.outputs[_SETTLEMENT].location)
        if not settlement["critic_rolled_back"]:
            return
        taken_back = self._version(record, record.inputs["accepted_critic"])
        former = self._version(record, record.outputs["critic"], without=taken_back)
        by, reason = f"{record.step.name}, round {record.round}", settlement["reasons"][0]
        if taken_back == self.registry.champion(taken_back.name):
            self.registry.restore(former, by, reason, record.run_id)
        else:
            # it still waited for a person's approval
            self.registry.set_tags(taken_back, {"status": "rolled back", "reason": reason})

    def _register(self, record: _Record) -> set[str]:
        """Registers the models the step made and scores the one it measured; returns the keys of the scores logged."""
        base = record.step.scope == "base"
        made = [
            self._new_version(record, artifact, "base" if base else "candidate")
            for artifact in record.outputs.values()
            if artifact.is_version
        ]
        logged: set[str] = set()
        for port in _SCORED.keys() & record.outputs.keys():
            kind, data = _SCORED[port]
            version = self._version(record, record.outputs[kind] if base else record.inputs["candidate"])
            scores: dict[str, Any] = read_json(record.outputs[port].location)
            dataset = record.inputs[data]
            logged |= self.registry.attach_scores(version, scores, record.run_id, record.started, dataset)
        if _BASELINES in record.outputs:
            observed = read_json(record.outputs[_BASELINES].location).get("videoreward")
            if observed:
                version, dataset = self._version(record, record.inputs["reward"]), record.inputs["test_labels"]
                more = (record.run_id, record.started, dataset, "videoreward.")
                logged |= self.registry.attach_scores(version, observed, *more)
        if base:
            for version in made:
                self._crown(record, version, "base", _AS_IT_CAME)
        return logged

    def _promote(self, record: _Record) -> set[str]:
        """Marks the candidate as the step's decision says, keeps the evidence, and moves the champion."""
        made, decision = record.inputs["candidate"], record.outputs[DECISION]
        passed_on = next(artifact for artifact in record.outputs.values() if artifact.kind in MODELS)
        same = passed_on.digest.md5 == made.digest.md5
        candidate = self._version(record, made)
        verdict: dict[str, Any] = read_json(decision.location)
        if verdict["promoted"]:
            if not same:
                raise UserError(
                    f"{decision.path}: says promoted, yet {passed_on.path} is not {made.path}; run the step again"
                )
            self._crown(record, candidate, "promote", verdict)
            return set()
        reason = "; ".join(verdict["reasons"]) or "no reason given"
        self.registry.repair(candidate.name)
        self.registry.attach(candidate, self._evidence(record, candidate, verdict))
        self.registry.set_tags(candidate, {"status": "rejected", "reason": reason})
        champion = self.registry.champion(candidate.name)
        if champion is None or champion.md5 != passed_on.digest.md5:
            incumbent = self._version(record, passed_on, without=None if same else candidate)
            self._crown(record, incumbent, "keep", {**verdict, "reasons": [f"its candidate was rejected: {reason}"]})
        return set()

    def _crown(self, record: _Record, version: Version, kind: Kind, decision: Mapping[str, Any]) -> None:
        """Makes the version champion, or lets it wait for a person where `promotion.require_approval` says so."""
        evidence = self._evidence(record, version, decision) if kind != "keep" or EVIDENCE not in version.tags else None
        by = record.step.name if record.step.scope == "base" else f"{record.step.name}, round {record.round}"
        reason = "; ".join(decision["reasons"]) or "no reason given"
        if not self.config.promotion.require_approval or self.registry.champion(version.name) is None:
            self.registry.crown(version, kind, by, reason, record.run_id, evidence)
            return
        if evidence:
            self.registry.attach(version, evidence)
        if kind == "promote":
            self.registry.set_tags(version, {"status": AWAITING, "reason": None})

    def _evidence(self, record: _Record, version: Version, decision: Mapping[str, Any]) -> Evidence:
        run = {"run_id": record.run_id, "step": record.step.name, "round": record.round, "time": record.started}
        run |= {"config_digest": self.config_digest, "git_commit": record.git_commit or "unknown"}
        return gather(version, decision, record.inputs, record.outputs, run)

    def _version(self, record: _Record, artifact: Artifact, without: Version | None = None) -> Version:
        """The version that holds the artifact; registered now where the step that made it was recorded elsewhere."""
        name, md5 = self.model_name(artifact.kind), artifact.digest.md5
        known = self.registry.find(name, md5, record.round, self.config_digest, without)
        return known or self._new_version(record, artifact, "candidate")

    def _new_version(self, record: _Record, artifact: Artifact, status: str) -> Version:
        tags = {
            "round": record.round,
            "step": record.step.name,
            "config_digest": self.config_digest,
            "git_commit": record.git_commit or "unknown",
            "status": status,
            **{f"input.{port}": link.digest.md5 for port, link in record.inputs.items()},
        }
        return self.registry.register(self.model_name(artifact.kind), artifact, record.run_id, tags)


def record_key(inputs: Mapping[str, Artifact], outputs: Mapping[str, Artifact]) -> str:
    content = [{port: [a.path, a.digest.md5] for port, a in artifacts.items()} for artifacts in (inputs, outputs)]
    return hashlib.md5(json.dumps(content, sort_keys=True).encode()).hexdigest()
