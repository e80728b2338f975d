"""Trains on several nodes: one TrainJob from its creation to its removal.

The job's name follows from what is trained. Who asks again, in this process or another, finds the job that is running
and goes on watching it. Whoever watched last removes it: at its end, after a failure, on SIGTERM and Ctrl-C. Should the
watcher itself be killed, the job goes with the pod that owns it, and at the latest ends by its deadline.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from dualipo.cluster import failures
from dualipo.cluster.api import Cluster, Patience, open_cluster, transient_errors
from dualipo.cluster.failures import Failure, Thing
from dualipo.cluster.logs import tail
from dualipo.cluster.manifest import ATTEMPT, NODE, SPEC_HASH, WATCHER, Owner, Training, manifest
from dualipo.cluster.monitor import JOBSET, Monitor
from dualipo.cluster.watching import Follower, Seen
from dualipo.config import TrainJob
from dualipo.errors import UserError

TAIL = 40
"""Lines of a failed node's log that are shown."""


def train(training: Training, settings: TrainJob, cluster: Cluster | None = None) -> None:
    """Runs the training to its end on `settings.nodes` nodes, telling the log of the first one on stderr.

    Attempts that were disrupted are repeated, `settings.retries` times. Raises UserError where the job is refused,
    does not start, or fails: one sentence that says why and what to do. `cluster` is by default the one that this
    process runs in, else the kubeconfig's.
    """
    cluster = cluster or open_cluster(settings.namespace, Patience())
    launch = _Launch(training, settings, cluster, _tell)
    with _terminable():
        keep = False
        try:
            launch.run()
        except UserError:
            keep = settings.keep_failed
            raise
        except transient_errors() as error:
            failure = failures.of_request(error, settings, cluster.patience.unreachable)
            raise UserError(f"{launch.title}: {failure.message}") from error
        finally:
            with _undisturbed():
                launch.kept() if keep else launch.clear()


def _tell(line: str) -> None:
    from tqdm import tqdm

    # above a progress bar, where there is one.
    tqdm.write(line, file=sys.stderr)


