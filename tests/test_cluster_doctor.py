import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import servers
from click.testing import CliRunner
from cluster_api import ClusterApi
from kubernetes import client
from serving import kubeconfig, serving

from dualipo.cli import cli
from dualipo.cluster.access import FORBIDDEN, NEEDED
from dualipo.cluster.connection import connect
from dualipo.cluster.doctor import Where, examine
from dualipo.cluster.render import render, templates
from dualipo.errors import UserError

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(scope="module")
def manifests(repository):
    return render(repository / "k8s/overlays/local")


def running(manifests):
    """The manifests as they look once everything runs: statuses, pods, nodes, a storage class, secrets."""
    api = ClusterApi(manifests)
    for content in api.objects:
        if content["kind"] in ("Deployment", "StatefulSet"):
            content["status"] = {"replicas": 1, "readyReplicas": content["spec"]["replicas"]}
        elif content["kind"] == "PersistentVolumeClaim":
            content["status"] = {"phase": "Bound", "capacity": {"storage": "10Gi"}}
        elif content["kind"] == "ResourceQuota":
            content["status"] = {"hard": content["spec"]["hard"], "used": {"pods": "3", "requests.cpu": "750m"}}
    for template in [t for t in templates(api.objects) if t.lasting]:
        name = template.owner["metadata"]["name"]
        containers = [{"name": c["name"], "image": f"{c['image']}@{DIGEST}"} for c in template.spec["containers"]]
        pod = {"kind": "Pod", "metadata": {"name": f"{name}-0", "namespace": "dualipo"}}
        api.objects.append(pod | {"spec": {"containers": containers}, "status": {"phase": "Running"}})
    api.objects += [
        {
            "kind": "Node",
            "metadata": {"name": "gpu-0"},
            "status": {
                "allocatable": {"cpu": "32", "nvidia.com/gpu": "8"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        {
            "kind": "StorageClass",
            "metadata": {
                "name": "standard",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "local",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        secret("dualipo-s3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        secret("dualipo-mlflow-db", "username", "password"),
    ]
    return api


def secret(name, *keys):
    return {
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "dualipo"},
        "data": dict.fromkeys(keys, "aHVudGVyMg=="),
    }


@pytest.fixture
def api(manifests, monkeypatch):
    for name in (*os.environ,):
        if name.startswith(("AWS_", "MLFLOW_TRACKING", "KUBE")) or name.endswith("_BUCKET"):
            monkeypatch.delenv(name)
    holds = running(manifests)
    with serving(holds.answer) as holds.url:
        yield holds


def look(api, token="dualipo-submitter", **where):
    configuration = client.Configuration()
    configuration.host, configuration.retries = api.url, False
    configuration.api_key = {"authorization": f"Bearer {token}"}
    return {f.name: f for f in examine(client.ApiClient(configuration), Where(**where))}


def test_an_administrator_sees_a_whole_cluster_and_is_told_to_be_less(api):
    found = look(api, "admin", gpus=8)
    assert {f.name for f in found.values() if f.state == "missing"} == set()
    assert found["API server"].found.startswith("v1.37.1")
    assert found["GPUs"].found == "8 allocatable on 1 ready nodes"
    assert found["secret dualipo-s3"].found == "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
    assert "hunter2" not in str(found) and "aHVudGVyMg" not in str(found)
    assert found["images"].found == "those of 3 pods, all pulled by digest"
    assert found["rights (submitter)"].state == "optional" and "token" in found["rights (submitter)"].advice


@pytest.mark.parametrize("role", ["runner", "submitter", "promoter"])
def test_each_account_has_its_rights_and_no_others(api, role):
    found = look(api, f"dualipo-{role}", role=role)
    told = f"{len(NEEDED[role])} needed, {len(FORBIDDEN[role])} rightly refused"
    assert (found[f"rights ({role})"].state, found[f"rights ({role})"].found) == ("ok", told)
    # nothing that it may not see is taken for broken.
    assert [f.name for f in found.values() if f.state == "missing"] == []
    for other in {"runner", "submitter", "promoter"} - {role}:
        right = look(api, f"dualipo-{role}", role=other)[f"rights ({other})"]
        assert right.state == "missing" and f"dualipo-{other}" in right.advice


def test_a_submitter_who_may_promote_is_told(api):
    role = api.find("Role", "dualipo-submit")
    role["rules"].append({"apiGroups": ["mlflow.kubeflow.org"], "resources": ["registeredmodels"], "verbs": ["update"]})
    right = look(api)["rights (submitter)"]
    assert right.state == "optional" and "may also update registeredmodels.mlflow.kubeflow.org" in right.found


@pytest.mark.parametrize(("token", "role"), [("dualipo-runner", "runner"), ("admin", "submitter")])
def test_an_experiment_without_a_grant_is_told(api, token, role):
    granted = look(api, token, role=role, experiment="wan-1-3b")["experiment wan-1-3b"]
    assert granted.state == "ok"
    found = look(api, token, role=role, experiment="my-own")["experiment my-own"]
    assert (found.state, found.found) == (
        "missing",
        "runs may not move a champion, for want of my-own-critic, my-own-generator, my-own-history",
    )
    assert "runner.yaml" in found.advice


def test_whoever_may_not_ask_about_runs_is_told_so(api):
    found = look(api, "dualipo-submitter", experiment="my-own")["experiment my-own"]
    assert found.state == "optional" and "no right to read other accounts' rights" in found.found


def quota(api, field, changes):
    api.find("ResourceQuota", "dualipo")["status"][field].update(changes)


def node(api):
    return api.find("Node", "gpu-0")["status"]


def waiting(api, reason):
    (pod,) = [o for o in api.objects if o["kind"] == "Pod" and o["metadata"]["name"] == "mlflow-0"]
    image = pod["spec"]["containers"][0]["image"]
    state = {"name": "mlflow", "image": image, "imageID": "", "ready": False, "restartCount": 0}
    pod["status"]["containerStatuses"] = [state | {"state": {"waiting": {"reason": reason}}}]


def unpinned(api):
    (pod,) = [o for o in api.objects if o["kind"] == "Pod" and o["metadata"]["name"] == "mlflow-0"]
    pod["spec"]["containers"][0]["image"] = "dualipo-mlflow:0.1.0"


DATABASE, MODELS, GPUS = "secret dualipo-mlflow-db", "volume dualipo-models", "requests.nvidia.com/gpu"
FAULTS = [
    ("API server", lambda a: a.version.update(minor="29+", gitVersion="v1.29.3"), "v1.29.3", "upgrade"),
    ("namespace", lambda a: a.find("Namespace", "dualipo")["metadata"]["labels"].clear(), "not enforced", "apply -k"),
    ("namespace", lambda a: a.remove("Namespace", "dualipo"), "absent", "apply -k"),
    ("CRDs of Argo Workflows", lambda a: a.groups.remove("argoproj.io"), "no API group", "k8s/kubeflow"),
    ("mlflow", lambda a: a.find("Deployment", "mlflow")["status"].update(readyReplicas=0), "0 of 1", "describe pod"),
    ("mlflow", lambda a: a.remove("Deployment", "mlflow"), "absent", "apply -k"),
    ("postgres", lambda a: a.find("StatefulSet", "postgres").update(status={"replicas": 1}), "0 of 1", "describe pod"),
    ("seaweedfs", lambda a: a.find("StatefulSet", "seaweedfs")["status"].update(readyReplicas=0), "0 of 1", "describe"),
    ("image", lambda a: waiting(a, "ImagePullBackOff"), "ImagePullBackOff", "imagePullSecret"),
    ("image", lambda a: waiting(a, "InvalidImageName"), "InvalidImageName", "pin --registry"),
    ("secret dualipo-s3", lambda a: a.remove("Secret", "dualipo-s3"), "absent", "--from-literal=AWS_ACCESS_KEY_ID="),
    (DATABASE, lambda a: a.find("Secret", "dualipo-mlflow-db")["data"].pop("password"), "without password", "all keys"),
    (MODELS, lambda a: a.remove("PersistentVolumeClaim", "dualipo-models"), "absent", "apply -k"),
    (MODELS, lambda a: (pending(a), a.remove("StorageClass", "standard")), "no default storage class", "volumes.yaml"),
    (MODELS, lambda a: pending(a, "shared"), "no storage class shared", "(standard)"),
    (MODELS, lambda a: pending(a, binding="Immediate"), "Pending, class standard", "describe pvc"),
    ("quota", lambda a: quota(a, "used", {"pods": "60"}), "pods 60 of 60", "end what"),
    ("quota", lambda a: quota(a, "hard", {GPUS: "1"}), "1 GPUs of the 2", "quota.yaml"),
    ("quota", lambda a: a.remove("ResourceQuota", "dualipo"), "absent", "apply -k"),
    ("GPUs", lambda a: node(a)["allocatable"].clear(), "0 allocatable", "device plugin"),
    ("GPUs", lambda a: node(a)["conditions"][0].update(status="False"), "on 0 ready nodes", "device plugin"),
    ("priority", lambda a: a.remove("PriorityClass", "dualipo-training"), "absent", "apply -k"),
]  # fmt: skip


def pending(api, wanted=None, binding="WaitForFirstConsumer"):
    claim = api.find("PersistentVolumeClaim", "dualipo-models")
    claim["status"] = {"phase": "Pending"}
    if wanted:
        claim["spec"]["storageClassName"] = wanted
    api.find("StorageClass", "standard")["volumeBindingMode"] = binding


@pytest.mark.parametrize(
    ("name", "breaks", "told", "advice"), FAULTS, ids=[f"{n}-{f[0]}" for n, f in enumerate(FAULTS)]
)
def test_each_fault_is_told_with_its_remedy(api, name, breaks, told, advice):
    breaks(api)
    found = look(api, "admin", gpus=2)
    missing = {f.name: f for f in found.values() if f.state == "missing"}
    assert set(missing) == {name}
    assert told in missing[name].found and advice in missing[name].advice
    assert "\n" not in missing[name].advice


def test_a_tag_is_advice_and_a_volume_may_wait_for_its_first_pod(api):
    unpinned(api)
    pending(api)
    found = look(api, "admin")
    assert found["images pinned"].state == "optional" and "dualipo-mlflow:0.1.0" in found["images pinned"].found
    assert found["volume dualipo-models"].found == "class standard, bound when a pod first uses it"
    assert found["volume dualipo-models"].state == "ok"


# ---- the services


def services(mlflow=None, health=None, status=200):
    """MLflow's and KFP's own answers, for whoever is `dualipo-submitter`."""

    def answer(request):
        if request.path == "/version":
            return 200, mlflow or version("mlflow")
        if request.path == "/api/2.0/mlflow/experiments/search":
            return (status, {"experiments": []}) if request.token == "dualipo-submitter" else (401, {})
        return 200, health if health is not None else {"multi_user": True}

    return serving(answer)


def test_mlflow_and_kfp_are_asked_with_ones_own_token(api):
    with services() as url:
        found = look(api, mlflow=url, kfp=url)
        stranger = look(api, "dualipo-runner", role="runner", mlflow=url, kfp=url)
    assert (found["MLflow"].state, found["KFP"].state) == ("ok", "ok")
    assert found["MLflow"].found == f"{version('mlflow')} at {url}"
    assert stranger["MLflow"].state == "missing" and "create token dualipo-runner" in stranger["MLflow"].advice


def test_services_that_are_wrong_are_told(api):
    with services(mlflow="2.1.0", health={"multi_user": False}) as url:
        found = look(api, mlflow=url, kfp=url)
    assert found["MLflow"].state == "optional" and "2.1.0, the client is" in found["MLflow"].found
    assert found["KFP"].state == "missing" and "multi-user" in found["KFP"].found
    with services(status=500) as url:
        assert "500 for a search" in look(api, mlflow=url)["MLflow"].found
    gone = look(api, mlflow=url, kfp=url)
    assert {gone[name].state for name in ("MLflow", "KFP")} == {"missing"}
    assert "port-forward svc/mlflow 5000" in gone["MLflow"].advice
    assert "port-forward svc/ml-pipeline 8888" in gone["KFP"].advice
    unasked = look(api)
    assert {unasked[name].state for name in ("MLflow", "KFP", "S3")} == {"optional"}


# ---- the object store, started as the manifest starts it


@pytest.fixture(scope="module")
def store(manifests, tmp_path_factory):
    with servers.seaweedfs(manifests, tmp_path_factory.mktemp("store") / "seaweedfs") as url:
        yield url


@pytest.fixture
def endpoints(store, manifests, api, monkeypatch):
    """What a pod gets: the overlay's endpoints and the secret's keys."""
    doctor = servers.container(manifests, "CronJob doctor", "doctor")
    for name, value in servers.environment(manifests, doctor).items():
        if name.startswith("AWS_") or name.endswith("_BUCKET"):
            monkeypatch.setenv(name, store if "ENDPOINT" in name else value)


def test_buckets_are_seen_with_the_pods_keys_and_with_no_others(endpoints, api, monkeypatch):
    from botocore.session import Session

    # a gateway that answers may still wait for its filer.
    client_ = Session().create_client("s3")
    for bucket in ("dualipo-mlflow", "dualipo-pipelines"):
        servers.patiently(lambda bucket=bucket: client_.create_bucket(Bucket=bucket))
    found = look(api, "dualipo-runner", role="runner")
    assert found["S3 dualipo-mlflow"].state == found["S3 dualipo-pipelines"].state == "ok"
    absent = found["S3 dualipo-backups"]
    assert (absent.state, absent.found, absent.advice) == ("missing", "404", "make the bucket")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    refused = look(api, "dualipo-runner", role="runner")["S3 dualipo-mlflow"]
    assert (refused.state, refused.found) == ("missing", "403") and "keys of dualipo-s3" in refused.advice
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    gone = look(api, "dualipo-runner", role="runner")["S3"]
    assert gone.state == "missing" and "NetworkPolicies" in gone.advice


# ---- the command


@pytest.fixture
def logged_in(api, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", api.url, "dualipo-submitter")))


def test_the_command_says_all_is_well_or_exits_with_1(api, logged_in):
    with services() as url:
        command = ["cluster", "doctor", "--mlflow", url, "--kfp", url]
        well = CliRunner().invoke(cli, command)
        api.find("Deployment", "mlflow")["status"].update(readyReplicas=0)
        ill = CliRunner().invoke(cli, command)
    assert well.exit_code == 0, well.output
    assert well.output.endswith("ready to run\n") and "rights (submitter)" in well.output
    assert ill.exit_code == 1 and "missing   mlflow" in ill.output
    assert ill.output.endswith("1 to mend before a run\n")


def test_no_cluster_is_one_sentence(tmp_path, logged_in, monkeypatch):
    with pytest.raises(
        UserError, match=r"^no cluster to talk to: .*elsewhere.*; log in to the cluster, or set KUBECONFIG$"
    ):
        connect("elsewhere")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no cluster to talk to"):
        connect()


def test_a_server_that_is_away_ends_the_looking(api, manifests):
    api.url = "http://127.0.0.1:9"
    (found,) = look(api).values()
    assert found.state == "missing" and "no answer" in found.found


def test_inside_a_pod_without_a_token_the_remedy_is_another(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(UserError, match="mount its service account's token"):
        connect()


def test_help_imports_no_client():
    code = (
        "import sys; from dualipo.cli import cli\n"
        "cli.main(['cluster', 'doctor', '--help'], standalone_mode=False); print('kubernetes' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout.endswith("False\n")
    assert CliRunner().invoke(cli, ["cluster", "--help"]).output.count("\n  ") >= 4
