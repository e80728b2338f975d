"""Why a TrainJob cannot start or did not end well: one sentence each that says what to do.

Pure functions of what the API server says. Objects are plain dictionaries, as its JSON has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dualipo.cluster.api import TRANSIENT
from dualipo.config import TrainJob

Thing = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    reason: str
    """A word for it: quota, refused, image, config, oom, disrupted, node, pending, deadline, exit, ..."""
    message: str
    retry: bool = False
    """Whether another attempt can end otherwise, resuming from the scratch claim."""
    pod: str | None = None
    """The pod whose log says more."""


# ---- the API server's answer


def refused(status: int, body: str | bytes | None, settings: TrainJob) -> Failure:
    """An answer of the API server to a request for TrainJobs, pods, logs or events."""
    said = _said(body) or f"status {status}"
    where = f"namespace {settings.namespace}"
    if status == 403 and "exceeded quota" in said:
        return _quota(said, settings)
    if status == 403 and "violates PodSecurity" not in said and " cannot " in said:
        remedy = "run as dualipo-runner, or apply the overlay again (its Role dualipo-run)"
        return Failure("refused", f"this account may not do this: {said}; {remedy}")
    if status == 404:
        remedy = f"install Kubeflow Trainer 2.2 or newer, and create {where}"
        return Failure("refused", f"the cluster knows no TrainJobs in {where}: {said}; {remedy}")
    if status == 400 and "unknown field" in said:
        remedy = "update Kubeflow Trainer to 2.2 or newer"
        return Failure("refused", f"the cluster's Kubeflow Trainer does not know this TrainJob: {said}; {remedy}")
    if status == 401:
        return Failure("refused", f"the API server does not know who asks: {said}; renew the token or the kubeconfig")
    if settings.runtime in said and "not found" in said:
        return Failure(
            "refused", f"train_job.runtime {settings.runtime!r} is not in the cluster; apply k8s/trainer: {said}"
        )
    return Failure("refused", f"the API server refuses the TrainJob: {said}; correct train_job, or ask its operators")


def of_request(error: Exception, settings: TrainJob, unreachable: float) -> Failure:
    """A request that failed for good: refused, or not answered for `unreachable` seconds."""
    if status := getattr(error, "status", None):
        if status not in TRANSIENT:
            return refused(status, getattr(error, "body", None), settings)
        said = f"status {status}, {_said(getattr(error, 'body', None))}"
    else:
        said = _line(str(error))
    remedy = "see whether the cluster is up, then run the step again: a job that still runs is found again"
    return Failure("unreachable", f"the API server has not answered for {unreachable:.0f} s ({said}); {remedy}")


def _quota(said: str, settings: TrainJob) -> Failure:
    return Failure(
        "quota",
        f"the quota of namespace {settings.namespace} has no room for {_size(settings)}: {said}; "
        "free some of it, have it raised, or lower train_job.nodes or train_job.gpus_per_node",
    )


def _size(settings: TrainJob) -> str:
    return f"{settings.nodes} node(s) of {settings.gpus_per_node} GPU(s)"


def _said(body: str | bytes | None) -> str:
    """What a Status object, or any other body, says, on one line."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        found = json.loads(text)
        text = found.get("message") or text if isinstance(found, dict) else text
    except json.JSONDecodeError:
        pass
    return " ".join(text.split())[:600].rstrip(".")


# ---- pods


def node_index(pod: Thing) -> int:
    """The node's rank among the nodes; 0 where the first process is."""
    metadata = pod["metadata"]
    key = "batch.kubernetes.io/job-completion-index"
    return int(metadata.get("labels", {}).get(key) or metadata.get("annotations", {}).get(key) or 0)


def phase(pod: Thing) -> str:
    return pod.get("status", {}).get("phase", "Pending")


def condition(thing: Thing, kind: str) -> Thing | None:
    """The condition of this type where it is true."""
    found = [c for c in thing.get("status", {}).get("conditions") or [] if c["type"] == kind]
    return found[0] if found and found[0]["status"] == "True" else None


def image_trouble(pod: Thing) -> str | None:
    """What the kubelet says of an image that it cannot pull."""
    for waiting in _waiting(pod):
        if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return None


_HOPELESS = re.compile(
    r"InvalidImageName|ErrImageNeverPull|not found|manifest unknown|unauthorized|denied|forbidden|no basic auth", re.I
)


