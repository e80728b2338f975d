"""The TrainJob and the files of k8s/trainer, held to Kubeflow Trainer's own models; the log's lines; the launch."""

import copy
import json
import re
import shutil

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube_api import KubeApi
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob
from pydantic import ValidationError
from serving import kubeconfig
from test_trainjob import PATIENCE, SETTINGS, TRAINING, succeed

from dualipo.cluster import policy
from dualipo.cluster.access import FORBIDDEN, NEEDED, may
from dualipo.cluster.logs import Deduplicator
from dualipo.cluster.manifest import Owner, Training, label_value, manifest
from dualipo.cluster.render import render
from dualipo.config import Config, TrainJob, load_config
from dualipo.engine import execute
from dualipo.errors import UserError
from dualipo.steps import GRAPH

IMAGE = "registry.example/dualipo@sha256:" + "a" * 64
FULL = SETTINGS.model_copy(
    update={
        "nodes": 4,
        "env": {"NCCL_DEBUG": "WARN", "HOME": "/scratch/home"},
        "secret_env": {"AWS_ACCESS_KEY_ID": "dualipo-s3/AWS_ACCESS_KEY_ID"},
        "node_selector": {"gpu": "h100"},
    }
)


def pod_of(job):
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]
    (node,) = patch["spec"]["replicatedJobs"]
    return node["template"]["spec"]["template"]


