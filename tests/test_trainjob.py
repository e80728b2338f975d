"""Trainings as TrainJobs, against an API server over real HTTP that breaks, forgets and refuses."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from kube_api import KubeApi, Refusal
from serving import kubeconfig

from dualipo.cluster.access import Act, may
from dualipo.cluster.api import Cluster, Patience
from dualipo.cluster.manifest import Training
from dualipo.cluster.monitor import Monitor
from dualipo.cluster.render import render
from dualipo.cluster.trainjob import train
from dualipo.cluster.watching import Seen
from dualipo.config import TrainJob
from dualipo.errors import UserError

RUNNER = "dualipo-runner"
# short where nothing but time would pass, long where a busy machine could be taken for a failure.
PATIENCE = Patience(backoff=0.01, longest_backoff=0.1, answer=60, unreachable=60, look=0.05, cleanup=60)
COMMAND = ("python", "-m", "dualipo.training.worker", "--step", "align", "--config", "/scratch/x/config.json")
TRAINING = Training("small-world", "2", "align", "0123456789abcdef0123456789abcdef", COMMAND)
SETTINGS = TrainJob(
    launcher="kubeflow", image="registry.example/dualipo@sha256:" + "a" * 64, nodes=2, retries=2, pending_seconds=60
)
WARNING = {"startedAt": "2026-01-01T00:00:00Z"}


@pytest.fixture
def api(manifests):
    """Every request of every test must be one that the account of runs may make."""
    server = KubeApi()
    yield server
    server.close()
    assert server.errors == []
    assert [
        str(act) for act in {asked(*request) for request in server.requests} if not may(manifests, RUNNER, act)
    ] == []


@pytest.fixture(scope="session")
def manifests(repository):
    return render(repository / "k8s/overlays/local")


def asked(method, path):
    path, _, query = path.partition("?")
    group = path.split("/")[2] if path.startswith("/apis/") else ""
    kind, name, sub = (*path.split("/namespaces/dualipo/")[1].split("/"), None, None)[:3]
    verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(method)
    reading = "get" if name else "watch" if "watch=True" in query else "list"
    return Act(verb or reading, f"{kind}/{sub}" if sub else kind, group, name or "")


def connect(api, patience=PATIENCE, pod=None):
    from kubernetes import client

    configuration = client.Configuration(host=api.url)
    configuration.retries = False
    return Cluster(client.ApiClient(configuration), "dualipo", pod, patience)


def run(api, settings=SETTINGS, training=TRAINING, patience=PATIENCE, pod=None):
    train(training, settings, connect(api, patience, pod))


def gone(api):
    return api.wait_for(lambda: api.job() is None)


def succeed(api, job, *lines):
    for index in range(2):
        api.pod(job, index)
    api.log(job, 0, *lines)
    for index in range(2):
        api.pod(job, index, "Succeeded")
    api.end(job, "Complete")


def terminated(**state):
    return {"containerStatuses": [{"name": "node", "state": {"terminated": WARNING | state}}]}


def waiting(reason, message):
    return {"containerStatuses": [{"name": "node", "state": {"waiting": {"reason": reason, "message": message}}}]}


# ---- success


def test_a_job_is_made_streamed_and_removed(api, capsys):
    api.on_create = lambda job: succeed(api, job, "step 1 loss 0.5", "step 2 loss 0.4")
    run(api)
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("step")] == ["step 1 loss 0.5", "step 2 loss 0.4"]
    assert told[0] == "TrainJob dualipo/align-2-0123456789ab: created, 2 node(s) of 8 GPU(s)"
    assert told[-1] == "TrainJob dualipo/align-2-0123456789ab: complete"
    gone(api)
    assert api.count("POST", "fieldValidation=Strict") == 1
    assert not api.store["pods"]


def test_the_job_belongs_to_the_pod_that_makes_it(api):
    pod = api.put("pods", {"metadata": {"name": "runner"}, "spec": {}, "status": {"phase": "Running"}})
    owners = []

    def control(job):
        owners.append(job["metadata"]["ownerReferences"])
        succeed(api, job)

    api.on_create = control
    run(api, pod="runner")
    run(api, pod="not-there")  # an owner that does not exist would have the job collected at once
    reference = {"apiVersion": "v1", "kind": "Pod", "name": "runner", "uid": pod["metadata"]["uid"]}
    assert owners == [[reference], []]


# ---- connections that break


def test_watches_and_logs_go_on_after_disconnects_without_losing_or_doubling(api, capsys):
    stamps = iter([f"2026-01-01T00:00:0{i // 4}.{i % 4}Z" for i in range(40) for _ in range(2)])

    def control(job):
        for index in range(2):
            api.pod(job, index)
        for batch in range(5):
            # each time stamp is borne by two lines, and each line is equal to another one.
            api.log(job, 0, *[f"line {batch}"] * 4, stamp=lambda: next(stamps))
            api.wait_for(lambda batch=batch: api.count("GET", "/log?") > batch)
            api.cut()
        for index in range(2):
            api.pod(job, index, "Succeeded")
        api.cut()
        api.end(job, "Complete")

    api.on_create = control
    run(api)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("line")]
    assert told == [f"line {batch}" for batch in range(5) for _ in range(4)]
    gone(api)


@pytest.mark.parametrize("parity", [0, 1])
def test_an_expired_version_is_listed_anew(api, parity):
    lists = []

    def control(job):
        for index in range(2):
            api.pod(job, index)
        for kind in ("trainjobs", "pods"):
            api.wait_for(lambda kind=kind: api.count("GET", f"{kind}?", without="/log") > 1)
        # everything that happens while nobody hears it is found in the next list.
        with api.changed:
            for index in range(2):
                api.pod(job, index, "Succeeded")
            api.end(job, "Complete")
            lists.append(api.count("GET", "trainjobs?", without="watch=True"))
            api.version += (api.version + 1 + parity) % 2
            api.expire()
            assert api.oldest % 2 == parity

    api.on_create = control
    run(api)
    assert api.count("GET", "trainjobs?", without="watch=True") > lists[0]
    gone(api)


def test_a_server_that_restarts_is_waited_for(api):
    down = threading.Event()
    api.refuse = lambda method, path: Refusal(503, "the server is starting") if down.is_set() else None

    def control(job):
        for index in range(2):
            api.pod(job, index)
        down.set()
        api.cut()
        refused = len(api.requests)
        api.wait_for(lambda: len(api.requests) > refused + 4)
        down.clear()
        succeed(api, job)

    api.on_create = control
    run(api)
    gone(api)


def test_a_server_that_stays_away_is_given_up_and_what_is_left_is_named(api, capsys):
    def control(job):
        api.refuse = lambda method, path: Refusal(503, "gone fishing")
        api.cut()

    api.on_create = control
    with pytest.raises(UserError, match=r"has not answered for 0 s .*gone fishing.*run the step again"):
        run(api, patience=replace(PATIENCE, unreachable=0.3, cleanup=0.2))
    assert "remove it with `kubectl -n dualipo delete trainjob align-2-0123456789ab`" in capsys.readouterr().err


def test_a_creation_whose_answer_is_lost_is_not_repeated(api):
    lost = []

    def refuse(method, path):
        # the request goes through, its answer does not come.
        if method == "POST" and not lost:
            lost.append(path)
            api.create("trainjobs", made[0], strict=True)
            return Refusal(504, "timed out")
        return None

    from dualipo.cluster import trainjob

    made = []
    original = trainjob.manifest

    def manifest(*arguments):
        made.append(original(*arguments))
        return made[-1]

    api.refuse, api.on_create = refuse, lambda job: succeed(api, job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainjob, "manifest", manifest)
        run(api)
    assert api.count("POST", "trainjobs") == 2
    assert sum(e[1:3] == ("trainjobs", "ADDED") for e in api.history) == 1
    gone(api)


# ---- jobs that are there already


def made_by(api, settings=SETTINGS, training=TRAINING):
    from dualipo.cluster.manifest import manifest

    return api.create("trainjobs", manifest(training, settings, "another"), strict=True)


def test_the_same_job_is_adopted(api, capsys):
    job = made_by(api)
    owner = api.put("pods", {"metadata": {"name": "runner"}, "spec": {}, "status": {"phase": "Running"}})
    thread = threading.Thread(target=run, args=(api,), kwargs={"pod": "runner"})
    thread.start()
    adopted = api.wait_for(lambda: (found := api.job()) and found["metadata"]["ownerReferences"] and found)
    assert adopted["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
    succeed(api, job, "from before")
    thread.join(60)
    told = capsys.readouterr().err
    assert "found it at work, going on with it" in told and "from before" in told
    assert api.count("POST", "trainjobs") == 0
    gone(api)


def test_a_job_that_was_complete_when_found_is_not_run_again(api, capsys):
    succeed(api, made_by(api), "its log")
    run(api)
    assert api.count("POST", "trainjobs") == 0 and "its log" in capsys.readouterr().err
    gone(api)


@pytest.mark.parametrize("why", ["made otherwise", "failed"])
def test_another_or_a_failed_job_is_replaced(api, capsys, why):
    job = made_by(api, SETTINGS.model_copy(update={"nodes": 3}) if why == "made otherwise" else SETTINGS)
    if why == "failed":
        api.end(job, "Failed")
    api.on_create = lambda job: succeed(api, job)
    run(api)
    assert f"replacing one that {'was ' * (why != 'failed')}{why}" in capsys.readouterr().err
    uids = [e[3]["metadata"]["uid"] for e in api.history if e[1:3] == ("trainjobs", "ADDED")]
    assert len(set(uids)) == 2
    gone(api)


def test_a_deletion_that_goes_on_is_waited_for(api):
    api.hold_removal.set()
    job = made_by(api)
    api.delete("trainjobs", job["metadata"]["name"], {"propagationPolicy": "Foreground"})
    with pytest.raises(UserError, match=r"not gone after 1 s; look for pods on lost machines with `kubectl -n dualipo"):
        run(api, patience=replace(PATIENCE, deletion=1))
    api.on_create = lambda job: succeed(api, job)
    thread = threading.Thread(target=run, args=(api,))
    asked = len(api.requests)
    thread.start()
    api.wait_for(lambda: len(api.requests) > asked + 2)
    assert api.count("POST", "trainjobs") == 0
    api.hold_removal.clear()
    thread.join(60)
    assert api.count("POST", "trainjobs") == 1
    gone(api)


def test_a_job_that_someone_deletes_is_missed(api):
    api.on_create = lambda job: api.delete("trainjobs", job["metadata"]["name"], {"propagationPolicy": "Foreground"})
    with pytest.raises(UserError, match="someone deleted the job while it was at work; run the step again"):
        run(api)


# ---- failures


def fails(api, match, settings=SETTINGS, attempts=1, patience=PATIENCE):
    with pytest.raises(UserError, match=match) as error:
        run(api, settings, patience=patience)
    assert "\n" not in str(error.value)
    assert sum(e[1:3] == ("trainjobs", "ADDED") for e in api.history) == attempts
    gone(api)


@pytest.mark.parametrize(
    ("status", "message", "match"),
    [
        (403, 'trainjobs "x" is forbidden: exceeded quota: gpus, requested: count=1', "quota .* lower train_job.nodes"),
        (
            403,
            'trainjobs is forbidden: User "sa" cannot create resource "trainjobs" in the namespace "dualipo"',
            "may not do this.*run as dualipo-runner, or apply the overlay again",
        ),
        (404, "the server could not find the requested resource", "install Kubeflow Trainer 2.2 or newer"),
        (400, 'strict decoding error: unknown field "spec.runtimePatches"', "update Kubeflow Trainer to 2.2"),
        (401, "Unauthorized", "renew the token or the kubeconfig"),
        (
            403,
            'admission webhook denied the request: clustertrainingruntimes "dualipo-deepspeed" not found',
            "train_job.runtime 'dualipo-deepspeed' is not in the cluster; apply k8s/trainer",
        ),
    ],
)
def test_a_refused_creation_says_what_to_do(api, status, message, match):
    api.refuse = lambda method, path: Refusal(status, message) if method == "POST" else None
    fails(api, match, attempts=0)


def test_quota_refused_to_the_pods(api):
    def control(job):
        api.event(f"{job['metadata']['name']}-node-0", "Pulled", "all is well")
        message = 'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: 8, used: 4, limited: 8'
        api.event(f"{job['metadata']['name']}-node-0", "FailedCreate", message)

    api.on_create = control
    fails(api, r"quota of namespace dualipo has no room for 2 node\(s\) of 8 GPU\(s\): .*limited: 8; free some")


def test_events_of_an_earlier_job_of_the_name_are_not_believed(api):
    api.event("align-2-0123456789ab-node-0", "FailedCreate", "pods is forbidden: exceeded quota: gpus")
    for event in api.store["events"].values():
        event["lastTimestamp"] = "2026-01-01T00:00:00Z"

    def control(job):
        api.wait_for(lambda: api.count("GET", "/events") > 4)
        succeed(api, job)

    api.on_create = control
    run(api)


@pytest.mark.parametrize(
    ("reason", "message"),
    [("ErrImagePull", "manifest unknown"), ("ImagePullBackOff", "Back-off pulling image: i/o timeout")],
)
def test_an_image_that_cannot_be_pulled(api, reason, message):
    api.on_create = lambda job: api.pod(job, 1, "Pending", **waiting(reason, message))
    fails(
        api,
        rf"node 1 cannot pull registry.example/dualipo@sha256:a+: {reason}: {message}; check the digest",
        patience=replace(PATIENCE, image=0.2),
    )


def test_an_image_whose_registry_hiccups_is_waited_for(api):
    def control(job):
        api.pod(job, 0, "Pending", **waiting("ErrImagePull", "i/o timeout"))
        asked = api.count("GET", "/events")
        api.wait_for(lambda: api.count("GET", "/events") > asked + 1)
        succeed(api, job)

    api.on_create = control
    run(api)


def test_a_secret_that_is_not_there(api):
    state = waiting("CreateContainerConfigError", 'secret "dualipo-s3" not found')
    api.on_create = lambda job: api.pod(job, 0, "Pending", **state)
    fails(api, 'lacks what its environment names: secret "dualipo-s3" not found; create it in namespace dualipo')


def test_no_machine_takes_the_nodes(api):
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
    }
    api.on_create = lambda job: (api.pod(job, 0), api.pod(job, 1, "Pending", conditions=[unscheduled]))
    match = r"1 of 2 node\(s\) did not start within 1 s, no machine takes .*: 0/4 nodes are available: 4 Insufficient"
    fails(api, match, SETTINGS.model_copy(update={"pending_seconds": 1}))


def test_time_in_a_queue_does_not_count_and_no_pod_at_all_does(api, capsys):
    job = made_by(api)
    name = job["metadata"]["name"]
    api.end(job, "Suspended")

    def control():
        told = []
        api.wait_for(lambda: told.append(capsys.readouterr().err) or f"TrainJob {name}: queued" in "".join(told))
        threading.Event().wait(1.5)
        assert api.job()
        api.event(name, "TrainJobResourcesCreationFailed", "no such volume", "TrainJob")
        api.end(job, "Suspended", status="False")

    api.start(control)
    match = r"no pod was made for the job within 1 s \(no such volume\); check that Kubeflow Trainer's controller"
    fails(api, match, SETTINGS.model_copy(update={"pending_seconds": 1}))


def test_what_happened_unheard_is_found_when_the_job_fails(api):
    def refuse(method, path):
        return Refusal(503, "later") if "pods?" in path and "watch=True" in path else None

    def control(job):
        api.wait_for(lambda: api.count("GET", "pods?") > 1)
        api.pod(job, 1, "Failed", **terminated(exitCode=137, reason="OOMKilled"))
        api.end(job, "Failed")

    api.refuse, api.on_create = refuse, control
    fails(api, "node 1 ran out of memory")


def test_pods_that_went_unheard_hold_nothing_against_the_job(api):
    job = made_by(api)
    pod = api.pod(job, 0, "Pending", **waiting("ErrImagePull", "i/o timeout"))
    for gone, over in ((False, True), (True, False)):
        monitor = Monitor(connect(api, replace(PATIENCE, image=0)), SETTINGS, job, print)
        monitor.take(Seen("jobs", "SYNC", [job]))
        monitor.take(Seen("pods", "SYNC", [pod]))
        if gone:
            monitor.take(Seen("pods", "SYNC", []))
        monitor.consider()
        assert monitor.over is over


def test_a_deletion_reaches_no_other_job_of_the_name(api):
    old = made_by(api)
    api.drop("trainjobs", old["metadata"]["name"])
    made_by(api)
    connect(api).delete(old)
    assert "deletionTimestamp" not in api.job()["metadata"]


def test_out_of_memory(api, capsys):
    def control(job):
        api.pod(job, 0)
        api.log(job, 0, "rank 0 at work")
        api.log(job, 1, *[f"row {i}" for i in range(60)])
        api.pod(job, 0, "Failed", **terminated(exitCode=1, finishedAt="2026-01-01T00:00:05Z"))
        api.pod(job, 1, "Failed", **terminated(exitCode=137, reason="OOMKilled", finishedAt="2026-01-01T00:00:09Z"))
        api.end(job, "Failed", "JobSetFailed")

    api.on_create = control
    fails(api, r"node 1 ran out of memory \(container node, limit 256Gi.*raise train_job.memory_per_node")
    told = capsys.readouterr().err.splitlines()
    assert "rank 0 at work" in told
    tail = [line for line in told if line.startswith("[align-2-0123456789ab-node-0-1-abcde]")]
    assert [line.split("] ")[1] for line in tail] == [f"row {i}" for i in range(20, 60)]


def test_the_first_exit_is_the_cause(api):
    def control(job):
        api.pod(job, 0, "Failed", **terminated(exitCode=1, finishedAt="2026-01-01T00:00:09Z"))
        api.pod(job, 1, "Failed", **terminated(exitCode=3, finishedAt="2026-01-01T00:00:05Z"))
        api.end(job, "Failed", "JobSetFailed")

    api.on_create = control
    fails(api, "node 1 ended with exit status 3 .*the last lines of its log say why")


def test_deadline(api):
    api.on_create = lambda job: (api.pod(job, 0), api.end(job, "Failed", "DeadlineExceeded"))
    fails(api, "did not end within 604800 s; raise train_job.deadline_seconds")


def test_a_node_that_writes_too_much_is_not_tried_again(api):
    def control(job):
        message = 'Usage of EmptyDir volume "shm" exceeds the limit "64Gi".'
        api.pod(job, 0, "Failed", reason="Evicted", message=message)
        api.end(job, "Failed")

    api.on_create = control
    fails(api, 'wrote more than it may: Usage of EmptyDir volume "shm" .*raise train_job.shared_memory')


def evict(api, job, reason="PreemptionByScheduler"):
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "preempting to accommodate"}
    api.pod(job, 0)
    api.pod(job, 1, "Failed", conditions=[target])
    # the other node ends for want of its peer: not the cause.
    api.pod(job, 0, "Failed", **terminated(exitCode=1, finishedAt="2020-01-01T00:00:00Z"))
    api.end(job, "Failed")


def test_a_preempted_job_is_tried_again_and_its_pods_may_vanish(api, capsys):
    attempts = []

    def control(job):
        attempts.append(job["metadata"]["annotations"]["dualipo.io/attempt"])
        if len(attempts) < 3:
            evict(api, job)
        else:
            succeed(api, job, "resumed")

    api.on_create = control
    run(api)
    told = capsys.readouterr().err
    assert attempts == ["1", "2", "3"]
    assert "node 1 (on machine-1) was preempted by a pod of higher priority" in told and "resumed" in told
    gone(api)


@pytest.mark.parametrize(
    ("reason", "match"),
    [
        ("EvictionByEvictionAPI", "was evicted, as when a node is drained"),
        ("DeletionByTaintManager", "was lost with its node, which became unreachable"),
    ],
)
def test_disruptions_are_tried_again_only_so_often(api, reason, match):
    api.on_create = lambda job: evict(api, job, reason)
    fails(api, match + r".*\(attempt 3, the last\)", attempts=3)


def test_a_pod_that_vanished_with_its_node_is_the_cause(api):
    def control(job):
        target = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": ""}
        pod = api.pod(job, 1, "Running", conditions=[target])
        api.wait_for(lambda: api.count("GET", "pods?", without="labelSelector=x") > 1)
        api.drop("pods", pod["metadata"]["name"])
        api.end(job, "Failed")

    api.on_create = control
    fails(
        api,
        r"node 1 \(on machine-1\) was lost with its node, which is gone",
        SETTINGS.model_copy(update={"retries": 0}),
    )


def test_a_failed_job_may_be_kept(api, capsys):
    api.on_create = lambda job: (api.pod(job, 0, "Failed", **terminated(exitCode=1)), api.end(job, "Failed"))
    with pytest.raises(UserError, match="exit status 1"):
        run(api, SETTINGS.model_copy(update={"keep_failed": True}))
    assert api.job() and api.count("DELETE", "") == 0
    assert "kept; remove it with `kubectl -n dualipo delete trainjob align-2-0123456789ab`" in capsys.readouterr().err


# ---- watchers that end

WATCHER = """
import sys
from dataclasses import replace
from dualipo.cluster.api import Patience, open_cluster
from dualipo.cluster.manifest import Training
from dualipo.cluster.monitor import Monitor
from dualipo.cluster.trainjob import train
from dualipo.cluster.watching import Seen
from dualipo.config import TrainJob