def hopeless_image(said: str) -> bool:
    """Whether trying the pull again will not help, as it may after a registry's hiccup."""
    return bool(_HOPELESS.search(said))


def image_failure(pod: Thing, said: str, settings: TrainJob) -> Failure:
    return Failure(
        "image",
        f"node {node_index(pod)} cannot pull {settings.image}: {_line(said)}; check the digest, that it was pushed, "
        "and the image pull secret of the service account",
    )


def config_failure(pod: Thing, settings: TrainJob) -> Failure | None:
    """A Secret or a key of one that is not there, or a command that cannot be started."""
    for waiting in _waiting(pod):
        said = _line(waiting.get("message", ""))
        missing = "not found" in said or "couldn't find" in said
        if waiting.get("reason") == "CreateContainerConfigError" and missing:
            return Failure(
                "config",
                f"node {node_index(pod)} lacks what its environment names: {said}; create it in namespace "
                f"{settings.namespace}, or correct train_job.secret_env",
            )
    return None


def _waiting(pod: Thing) -> Iterable[Thing]:
    for state in _containers(pod):
        if waiting := state.get("state", {}).get("waiting"):
            yield waiting


def _containers(pod: Thing) -> list[Thing]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


_DISRUPTIONS = {
    "PreemptionByScheduler": ("disrupted", "was preempted by a pod of higher priority"),
    "EvictionByEvictionAPI": ("disrupted", "was evicted, as when a node is drained"),
    "TerminationByKubelet": ("disrupted", "was ended by its node, which shut down or ran short of something"),
    "DeletionByTaintManager": ("node", "was lost with its node, which became unreachable or was tainted"),
    "DeletionByPodGC": ("node", "was lost with its node, which is gone"),
}
_REASONS = {
    "Evicted": ("disrupted", "was evicted by its node"),
    "Preempting": ("disrupted", "was preempted"),
    "Shutdown": ("node", "was ended as its node shut down"),
    "Terminated": ("node", "was ended as its node shut down"),
    "NodeShutdown": ("node", "was ended as its node shut down"),
    "NodeLost": ("node", "was lost with its node"),
    "NodeAffinity": ("node", "no longer fitted its node"),
    "UnexpectedAdmissionError": ("node", "was refused by its node, as when a GPU there fails"),
}
_OWN_LIMIT = (
    "exceeds the limit",
    "exceeded its local ephemeral storage limit",
    "local ephemeral storage usage exceeds",
)


def _of_pod(pod: Thing, settings: TrainJob) -> tuple[int, str, Failure] | None:
    """How a pod failed, with how near to the cause that is (smaller is nearer) and when; None where it did not."""
    index, name, status = node_index(pod), pod["metadata"]["name"], pod.get("status", {})
    said = _line(status.get("message", ""))
    when = status.get("startTime", "")
    if any(sign in said for sign in _OWN_LIMIT):
        message = (
            f"node {index} was evicted as it wrote more than it may: {said}; raise train_job.shared_memory or the "
            "namespace's limit on ephemeral storage"
        )
        return 0, when, Failure("storage", message, pod=name)
    target = condition(pod, "DisruptionTarget")
    kind = None
    if target:
        kind = _DISRUPTIONS.get(target.get("reason", ""), ("disrupted", "was disrupted"))
        said = said or _line(target.get("message", ""))
    elif phase(pod) == "Failed":
        kind = _REASONS.get(status.get("reason", ""))
    if kind:
        reason, happened = kind
        where = pod.get("spec", {}).get("nodeName", "no machine yet")
        remedy = "run the step again, it resumes; a higher PriorityClass or other machines spare it this"
        message = f"node {index} (on {where}) {happened}{f' ({said})' if said else ''}; {remedy}"
        return 1, when, Failure(reason, message, retry=True, pod=name)
    ended = [(state["name"], end) for state in _containers(pod) if (end := state.get("state", {}).get("terminated"))]
    for container, end in ended:
        if end.get("reason") == "OOMKilled":
            message = (
                f"node {index} ran out of memory (container {container}, limit {settings.memory_per_node}, of which "
                f"{settings.shared_memory} may be /dev/shm); raise train_job.memory_per_node or lower the batch size"
            )
            return 2, end.get("finishedAt", ""), Failure("oom", message, pod=name)
    for container, end in ended:
        if end.get("reason") in ("StartError", "ContainerCannotRun"):
            message = (
                f"node {index} cannot start its command: {_line(end.get('message', ''))}; check that train_job.image "
                "holds torchrun and dualipo"
            )
            return 3, end.get("finishedAt", ""), Failure("config", message, pod=name)
        if end.get("exitCode"):
            message = (
                f"node {index} ended with exit status {end['exitCode']} (container {container}); the last lines of its "
                "log say why"
            )
            return 4, end.get("finishedAt", ""), Failure("exit", message, pod=name)
    if phase(pod) == "Failed":
        message = f"node {index} failed{f' ({said})' if said else ''}; see `kubectl describe pod {name}`"
        return 5, when, Failure("exit", message, pod=name)
    return None


