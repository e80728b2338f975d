"""A Kubernetes API over HTTP for tests: objects of rendered manifests, and their own RBAC for whoever asks.

A bearer token is the name of a service account, or `admin`, who may do anything.
"""

from __future__ import annotations

import copy
import re

from serving import Request

from dualipo.cluster.access import Act, may

PLURALS = {
    "namespaces": "Namespace",
    "pods": "Pod",
    "nodes": "Node",
    "secrets": "Secret",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "resourcequotas": "ResourceQuota",
    "deployments": "Deployment",
    "statefulsets": "StatefulSet",
    "storageclasses": "StorageClass",
    "priorityclasses": "PriorityClass",
}
_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[\w.]+)/v1)(?:/namespaces/(?P<namespace>[\w-]+)(?=/))?"
    r"/(?P<plural>\w+)(?:/(?P<name>[\w.-]+))?$"
)


class ClusterApi:
    """What the server holds; tests change it in place."""

    def __init__(self, objects: list[dict]):
        self.objects = copy.deepcopy(objects)
        self.version = {"major": "1", "minor": "37", "gitVersion": "v1.37.1"}
        self.groups = ["apps", "argoproj.io", "trainer.kubeflow.org"]
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    def find(self, kind: str, name: str) -> dict:
        return next(o for o in self.objects if o["kind"] == kind and o["metadata"]["name"] == name)

    def remove(self, kind: str, name: str) -> None:
        self.objects.remove(self.find(kind, name))

    def allowed(self, who: str, act: Act) -> bool:
        return who == "admin" or may(self.objects, who, act)

    def answer(self, request: Request) -> tuple[int, dict]:
        who, path, body = request.token, request.path, request.body
        if path == "/version/":
            return 200, self.version | {key: "x" for key in _BUILD}
        if path == "/apis/":
            preferred = {"groupVersion": "x/v1", "version": "v1"}
            groups = [{"name": n, "versions": [preferred], "preferredVersion": preferred} for n in self.groups]
            return 200, {"kind": "APIGroupList", "groups": groups}
        review = re.fullmatch(
            r"/apis/authorization.k8s.io/v1/(?:namespaces/(\w+)/local|self)subjectaccessreviews", path
        )
        if review:
            if review[1] and who != "admin":
                return 403, _status(403, "Forbidden")
            asks = body["spec"]["resourceAttributes"]
            who = body["spec"]["user"].rpartition(":")[2] if review[1] else who
            resource = "/".join(filter(None, [asks["resource"], asks.get("subresource")]))
            act = Act(asks["verb"], resource, asks.get("group", ""), asks.get("name", ""))
            return 201, body | {"status": {"allowed": asks["namespace"] == "dualipo" and self.allowed(who, act)}}
        match = _PATH.fullmatch(path)
        if match is None or match["plural"] not in PLURALS:
            return 404, _status(404, "NotFound")
        name = match["name"] or ""
        if not self.allowed(who, Act("get" if name else "list", match["plural"], match["group"] or "", name)):
            return 403, _status(403, "Forbidden")
        kind = PLURALS[match["plural"]]
        found = [
            o
            for o in self.objects
            if o["kind"] == kind
            and o["metadata"].get("namespace") == match["namespace"]
            and name in ("", o["metadata"]["name"])
        ]
        if not name:
            return 200, {"kind": f"{kind}List", "items": found}
        return (200, found[0]) if found else (404, _status(404, "NotFound"))


_BUILD = ("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform")


def _status(code: int, reason: str) -> dict:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
