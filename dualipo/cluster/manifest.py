"""The TrainJob of a training: a pure function of the parameters and of what is trained.

Follows trainer.kubeflow.org/v1alpha1 as Kubeflow Trainer 2.2 and newer define it (`runtimePatches`,
`activeDeadlineSeconds`); older versions refuse the unknown fields, they do not drop them silently.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from dualipo.config import TrainJob

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NODE = "node"
"""Kubeflow Trainer's name of the replicated job, and of the container in it, that trains."""
MODELS, SCRATCH = "/models", "/scratch"
"""Where the claims are mounted on every node."""
SPEC_HASH, ATTEMPT, WATCHER = "dualipo.io/spec-hash", "dualipo.io/attempt", "dualipo.io/watcher"
"""Annotations: of what the job was made, which attempt it is, and who answers for its removal."""
TEMPORARY = "16Gi"
"""Of a node's /tmp: compiled kernels and what libraries unpack; data and checkpoints go to the claims."""
USER = 1000
"""User and group of the nodes' processes; the group owns what they write to the claims."""


@dataclass(frozen=True)
class Training:
    """What is trained: the step, what identifies it, and the command that each process of each node runs."""

    experiment: str
    round: str
    step: str
    fingerprint: str
    """The step's, of its inputs and parameters (dualipo/engine.py)."""
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """The TrainJob's name: the same for the same work, so that a retry finds the job that is running.

        Short enough for `<name>-node-0-<index>`, which must be a DNS label of at most 63 characters.
        """
        step = re.sub(r"[^a-z0-9]+", "-", self.step.lower()).strip("-")[:20]
        round_name = re.sub(r"[^a-z0-9]+", "-", self.round.lower()).strip("-")[:10]
        return f"{step}-{round_name}-{self.fingerprint[:12]}"


@dataclass(frozen=True)
class Owner:
    """The pod whose deletion takes the job with it."""

    name: str
    uid: str

    def reference(self) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.uid}


def manifest(
    training: Training, settings: TrainJob, watcher: str, owner: Owner | None = None, attempt: int = 1
) -> dict[str, Any]:
    """The TrainJob as it is sent to the API server. `settings.image` must be set."""
    labels = _labels(training)
    spec = _spec(training, settings, labels)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": training.name,
            "namespace": settings.namespace,
            "labels": labels,
            "annotations": {SPEC_HASH: _hash(spec, labels), ATTEMPT: str(attempt), WATCHER: watcher},
            "ownerReferences": [owner.reference()] if owner else [],
        },
        "spec": spec,
    }


def _hash(spec: dict[str, Any], labels: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([spec, labels], sort_keys=True).encode()).hexdigest()


def _labels(training: Training) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "dualipo",
        "app.kubernetes.io/component": "training",
        "dualipo.io/experiment": label_value(training.experiment),
        "dualipo.io/round": label_value(training.round),
        "dualipo.io/step": label_value(training.step),
        "dualipo.io/fingerprint": label_value(training.fingerprint),
    }


def label_value(text: str) -> str:
    """`text` as a label may hold it: at most 63 characters, letters and digits at both ends."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:63].strip("-_.")


def _spec(training: Training, settings: TrainJob, labels: dict[str, str]) -> dict[str, Any]:
    metadata = {"labels": labels}
    pod = {"metadata": metadata, "spec": _pod(settings)}
    node = {"name": NODE, "template": {"metadata": metadata, "spec": {"template": pod}}}
    template = {"metadata": metadata, "spec": {"replicatedJobs": [node]}}
    return {
        "runtimeRef": {"apiGroup": GROUP, "kind": settings.runtime_kind, "name": settings.runtime},
        "activeDeadlineSeconds": settings.deadline_seconds,
        "trainer": _trainer(training, settings),
        "runtimePatches": [{"manager": "dualipo.io/runner", "trainingRuntimeSpec": {"template": template}}],
    }


def _trainer(training: Training, settings: TrainJob) -> dict[str, Any]:
    resources = {
        "cpu": str(settings.cpus_per_node),
        "memory": settings.memory_per_node,
        "nvidia.com/gpu": str(settings.gpus_per_node),
    }
    # the root file system is read-only: caches go where the home is.
    values = {"HOME": "/tmp"} | settings.env
    env: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(values.items())]
    for name, reference in sorted(settings.secret_env.items()):
        secret, _, key = reference.partition("/")
        env.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return {
        "image": settings.image,
        # torchrun reads nodes, processes and rendezvous from the PET_ variables that Kubeflow Trainer sets.
        "command": ["torchrun", "--no-python"],
        "args": list(training.command),
        "env": env,
        "numNodes": settings.nodes,
        "numProcPerNode": settings.gpus_per_node,
        "resourcesPerNode": {"requests": dict(resources), "limits": dict(resources)},
    }


def _pod(settings: TrainJob) -> dict[str, Any]:
    """Patches the runtime's pods: volumes, place, and the restricted Pod Security Standard."""
    mounts = {"models": MODELS, "scratch": SCRATCH, "shm": "/dev/shm", "tmp": "/tmp"}
    pod: dict[str, Any] = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": settings.models_claim, "readOnly": True}},
            {"name": "scratch", "persistentVolumeClaim": {"claimName": settings.scratch_claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
            {"name": "tmp", "emptyDir": {"sizeLimit": TEMPORARY}},
        ],
        "containers": [
            {
                "name": NODE,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": name, "mountPath": path, **({"readOnly": True} if name == "models" else {})}
                    for name, path in mounts.items()
                ],
            }
        ],
    }
    if settings.node_selector:
        pod["nodeSelector"] = dict(sorted(settings.node_selector.items()))
    return pod