def cause(job: Thing, pods: Iterable[Thing], settings: TrainJob) -> Failure:
    """Why a TrainJob whose condition Failed is true failed.

    One node's end takes the others with it: a disruption counts before an exit status that may follow from it, and
    among equals the first to happen.
    """
    failed = condition(job, "Failed") or {}
    said = _line(failed.get("message", ""))
    if failed.get("reason") == "DeadlineExceeded":
        remedy = "raise train_job.deadline_seconds, or train fewer steps; what was saved is resumed"
        return Failure("deadline", f"the job did not end within {settings.deadline_seconds} s; {remedy}")
    if failed.get("reason") == "TrainingRuntimeNotSupported":
        return Failure(
            "refused", f"Kubeflow Trainer cannot use runtime {settings.runtime!r}: {said}; apply k8s/trainer"
        )
    found = [failure for pod in pods if (failure := _of_pod(pod, settings))]
    if found:
        return min(found, key=lambda entry: entry[:2])[2]
    name = job["metadata"]["name"]
    remedy = f"see `kubectl -n {settings.namespace} describe trainjob,jobset {name}`"
    return Failure("failed", f"the job failed, and no node says why ({failed.get('reason')}: {said}); {remedy}")


# ---- what keeps nodes from starting


def blocked(events: Iterable[Thing], settings: TrainJob) -> Failure | None:
    """A refusal to create the job's pods that waiting will not lift."""
    for event in events:
        said = _line(event.get("message", ""))
        if event.get("type") != "Warning" or not event.get("reason", "").endswith(("FailedCreate", "CreationFailed")):
            continue
        if "exceeded quota" in said:
            return _quota(said, settings)
        if "forbidden" in said or "is invalid" in said or "denied the request" in said:
            return Failure("refused", f"the cluster refuses the job's pods: {said}; correct train_job or its limits")
    return None


def pending(pods: Iterable[Thing], events: Iterable[Thing], waited: float, settings: TrainJob) -> Failure:
    """The nodes have not all come up in `waited` seconds: the best known reason."""
    pods = list(pods)
    late = f"{sum(phase(p) == 'Pending' for p in pods)} of {settings.nodes} node(s) did not start within {waited:.0f} s"
    for pod in pods:
        for found in pod.get("status", {}).get("conditions") or []:
            if found["type"] == "PodScheduled" and found["status"] == "False":
                remedy = "free or add machines, correct train_job.node_selector and the claims, or ask for less"
                return Failure(
                    "pending", f"{late}, no machine takes {_size(settings)}: {_line(found['message'])}; {remedy}"
                )
    warnings = [_line(e.get("message", "")) for e in events if e.get("type") == "Warning"]
    said = [f"{w.get('reason')} {_line(w.get('message', ''))}".strip() for pod in pods for w in _waiting(pod)]
    if pods:
        known = "; ".join(dict.fromkeys([*said, *warnings[-1:]])) or "no reason is given"
        remedy = f"see `kubectl -n {settings.namespace} describe pod {pods[0]['metadata']['name']}`"
        return Failure("pending", f"{late} ({known}); {remedy}")
    known = warnings[-1] if warnings else "no event says why"
    return Failure(
        "pending",
        f"no pod was made for the job within {waited:.0f} s ({known}); check that Kubeflow Trainer's controller and "
        f"JobSet run, and that a queue lets the job in",
    )


def event_time(event: Thing) -> str:
    """When an event happened last: UTC, down to seconds, so that times compare as text."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((time for time in times if time), event["metadata"].get("creationTimestamp") or "")[:19]


def _line(text: str | None) -> str:
    return " ".join((text or "").split())[:400].rstrip(".;")