def test_the_manifest_is_a_trainjob_of_kubeflow_trainer():
    job = manifest(TRAINING, FULL, "me", Owner("runner", "uid"), attempt=2)
    # whatever their models do not know is lost on this way.
    assert TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    assert job["spec"]["runtimeRef"]["name"] == "dualipo-deepspeed"
    assert job["spec"]["activeDeadlineSeconds"] == FULL.deadline_seconds
    trainer = job["spec"]["trainer"]
    assert trainer["image"] == IMAGE
    assert [*trainer["command"], *trainer["args"]] == ["torchrun", "--no-python", *TRAINING.command]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 8)
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": "8"}
    secret = {"secretKeyRef": {"name": "dualipo-s3", "key": "AWS_ACCESS_KEY_ID"}}
    assert trainer["env"] == [
        {"name": "HOME", "value": "/scratch/home"},
        {"name": "NCCL_DEBUG", "value": "WARN"},
        {"name": "AWS_ACCESS_KEY_ID", "valueFrom": secret},
    ]
    pod = pod_of(job)
    claims = {v["name"]: v["persistentVolumeClaim"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v}
    assert claims == {
        "models": {"claimName": "dualipo-models", "readOnly": True},
        "scratch": {"claimName": "dualipo-scratch"},
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert mounts == {"models": "/models", "scratch": "/scratch", "shm": "/dev/shm", "tmp": "/tmp"}
    assert pod["spec"]["nodeSelector"] == {"gpu": "h100"}


def test_pods_meet_the_restricted_standard_and_say_what_they_are_for():
    job = manifest(TRAINING, SETTINGS, "me")
    pod = pod_of(job)
    security = pod["spec"]["containers"][0]["securityContext"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] and pod["spec"]["securityContext"]["runAsUser"] > 0
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["capabilities"] == {"drop": ["ALL"]} and not security["allowPrivilegeEscalation"]
    assert security["readOnlyRootFilesystem"]
    labels = {k.partition("/")[2]: v for k, v in pod["metadata"]["labels"].items() if k.startswith("dualipo.io/")}
    assert labels == {"experiment": "small-world", "round": "2", "step": "align", "fingerprint": TRAINING.fingerprint}
    assert job["metadata"]["labels"] == pod["metadata"]["labels"]
    assert job["metadata"]["ownerReferences"] == []


@pytest.fixture
def runtime(repository):
    [found] = render(repository / "k8s/trainer")
    return found


def whole_pod(job, runtime):
    """A node's pod as Kubeflow Trainer makes it: the runtime's, with the patch and the trainer's own fields over it."""
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod, patch = copy.deepcopy(replicated["template"]["spec"]["template"]), pod_of(job)
    (container,), (over,) = pod["spec"]["containers"], patch["spec"]["containers"]
    trainer = job["spec"]["trainer"]
    container |= over | {key: trainer[key] for key in ("image", "command", "args", "env")}
    container["resources"] = trainer["resourcesPerNode"]
    pod["spec"] |= patch["spec"] | {"containers": [container]}
    labels = patch["metadata"]["labels"] | {"jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"]}
    metadata = {"name": "node", "namespace": job["metadata"]["namespace"], "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}


def test_a_nodes_pod_keeps_every_rule_of_the_namespace(repository, runtime):
    pod = whole_pod(manifest(TRAINING, FULL, "me"), runtime)
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    objects = [*render(repository / "k8s/overlays/gpu"), pod]
    assert policy.violations(objects) == []
    for act in [*NEEDED["runner"], *FORBIDDEN["runner"]]:
        assert not may(objects, pod["spec"]["serviceAccountName"], act)
    del pod["spec"]["serviceAccountName"]
    assert policy.violations(objects) == ["Pod node: runs as default; give it an account of its own."]


def test_the_hash_holds_what_is_run_and_nothing_else():
    def hash_of(*arguments, **options):
        return manifest(*arguments, **options)["metadata"]["annotations"]["dualipo.io/spec-hash"]

    same = hash_of(TRAINING, SETTINGS, "me")
    assert same == hash_of(TRAINING, SETTINGS, "you", Owner("a", "b"), attempt=3)
    # how patiently it is watched does not change the job.
    changes = {"retries": 9, "pending_seconds": 1, "keep_failed": True}
    assert same == hash_of(TRAINING, SETTINGS.model_copy(update=changes), "me")
    for change in ({"nodes": 3}, {"image": IMAGE.replace("a" * 64, "b" * 64)}, {"env": {"A": "1"}}):
        assert same != hash_of(TRAINING, SETTINGS.model_copy(update=change), "me")


@given(
    st.text(min_size=1, max_size=30),
    st.sampled_from(["align", "train_critic"]),
    st.text("0123456789abcdef", min_size=32, max_size=32),
)
def test_names_are_labels_of_dns_and_differ_with_the_fingerprint(round_name, step, fingerprint):
    name = Training("e", round_name, step, fingerprint, ()).name
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(f"{name}-node-0-9999-abcde") <= 63
    assert name.endswith(fingerprint[:12])


@given(st.text(max_size=100))
def test_label_values_are_such(text):
    assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", label_value(text))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"launcher": "kubeflow"}, "needs `image`, pinned by digest"),
        ({"image": "registry.example/dualipo:latest"}, "pattern"),
        ({"secret_env": {"A": "no-key"}}, "pattern"),
        ({"env": {"PET_NNODES": "2"}}, "PET_NNODES is set by Kubeflow Trainer"),
        ({"env": {"A": "1"}, "secret_env": {"A": "s/k"}}, "A stands in both"),
        ({"memory_per_node": "256"}, "pattern"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, match):
    with pytest.raises(ValidationError, match=match):
        TrainJob(**values)


def test_where_it_trains_changes_no_identity(repository):
    config = load_config(
        repository / "params.yaml", overrides={"train_job.image": IMAGE, "train_job.launcher": "kubeflow"}
    )
    assert (
        config.train_job.launcher == "kubeflow" and config.digest() == load_config(repository / "params.yaml").digest()
    )
    assert all("train_job" not in step.sections for step in GRAPH.values())


def test_the_runtime_is_one_of_kubeflow_trainer_and_fits_the_manifest(runtime):
    assert TrainerV1alpha1TrainingRuntime.from_dict(runtime).to_dict() == runtime
    job = manifest(TRAINING, TrainJob(image=IMAGE), "me")
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["metadata"]["namespace"] == runtime["metadata"]["namespace"]
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == "node"
    # a pod that ended otherwise would be started anew behind the launcher's back.
    assert replicated["template"]["spec"]["backoffLimit"] == 0
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and [c["name"] for c in pod["containers"]] == ["node"]
    # what JobSet makes of it is Kubernetes' own.
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "node"},
        "spec": replicated["template"]["spec"],
    }
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_kubeflow_trainers_models_know_every_field(runtime):
    """A wrong name, and a value of another type, far inside."""
    wrong = copy.deepcopy(runtime)
    (replicated,) = wrong["spec"]["template"]["spec"]["replicatedJobs"]
    replicated["template"]["spec"]["backoffLimits"] = 0
    assert TrainerV1alpha1TrainingRuntime.from_dict(wrong).to_dict() != wrong
    wrong = manifest(TRAINING, FULL, "me")
    pod_of(wrong)["spec"]["securityContext"]["runAsUser"] = "1000"
    with pytest.raises(ValidationError, match="valid integer"):
        TrainerV1alpha1TrainJob.from_dict(wrong)


# ---- lines of a log


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), max_size=12),
    st.lists(st.integers(0, 12), max_size=4),
)
def test_lines_are_told_once_however_often_the_log_is_read(entries, cuts):
    times, lines = 0, []
    for pause, text in entries:
        times += pause * 1_700_000_000
        lines.append(f"2026-01-01T00:00:{times // 10**9:02}.{times % 10**9:09}Z {text}".encode())
    reader, told = Deduplicator(), []
    for end in [*sorted(cuts), len(lines)]:
        reader.begin()
        told += [text for line in lines[:end] if (text := reader.new(line)) is not None]
    assert told == [text for _, text in entries]