class _Launch:
    def __init__(self, training: Training, settings: TrainJob, cluster: Cluster, tell: Callable[[str], None]):
        self.training, self.settings, self.cluster, self.tell = training, settings, cluster, tell
        self.name = training.name
        self.owner: Owner | None = None
        self.watcher = uuid.uuid4().hex

    @property
    def title(self) -> str:
        return f"TrainJob {self.settings.namespace}/{self.name}"

    def run(self) -> None:
        self.owner = self.cluster.owner()
        attempt = 1
        while True:
            job = self._secure(attempt)
            attempt = int(job["metadata"].get("annotations", {}).get(ATTEMPT, attempt))
            failure = self._watch(job)
            if failure is None:
                self.tell(f"{self.title}: complete")
                return
            if not failure.retry:
                raise UserError(f"{self.title}: {failure.message}")
            if attempt > self.settings.retries:
                raise UserError(f"{self.title}: {failure.message} (attempt {attempt}, the last)")
            self.tell(f"{self.title}: {failure.message}")
            attempt += 1
            self.tell(f"{self.title}: attempt {attempt} of {self.settings.retries + 1} resumes from the scratch claim")
            self._remove(job)

    # ---- coming by the job

    def _secure(self, attempt: int) -> Thing:
        """Adopts the job that does this work already, or makes it in the place of one that does not."""
        wanted = manifest(self.training, self.settings, self.watcher, self.owner, attempt)
        for delay in self.cluster.patience.delays():
            found = self.cluster.get(self.name)
            if found is None:
                made = self.cluster.create(wanted)
                if made is not None:
                    size = f"{self.settings.nodes} node(s) of {self.settings.gpus_per_node} GPU(s)"
                    self.tell(f"{self.title}: created, {size}")
                    return made
                # another was quicker, or it was made and the answer was lost.
                time.sleep(delay)
                continue
            metadata = found["metadata"]
            if metadata.get("deletionTimestamp"):
                self._await_removal(found)
            elif metadata.get("annotations", {}).get(SPEC_HASH) != wanted["metadata"]["annotations"][SPEC_HASH]:
                self.tell(f"{self.title}: replacing one that was made otherwise")
                self._remove(found)
            elif failures.condition(found, "Failed"):
                self.tell(f"{self.title}: replacing one that failed")
                self._remove(found)
            elif _watcher(found) == self.watcher:
                return found
            elif adopted := self._adopt(found):
                self.tell(f"{self.title}: found it at work, going on with it")
                return adopted
            else:
                time.sleep(delay)
        raise AssertionError("delays never end")

    def _adopt(self, job: Thing) -> Thing | None:
        """Takes over a job's removal from its last watcher; None where it changed hands or went meanwhile."""
        metadata = job["metadata"]
        # the version makes the server refuse where anything changed since.
        changes = {
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "annotations": {WATCHER: self.watcher},
            "ownerReferences": [self.owner.reference()] if self.owner else [],
        }
        try:
            return self.cluster.patch(self.name, {"metadata": changes})
        except transient_errors() as error:
            if getattr(error, "status", None) in (404, 409):
                return None
            raise

    def _remove(self, job: Thing) -> None:
        self.cluster.delete(job)
        self._await_removal(job)

    def _await_removal(self, job: Thing) -> None:
        """Until the job, and with it its JobSet and pods, is gone: the next one bears the same names."""
        end = time.monotonic() + self.cluster.patience.deletion
        for delay in self.cluster.patience.delays():
            found = self.cluster.get(self.name)
            if found is None or found["metadata"]["uid"] != job["metadata"]["uid"]:
                return
            if time.monotonic() > end:
                waited = f"{self.cluster.patience.deletion:.0f} s"
                remedy = (
                    f"look for pods on lost machines with `{self._kubectl('get pods -o wide -l', JOBSET)}={self.name}`"
                )
                raise UserError(f"{self.title}: the one of before is not gone after {waited}; {remedy}, delete them")
            time.sleep(delay)

    def _kubectl(self, *words: str) -> str:
        return " ".join(["kubectl", "-n", self.settings.namespace, *words])

    # ---- watching it

    def _watch(self, job: Thing) -> Failure | None:
        """Follows the job to its end: None, or why it failed or will not start."""
        told: queue.Queue[Seen] = queue.Queue()
        cluster = self.cluster
        monitor = Monitor(cluster, self.settings, job, self.tell)
        jobs = Follower("jobs", cluster, cluster.list_jobs, told, field_selector=f"metadata.name={self.name}")
        pods = Follower("pods", cluster, cluster.list_pods, told, label_selector=f"{JOBSET}={self.name}")
        try:
            with jobs, pods:
                while not monitor.over:
                    with contextlib.suppress(queue.Empty):
                        monitor.take(told.get(timeout=min(1.0, cluster.patience.look)))
                        continue  # everything that is known first
                    monitor.consider()
        finally:
            monitor.close()
        failure = monitor.failure
        if failure is not None and failure.pod is not None and not monitor.streamed(failure.pod):
            for line in tail(cluster, failure.pod, NODE, TAIL):
                self.tell(f"[{failure.pod}] {line}")
        return failure

    # ---- its removal

    def clear(self) -> None:
        """Removes the job, whatever it is doing, if it is this watcher's; where that cannot be, says how to."""
        end = time.monotonic() + self.cluster.patience.cleanup
        try:
            job = self.cluster.get(self.name, within=self.cluster.patience.cleanup)
            if job is not None and _watcher(job) == self.watcher:
                self.cluster.delete(job, within=end - time.monotonic())
        except transient_errors() as error:
            said = " ".join(str(error).split())[:200]
            command = self._kubectl("delete trainjob", self.name)
            self.tell(f"{self.title}: could not be removed ({said}); remove it with `{command}`")

    def kept(self) -> None:
        self.tell(f"{self.title}: kept; remove it with `{self._kubectl('delete trainjob', self.name)}`")


def _watcher(job: Thing) -> str | None:
    return (job["metadata"].get("annotations") or {}).get(WATCHER)


# ---- signals


class _Terminated(KeyboardInterrupt):
    """SIGTERM, where nobody else turns it into an exception."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, by which a pod is ended, unwinds as Ctrl-C does instead of ending the process on the spot."""

    def terminate(number: int, frame: Any) -> NoReturn:
        raise _Terminated

    ours = _is_main() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except _Terminated:
        sys.exit(128 + signal.SIGTERM)
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing but SIGKILL cuts the removal short."""
    if not _is_main():
        yield
        return
    held = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