settings = TrainJob(launcher="kubeflow", image="registry.example/dualipo@sha256:" + "a" * 64, nodes=2, retries=2,
                    pending_seconds=60)
command = ("python", "-m", "dualipo.training.worker", "--step", "align", "--config", "/scratch/x/config.json")
training = Training("small-world", "2", "align", "0123456789abcdef0123456789abcdef", command)
train(training, settings, open_cluster("dualipo", Patience(backoff=0.01, cleanup=5)))
"""


@pytest.fixture
def watcher(api, tmp_path, repository):
    """Starts a watcher in a process of its own, which finds the cluster by its kubeconfig."""
    file = kubeconfig(tmp_path / "kubeconfig", api.url)
    environment = os.environ | {"KUBECONFIG": str(file), "PYTHONPATH": str(repository)}
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    started = []

    def start():
        started.append(
            subprocess.Popen([sys.executable, "-c", WATCHER], env=environment, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def at_work(api):
    job = api.wait_for(api.job)
    for index in range(2):
        api.pod(job, index)
    api.wait_for(lambda: api.count("GET", "/log?"))
    return job


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_an_ended_watcher_removes_its_job(api, watcher, number, status):
    process = watcher()
    at_work(api)
    process.send_signal(number)
    assert process.wait(60) == status
    gone(api)
    assert not api.store["pods"]


def test_a_killed_watcher_is_followed_by_one_that_goes_on(api, watcher, capsys):
    process = watcher()
    job = at_work(api)
    api.log(job, 0, "before the kill")
    process.kill()
    process.wait()
    assert api.job()
    thread = threading.Thread(target=run, args=(api,))
    thread.start()
    api.wait_for(lambda: api.count("PATCH", "trainjobs"))
    succeed(api, job, "after the kill")
    thread.join(60)
    told = [line for line in capsys.readouterr().err.splitlines() if "kill" in line]
    assert told == ["before the kill", "after the kill"]
    assert api.count("POST", "trainjobs") == 1
    gone(api)


def test_a_watcher_that_lost_its_job_to_another_leaves_it_alone(api, watcher):
    process = watcher()
    job = at_work(api)
    api.patch("trainjobs", job["metadata"]["name"], {"metadata": {"annotations": {"dualipo.io/watcher": "another"}}})
    process.terminate()
    assert process.wait(60) == 143
    assert api.job() and api.count("DELETE", "") == 0
