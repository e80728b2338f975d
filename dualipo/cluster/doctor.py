"""What an experiment needs of a cluster: what is there, what is missing, what to do about it.

Looks with the rights of whoever asks, and changes nothing. What those rights don't show is said to be unseen, not
taken for sound: the pods of runs see more (`kubectl create job --from=cronjob/doctor`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dualipo.cluster.access import FORBIDDEN, NEEDED, Act, champions
from dualipo.cluster.costs import quantity
from dualipo.cluster.pins import DIGEST
from dualipo.cluster.policy import GRANT, SECRETS
from dualipo.doctor import Finding

if TYPE_CHECKING:
    from kubernetes import client

NAMESPACE, KUBEFLOW = "dualipo", "kubeflow"
OLDEST = (1, 30)
"""Kubernetes that has ValidatingAdmissionPolicy for good."""
TIMEOUT = 10.0
"""Seconds for any answer."""
GPU = "nvidia.com/gpu"
SECRET_KEYS = {
    "dualipo-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "dualipo-mlflow-db": ("username", "password"),
}
BUCKETS = ("MLFLOW_BUCKET", "PIPELINE_BUCKET", "BACKUP_BUCKET")
CLAIMS = ("dualipo-models", "dualipo-scratch")
_APPLY = "kubectl apply -k k8s/overlays/local (or gpu)"

Role = Literal["submitter", "runner", "promoter"]


@dataclass(frozen=True)
class Where:
    """What is looked at, and as whom."""

    role: Role = "submitter"
    """Whose rights the asking account should have, no fewer and no more."""
    experiment: str = "small-world"
    """Whose runs must be able to move its champions."""
    gpus: int = 0
    """GPUs that the experiment needs."""
    mlflow: str | None = None
    """Address of MLflow; MLFLOW_TRACKING_URI where None."""
    kfp: str | None = None
    """Address of KFP's API; the one inside the cluster where None."""


def examine(api: client.ApiClient, where: Where) -> list[Finding]:
    """Everything, in the order in which things depend on each other; nothing after an API server that is away."""
    server = _api_server(api)
    if server.state == "missing":
        return [server]
    findings = [server]
    for look in (
        _namespace,
        _access,
        _experiment,
        _kinds,
        _workloads,
        _images,
        _secrets,
        _claims,
        _quota,
        _gpus,
        _priority,
        _mlflow,
        _kfp,
        _store,
    ):
        findings += look(api, where)
    return findings


# ---- the API server, and what one may there


def _api_server(api: client.ApiClient) -> Finding:
    from kubernetes import client

    host = api.configuration.host
    try:
        version = client.VersionApi(api).get_code(_request_timeout=TIMEOUT)
    except client.ApiException as error:
        return Finding("API server", "missing", f"{host}: {error.status}", "log in to the cluster again")
    except Exception as error:
        told = f"{host}: no answer ({type(error).__name__})"
        return Finding("API server", "missing", told, "start the cluster, or choose another with --context")
    found = (int(version.major), int("".join(filter(str.isdigit, version.minor))))
    if found < OLDEST:
        advice = f"upgrade the cluster to Kubernetes {OLDEST[0]}.{OLDEST[1]} or newer"
        return Finding("API server", "missing", f"{version.git_version} at {host}", advice)
    return Finding("API server", "ok", f"{version.git_version} at {host}")


def _ask(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, str]:
    """The answer, or None and why: `hidden` (not allowed to look), `absent`, or the server's own words."""
    from kubernetes import client

    try:
        return call(*arguments, _request_timeout=TIMEOUT, **options), ""
    except client.ApiException as error:
        return None, {403: "hidden", 404: "absent"}.get(error.status, f"{error.status} {error.reason}")
    except Exception as error:
        return None, f"no answer ({type(error).__name__})"


def _unseen(name: str, why: str, what: str) -> Finding:
    """A look that gave nothing."""
    if why == "hidden":
        return Finding(name, "optional", f"unseen: no right to read {what}", "ask someone who may, or look from inside")
    return Finding(name, "missing", f"{what}: {why}", _APPLY)


