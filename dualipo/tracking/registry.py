"""Registered models: versions, aliases, verdicts, and their way back to disk."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from dualipo.artifacts import digest
from dualipo.errors import UserError
from dualipo.tracking.entries import MODELS, Artifact, Version
from dualipo.tracking.evidence import Evidence, read
from dualipo.tracking.history import History, Kind, Line, Move
from dualipo.tracking.store import PREFIX, Store, flatten, now, pages

CHAMPION, PREVIOUS = "champion", "previous"
PROMOTED, AWAITING = "promoted", "awaiting approval"
_MODEL_VERSIONS = "mlflow.modelVersions"
_REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^@/:]+)(?:@(?P<alias>[^@/:]+)|[/:](?P<number>\d+))?")


class Registry:
    def __init__(self, store: Store):
        self.store = store
        self.history = History(store)

    def versions(self, model: str) -> list[Version]:
        """All versions of a registered model, oldest first; none where it is not registered."""
        if self.store.experiment_id is None:
            return []
        client = self.store.client
        with self.store.errors():
            found = [m for m in client.search_registered_models(f"name = '{model}'") if m.name == model]
            if not found:
                return []
            entries = list(pages(lambda token: client.search_model_versions(f"name = '{model}'", 1000, None, token)))
        return sorted((_version(entry, found[0].aliases) for entry in entries), key=lambda version: version.number)

    def resolve(self, reference: str) -> Version:
        """The version meant by `name@alias`, `name/3`, `name:3` or `name` (its champion).

        `critic`, `generator` and `reward` stand for the experiment's own models. Raises UserError that lists what
        there is.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise UserError(f"{reference!r} is no model version; write name@champion or name/3")
        name = match["name"]
        if name in MODELS:
            name = f"{self.store.experiment}-{name}"
        versions = self.versions(name)
        if not versions:
            raise UserError(
                f"{name}: no such model in MLflow at {self.store.uri}; run the experiment first, or name one of "
                f"{', '.join(f'{self.store.experiment}-{kind}' for kind in MODELS)}"
            )
        alias = match["alias"] or CHAMPION
        for version in versions:
            if version.number == int(match["number"]) if match["number"] else alias in version.aliases:
                return version
        known = ", ".join("@".join([str(v.number), *v.aliases]) for v in versions)
        raise UserError(f"{reference}: no such version of {name}; there are {known}")

    def find(
        self, model: str, md5: str, round_name: str, config_digest: str, without: Version | None = None
    ) -> Version | None:
        """The version of exactly these bytes, nearest to this configuration and then this round, then the newest."""
        same = [version for version in self.versions(model) if version.md5 == md5 and version != without]

        def nearness(version: Version) -> tuple[bool, bool, int]:
            return version.config_digest == config_digest, version.round == round_name, version.number

        return max(same, key=nearness, default=None)

    def champion(self, model: str) -> Version | None:
        return next((version for version in self.versions(model) if CHAMPION in version.aliases), None)

    def register(self, model: str, artifact: Artifact, run_id: str, tags: Mapping[str, str]) -> Version:
        """A version holding the bytes of `artifact`; the one there is where they, round and configuration are equal.

        The bytes are copied to MLflow's artifact store as they are, so that `models:/name@alias` downloads them.
        """
        tags = {"md5": artifact.digest.md5, "path": artifact.path, "run_id": run_id, **tags}
        found = self.find(model, artifact.digest.md5, tags["round"], tags["config_digest"])
        if found is None or (found.round, found.config_digest) != (tags["round"], tags["config_digest"]):
            found = self._new_version(model, artifact, run_id, tags)
        link = json.dumps([{"name": model, "version": found.number}])
        self.store.client.set_logged_model_tags(found.model_id, {_MODEL_VERSIONS: link})
        return found

    def _new_version(self, model: str, artifact: Artifact, run_id: str, tags: dict[str, str]) -> Version:
        logged = self._logged_model(model, artifact, run_id, tags)
        client = self.store.client
        self.store.create_registered_model(model)
        tags["model_id"] = logged.model_id
        prefixed = {PREFIX + key: value for key, value in tags.items()}
        # The location rather than models:/<id>: MLflow looks the latter up at the process-wide tracking URI.
        entry = client.create_model_version(
            model, logged.artifact_location, run_id=run_id, tags=prefixed, model_id=logged.model_id
        )
        return next(version for version in self.versions(model) if version.number == int(entry.version))

    def _logged_model(self, model: str, artifact: Artifact, run_id: str, tags: Mapping[str, str]) -> Any:
        from mlflow.entities import LoggedModelOutput

        client, name = self.store.client, f"{model}-{tags['round']}"
        # A run that was killed while registering left one behind: go on with it.
        left = client.search_logged_models([self.store.experiment_id], f"name = '{name}'")
        mine = [m for m in left if m.source_run_id == run_id and m.tags.get(f"{PREFIX}md5") == artifact.digest.md5]
        logged = mine[0] if mine else None
        if logged is None:
            own = {PREFIX + key: value for key, value in tags.items()}
            logged = client.create_logged_model(self.store.experiment_id, name, run_id, own, model_type=artifact.kind)
        if logged.status != "READY":
            client.log_model_artifacts(logged.model_id, str(artifact.location))
            logged = client.finalize_logged_model(logged.model_id, "READY")
        outputs = client.get_run(run_id).outputs
        if logged.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
        return logged

    def set_tags(self, version: Version, tags: Mapping[str, str | None]) -> None:
        """None removes a tag."""
        client, where = self.store.client, (version.name, str(version.number))
        for key, value in tags.items():
            if value is not None:
                self.store.insist(partial(client.set_model_version_tag, *where, PREFIX + key, value))
            elif key in version.tags:
                self.store.insist(partial(client.delete_model_version_tag, *where, PREFIX + key))

    def attach_scores(
        self,
        version: Version,
        scores: Mapping[str, Any],
        run_id: str,
        timestamp: int,
        dataset: Artifact,
        prefix: str = "",
    ) -> set[str]:
        """Ties every number of a scores file to the version's model and to the data set it was measured on.

        Returns the keys of the metrics logged, which begin with `prefix` and the file's `namespace`, where it has one.
        """
        numbers = flatten(scores, prefix + scores.get("namespace", ""))
        series = {key: [(0, value)] for key, value in numbers.items()}
        self.store.log_metrics(run_id, series, timestamp, version.model_id, dataset)
        means = {
            key: f"{value:.6g}" for key, value in flatten(scores).items() if key in ("total.mean", "agreement.mean")
        }
        # lists are long: the scores of every prompt.
        shown = {key: value for key, value in scores.items() if not isinstance(value, list)}
        self.set_tags(version, {**means, "scores": json.dumps(shown, sort_keys=True)})
        return set(numbers)

    # ---- the champion

    def crown(
        self,
        version: Version,
        kind: Kind,
        by: str,
        reason: str,
        key: str,
        evidence: Evidence | None = None,
        expected: int | None = None,
    ) -> Move | None:
        """Makes `version` the champion, and the champion before it the previous one; None where it is that already.

        Its evidence comes first: `evidence`, now signed by whoever moves it, else what it bears. The move `key` happens
        once, however often it is asked for. `expected` is the number of the model's move that the mover had looked at
        (`Line.last`): where another came after it, UserError says so and nothing happens; without it the mover wants
        the version to be champion whatever came. Raises UserError where the version's bytes are not what it was
        registered with, or its evidence is missing or was changed.
        """
        at = now()
        while True:
            line = self.repair(version.name)
            done = line.find(key)
            if not done and expected not in (None, line.last):
                raise UserError(_outrun(line, expected))
            if done or line.champion == version.number:
                return done
            if evidence:
                self.attach(version, evidence.signed(kind, by, reason, at))
                version = self._again(version)
            before = next((move.evidence for move in line.moves[::-1] if move.to == version.number), "")
            held = self.vouch(version, "" if evidence else before)
            former = line.champion if line.moves else self._number(version.name, CHAMPION)
            wanted = Move(version.name, kind, former, version.number, by, reason, at, held.digest, key)
            if self.history.append(wanted, line):
                return self.repair(version.name).find(key)

    def restore(self, version: Version, by: str, reason: str, key: str, expected: int | None = None) -> Move | None:
        """Makes a version champion again that was champion before, as a rollback: the next one goes back from there.

        None where it is champion. Raises UserError as `crown`, and where it never was champion.
        """
        line = self.history.line(version.name)
        if expected in (None, line.last) and version.number not in line.champions:
            raise UserError(f"{version.label}: it never was champion, or was rolled back; use `dualipo promote`")
        return self.crown(version, "rollback", by, reason, key, expected=expected)

    def attach(self, version: Version, evidence: Evidence) -> None:
        """Keeps evidence on the version; what it bears already stays."""
        self.set_tags(version, evidence.tags())

    def vouch(self, version: Version, evidence: str = "") -> Evidence:
        """The version's evidence, the newest or that of a digest, once MLflow hands out the bytes that it speaks of.

        Raises UserError where there is none, it was changed, or the bytes are others.
        """
        held = read(version, evidence)
        with tempfile.TemporaryDirectory() as folder:
            found = digest(self._bytes(version, Path(folder))).md5
        if found != held.md5:
            raise UserError(
                f"{version.label}: MLflow hands out other bytes ({found[:8]}) than were registered ({held.md5[:8]}); "
                "bring its artifacts back, then promote it"
            )
        return held

    def repair(self, model: str) -> Line:
        """Lets aliases and statuses follow the model's moves, as far as a mover that was killed did not; the moves."""
        line = self.history.line(model)
        while line.moves:
            self._follow(line)
            again = self.history.line(model)
            if again.last == line.last:
                break
            line = again  # another mover came, who may have set the aliases before this one did
        return line

    def _follow(self, line: Line) -> None:
        move = line.moves[-1]
        versions = {version.number: version for version in self.versions(line.model)}
        if move.to not in versions:
            raise UserError(f"{line.model}/{move.to}: the champion was deleted from MLflow; bring its backup back")
        signed = {} if move.kind == "base" else {"promoted_by": move.by, "promoted_reason": move.reason}
        wanted: dict[int, dict[str, str | None]] = {move.to: {"status": PROMOTED, "reason": None, **signed}}
        if move.kind == "rollback" and move.former in versions:
            wanted[move.former] = {"status": "rolled back", "reason": move.reason}
        for number, tags in wanted.items():
            if versions[number].tags.get("status") == "base":
                del tags["status"]  # stays the base model, whatever comes of it
            differ = {key: value for key, value in tags.items() if versions[number].tags.get(key) != value}
            self.set_tags(versions[number], differ)
        # previous first: whoever is killed in between leaves a champion all the same.
        for alias, wants in ((PREVIOUS, line.previous), (CHAMPION, line.champion)):
            holder = next((version.number for version in versions.values() if alias in version.aliases), None)
            client = self.store.client
            if wants is not None and holder != wants:
                self.store.insist(partial(client.set_registered_model_alias, line.model, alias, str(wants)))
            elif wants is None and holder is not None:
                self.store.insist(partial(client.delete_registered_model_alias, line.model, alias))

    def _again(self, version: Version) -> Version:
        return next(found for found in self.versions(version.name) if found.number == version.number)

    def _number(self, model: str, alias: str) -> int | None:
        return next((version.number for version in self.versions(model) if alias in version.aliases), None)

    def _bytes(self, version: Version, folder: Path) -> Path:
        """The version's files: where they lie if that is a folder here, else downloaded to `folder`."""
        with self.store.errors():
            location = self.store.client.get_model_version_download_uri(version.name, str(version.number))
        here = Path(url2pathname(urlparse(location).path)) if location.startswith("file:") else Path(location)
        return here if here.is_absolute() and here.is_dir() else self.download(version, folder)

    def download(self, version: Version, target: Path) -> Path:
        """Copies the version's files into the folder `target`; returns it."""
        from mlflow.artifacts import download_artifacts

        with self.store.errors():
            location = self.store.client.get_model_version_download_uri(version.name, str(version.number))
            return Path(download_artifacts(location, dst_path=str(target), tracking_uri=self.store.uri))


def _outrun(line: Line, expected: int | None) -> str:
    seen = next((move.to for move in line.moves if move.number == expected), None)
    before = "none" if seen is None else f"v{seen}"
    return (
        f"the champion of {line.model} changed meanwhile from {before} to v{line.champion} "
        f"(by {line.moves[-1].by}); look again: `dualipo history`"
    )


def _version(entry: Any, aliases: Mapping[str, Any]) -> Version:
    tags = {key.removeprefix(PREFIX): value for key, value in entry.tags.items() if key.startswith(PREFIX)}
    number = int(entry.version)
    mine = tuple(sorted(alias for alias, held in aliases.items() if int(held) == number))
    return Version(entry.name, number, tags.get("model_id", ""), mine, tags)
