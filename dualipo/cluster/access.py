"""Who may do what, by the roles and bindings of rendered manifests: RBAC's own rules, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dualipo.cluster.render import Object, of_kind


@dataclass(frozen=True)
class Act:
    """One request, as RBAC sees it. `resource` with its subresource, e.g. `pods/log`."""

    verb: str
    resource: str
    group: str = ""
    name: str = ""

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{self.verb} {resource}{f' {self.name}' if self.name else ''}"


def may(objects: list[Object], subject: str, act: Act) -> bool:
    """Whether a service account (`name`) or a group (`group:name`) may."""
    return any(_covers(rule, act) for rule in rules(objects, subject))


def rules(objects: list[Object], subject: str) -> Iterator[Object]:
    """All rules bound to the subject."""
    known = {(role["kind"], role["metadata"]["name"]): role for role in of_kind(objects, "Role", "ClusterRole")}
    for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
        names = {f"group:{s['name']}" if s["kind"] == "Group" else s["name"] for s in binding.get("subjects", [])}
        role = known.get((binding["roleRef"]["kind"], binding["roleRef"]["name"]))
        if subject in names and role is not None:
            yield from role["rules"]


def subjects(objects: list[Object]) -> set[str]:
    """Everyone whom a binding names."""
    return {
        f"group:{subject['name']}" if subject["kind"] == "Group" else subject["name"]
        for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding")
        for subject in binding.get("subjects", [])
    }


def _covers(rule: Object, act: Act) -> bool:
    def names(field: str, value: str) -> bool:
        return value in rule.get(field, []) or "*" in rule.get(field, [])

    if not (names("verbs", act.verb) and names("apiGroups", act.group) and names("resources", act.resource)):
        return False
    return not rule.get("resourceNames") or act.name in rule["resourceNames"]


RUNS, REGISTRY, TRAINER = "pipelines.kubeflow.org", "mlflow.kubeflow.org", "trainer.kubeflow.org"
RELEASED = "release-generator"
"""Stands for a registered model of people's choosing, outside every experiment's own."""


def champions(experiment: str) -> list[Act]:
    """What runs of an experiment must be allowed, to move the champions of its own two models and to note each move."""
    names = [f"{experiment}-{name}" for name in ("critic", "generator", "history")]
    return [Act("update", "registeredmodels", REGISTRY, name) for name in names]


NEEDED: dict[str, list[Act]] = {
    "runner": [
        Act("create", "workflowtaskresults", "argoproj.io"),
        Act("get", "pods"),
        Act("get", "configmaps", name="kfp-launcher"),
        Act("get", "secrets", name="dualipo-s3"),
        Act("create", "trainjobs", TRAINER),
        Act("create", "experiments", REGISTRY),
        Act("update", "experiments", REGISTRY),
        Act("create", "registeredmodels", REGISTRY),
        *champions("small-world"),
    ],
    "submitter": [
        Act("create", "runs", RUNS),
        Act("get", "runs", RUNS),
        Act("terminate", "runs", RUNS),
        Act("create", "experiments", RUNS),
        Act("get", "experiments", REGISTRY),
        Act("get", "registeredmodels", REGISTRY, RELEASED),
        Act("get", "pods/log"),
    ],
    "promoter": [
        Act("create", "registeredmodels", REGISTRY),
        Act("update", "registeredmodels", REGISTRY, RELEASED),
        Act("get", "experiments", REGISTRY),
    ],
}
"""What each account is for."""

_ELEVATE = [
    Act("list", "secrets"),
    Act("create", "roles", "rbac.authorization.k8s.io"),
    Act("create", "rolebindings", "rbac.authorization.k8s.io"),
    Act("create", "pods/exec"),
    # leads past NetworkPolicies, to whatever listens on a pod's loopback.
    Act("create", "pods/portforward"),
    Act("impersonate", "serviceaccounts", name="dualipo-promoter"),
]
_MAKE_PODS = [
    Act("create", "pods"),
    Act("create", "jobs", "batch"),
    Act("create", "deployments", "apps"),
    Act("create", "workflows", "argoproj.io"),
]
FORBIDDEN: dict[str, list[Act]] = {
    "runner": [
        *_ELEVATE,
        *_MAKE_PODS,
        Act("create", "runs", RUNS),
        Act("update", "registeredmodels", REGISTRY, RELEASED),
        Act("delete", "registeredmodels", REGISTRY, "small-world-generator"),
        Act("create", "serviceaccounts/token", name="dualipo-promoter"),
    ],
    "submitter": [
        *_ELEVATE,
        *_MAKE_PODS,
        Act("create", "trainjobs", TRAINER),
        Act("create", "registeredmodels", REGISTRY),
        Act("update", "registeredmodels", REGISTRY, RELEASED),
        Act("update", "registeredmodels", REGISTRY, "small-world-generator"),
        Act("update", "experiments", REGISTRY),
        Act("get", "secrets", name="dualipo-s3"),
        Act("create", "serviceaccounts/token", name="dualipo-promoter"),
        Act("create", "serviceaccounts/token", name="dualipo-runner"),
    ],
    "promoter": [
        *_ELEVATE,
        *_MAKE_PODS,
        Act("create", "runs", RUNS),
        Act("create", "trainjobs", TRAINER),
        Act("delete", "registeredmodels", REGISTRY, RELEASED),
        Act("get", "secrets", name="dualipo-s3"),
        Act("create", "serviceaccounts/token", name="dualipo-submitter"),
    ],
}
"""What would undo the separation of the three."""