def _namespace(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    from kubernetes import client

    found, why = _ask(client.CoreV1Api(api).read_namespace, NAMESPACE)
    if found is None:
        yield _unseen("namespace", why, f"namespace {NAMESPACE}")
        return
    level = (found.metadata.labels or {}).get("pod-security.kubernetes.io/enforce")
    if level == "restricted":
        yield Finding("namespace", "ok", f"{NAMESPACE}, pod security restricted")
    else:
        yield Finding("namespace", "missing", f"{NAMESPACE}, pod security {level or 'not enforced'}", _APPLY)


def _access(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    """SelfSubjectAccessReviews: what the role is for must be allowed, what would undo the separation must not."""
    lacking = [act for act in NEEDED[where.role] if not _may(api, act)]
    excess = [act for act in FORBIDDEN[where.role] if _may(api, act)]
    name = f"rights ({where.role})"
    if lacking:
        told = f"may not {lacking[0]}" + (f", nor {len(lacking) - 1} more" if lacking[1:] else "")
        advice = f"ask to be put into the group dualipo:{where.role}s, or use a token of dualipo-{where.role}"
        yield Finding(name, "missing", told, advice)
    elif excess:
        told = f"may also {excess[0]}" + (f", and {len(excess) - 1} more" if excess[1:] else "")
        advice = f"more than a {where.role} should; daily work is safer with a token of dualipo-{where.role}"
        yield Finding(name, "optional", told, advice)
    else:
        yield Finding(name, "ok", f"{len(NEEDED[where.role])} needed, {len(FORBIDDEN[where.role])} rightly refused")


def _experiment(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    """Whether pods of runs may move the champions of this experiment: RBAC names them, and knows no patterns."""
    from kubernetes import client

    name, lacking = f"experiment {where.experiment}", []
    for act in champions(where.experiment):
        if where.role == "runner":
            allowed = _may(api, act)
        else:
            spec = client.V1SubjectAccessReviewSpec(
                user=f"system:serviceaccount:{NAMESPACE}:dualipo-runner", resource_attributes=_attributes(act)
            )
            review = client.V1LocalSubjectAccessReview(metadata=client.V1ObjectMeta(namespace=NAMESPACE), spec=spec)
            ask = client.AuthorizationV1Api(api).create_namespaced_local_subject_access_review
            answer, why = _ask(ask, NAMESPACE, review)
            if answer is None:
                yield _unseen(name, why, "other accounts' rights")
                return
            allowed = bool(answer.status.allowed)
        lacking += [] if allowed else [act.name]
    if lacking:
        yield Finding(name, "missing", f"runs may not move a champion, for want of {', '.join(lacking)}", GRANT)
    else:
        yield Finding(name, "ok", "runs may move its champions")


def _may(api: client.ApiClient, act: Act) -> bool:
    from kubernetes import client

    spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=_attributes(act))
    review = client.V1SelfSubjectAccessReview(spec=spec)
    answer, _ = _ask(client.AuthorizationV1Api(api).create_self_subject_access_review, review)
    return bool(answer and answer.status.allowed)


def _attributes(act: Act) -> Any:
    from kubernetes import client

    resource, _, subresource = act.resource.partition("/")
    # KFP and MLflow put the slash into the resource's own name.
    if act.group:
        resource, subresource = act.resource, ""
    return client.V1ResourceAttributes(
        namespace=NAMESPACE,
        verb=act.verb,
        group=act.group,
        resource=resource,
        subresource=subresource or None,
        name=act.name or None,
    )


def _kinds(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    """The APIs that other projects add to Kubernetes."""
    from kubernetes import client

    groups, why = _ask(client.ApisApi(api).get_api_versions)
    if groups is None:
        yield _unseen("CRDs", why, "API groups")
        return
    known = {group.name for group in groups.groups}
    for group, of, required, advice in (
        ("argoproj.io", "Argo Workflows", True, "install Kubeflow Pipelines: kubectl apply -k k8s/kubeflow"),
        ("trainer.kubeflow.org", "Kubeflow Trainer", False, "needed only to train on several nodes: docs/cluster.md"),
    ):
        if group in known:
            yield Finding(f"CRDs of {of}", "ok", group)
        else:
            yield Finding(f"CRDs of {of}", "missing" if required else "optional", f"no API group {group}", advice)


# ---- what runs


def _workloads(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    from kubernetes import client

    apps = client.AppsV1Api(api)
    for name, read, required in (
        ("mlflow", apps.read_namespaced_deployment, True),
        ("postgres", apps.read_namespaced_stateful_set, True),
        ("seaweedfs", apps.read_namespaced_stateful_set, False),
    ):
        found, why = _ask(read, name, NAMESPACE)
        if found is None:
            if required or why not in ("absent", "hidden"):
                yield _unseen(name, why, name)
            continue
        ready, wanted = found.status.ready_replicas or 0, found.spec.replicas
        if ready >= wanted:
            yield Finding(name, "ok", f"{ready} of {wanted} ready")
        else:
            advice = f"kubectl -n {NAMESPACE} describe pod -l app.kubernetes.io/name={name}"
            yield Finding(name, "missing", f"{ready} of {wanted} ready", advice)


def _images(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    """Pulled or not, by what the pods wait for; pinned or not, by what they were told to run."""
    from kubernetes import client

    pods, why = _ask(client.CoreV1Api(api).list_namespaced_pod, NAMESPACE)
    if pods is None:
        yield _unseen("images", why, "pods")
        return
    failing: dict[str, str] = {}
    unpinned: set[str] = set()
    for pod in pods.items:
        status = pod.status
        for state in [*(status.init_container_statuses or []), *(status.container_statuses or [])]:
            waiting = state.state.waiting if state.state else None
            if waiting and waiting.reason in (
                "ErrImagePull",
                "ImagePullBackOff",
                "InvalidImageName",
                "ErrImageNeverPull",
            ):
                failing[state.image] = waiting.reason
        unpinned |= {
            container.image
            for container in [*(pod.spec.init_containers or []), *pod.spec.containers]
            if not DIGEST.search(container.image)
        }
    for image, reason in sorted(failing.items()):
        advice = (
            "correct its name with `dualipo cluster pin --registry`, push it, or give the account an imagePullSecret"
        )
        yield Finding("image", "missing", f"{image}: {reason}", advice)
    if unpinned:
        shown = ", ".join(sorted(unpinned)[:3]) + (", ..." if len(unpinned) > 3 else "")
        advice = "a tag can be moved: dualipo cluster pin, then apply again"
        yield Finding("images pinned", "optional", f"{len(unpinned)} without a digest: {shown}", advice)
    elif not failing:
        yield Finding("images", "ok", f"those of {len(pods.items)} pods, all pulled by digest")


def _secrets(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    """Their keys, never their values. Most accounts may not even see that they exist."""
    from kubernetes import client

    for name in SECRETS:
        found, why = _ask(client.CoreV1Api(api).read_namespaced_secret, name, NAMESPACE)
        keys = SECRET_KEYS[name]
        if found is None and why == "hidden":
            yield Finding(f"secret {name}", "optional", "unseen, rightly: pods that lack it do not start")
        elif found is None:
            literals = " ".join(f"--from-literal={key}=..." for key in keys)
            advice = f"kubectl -n {NAMESPACE} create secret generic {name} {literals}"
            yield Finding(f"secret {name}", "missing", why, advice)
        elif lacking := [key for key in keys if key not in (found.data or {})]:
            yield Finding(f"secret {name}", "missing", f"without {', '.join(lacking)}", "make it again with all keys")
        else:
            yield Finding(f"secret {name}", "ok", ", ".join(keys))


# ---- room


def _claims(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    from kubernetes import client

    core, storage = client.CoreV1Api(api), client.StorageV1Api(api)
    listed, hidden = _ask(storage.list_storage_class)
    classes = {c.metadata.name: c for c in listed.items} if listed else {}
    default = "storageclass.kubernetes.io/is-default-class"
    standard = next((n for n, c in classes.items() if (c.metadata.annotations or {}).get(default) == "true"), None)
    for name in CLAIMS:
        claim, why = _ask(core.read_namespaced_persistent_volume_claim, name, NAMESPACE)
        if claim is None:
            yield _unseen(f"volume {name}", why, f"claim {name}")
            continue
        wanted = claim.spec.storage_class_name or standard
        if claim.status.phase == "Bound":
            size = (claim.status.capacity or {}).get("storage", claim.spec.resources.requests["storage"])
            yield Finding(f"volume {name}", "ok", f"{size}, {', '.join(claim.spec.access_modes)}")
        elif listed is None:
            told = f"{claim.status.phase}; unseen: storage classes ({hidden})"
            yield Finding(f"volume {name}", "optional", told, f"kubectl -n {NAMESPACE} describe pvc {name}")
        elif wanted not in classes:
            told = f"no storage class {wanted}" if wanted else "no default storage class"
            have = ", ".join(classes) or "the cluster has none"
            yield Finding(f"volume {name}", "missing", told, f"name one in the overlay's volumes.yaml ({have})")
        elif classes[wanted].volume_binding_mode == "WaitForFirstConsumer":
            yield Finding(f"volume {name}", "ok", f"class {wanted}, bound when a pod first uses it")
        else:
            advice = f"kubectl -n {NAMESPACE} describe pvc {name}"
            yield Finding(f"volume {name}", "missing", f"{claim.status.phase}, class {wanted}", advice)


def _quota(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    from kubernetes import client

    listed, why = _ask(client.CoreV1Api(api).list_namespaced_resource_quota, NAMESPACE)
    if listed is None or not listed.items:
        yield _unseen("quota", why or "absent", "the quota")
        return
    for quota in listed.items:
        hard, used = quota.status.hard or {}, quota.status.used or {}
        full = [key for key in hard if quantity(hard[key]) > 0 and quantity(used.get(key, 0)) >= quantity(hard[key])]
        granted = quantity(hard.get(f"requests.{GPU}", 0))
        if full:
            told = ", ".join(f"{key} {used[key]} of {hard[key]}" for key in full)
            yield Finding("quota", "missing", told, "end what is not needed, or raise it in the overlay's quota.yaml")
        elif f"requests.{GPU}" in hard and granted < where.gpus:
            told = f"{granted:g} GPUs of the {where.gpus} needed"
            yield Finding("quota", "missing", told, "raise it in the overlay's quota.yaml")
        else:
            told = ", ".join(
                f"{key} {used.get(key, 0)} of {hard[key]}" for key in ("pods", "requests.cpu") if key in hard
            )
            yield Finding("quota", "ok", told)


def _gpus(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    from kubernetes import client

    nodes, why = _ask(client.CoreV1Api(api).list_node)
    if nodes is None:
        yield _unseen("GPUs", why, "nodes")
        return
    ready = [
        node for node in nodes.items if any(c.type == "Ready" and c.status == "True" for c in node.status.conditions)
    ]
    found = sum(int((node.status.allocatable or {}).get(GPU, 0)) for node in ready)
    told = f"{found} allocatable on {len(ready)} ready nodes"
    if found < where.gpus:
        advice = "add GPU nodes with NVIDIA's device plugin, or lower resources.*.gpus"
        yield Finding("GPUs", "missing", f"{told}, {where.gpus} needed", advice)
    else:
        yield Finding("GPUs", "ok", told)


def _priority(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    from kubernetes import client

    found, why = _ask(client.SchedulingV1Api(api).read_priority_class, "dualipo-training")
    yield _unseen("priority", why, "dualipo-training") if found is None else Finding("priority", "ok", f"{found.value}")


# ---- services


def _mlflow(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    """Up, of the client's version, and willing to answer this account."""
    import requests

    address = where.mlflow or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address.startswith(("http://", "https://")):
        yield Finding(
            "MLflow", "optional", "not looked at: no address", _forward("--mlflow", "mlflow", NAMESPACE, 5000)
        )
        return
    address = address.rstrip("/")
    try:
        version = requests.get(f"{address}/version", timeout=TIMEOUT).text.strip()
        body = {"max_results": 1}
        headers = {"Authorization": f"Bearer {token}"} if (token := _token(api)) else {}
        asked = requests.post(
            f"{address}/api/2.0/mlflow/experiments/search", json=body, headers=headers, timeout=TIMEOUT
        ).status_code
    except requests.RequestException as error:
        told = f"{address}: {type(error).__name__}"
        yield Finding("MLflow", "missing", told, _forward("--mlflow", "mlflow", NAMESPACE, 5000))
        return
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        mine = installed("mlflow")
    except PackageNotFoundError:
        mine = version
    if asked in (401, 403):
        advice = (
            f"log in with a token: MLFLOW_TRACKING_TOKEN=$(kubectl -n {NAMESPACE} create token dualipo-{where.role})"
        )
        yield Finding("MLflow", "missing", f"{address}: {asked}, this account is not let in", advice)
    elif asked != 200:
        advice = f"kubectl -n {NAMESPACE} logs deployment/mlflow"
        yield Finding("MLflow", "missing", f"{address}: {asked} for a search", advice)
    elif version.split(".")[:2] != mine.split(".")[:2]:
        advice = "build k8s/images/mlflow.Dockerfile with the client's version"
        yield Finding("MLflow", "optional", f"{address}: {version}, the client is {mine}", advice)
    else:
        yield Finding("MLflow", "ok", f"{version} at {address}")


def _token(api: client.ApiClient) -> str | None:
    """What this account shows the API server, which MLflow asks about it."""
    if own := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return own
    settings = api.configuration.auth_settings()
    bearer = settings.get("BearerToken", {}).get("value")
    return bearer.removeprefix("Bearer ").strip() if bearer else None


def _kfp(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    import requests

    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    address = (where.kfp or (f"http://ml-pipeline.{KUBEFLOW}.svc:8888" if inside else "")).rstrip("/")
    forward = _forward("--kfp", "ml-pipeline", KUBEFLOW, 8888)
    if not address:
        yield Finding("KFP", "optional", "not looked at: no address", forward)
        return
    try:
        answer = requests.get(f"{address}/apis/v2beta1/healthz", timeout=TIMEOUT)
        health = answer.json() if answer.ok else {}
    except (requests.RequestException, ValueError) as error:
        yield Finding("KFP", "missing", f"{address}: {type(error).__name__}", forward)
        return
    if not answer.ok:
        yield Finding("KFP", "missing", f"{address}: {answer.status_code}", f"kubectl -n {KUBEFLOW} get pods")
    elif not health.get("multi_user"):
        advice = "single-user KFP runs everything in its own namespace and asks nobody: kubectl apply -k k8s/kubeflow"
        yield Finding("KFP", "missing", f"{address}: not in multi-user mode", advice)
    else:
        yield Finding("KFP", "ok", f"{address}, multi-user")


def _store(api: client.ApiClient, where: Where) -> Iterator[Finding]:
    """The buckets, with the keys that pods get; outside the cluster nobody has those."""
    buckets = [os.environ.get(name, "") for name in BUCKETS]
    if not all(buckets) or "AWS_ACCESS_KEY_ID" not in os.environ:
        advice = f"kubectl -n {NAMESPACE} create job look --from=cronjob/doctor, then logs job/look"
        yield Finding("S3", "optional", "not looked at: the keys are the pods'", advice)
        return
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import Session

    settings = Config(connect_timeout=TIMEOUT, read_timeout=TIMEOUT, retries={"total_max_attempts": 1})
    store = Session().create_client("s3", config=settings)
    for bucket in buckets:
        try:
            store.head_bucket(Bucket=bucket)
        except ClientError as error:
            code = error.response["ResponseMetadata"]["HTTPStatusCode"]
            advice = "make the bucket" if code == 404 else "correct the keys of dualipo-s3 or the bucket's policy"
            yield Finding(f"S3 {bucket}", "missing", str(code), advice)
        except BotoCoreError as error:
            told = f"{store.meta.endpoint_url}: {type(error).__name__}"
            yield Finding("S3", "missing", told, "correct AWS_ENDPOINT_URL_S3, or the NetworkPolicies of the overlay")
            return
        else:
            yield Finding(f"S3 {bucket}", "ok", store.meta.endpoint_url)


def _forward(option: str, service: str, namespace: str, port: int) -> str:
    return f"kubectl -n {namespace} port-forward svc/{service} {port}, then {option} http://localhost:{port}"
