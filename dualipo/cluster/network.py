"""Which pods can talk to which, by the NetworkPolicies of rendered manifests."""

from __future__ import annotations

from dataclasses import dataclass

from dualipo.cluster.render import Object, of_kind, selects


@dataclass(frozen=True)
class Peer:
    """Pods at one end of a connection."""

    name: str
    labels: tuple[tuple[str, str], ...]
    namespace: str = "dualipo"


def service(name: str) -> Peer:
    return Peer(name, (("app.kubernetes.io/name", name),))


RUN = Peer("a run's pod", (("workflows.argoproj.io/workflow", "round-x"),))
TRAINING = Peer("a TrainJob's pod", (("jobset.sigs.k8s.io/jobset-name", "align-1-x"),))
KFP = Peer("KFP", (("app", "ml-pipeline"),), "kubeflow")
STRANGER = Peer("a pod without labels", ())
ELSEWHERE = Peer("a pod of another namespace", (("workflows.argoproj.io/workflow", "round-x"),), "other")


def reaches(objects: list[Object], source: Peer, target: Peer, port: int) -> bool:
    """Whether both ends' policies let TCP through. A namespace without policies stands open, as Kubernetes has it."""
    return _passes(objects, source, target, port, "Egress") and _passes(objects, target, source, port, "Ingress")


def _passes(objects: list[Object], here: Peer, there: Peer, port: int, direction: str) -> bool:
    chosen = [
        policy["spec"]
        for policy in of_kind(objects, "NetworkPolicy")
        if policy["metadata"].get("namespace") == here.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], dict(here.labels))
    ]
    if not chosen:
        return True
    peers = "to" if direction == "Egress" else "from"
    rules = [rule for spec in chosen for rule in spec.get(direction.lower(), [])]
    return any(_opens(rule, peers, here, there, port) for rule in rules)


def _opens(rule: Object, peers: str, here: Peer, there: Peer, port: int) -> bool:
    ports = rule.get("ports")
    if ports and not any(p.get("port") == port and p.get("protocol", "TCP") == "TCP" for p in ports):
        return False
    return not rule.get(peers) or any(_is(end, here, there) for end in rule[peers])


def _is(end: Object, here: Peer, there: Peer) -> bool:
    if "ipBlock" in end:
        return False  # an address outside: pods are never meant by it.
    namespace = {"kubernetes.io/metadata.name": there.namespace}
    near = (
        selects(end["namespaceSelector"], namespace)
        if "namespaceSelector" in end
        else there.namespace == here.namespace
    )
    return near and selects(end.get("podSelector"), dict(there.labels))


OPEN: list[tuple[Peer, Peer, int]] = [
    (service("mlflow"), service("postgres"), 5432),
    (service("mlflow-backup"), service("postgres"), 5432),
    (RUN, service("mlflow"), 5000),
    (TRAINING, service("mlflow"), 5000),
    (service("doctor"), service("mlflow"), 5000),
    (RUN, KFP, 8887),
    (RUN, KFP, 8888),
    (service("doctor"), KFP, 8888),
    (TRAINING, TRAINING, 29500),
]
"""Ways that work needs."""
OPEN_TO_STORE: list[tuple[Peer, Peer, int]] = [
    (source, service("seaweedfs"), 8333)
    for source in (
        *(
            Peer(name, (("app.kubernetes.io/name", name), ("dualipo.io/calls-s3", "true")))
            for name in ("mlflow", "mlflow-backup", "doctor", "buckets")
        ),
        RUN,
        TRAINING,
        KFP,
    )
]
"""The same where the object store is in the cluster."""
CLOSED: list[tuple[Peer, Peer, int]] = [
    *((source, service("postgres"), 5432) for source in (RUN, TRAINING, STRANGER, KFP, ELSEWHERE, service("doctor"))),
    *((source, service("mlflow"), 5000) for source in (STRANGER, ELSEWHERE, KFP, service("postgres"))),
    *((source, service("seaweedfs"), 8333) for source in (STRANGER, ELSEWHERE, service("postgres"))),
    (RUN, TRAINING, 29500),
    (STRANGER, STRANGER, 8080),
    (service("postgres"), service("mlflow"), 5000),
    (TRAINING, KFP, 8888),
]
"""Ways that nobody needs, and that would let one broken pod reach further."""
