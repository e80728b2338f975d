"""What is known of a TrainJob while it is watched, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import Callable

from dualipo.cluster import failures
from dualipo.cluster.api import Cluster
from dualipo.cluster.failures import Failure, Thing, condition, node_index, phase
from dualipo.cluster.logs import LogStream
from dualipo.cluster.manifest import NODE
from dualipo.cluster.watching import Seen
from dualipo.config import TrainJob

JOBSET = "jobset.sigs.k8s.io/jobset-name"
"""Label of a job's pods; its JobSet bears the job's name."""


class Monitor:
    """Fed with what followers see; `over` once the job has ended or cannot start, `failure` says why then.

    Streams the log of the first node meanwhile. Call `close` at the end.
    """

    def __init__(self, cluster: Cluster, settings: TrainJob, job: Thing, tell: Callable[[str], None]):
        self.cluster, self.settings, self.job, self.tell = cluster, settings, job, tell
        self.over = False
        self.failure: Failure | None = None
        self._pods: dict[str, Thing] = {}
        """By uid; a deleted one stays as it was last seen, for it may be the cause."""
        self._streams: dict[str, LogStream] = {}
        self._begin: float | None = time.monotonic()
        """Since when the nodes may start; None while the job is suspended."""
        self._image_trouble: float | None = None
        self._events: list[Thing] = []
        self._next_look = time.monotonic() + cluster.patience.look
        self._state = ""
        self._synced: set[str] = set()
        """Followers that have told what there is."""

    def take(self, seen: Seen) -> None:
        if seen.kind == "ERROR":
            assert seen.error is not None
            self._end(failures.of_request(seen.error, self.settings, self.cluster.patience.unreachable))
        elif seen.source == "jobs":
            self._take_jobs(seen)
        else:
            for pod in seen.items:
                self._take_pod(pod, seen.kind == "DELETED")
            if seen.kind == "SYNC":
                listed = {pod["metadata"]["uid"] for pod in seen.items}
                for uid in set(self._pods) - listed:
                    self._take_pod(self._pods[uid], deleted=True)
        self._synced.add(seen.source)
        self._say()

    def consider(self) -> None:
        """Once everything that was seen is taken in: has the job ended, or will it never start?"""
        if self.over or len(self._synced) < 2:
            return
        if condition(self.job, "Complete"):
            self._end(None)
        elif condition(self.job, "Failed"):
            self._refresh()
            self._end(failures.cause(self.job, self._pods.values(), self.settings))
        elif failure := self._hindrance():
            self._end(failure)

    def streamed(self, pod: str) -> bool:
        """Whether the log of the pod of this name was told whole."""
        return any(stream.pod == pod for stream in self._streams.values())

    def close(self) -> None:
        """Waits for the rest of the logs, once `over`; not for what a node that still runs may yet say."""
        for uid, stream in self._streams.items():
            running = phase(self._pods[uid]) == "Running"
            within = min(1.0, self.cluster.patience.drain) if running else self.cluster.patience.drain
            stream.finish(within if self.over else 0.0)

    def _end(self, failure: Failure | None) -> None:
        if not self.over:
            self.over, self.failure = True, failure

    # ---- what is seen

    def _take_jobs(self, seen: Seen) -> None:
        same = [job for job in seen.items if job["metadata"]["uid"] == self.job["metadata"]["uid"]]
        self.job = same[0] if same else self.job
        finished = condition(self.job, "Complete") or condition(self.job, "Failed")
        if (seen.kind == "DELETED" and same) or (seen.kind == "SYNC" and not same):
            if not finished:
                remedy = "run the step again, it resumes from the scratch claim"
                self._end(Failure("deleted", f"someone deleted the job while it was at work; {remedy}"))
        elif same:
            if condition(self.job, "Suspended"):
                self._begin = None
            elif self._begin is None:
                self._begin = time.monotonic()

    def _take_pod(self, pod: Thing, deleted: bool) -> None:
        metadata = pod["metadata"]
        if metadata["creationTimestamp"] < self.job["metadata"]["creationTimestamp"]:
            return  # of an earlier job of this name, on its way out
        uid = metadata["uid"]
        if deleted and uid in self._pods and phase(pod) not in ("Succeeded", "Failed"):
            pod = {**pod, "gone": True}
        self._pods[uid] = pod
        ended = deleted or phase(pod) in ("Succeeded", "Failed")
        if node_index(pod) == 0 and uid not in self._streams and (ended or phase(pod) == "Running"):
            self._streams[uid] = LogStream(self.cluster, metadata["name"], NODE, self.tell)
        if ended and uid in self._streams:
            self._streams[uid].ended()

    def _refresh(self) -> None:
        """The pods as they are now: what is told of the job and of its pods comes by two ways."""
        for pod in self.cluster.persist(self.cluster.list_pods, label_selector=self._selector())["items"]:
            self._take_pod(pod, deleted=False)

    def _selector(self) -> str:
        return f"{JOBSET}={self.job['metadata']['name']}"

    def _say(self) -> None:
        """A line whenever the whole changes."""
        if self.over:
            return
        up = self._up()
        state = "queued" if self._begin is None else f"{up} of {self.settings.nodes} node(s) up"
        if state != self._state and (self._state or up or self._begin is None):
            self.tell(f"TrainJob {self.job['metadata']['name']}: {state}")
        self._state = state

    # ---- what follows

    def _present(self) -> list[Thing]:
        return [pod for pod in self._pods.values() if "gone" not in pod]

    def _up(self) -> int:
        return len({node_index(pod) for pod in self._present() if phase(pod) != "Pending"})

    def _hindrance(self) -> Failure | None:
        """What keeps the nodes from starting, once it is certain to."""
        pods = self._present()
        for pod in pods:
            if found := failures.config_failure(pod, self.settings):
                return found
        troubles = [(pod, said) for pod in pods if (said := failures.image_trouble(pod))]
        if not troubles:
            self._image_trouble = None
        for pod, said in troubles:
            self._image_trouble = self._image_trouble or time.monotonic()
            patient = time.monotonic() - self._image_trouble < self.cluster.patience.image
            if not patient or failures.hopeless_image(said):
                return failures.image_failure(pod, said, self.settings)
        if self._begin is None or self._up() >= self.settings.nodes:
            return None
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self.cluster.patience.look
            self._events = self._recent_events()
            if found := failures.blocked(self._events, self.settings):
                return found
        waited = time.monotonic() - self._begin
        if waited > self.settings.pending_seconds:
            return failures.pending(pods, self._recent_events(), waited, self.settings)
        return None

    def _recent_events(self) -> list[Thing]:
        """Of the job, its JobSet, which bears the same name, and the Job of its nodes, oldest first.

        Not of earlier jobs of these names, which events outlive.
        """
        name, start = self.job["metadata"]["name"], self.job["metadata"]["creationTimestamp"]
        found = sorted(self.cluster.events(name, f"{name}-{NODE}-0"), key=failures.event_time)
        return [event for event in found if failures.event_time(event) >= start[:19]]