def test_lines_may_be_a_little_out_of_order_and_bear_any_zone():
    lines = [b"2026-01-01T01:00:04+01:00 out", b"2026-01-01T00:00:03.999999999Z err", b"2026-01-01T00:00:04.5Z "]
    reader = Deduplicator()
    assert [reader.new(line) for line in lines] == ["out", "err", ""]
    reader.begin()
    assert [reader.new(line) for line in [*lines, b"unable to retrieve container logs"]] == [None] * 4


# ---- a step on the cluster


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """An API server that this process finds by its kubeconfig, and a folder in the place of the scratch claim."""
    api = KubeApi()
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", api.url)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("dualipo.cluster.trainjob.Patience", lambda: PATIENCE)
    monkeypatch.setattr("dualipo.cluster.launch.SCRATCH", str(tmp_path / "scratch"))
    yield api
    api.close()
    assert api.errors == []


def options_of(job):
    found = job["spec"]["trainer"]["args"]
    assert found[:3] == ["python", "-m", "dualipo.training.worker"]
    return dict(zip(found[3::2], found[4::2], strict=True))


def read(options, name):
    with open(options[f"--{name}"]) as file:
        return json.load(file)


def experiment(folder):
    """The inputs of `align`: files, for what they hold is the worker's affair."""
    for port in GRAPH["align"].inputs.values():
        path = folder / port.bind("data", "1", "base")
        if path.suffix:
            path.write_text('{"stop": false}')
            continue
        path.mkdir(parents=True)
        (path / "content").write_text(port.path)
    return folder


def test_a_step_trains_on_the_cluster_and_its_outputs_come_back(cluster, tmp_path):
    folder = experiment(tmp_path / "experiment")
    config = Config(train_job=SETTINGS)
    attempts = []

    def control(job):
        options = options_of(job)
        bindings, told = read(options, "bindings"), read(options, "job")
        assert options["--step"] == "align" and told["round"] == "1"
        assert Config.model_validate(read(options, "config")) == config
        assert set(bindings) == GRAPH["align"].takes
        attempts.append(told["work"])
        checkpoint = tmp_path.joinpath(told["work"], "checkpoint")
        if len(attempts) == 1:
            checkpoint.write_text("half")
            with open(options["--error"], "w") as file:
                json.dump({"kind": "user", "message": "real clips and candidates differ; make them alike"}, file)
            cluster.pod(
                job, 0, "Failed", containerStatuses=[{"name": "node", "state": {"terminated": {"exitCode": 2}}}]
            )
            cluster.end(job, "Failed")
            return
        assert checkpoint.read_text() == "half"
        if len(attempts) == 2:
            cluster.pod(
                job, 0, "Failed", containerStatuses=[{"name": "node", "state": {"terminated": {"exitCode": 9}}}]
            )
            cluster.end(job, "Failed")
            return
        shutil.copytree(bindings["generator"], bindings["candidate"])
        with open(bindings["curves"], "w") as file:
            file.write("step,loss\n1,0.5\n")
        with open(options["--summary"], "w") as file:
            json.dump({"metrics": {"loss": "nan"}, "curves": {}, "pictures": {}, "tags": {}}, file)
        succeed(cluster, job)

    cluster.on_create = control
    align = GRAPH["align"]
    with pytest.raises(UserError, match=r"^real clips and candidates differ; make them alike$"):
        execute(align, config, folder, "1", track=False)
    with pytest.raises(UserError, match="node 0 ended with exit status 9"):
        execute(align, config, folder, "1", track=False)
    made = execute(align, config, folder, "1", track=False)
    assert (folder / "runs/1/generator_candidate/content").read_text() == GRAPH["align"].inputs["generator"].path
    assert (folder / "runs/1/align_curves.csv").read_text() == "step,loss\n1,0.5\n"
    assert str(made.summary.metrics["loss"]) == "nan"
    assert list((tmp_path / "scratch/trainjobs").iterdir()) == []
    cluster.wait_for(lambda: cluster.job() is None)
    # the same work, wherever it is done.
    assert execute(align, Config(), folder, "1", track=False).skipped


def test_a_claim_that_is_not_mounted_is_asked_for(cluster, tmp_path):
    (tmp_path / "scratch").rmdir()
    with pytest.raises(UserError, match=r"scratch: no such folder; mount the claim dualipo-scratch there"):
        execute(GRAPH["align"], Config(train_job=SETTINGS), experiment(tmp_path / "e"), "1", track=False)
    assert cluster.requests == []
