"""Signed-off evidence: why a version was promoted or rejected, kept on it as a tag before any alias moves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualipo.artifacts import read_json
from dualipo.errors import UserError
from dualipo.quality.evidence import VERDICT
from dualipo.tracking.entries import Artifact, Version
from dualipo.tracking.history import canonical

EVIDENCE = "evidence"
"""Tag of the newest digest; `evidence.<its first 16 characters>` is the text. Older texts stay, for older moves."""
_LONGEST, _WORDIEST = 64, 2000
"""Lists of more entries, such as every prompt's scores, are told by number and md5, and longer texts are cut: MLflow
takes 100 000 characters, and the run's artifacts have it all."""


@dataclass(frozen=True)
class Evidence:
    content: Mapping[str, Any]
    """`version`, `files`, `scores`, `gates`, `decision`, `run` and, once somebody signed, `signed`."""

    @property
    def text(self) -> str:
        return canonical(self.content)

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def md5(self) -> str:
        """Of the version's bytes, as they were when the evidence was written."""
        return self.content["version"]["md5"]

    @property
    def promoted(self) -> bool:
        """What the gates said."""
        return bool(self.content["decision"]["promoted"])

    def signed(self, kind: str, by: str, reason: str, at: int) -> Evidence:
        return Evidence({**self.content, "signed": {"kind": kind, "by": by, "reason": reason, "at": at}})

    def tags(self) -> dict[str, str]:
        return {_key(self.digest): self.text, EVIDENCE: self.digest}


def gather(
    version: Version,
    decision: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    outputs: Mapping[str, Artifact],
    run: Mapping[str, Any],
) -> Evidence:
    """What a step that decides on `version` had before it: the verdicts of gates, scores, and the md5 of every file."""
    files = {**inputs, **outputs}
    made_of = {key.removeprefix("input."): md5 for key, md5 in version.tags.items() if key.startswith("input.")}
    about = {
        key: version.tags.get(key, "") for key in ("md5", "round", "step", "run_id", "config_digest", "git_commit")
    }
    content = {
        "version": {"name": version.name, "number": version.number, "made_of": made_of, **about},
        "files": {port: {"path": file.path, "md5": file.digest.md5} for port, file in files.items()},
        "scores": {port: _short(read_json(f.location)) for port, f in files.items() if f.kind == "scores"},
        "gates": {p: _gate(f.location) for p, f in inputs.items() if f.kind == "gate" and f.location.is_dir()},
        "decision": _short(dict(decision)),
        "run": dict(run),
    }
    return Evidence(content)


def read(version: Version, digest: str = "") -> Evidence:
    """The evidence that the version bears, the newest or that of a move's digest.

    Raises UserError where there is none, or where it is not what was signed.
    """
    digest = digest or version.tags.get(EVIDENCE, "")
    text = version.tags.get(_key(digest), "") if digest else ""
    if not text:
        raise UserError(
            f"{version.label}: it bears no evidence, so it can't be promoted; run its round to the end, where the "
            "promote step writes it"
        )
    found = Evidence(json.loads(text))
    if hashlib.sha256(text.encode()).hexdigest() != digest or found.md5 != version.md5:
        raise UserError(
            f"{version.label}: its evidence, or its md5, was changed after it was signed, so it can't be promoted; "
            "bring MLflow's backup back"
        )
    return found


def _key(digest: str) -> str:
    return f"{EVIDENCE}.{digest[:16]}"


def _gate(location: Path) -> Any:
    verdict = read_json(location / VERDICT)
    suites = {
        name: {"passed": suite["passed"], "expectations": len(suite["expectations"])}
        for name, suite in verdict.get("suites", {}).items()
    }
    return {"passed": verdict.get("passed"), "reasons": _short(verdict.get("reasons", [])), "suites": suites}


def _short(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _short(value) for key, value in content.items()}
    if isinstance(content, list):
        if len(content) > _LONGEST:
            return {"items": len(content), "md5": hashlib.md5(canonical(content).encode()).hexdigest()}
        return [_short(value) for value in content]
    return content[:_WORDIEST] if isinstance(content, str) else content
