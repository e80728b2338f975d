"""The API server as the launcher needs it: a connection, retries of what may pass, and plain dictionaries."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualipo.cluster.connection import connect
from dualipo.cluster.manifest import GROUP, PLURAL, VERSION, Owner

if TYPE_CHECKING:
    from kubernetes import client

TRANSIENT = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
CONNECT = 10.0
"""Seconds to establish a connection."""


@dataclass(frozen=True)
class Patience:
    """Seconds that the launcher waits for things that are not the training's own affair."""

    backoff: float = 0.5
    """Before the first repetition of a request; doubled each time."""
    longest_backoff: float = 30.0
    answer: float = 30.0
    """For the answer to a request."""
    unreachable: float = 900.0
    """For an API server that does not answer, or only with errors that may pass."""
    watch: int = 240
    """Before the server is asked to end a watch, which is then begun anew."""
    quiet_log: float = 300.0
    """For a line of a log, before the connection is taken for dead."""
    image: float = 120.0
    """For an image whose pull fails, but not for good."""
    deletion: float = 600.0
    """For a job and its pods to be gone."""
    look: float = 10.0
    """Between two looks at the events while nodes are missing."""
    drain: float = 30.0
    """For the last lines of the logs."""
    cleanup: float = 20.0
    """For the API server to take the job's deletion; a pod that is ended has 30 seconds in all."""

    def delays(self) -> Iterator[float]:
        """Exponential, bounded, with jitter so that many watchers do not come back at once."""
        delay = self.backoff
        while True:
            yield delay * random.uniform(0.5, 1.0)
            delay = min(2 * delay, self.longest_backoff)


class Cluster:
    """Requests about TrainJobs, pods, logs and events of one namespace.

    Errors come as `kubernetes.client.ApiException` where the server refuses, else as urllib3's.
    """

    def __init__(self, client_: client.ApiClient, namespace: str, pod: str | None, patience: Patience):
        """`pod`: the name of the pod that this runs in, None outside of one."""
        from kubernetes import client

        self.namespace, self.pod, self.patience = namespace, pod, patience
        self._custom, self._core = client.CustomObjectsApi(client_), client.CoreV1Api(client_)
        self._jobs = (GROUP, VERSION, namespace, PLURAL)
        self._timeout = (CONNECT, patience.answer)

    # ---- TrainJobs

    def get(self, name: str, within: float | None = None) -> dict[str, Any] | None:
        try:
            return self.persist(self._custom.get_namespaced_custom_object, *self._jobs, name, within=within)
        except _refusal() as error:
            if error.status == 404:
                return None
            raise

    def create(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """The created TrainJob, or None where one of this name exists. Fields unknown to the cluster are an error."""
        try:
            make = self._custom.create_namespaced_custom_object
            return self.persist(make, *self._jobs, body, field_validation="Strict")
        except _refusal() as error:
            # also the answer to a repetition of a request that had reached the server.
            if error.status == 409:
                return None
            raise

    def patch(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """A JSON merge patch: this client sends no other kind to custom objects."""
        return self.persist(self._custom.patch_namespaced_custom_object, *self._jobs, name, changes)

    def delete(self, job: dict[str, Any], within: float | None = None) -> None:
        """Deletes this very job, after its JobSet and pods; does nothing where it is gone or another has its name."""
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": job["metadata"]["uid"]}}
        remove = self._custom.delete_namespaced_custom_object
        try:
            self.persist(remove, *self._jobs, job["metadata"]["name"], body=options, within=within)
        except _refusal() as error:
            if error.status not in (404, 409):
                raise

    def list_jobs(self, **options: Any) -> Any:
        return self._custom.list_namespaced_custom_object(*self._jobs, **options)

    # ---- pods, logs, events

    def list_pods(self, **options: Any) -> Any:
        return self._core.list_namespaced_pod(self.namespace, **options)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Events about objects of these names."""
        found = []
        for name in names:
            selector = f"involvedObject.name={name}"
            answer = self.persist(self._core.list_namespaced_event, self.namespace, field_selector=selector)
            found += answer["items"]
        return found

    def log(self, pod: str, container: str, **options: Any) -> Any:
        return self._core.read_namespaced_pod_log(
            pod, self.namespace, container=container, _preload_content=False, **options
        )

    def owner(self) -> Owner | None:
        """The pod that this runs in. It must exist: an object whose owner does not is removed at once."""
        if self.pod is None:
            return None
        try:
            pod = self.persist(self._core.read_namespaced_pod, self.pod, self.namespace)
        except _refusal() as error:
            if error.status == 404:
                return None
            raise
        return Owner(pod["metadata"]["name"], pod["metadata"]["uid"])

    # ---- requests

    def persist(self, request: Callable[..., Any], *arguments: Any, within: float | None = None, **options: Any) -> Any:
        """The answer's JSON. What may pass is tried again for `within` seconds, by default `patience.unreachable`."""
        end = time.monotonic() + (self.patience.unreachable if within is None else within)
        for delay in self.patience.delays():
            try:
                answer = request(*arguments, _preload_content=False, _request_timeout=self._timeout, **options)
                return json.loads(answer.data)
            except transient_errors() as error:
                if not may_pass(error) or time.monotonic() + delay > end:
                    raise
            time.sleep(delay)
        raise AssertionError("delays never end")


def _refusal() -> Any:
    from kubernetes.client import ApiException

    return ApiException


def transient_errors() -> tuple[type[Exception], ...]:
    """What a request raises; ask `may_pass` which of them to try again."""
    import urllib3
    from kubernetes.client import ApiException

    return ApiException, urllib3.exceptions.HTTPError, OSError, json.JSONDecodeError


def may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    return status is None or status in (0, *TRANSIENT)


def open_cluster(namespace: str, patience: Patience) -> Cluster:
    """The cluster of this pod, else of the kubeconfig. Raises UserError where there is neither."""
    own = _own_pod(namespace) if "KUBERNETES_SERVICE_HOST" in os.environ else None
    return Cluster(connect(), namespace, own, patience)


def _own_pod(namespace: str) -> str | None:
    """This pod's name, where it is in the namespace of the jobs: an owner in another one is none."""
    file = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    if not file.is_file() or file.read_text().strip() != namespace:
        return None
    # KFP's name for it; a pod's host name is its own unless it is on the host's network.
    return os.environ.get("KFP_POD_NAME") or socket.gethostname()


def lines(response: Any, complete: bool = False) -> Iterator[bytes]:
    """Lines, without their ends, of an answer that comes bit by bit.

    What follows the last end is a line only where nothing more can come (`complete`).
    """
    rest = b""
    for chunk in response.stream(2**16):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if complete and rest:
        yield rest
