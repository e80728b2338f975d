"""A small API server of Kubernetes over real HTTP: TrainJobs, pods, logs and events of one namespace.

Keeps versions as the real one does: lists and watches go by resourceVersion, watches are streamed, old versions expire
(410 Gone), creations conflict, deletions bear preconditions and take the dependents first. What the controllers of
Kubeflow Trainer and JobSet would do, a test does itself: `api.pod`, `api.end`.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote

from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from serving import Answer, Cut, Request, serving

NAMESPACE = "dualipo"
Thing = dict[str, Any]


class Refusal(Exception):
    def __init__(self, status: int, message: str):
        self.status, self.message = status, message


class KubeApi:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.version = 100
        self.oldest = 0
        """Watches from before this version are told that it is gone."""
        self.store: dict[str, dict[str, Thing]] = {"trainjobs": {}, "pods": {}, "events": {}}
        self.history: list[tuple[int, str, str, Thing]] = []
        self.logs: dict[str, list[bytes]] = {}
        self.cuts = 0
        """Raised to break every stream that is open."""
        self.requests: list[tuple[str, str]] = []
        """Method and path with query, in the order of arrival."""
        self.refuse: Callable[[str, str], Refusal | None] = lambda method, path: None
        self.on_create: Callable[[Thing], None] = lambda job: None
        """What the controllers do once a TrainJob is made; runs in a thread of its own."""
        self.hold_removal = threading.Event()
        """While set, jobs under deletion do not go."""
        self.closing = False
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._server = ExitStack()
        self.url = self._server.enter_context(serving(self.answer))

    def close(self) -> None:
        for thread in self._threads:
            thread.join(60)
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self._server.close()

    # ---- what tests do and ask

    def job(self) -> Thing | None:
        with self.changed:
            return next(iter(self.store["trainjobs"].values()), None)

    def pod(self, job: Thing, index: int, phase: str = "Running", **status: Any) -> Thing:
        """Makes a node's pod, or changes its status."""
        name, labels = f"{job['metadata']['name']}-node-0-{index}-abcde", job["metadata"]["labels"]
        labels = labels | {
            "jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"],
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        body = {
            "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": f"machine-{index}", "containers": [{"name": "node"}]},
            "status": {"phase": phase, "startTime": now(), **status},
        }
        return self.put("pods", body)

    def log(self, job: Thing, index: int, *lines: str, stamp: Callable[[], str] | None = None) -> None:
        with self.changed:
            log = self.logs.setdefault(f"{job['metadata']['name']}-node-0-{index}-abcde", [])
            log += [f"{(stamp or fine_now)()} {line}\n".encode() for line in lines]
            self.changed.notify_all()

    def event(self, name: str, reason: str, message: str, kind: str = "Job") -> None:
        body = {
            "metadata": {"name": f"{name}.{uuid.uuid4().hex[:8]}"},
            "involvedObject": {"kind": kind, "name": name},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": now(),
        }
        self.put("events", body)

    def end(self, job: Thing, kind: str, reason: str = "x", message: str = "", status: str = "True") -> None:
        """Sets a condition of the job: Complete, Failed, Suspended."""
        with self.changed:
            job = deepcopy(self.store["trainjobs"][job["metadata"]["name"]])
            conditions = [c for c in job.get("status", {}).get("conditions", []) if c["type"] != kind]
            conditions.append({"type": kind, "status": status, "reason": reason, "message": message})
            self.put("trainjobs", job | {"status": {"conditions": conditions}})

    def cut(self) -> None:
        """Breaks every open stream, as a restart or a network does."""
        with self.changed:
            self.cuts += 1
            self.changed.notify_all()

    def expire(self) -> None:
        """Forgets the history: every version that a client knows is too old, and open streams break."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
        self.cut()

    def count(self, method: str, part: str, without: str | None = None) -> int:
        return sum(m == method and part in p and not (without and without in p) for m, p in self.requests)

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 60
        while not (found := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)
        return found

    # ---- state

    def put(self, kind: str, body: Thing) -> Thing:
        with self.changed:
            name = body["metadata"]["name"]
            old = self.store[kind].get(name)
            self.version += 1
            fresh = {"uid": uuid.uuid4().hex, "creationTimestamp": now(), "namespace": NAMESPACE}
            metadata = (old["metadata"] if old else fresh) | body["metadata"] | {"resourceVersion": str(self.version)}
            thing = deepcopy(body | {"metadata": metadata})
            self.store[kind][name] = thing
            self.history.append((self.version, kind, "MODIFIED" if old else "ADDED", thing))
            self.changed.notify_all()
            return deepcopy(thing)

    def drop(self, kind: str, name: str) -> None:
        with self.changed:
            thing = deepcopy(self.store[kind].pop(name))
            self.version += 1
            thing["metadata"]["resourceVersion"] = str(self.version)
            self.history.append((self.version, kind, "DELETED", thing))
            self.changed.notify_all()

    def create(self, kind: str, body: Thing, strict: bool) -> Thing:
        known = TrainerV1alpha1TrainJob.from_dict(body).to_dict()
        if strict and known != body:
            raise Refusal(400, "strict decoding error: unknown field in TrainJob")
        with self.changed:
            if body["metadata"]["name"] in self.store[kind]:
                raise Refusal(409, f"{kind} {body['metadata']['name']!r} already exists")
            made = self.put(kind, body)
        self.start(self.on_create, made)
        return made

    def start(self, function: Callable[..., None], *arguments: Any) -> None:
        """In a thread of its own. Should it fail, the job goes: nobody waits for what will not happen."""

        def guarded() -> None:
            try:
                function(*arguments)
            except BaseException as error:
                self.errors.append(error)
                for name in list(self.store["trainjobs"]):
                    self.drop("trainjobs", name)

        self._threads.append(threading.Thread(target=guarded, daemon=True))
        self._threads[-1].start()

    def patch(self, kind: str, name: str, changes: Thing) -> Thing:
        with self.changed:
            body = deepcopy(self.find(kind, name))
            for key in ("uid", "resourceVersion"):
                if changes["metadata"].get(key, body["metadata"][key]) != body["metadata"][key]:
                    raise Refusal(409, f"the object has been modified: {key}")
            return self.put(kind, _merge(body, changes))

    def delete(self, kind: str, name: str, options: Thing) -> Thing:
        with self.changed:
            thing = self.find(kind, name)
            uid = options.get("preconditions", {}).get("uid")
            if uid and uid != thing["metadata"]["uid"]:
                raise Refusal(409, "the UID in the precondition does not match")
            if options.get("propagationPolicy") != "Foreground":
                raise Refusal(422, "only foreground deletion is known here")
            if "deletionTimestamp" not in thing["metadata"]:
                self.put(kind, thing | {"metadata": thing["metadata"] | {"deletionTimestamp": now()}})
                self.start(self._remove, kind, name)
            return deepcopy(thing)

    def _remove(self, kind: str, name: str) -> None:
        while self.hold_removal.is_set():
            time.sleep(0.005)
        for pod in [p for p, t in self.store["pods"].items() if t["metadata"]["name"].startswith(name)]:
            self.drop("pods", pod)
        self.drop(kind, name)

    def find(self, kind: str, name: str) -> Thing:
        with self.changed:
            if name not in self.store[kind]:
                raise Refusal(404, f'{kind} "{name}" not found')
            return self.store[kind][name]

    # ---- over HTTP

    def answer(self, request: Request) -> tuple[int, Answer]:
        path = unquote("?".join(filter(None, [request.path, request.query])))
        self.requests.append((request.method, path))
        query = {key: values[0] for key, values in parse_qs(request.query).items()}
        # truth as Go's ParseBool takes it.
        query |= {key: "true" for key, value in query.items() if value in ("True", "1")}
        try:
            if refusal := self.refuse(request.method, path):
                raise refusal
            return 200, self._route(request, query)
        except Refusal as refusal:
            return refusal.status, {"kind": "Status", "code": refusal.status, "message": refusal.message}
        except Exception as error:
            self.errors.append(error)
            raise

    def _route(self, request: Request, query: dict[str, str]) -> Answer:
        path = request.path.split(f"/namespaces/{NAMESPACE}/")[1].split("/")
        kind, name, sub = (*path, None, None)[:3]
        if sub == "log":
            return self._log(name, query)
        if query.get("watch") == "true":
            return self._watch(kind, query)
        if request.method == "POST":
            return self.create(kind, request.body, query.get("fieldValidation") == "Strict")
        if request.method == "PATCH":
            assert request.headers["Content-Type"] == "application/merge-patch+json"
            return self.patch(kind, name, request.body)
        if request.method == "DELETE":
            return self.delete(kind, name, request.body)
        if name:
            return self.find(kind, name)
        with self.changed:
            items = [thing for thing in self.store[kind].values() if _matches(thing, query)]
            return {"metadata": {"resourceVersion": str(self.version)}, "items": deepcopy(items)}

    def _watch(self, kind: str, query: dict[str, str]) -> Iterator[bytes]:
        version = int(query["resourceVersion"])
        with self.changed:
            if version >= self.oldest:
                return self._changes(kind, query, version, self.cuts)
            # half of the servers say so in the status, half in the stream.
            if self.oldest % 2:
                raise Refusal(410, "too old resource version")
            gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
            return iter([json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"])

    def _changes(self, kind: str, query: dict[str, str], version: int, cuts: int) -> Iterator[bytes]:
        end = time.monotonic() + int(query["timeoutSeconds"])
        while True:
            with self.changed:
                while True:
                    news = [e for e in self.history if e[0] > version and e[1] == kind and _matches(e[3], query)]
                    if news or self.cuts != cuts or self.closing or time.monotonic() > end:
                        break
                    self.changed.wait(0.5)
                if self.cuts != cuts or self.closing:
                    raise Cut
                lines = [json.dumps({"type": e[2], "object": e[3]}).encode() + b"\n" for e in news]
            if not news:
                return
            version = news[-1][0]
            bookmark = {"metadata": {"resourceVersion": str(version)}}
            for line in [*lines, json.dumps({"type": "BOOKMARK", "object": bookmark}).encode() + b"\n"]:
                # a line may come in any number of pieces.
                yield line[:20]
                yield line[20:]

    def _log(self, name: str, query: dict[str, str]) -> Answer:
        assert query["container"] == "node"
        with self.changed:
            if self.find("pods", name)["status"]["phase"] == "Pending":
                raise Refusal(400, "container is waiting to start: ContainerCreating")
            if query.get("timestamps") == "true":
                return self._lines(name, query, self.cuts)
            log = [line.split(b" ", 1)[1] for line in self.logs.get(name, [])]
            return b"".join(log[-int(query["tailLines"]) :]).decode()

    def _lines(self, name: str, query: dict[str, str], cuts: int) -> Iterator[bytes]:
        sent = 0
        while True:
            with self.changed:
                while True:
                    news = self.logs.get(name, [])[sent:]
                    pod = self.store["pods"].get(name)
                    over = pod is None or pod["status"]["phase"] in ("Succeeded", "Failed")
                    if news or over or self.cuts != cuts or self.closing or query.get("follow") != "true":
                        break
                    self.changed.wait(0.5)
                cut = self.cuts != cuts or self.closing
            sent += len(news)
            text = b"".join(news)
            if cut:
                # in the midst of a line.
                yield text[:-3] or b"2026-01-01T00:00:00.9Z hal"
                if self.cuts % 2:
                    return  # as if that were all
                raise Cut
            if not news:
                return
            yield text


def _merge(into: Any, changes: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(changes, dict):
        return changes
    kept = {key: value for key, value in into.items() if changes.get(key, value) is not None}
    return kept | {key: _merge(kept.get(key, {}), value) for key, value in changes.items() if value is not None}


def _matches(thing: Thing, query: dict[str, str]) -> bool:
    for selector in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = selector.partition("=")
        if thing["metadata"].get("labels", {}).get(key) != value:
            return False
    for selector in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = selector.partition("=")
        node: Any = thing
        for key in path.split("."):
            node = node[key]
        if node != value:
            return False
    return True


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fine_now() -> str:
    """As a container runtime writes it: nanoseconds, without trailing zeros."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{nanoseconds:09}".rstrip("0").rstrip(".") + "Z"
