"""Which generator versions are meant, and where each comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.lineage import Node, format_lineage, lineage, nodes
from dualipo.steps import BASE
from dualipo.tracking import Tracker, Version

_GENERATOR = "-generator"
_MADE_BY = ("align", "latent_reward")
"""Sections of the parameters that say how a generator was aligned."""


@dataclass(frozen=True)
class Compared:
    """One version, and the tracker of the experiment that it belongs to."""

    version: Version
    tracker: Tracker
    name: str = ""
    """As short as tells it from the others, e.g. `Round 1`."""

    @property
    def label(self) -> str:
        return self.version.label


def find_versions(root: Path, config: Config, references: Sequence[str]) -> list[Compared]:
    """The generator versions meant by the references, in their order.

    A reference is what `Tracker.resolve` takes, or `base` or a round's name for the generator made there: the base
    model, or the round's candidate, promoted or not. Raises UserError where one means nothing, no generator, or what
    another one means.
    """
    if len(references) < 2:
        raise UserError("compare: name two or more generator versions, e.g. `dualipo compare base generator`")
    own = Tracker(root, config)
    found: list[Compared] = []
    for reference in references:
        version = _resolve(own, reference)
        experiment = version.name.removesuffix(_GENERATOR)
        if experiment == version.name:
            raise UserError(f"{reference}: {version.label} is no generator; compare versions of {_own_name(own)}")
        if not version.md5:
            raise UserError(f"{version.label}: it bears no md5, so it was not registered by dualipo; name another one")
        same = [known for known, other in zip(references, found, strict=False) if other.version == version]
        if same:
            raise UserError(f"{same[0]} and {reference} both mean {version.label}; name different versions")
        found.append(Compared(version, own if experiment == config.experiment.name else _other(own, experiment)))
    return _named(found)


def _resolve(tracker: Tracker, reference: str) -> Version:
    versions = tracker.versions(_own_name(tracker))
    made = [version for version in versions if version.round == reference]
    if made:
        return max(made, key=lambda version: (version.config_digest == tracker.config_digest, version.number))
    try:
        return tracker.resolve(reference)
    except UserError:
        if not versions or any(sign in reference for sign in "@/:"):
            raise
        rounds = ", ".join(dict.fromkeys(version.round for version in versions))
        raise UserError(
            f"{reference}: neither a round with a generator ({rounds}) nor a registered model; write a round, "
            f"NAME@ALIAS or NAME/VERSION of {_own_name(tracker)}"
        ) from None


def _own_name(tracker: Tracker) -> str:
    return tracker.model_name("generator")


def _other(own: Tracker, experiment: str) -> Tracker:
    renamed = own.config.experiment.model_copy(update={"name": experiment})
    return Tracker(own.root, own.config.model_copy(update={"experiment": renamed}))


def _named(found: Sequence[Compared]) -> list[Compared]:
    names = [_round_name(each.version) for each in found]
    short = [name if names.count(name) == 1 else each.label for name, each in zip(names, found, strict=True)]
    return [Compared(each.version, each.tracker, name) for each, name in zip(found, short, strict=True)]


def _round_name(version: Version) -> str:
    return "Base" if version.round == BASE else f"Round {version.round}"


def provenance(root: Path, compared: Compared) -> dict[str, Any]:
    """Where the version comes from, as plain values: round, code, parameters, data and judge, each with its md5."""
    version, tracker = compared.version, compared.tracker
    tree = lineage(root, tracker, version.label)
    params = tracker.step_params(version.run_id) if tree.run else {}
    return {
        "label": version.label,
        "aliases": list(version.aliases),
        "status": version.tags.get("status", ""),
        "reason": version.tags.get("reason", ""),
        "md5": version.md5,
        "round": version.round,
        "step": version.tags.get("step", ""),
        "git_commit": version.tags.get("git_commit", ""),
        "config_digest": version.config_digest,
        "run_id": version.run_id,
        "made_from": [_input(node) for node in tree.inputs],
        "judges": _judges(tracker, tree),
        "params": {key: value for key, value in params.items() if key.partition(".")[0] in _MADE_BY},
        "lineage": format_lineage(tree),
    }


def _input(node: Node) -> dict[str, Any]:
    version = node.version.label if node.version else ""
    return {"port": node.port, "path": node.link.path, "md5": node.link.md5, "version": version, "origin": node.origin}


def _judges(tracker: Tracker, tree: Node) -> list[dict[str, Any]]:
    """The critic behind the preferences, and a VideoReward where one scored them or looked on."""
    preferences = next((node for node in tree.inputs if node.port == "preferences"), None)
    if preferences is None:
        return []
    # What a step read is told where it is met first, which may be elsewhere in the tree.
    run = preferences.run
    told = next((n for n in nodes(tree) if run and n.run and n.run.run_id == run.run_id and n.inputs), preferences)
    scorer = tracker.step_params(run.run_id).get("prefer.scorer", "critic") if run else "critic"
    found = []
    for node in told.inputs:
        if node.link.kind in ("critic", "reward") and (node.version or node.link.kind == "critic"):
            agreement = node.version.tags.get("agreement.mean") if node.version else None
            found.append(
                {
                    "kind": node.link.kind,
                    "label": node.version.label if node.version else node.link.path,
                    "md5": node.link.md5,
                    "agreement": None if agreement is None else float(agreement),
                    "scored": (scorer == "critic") == (node.link.kind == "critic"),
                }
            )
    return found
