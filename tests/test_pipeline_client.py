"""Submitting, following and reading runs, against an HTTP server that answers as Kubeflow Pipelines and Kubernetes do.

The client side is kfp's and kubernetes' own; the server checks that what it is sent is what their models can read.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import kfp_server_api
import pytest
from click.testing import CliRunner
from serving import Request, kubeconfig, serving

from dualipo.cli import cli
from dualipo.errors import UserError
from dualipo.pipeline.client import Server

RUN = "11111111-2222-3333-4444-555555555555"
PODS = {"dual-ipo-align-7": "epoch 1\nCUDA out of memory\n"}


@dataclass
class Cluster:
    url: str = ""
    states: list[str] = field(default_factory=lambda: ["RUNNING", "RUNNING", "SUCCEEDED"])
    """Of the run, one a request; the last one stays."""
    requests: list[tuple[str, str, dict]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def answer(self, request: Request) -> tuple[int, dict | str]:
        method, path, body = request.method, request.path, request.body or {}
        self.requests.append((method, path, body))
        self.tokens.add(request.token)
        rest = path.partition("/apis/v2beta1/")[2]
        if rest == "healthz":
            return 200, {"multi_user": False}
        if rest.startswith("experiments"):
            if method == "POST":
                return 200, {"experiment_id": "e-1", "display_name": body["display_name"]}
            return 200, {"experiments": []}
        if rest == "runs" and method == "POST":
            return 200, {"run_id": RUN, "display_name": body["display_name"], "state": "PENDING"}
        if rest.startswith(f"runs/{RUN}"):
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            return 200, run_of(state)
        for pod, text in PODS.items():
            if (path, request.query) == (f"/api/v1/namespaces/kubeflow/pods/{pod}/log", "container=main"):
                return 200, text
        return 404, {"error": f"no {path}"}


def run_of(state: str) -> dict:
    tasks = [
        {"task_id": "t2", "display_name": "align", "state": "FAILED" if state == "FAILED" else "SUCCEEDED",
         "start_time": "2030-01-01T00:10:00Z", "end_time": "2030-01-01T00:11:30Z",
         "child_tasks": [{"pod_name": "dual-ipo-align-7"}]},
        {"task_id": "t1", "display_name": "start", "state": "SUCCEEDED",
         "start_time": "2030-01-01T00:00:00Z", "end_time": "2030-01-01T00:10:00Z", "child_tasks": []},
    ]  # fmt: skip
    error = {"error": {"code": 1, "message": "align  failed"}} if state == "FAILED" else {}
    return {"run_id": RUN, "display_name": "smoke 0", "state": state, "run_details": {"task_details": tasks}, **error}


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    found = Cluster()

    with serving(found.answer) as found.url:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", found.url)))
        monkeypatch.setenv("HOME", str(tmp_path))  # of a person's own KFP context
        monkeypatch.setattr("dualipo.pipeline.client.time.sleep", lambda seconds: None)
        yield found


def call(*arguments: str) -> SimpleNamespace:
    result = CliRunner().invoke(cli, ["pipeline", *arguments])
    if isinstance(result.exception, UserError):
        return SimpleNamespace(status=2, text=str(result.exception))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return SimpleNamespace(status=result.exit_code, text=result.output)


def submit(cluster: Cluster, repository, *more: str) -> SimpleNamespace:
    options = ["--host", cluster.url, "--folder", str(repository), "--params", str(repository / "params/smoke.yaml")]
    tracking = ["-S", "resources.default.env.MLFLOW_TRACKING_URI=http://mlflow:5000"]
    return call("submit", *options, "--data-uri", "s3://bucket/data", *tracking, *more)


def test_submit_sends_the_pipeline_with_its_name_tags_and_root_and_waits(cluster, repository, monkeypatch):
    monkeypatch.setenv("DUALIPO_KFP_TOKEN", "sesame")
    more = ["--tag", "why=test", "--pipeline-root", "s3://bucket/root", "--name", "first", "--wait"]
    more += ["--service-account", "dualipo-runner"]
    ended = submit(cluster, repository, *more, "-S", "resources.default.shm=1Gi")
    assert ended.status == 0 and ended.text.startswith(RUN) and "SUCCEEDED" in ended.text
    [sent] = [body for method, path, body in cluster.requests if (method, path) == ("POST", "/apis/v2beta1/runs")]
    assert sent.keys() <= set(kfp_server_api.V2beta1Run.attribute_map.values())
    assert sent["display_name"] == "first" and sent["experiment_id"] == "e-1"
    assert sent["service_account"] == "dualipo-runner"
    assert {"why=test", "seed=0"} <= set(sent["description"].splitlines()) and "commit=" in sent["description"]
    assert sent["runtime_config"]["pipeline_root"] == "s3://bucket/root"
    specification = sent["pipeline_spec"]
    assert specification["pipeline_spec"]["pipelineInfo"]["name"] == "dual-ipo-smoke"
    assert "kubernetes" in specification["platform_spec"]["platforms"]
    [experiment] = [body for _, path, body in cluster.requests if path == "/apis/v2beta1/experiments" and body]
    assert experiment["display_name"] == "smoke"
    assert "sesame" in cluster.tokens


def test_a_failed_run_has_exit_status_1(cluster, repository):
    cluster.states = ["RUNNING", "FAILED"]
    ended = submit(cluster, repository, "--wait")
    assert ended.status == 1 and "FAILED, align failed" in ended.text


def test_waiting_ends_and_the_run_goes_on(cluster):
    cluster.states = ["RUNNING"]
    with pytest.raises(UserError, match="still RUNNING after 0 s"):
        Server(cluster.url).wait(RUN, timeout=0)


@pytest.mark.parametrize(("state", "status"), [("RUNNING", 0), ("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_status_lists_the_tasks_in_order(cluster, state, status):
    cluster.states = [state]
    ended = call("status", RUN, "--host", cluster.url)
    assert ended.status == status
    first, *tasks = ended.text.splitlines()
    assert state in first and RUN in first
    assert [line.split()[1:] for line in tasks] == [["start", "600", "s"], ["align", "90", "s"]]


def test_logs_are_those_of_failed_tasks_or_of_the_one_named(cluster):
    cluster.states = ["FAILED"]
    expected = f"==> align (dual-ipo-align-7)\n{PODS['dual-ipo-align-7']}\n"
    assert call("logs", RUN, "--host", cluster.url).text == expected
    assert call("logs", RUN, "--host", cluster.url, "--task", "align").text == expected
    unknown = call("logs", RUN, "--host", cluster.url, "--task", "alignn")
    assert unknown.status == 2 and "align, start" in unknown.text


def test_what_a_pod_cannot_reach_is_refused_before_anything_is_sent(cluster, repository):
    options = ["--host", cluster.url, "--folder", str(repository)]
    here = call("submit", *options)
    assert here.status == 2 and "pods cannot read" in here.text
    untracked = call("submit", *options, "--data-uri", "s3://bucket/data")
    assert untracked.status == 2 and "MLFLOW_TRACKING_URI" in untracked.text
    assert not cluster.requests


def test_a_refusal_and_a_server_that_is_not_there_are_told_in_one_sentence(cluster):
    refused = call("status", "no-such-run", "--host", cluster.url)
    assert refused.status == 2 and "404" in refused.text and "\n" not in refused.text
    away = call("status", RUN, "--host", "http://127.0.0.1:9")
    assert away.status == 2 and "does not answer" in away.text and "\n" not in away.text
