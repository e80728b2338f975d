"""What every rendered manifest must hold to: pods, rights, ways through the network, and that all names meet.

Each rule yields one sentence for each fault. `dualipo cluster check` prints them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from dualipo.cluster.access import FORBIDDEN, NEEDED, champions, may, rules, subjects
from dualipo.cluster.network import CLOSED, OPEN, OPEN_TO_STORE, reaches
from dualipo.cluster.render import Object, Template, of_kind, selects, templates, title

TOKEN_LABEL = "dualipo.io/calls-api-server"
"""Pods that bear it mount a token, and no others; the NetworkPolicy of that name lets them reach the API server."""
SECRETS = ("dualipo-s3", "dualipo-mlflow-db")
"""What people make before the first `kubectl apply` (docs/cluster.md)."""
GRANT = "add them to resourceNames in k8s/base/access/runner.yaml and apply the overlay"
"""What a new experiment.name needs."""
FOREIGN_LABELS = ("workflows.argoproj.io/workflow", "jobset.sigs.k8s.io/jobset-name")
"""Labels of pods that others make: Argo's and JobSet's."""

_IMAGE = re.compile(r"(?P<name>[^@]+?)(?::(?P<tag>[^:@/]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?")
_SENSITIVE = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL|PRIVATE")

Rule = Callable[[list[Object]], Iterator[str]]


def violations(objects: list[Object]) -> list[str]:
    """All faults of all rules, each a sentence that names the object."""
    return [fault for rule in RULES for fault in rule(objects)]


# ---- pods


def non_root(objects: list[Object]) -> Iterator[str]:
    for template, container in _containers(objects):
        context = _context(template, container)
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{_named(template, container)}: may run as root; set runAsNonRoot and a runAsUser above 0."


def unprivileged(objects: list[Object]) -> Iterator[str]:
    for template, container in _containers(objects):
        context, name = _context(template, container), _named(template, container)
        if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: may gain privileges; set allowPrivilegeEscalation: false."
        capabilities = context.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or capabilities.get("add"):
            yield f"{name}: keeps capabilities; drop ALL and add none."
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: has no system call filter; set seccompProfile RuntimeDefault."
    for template in templates(objects):
        if any(template.spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{template.name}: shares the node's network or processes."
        if any("hostPath" in volume for volume in template.spec.get("volumes", [])):
            yield f"{template.name}: mounts a folder of the node."


def read_only(objects: list[Object]) -> Iterator[str]:
    for template, container in _containers(objects):
        if _context(template, container).get("readOnlyRootFilesystem") is not True:
            yield f"{_named(template, container)}: may write to its image; set readOnlyRootFilesystem."
        if not any(mount["mountPath"] == "/tmp" for mount in container.get("volumeMounts", [])):
            yield f"{_named(template, container)}: has no /tmp to write to; mount an emptyDir."


def bounded(objects: list[Object]) -> Iterator[str]:
    for template, container in _containers(objects):
        for kind in ("requests", "limits"):
            missing = {"cpu", "memory"} - set(container.get("resources", {}).get(kind, {}))
            if missing:
                yield f"{_named(template, container)}: no {kind} of {' and '.join(sorted(missing))}."
    for template in templates(objects):
        for volume in template.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{template.name}: emptyDir {volume['name']} has no sizeLimit."


def pinned(objects: list[Object]) -> Iterator[str]:
    """A whole version or a digest. That released images bear digests is `by_digest`."""
    for template, container in _containers(objects):
        match = _IMAGE.fullmatch(container["image"])
        digest, tag = (match["digest"], match["tag"]) if match else (None, None)
        if not digest and not (tag and re.search(r"\d+\.\d+", tag)):
            yield f"{_named(template, container)}: image {container['image']} is no fixed version; see k8s/pins."


def by_digest(objects: list[Object]) -> Iterator[str]:
    """Not among RULES: digests are known only once the images are in a registry (`dualipo cluster pin`)."""
    for template, container in _containers(objects):
        match = _IMAGE.fullmatch(container["image"])
        if not match or not match["digest"]:
            yield f"{_named(template, container)}: image {container['image']} has no digest; run `dualipo cluster pin`."


def accounts(objects: list[Object]) -> Iterator[str]:
    known = {account["metadata"]["name"] for account in of_kind(objects, "ServiceAccount")}
    for template in templates(objects):
        account = template.spec.get("serviceAccountName", "default")
        if account == "default" or account not in known:
            yield f"{template.name}: runs as {account}; give it an account of its own."
        needs, mounts = TOKEN_LABEL in template.labels, template.spec.get("automountServiceAccountToken")
        if mounts is not needs:
            yield f"{template.name}: automountServiceAccountToken is {mounts}, but {TOKEN_LABEL} says {needs}."


def probed(objects: list[Object]) -> Iterator[str]:
    for template in templates(objects):
        if not template.lasting:
            continue
        for container in template.spec["containers"]:
            missing = [kind for kind in ("startup", "readiness", "liveness") if f"{kind}Probe" not in container]
            if missing:
                yield f"{_named(template, container)}: no {', '.join(missing)} probe."


def secrets_by_reference(objects: list[Object]) -> Iterator[str]:
    for content in of_kind(objects, "Secret"):
        yield f"{title(content)}: a secret in a file; make it with kubectl create secret."
    for template, container in _containers(objects):
        for variable in container.get("env", []):
            if variable.get("value") and _SENSITIVE.search(variable["name"]):
                yield f"{_named(template, container)}: {variable['name']} is written out; take it from a secret."
    for content in of_kind(objects, "ConfigMap"):
        for key, value in content.get("data", {}).items():
            # KFP's providers name the keys of a secret; that is a reference.
            if _SENSITIVE.search(key) and value:
                yield f"{title(content)}: {key} is written out; take it from a secret."


# ---- rights


def no_wildcards(objects: list[Object]) -> Iterator[str]:
    for role in of_kind(objects, "Role", "ClusterRole"):
        for rule in role["rules"]:
            for field in ("apiGroups", "resources", "verbs", "resourceNames"):
                if any("*" in value for value in rule.get(field, [])):
                    yield f"{title(role)}: * in {field}; name what is needed."


def secrets_by_name(objects: list[Object]) -> Iterator[str]:
    for role in of_kind(objects, "Role", "ClusterRole"):
        for rule in role["rules"]:
            if "secrets" in rule.get("resources", []) and (rule["verbs"] != ["get"] or not rule.get("resourceNames")):
                yield f"{title(role)}: secrets may only be got, and by name."


def separated(objects: list[Object]) -> Iterator[str]:
    """Who submits can't promote, who promotes can't submit, and both can do what they are for."""
    for role, acts in NEEDED.items():
        for act in acts:
            if not may(objects, f"dualipo-{role}", act):
                yield f"dualipo-{role} may not {act}, which it is for."
    for role, acts in FORBIDDEN.items():
        for subject in (f"dualipo-{role}", f"group:dualipo:{role}s"):
            for act in acts:
                if may(objects, subject, act):
                    yield f"{subject} may {act}, which undoes the separation of accounts."
    for subject in sorted(subjects(objects)):
        for rule in rules(objects, subject):
            worst = {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            if worst:
                yield f"{subject} may {worst.pop()}: that is every right there is."


def experiment_granted(objects: list[Object], experiment: str) -> Iterator[str]:
    """Not among RULES: which experiments are run is not in the manifests."""
    lacking = [act.name for act in champions(experiment) if not may(objects, "dualipo-runner", act)]
    if lacking:
        yield f"Runs of experiment {experiment} may not move a champion, for want of {', '.join(lacking)}; {GRANT}."


def people_accounts_run_no_pods(objects: list[Object]) -> Iterator[str]:
    """KFP lets a submitter name any account for a run's pods: admission must refuse the people's."""
    people = ("dualipo-submitter", "dualipo-promoter")
    for template in templates(objects):
        if template.spec.get("serviceAccountName") in people:
            yield f"{template.name}: runs as an account made for people."
    denied = {
        binding["spec"]["policyName"]
        for binding in of_kind(objects, "ValidatingAdmissionPolicyBinding")
        if "Deny" in binding["spec"]["validationActions"]
    }
    guarding = [
        policy
        for policy in of_kind(objects, "ValidatingAdmissionPolicy")
        if policy["metadata"]["name"] in denied
        and policy["spec"].get("failurePolicy", "Fail") == "Fail"
        and any("pods" in rule["resources"] for rule in policy["spec"]["matchConstraints"]["resourceRules"])
        and all(any(f"'{who}'" in v["expression"] for v in policy["spec"]["validations"]) for who in people)
    ]
    if not guarding:
        yield "No admission policy keeps pods from running as dualipo-submitter or dualipo-promoter."


# ---- network and namespace


def denied_by_default(objects: list[Object]) -> Iterator[str]:
    policies = of_kind(objects, "NetworkPolicy")
    for namespace in {template.owner["metadata"].get("namespace", "default") for template in templates(objects)}:
        closed = [
            policy
            for policy in policies
            if policy["metadata"].get("namespace") == namespace
            and not policy["spec"]["podSelector"]
            and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
            and not policy["spec"].get("ingress")
            and not policy["spec"].get("egress")
        ]
        if not closed:
            yield f"Namespace {namespace}: no NetworkPolicy denies all traffic by default."


def narrow_ways(objects: list[Object]) -> Iterator[str]:
    """Every opened way names who is at its other end; only pods of one TrainJob may use any port among themselves."""
    for policy in of_kind(objects, "NetworkPolicy"):
        spec = policy["spec"]
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction, []):
                ends = rule.get(peers, [])
                if not ends or any(not end or end == {"podSelector": {}} for end in ends):
                    yield f"{title(policy)}: {direction} {peers} anyone; name the pods."
                if any(end.get("namespaceSelector") == {} for end in ends):
                    yield f"{title(policy)}: {direction} {peers} every namespace; name it."
                for block in (end["ipBlock"] for end in ends if "ipBlock" in end):
                    if block["cidr"].endswith("/0") and "169.254.0.0/16" not in block.get("except", []):
                        yield f"{title(policy)}: reaches the cloud's metadata service; except 169.254.0.0/16."
                among = [spec["podSelector"]] == [end.get("podSelector") for end in ends]
                if not rule.get("ports") and not among:
                    yield f"{title(policy)}: {direction} on every port; name the ports."


def ways(objects: list[Object]) -> Iterator[str]:
    """Followed through the policies of both ends: what work needs is open, what nobody needs is not."""
    stored = any(content["metadata"]["name"] == "seaweedfs" for content in of_kind(objects, "Service"))
    for source, target, port in [*OPEN, *(OPEN_TO_STORE if stored else [])]:
        if not reaches(objects, source, target, port):
            yield f"NetworkPolicies keep {source.name} from {target.name}:{port}, which it needs."
    for source, target, port in CLOSED:
        if reaches(objects, source, target, port):
            yield f"NetworkPolicies let {source.name} reach {target.name}:{port}, which it does not need."


def restricted(objects: list[Object]) -> Iterator[str]:
    for namespace in of_kind(objects, "Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{title(namespace)}: does not enforce the restricted Pod Security Standard."


def limited(objects: list[Object]) -> Iterator[str]:
    for namespace in of_kind(objects, "Namespace"):
        name = namespace["metadata"]["name"]
        for kind in ("ResourceQuota", "LimitRange"):
            if not any(limit["metadata"].get("namespace") == name for limit in of_kind(objects, kind)):
                yield f"Namespace {name}: no {kind}."


# ---- names meet


def wired(objects: list[Object]) -> Iterator[str]:
    """Selectors find pods, ports exist, and every ConfigMap, claim, class and secret that a pod names is known."""
    pods = list(templates(objects))
    for service in of_kind(objects, "Service"):
        chosen = [pod for pod in pods if selects({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        offered = {
            value
            for pod in chosen
            for container in pod.spec["containers"]
            for port in container.get("ports", [])
            for value in (port.get("name"), port["containerPort"])
        }
        if not chosen:
            yield f"{title(service)}: selects no pod."
        for port in service["spec"]["ports"]:
            wanted = port.get("targetPort", port["port"])
            if chosen and wanted not in offered:
                yield f"{title(service)}: target port {wanted} is offered by no container."
    for content in of_kind(objects, "Deployment", "StatefulSet", "DaemonSet"):
        if not selects(content["spec"]["selector"], content["spec"]["template"]["metadata"]["labels"]):
            yield f"{title(content)}: its selector does not match its own pods."
    for content in of_kind(objects, "PodDisruptionBudget"):
        if not any(selects(content["spec"]["selector"], pod.labels) for pod in pods if pod.lasting):
            yield f"{title(content)}: selects no pod."
    for policy in of_kind(objects, "NetworkPolicy"):
        spec = policy["spec"]
        ends = [end for rule in spec.get("ingress", []) for end in rule["from"]]
        ends += [end for rule in spec.get("egress", []) for end in rule["to"]]
        local = [end["podSelector"] for end in ends if "podSelector" in end and "namespaceSelector" not in end]
        for selector in [spec["podSelector"], *local]:
            foreign = any(term["key"] in FOREIGN_LABELS for term in selector.get("matchExpressions", []))
            if not foreign and not any(selects(selector, pod.labels) for pod in pods):
                yield f"{title(policy)}: {selector} selects no pod."
    have = {kind: {c["metadata"]["name"] for c in of_kind(objects, kind)} for kind in _REFERRED}
    for pod in pods:
        for kind, name in _references(pod):
            if name not in have.get(kind, set()) | (set(SECRETS) if kind == "Secret" else set()):
                yield f"{pod.name}: refers to {kind} {name}, which nothing makes."


_REFERRED = ("ConfigMap", "PersistentVolumeClaim", "PriorityClass", "ServiceAccount", "Secret")


def _references(pod: Template) -> Iterator[tuple[str, str]]:
    if "priorityClassName" in pod.spec:
        yield "PriorityClass", pod.spec["priorityClassName"]
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in pod.containers:
        for source in container.get("envFrom", []):
            for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if key in source:
                    yield kind, source[key]["name"]
        for variable in container.get("env", []):
            for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if key in variable.get("valueFrom", {}):
                    yield kind, variable["valueFrom"][key]["name"]


# ---- how the rules look at containers


def _containers(objects: list[Object]) -> Iterator[tuple[Template, Object]]:
    for template in templates(objects):
        for container in template.containers:
            yield template, container


def _context(template: Template, container: Object) -> Object:
    """The security context in force: the container's over the pod's."""
    return template.spec.get("securityContext", {}) | container.get("securityContext", {})


def _named(template: Template, container: Object) -> str:
    return f"{template.name}, container {container['name']}"


RULES: tuple[Rule, ...] = (
    non_root,
    unprivileged,
    read_only,
    bounded,
    pinned,
    accounts,
    probed,
    secrets_by_reference,
    no_wildcards,
    secrets_by_name,
    separated,
    people_accounts_run_no_pods,
    denied_by_default,
    narrow_ways,
    ways,
    restricted,
    limited,
    wired,
)
