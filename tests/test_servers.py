"""Two experiments at once, as pods of a cluster run them, on real servers that the rendered manifests describe.

MLflow asks who may do what, PostgreSQL holds its tables, a real S3 store its artifacts and DVC's remote.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import servers
import yaml
from click.testing import CliRunner
from cluster_api import ClusterApi
from mlflow import MlflowClient, MlflowException
from projects import Project, Run, begin
from serving import kubeconfig, serving
from warm import Warm

from dualipo.artifacts import digest
from dualipo.cli import cli
from dualipo.cluster.render import render
from dualipo.config import load_config
from dualipo.engine import plan
from dualipo.errors import UserError
from dualipo.pipeline.data import MEMBERS, fetch
from dualipo.tracking import Tracker
from dualipo.tracking.promotion import history, promote, rollback
from dualipo.world.shrink import shrink

pytestmark = pytest.mark.skipif(bool(servers.lacking()), reason=servers.lacking())

SEEDS = {"smoke": 0, "small-world": 1}
"""The experiments by name."""
LEAST = {
    "rounds": {"1": {"prev": "base"}},
    "prompts.count": 8,
    "generate.steps": 2,
    "label.pairs_per_prompt": 1,
    "train_critic.steps": 2,
    "align.steps": 2,
    "align.batch_size": 2,
    "evaluate.steps": 2,
}
"""Over the smoke preset: what is made is not looked at here, only whether it arrives."""
REMOTE = "s3://dualipo-data/remote"


@dataclass
class Services:
    """Where everything is, and what a process is given so that it finds it."""

    objects: list[dict]
    folder: Path
    s3: str
    postgres: servers.Postgres
    mlflow: str = ""

    @property
    def store(self) -> dict[str, str]:
        """The address that the overlay's endpoints name."""
        return {"AWS_ENDPOINT_URL_S3": self.s3, "MLFLOW_S3_ENDPOINT_URL": self.s3}

    @property
    def pod(self) -> dict[str, str]:
        """Variables of a pod of a run: endpoints and keys. In the place of the token that is mounted: a kubeconfig."""
        [endpoints] = [o for o in self.objects if o["metadata"]["name"] == "dualipo-endpoints"]
        assert endpoints["data"]["MLFLOW_TRACKING_AUTH"] == "kubernetes"
        here = {"MLFLOW_TRACKING_URI": self.mlflow, "KUBECONFIG": str(self.folder / "dualipo-runner"), **self.store}
        return endpoints["data"] | here | servers.SECRETS["dualipo-s3"]

    def client(self) -> Any:
        import boto3

        keys = {key.lower(): value for key, value in servers.SECRETS["dualipo-s3"].items()}
        return boto3.client("s3", endpoint_url=self.s3, region_name="us-east-1", **keys)

    def stored(self, bucket: str) -> int:
        """Bytes in a bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sum(item["Size"] for page in pages for item in page.get("Contents", []))


@pytest.fixture(scope="module")
def services(repository, tmp_path_factory):
    objects, folder = render(repository / "k8s/overlays/local"), tmp_path_factory.mktemp("services")
    with (
        serving(ClusterApi(objects).answer) as api,
        servers.seaweedfs(objects, folder / "s3") as s3,
        servers.postgres(objects) as postgres,
    ):
        made = Services(objects, folder, s3, postgres)
        for account in ("mlflow", "dualipo-runner"):
            kubeconfig(folder / account, api, account)
        told = servers.script(objects, repository, "Job buckets", "buckets", made.store)
        assert told.count(": made\n") == 3
        servers.script(objects, repository, "Deployment mlflow", "migrate", postgres.address)
        where = postgres.address | made.store | {"KUBECONFIG": str(folder / "mlflow")}
        with servers.mlflow(objects, where, folder / "mlflow.d") as made.mlflow:
            made.client().create_bucket(Bucket="dualipo-data")
            yield made


@pytest.fixture(scope="module")
def experiments(services, repository, tmp_path_factory):
    """Both, run at once, by name; and as `alone` the first of them, run by itself into a database of its own."""
    base = tmp_path_factory.mktemp("experiments")
    data = shrink(repository / "data", base / "data", seed_prompts=2, test_prompts=1, benchmark=2, real=6)
    runs, started = {}, []
    with pytest.MonkeyPatch.context() as patch:
        # the kubernetes client reads it once, when it is imported.
        patch.setenv("KUBECONFIG", services.pod["KUBECONFIG"])
        with Warm(base) as warm:
            for place, name in {"alone": "smoke", **{name: name for name in SEEDS}}.items():
                overrides = LEAST | {"experiment.name": name, "experiment.seed": SEEDS[name]}
                config = load_config(repository / "params.yaml", repository / "params/smoke.yaml", overrides=overrides)
                folder = base / place
                shutil.copytree(data, folder / "data")
                (folder / "params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
                environment = os.environ | (services.pod if place in SEEDS else {})
                command = [*warm.prefix, "dualipo", "run"]
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
                started.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
                runs[place] = Run(folder, config)
            for process in started:
                told, _ = process.communicate(timeout=900)
                assert process.returncode == 0, told[-3000:]
    return runs


@pytest.fixture
def account(services, monkeypatch):
    """Makes this process one that bears an account's token, as a person's does."""

    def be(name: str) -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", services.mlflow)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", name)
        return MlflowClient(services.mlflow)

    return be


def test_two_at_once_make_what_each_makes_alone(experiments):
    made = {place: run.md5s() for place, run in experiments.items()}
    assert made["smoke"] == made["alone"]
    assert made["smoke"].keys() == made["small-world"].keys()
    for trained in ("critic_candidate", "generator_candidate", "preferences"):
        assert made["smoke"][f"runs/1/{trained}"] != made["small-world"][f"runs/1/{trained}"]


def test_each_has_its_own_runs_models_and_champion(services, experiments, account, tmp_path):
    client = account("dualipo-submitter")
    assert {found.name for found in client.search_experiments()} == {"Default", *SEEDS}
    models = {f"{name}-{kind}" for name in SEEDS for kind in ("critic", "generator", "history")}
    assert {found.name for found in client.search_registered_models()} == models
    assert set(services.postgres.ask("SELECT name FROM registered_models")) == models
    for name in SEEDS:
        run, tracker = experiments[name], Tracker(experiments[name].folder, experiments[name].config)
        made, steps = run.md5s(), tracker.step_runs()
        assert sorted((step.step, step.round) for step in steps) == sorted((s.name, r) for s, r in plan(run.config))
        assert {step.config_digest for step in steps} == {run.config.digest()}
        assert client.get_run(steps[0].run_id).info.artifact_uri.startswith("mlflow-artifacts:/")
        assert not (run.folder / "mlflow.db").exists()
        for kind in ("critic", "generator"):
            champion = tracker.resolve(f"{name}-{kind}@champion")
            assert [md5 for md5, _ in run.versions()[f"{name}-{kind}"]] == [
                made[f"runs/base/{kind}"],
                made[f"runs/1/{kind}_candidate"],
            ]
            assert champion.md5 == made[f"runs/1/{kind}"]
            assert digest(tracker.download(champion, tmp_path / f"{name}-{kind}")).md5 == champion.md5
    sizes = [digest(experiments[name].folder / "runs/1/generator").size for name in SEEDS]
    assert services.stored("dualipo-mlflow") > sum(sizes) > 0


@pytest.mark.parametrize("name", SEEDS)
def test_each_verifies_back_to_the_human_labels(experiments, account, name):
    account("dualipo-submitter")
    folder = str(experiments[name].folder)
    for kind in ("critic", "generator"):
        result = CliRunner().invoke(cli, ["verify", f"{name}-{kind}@champion", "--folder", folder])
        assert result.exit_code == 0, (result.output, result.exception)
        assert "0 broken" in result.output and "registry" in result.output


# ---- DVC's remote


@pytest.fixture(scope="module")
def pushed(services, experiments, repository) -> dict[str, Project]:
    """Both folders as repositories, pushed to one remote at once."""
    keys = {name: value for name, value in services.pod.items() if name.startswith("AWS_")}
    projects = {name: begin(Project(experiments[name].folder, keys), repository) for name in SEEDS}
    for project in projects.values():
        project.dvc("remote", "add", "--quiet", "--default", "mine", REMOTE)
        project.dvc("commit", "--force", "--quiet")
        project.commit("run")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda project: project.dvc("push", "--quiet"), projects.values()))
    return projects


@pytest.mark.parametrize("name", SEEDS)
def test_a_clone_gets_the_bytes_through_dvcs_remote(pushed, experiments, tmp_path, name):
    project = pushed[name]
    clone = Project(tmp_path / "clone", project.environment)
    project.do("git", "clone", "--quiet", str(project.folder), str(clone.folder))
    assert not (clone.folder / "data").exists() and not (clone.folder / "runs").exists()
    clone.dvc("pull", "--quiet")
    expected = experiments[name].md5s() | {"data": digest(project.folder / "data").md5}
    assert {path: digest(clone.folder / path).md5 for path in expected} == expected


def test_a_pipeline_takes_its_data_from_that_remote(pushed, tmp_path, monkeypatch):
    """As the task `load_data` does, without git and without DVC."""
    folder = pushed["smoke"].folder
    for name, value in pushed["smoke"].environment.items():
        monkeypatch.setenv(name, value)
    [out] = yaml.safe_load((folder / "data.dvc").read_text())["outs"]
    found = fetch(f"dvc+{REMOTE}", out["md5"], {name: tmp_path / name for name in MEMBERS})
    assert {name: digest(folder / "data" / path) for name, path in MEMBERS.items()} == found


# ---- who may do what, asked of MLflow itself


def test_a_submitter_reads_and_promotes_nothing(experiments, account):
    client = account("dualipo-submitter")
    for change in (
        lambda: client.set_registered_model_alias("smoke-generator", "champion", "1"),
        lambda: client.set_model_version_tag("smoke-generator", "1", "a", "b"),
        lambda: client.create_registered_model("mine"),
        lambda: client.create_run(client.get_experiment_by_name("smoke").experiment_id),
    ):
        with pytest.raises(MlflowException, match="Permission denied"):
            change()
    assert client.get_model_version_by_alias("smoke-generator", "champion").version == "2"


def test_a_promoter_moves_a_champion_and_a_submitter_does_not(experiments, account):
    """With no right to write a run: evidence and moves are the registry's own."""
    account("dualipo-promoter")
    tracker = Tracker(experiments["smoke"].folder, experiments["smoke"].config)
    critic = tracker.resolve("critic@champion").number
    how = {"approve": True, "override": True, "reason": "a check"}
    other = 3 - critic
    assert promote(tracker, f"critic/{other}", "ann", **how).to == other
    account("dualipo-submitter")
    reader = Tracker(experiments["smoke"].folder, experiments["smoke"].config)
    assert any(line.endswith("ann: a check") for line in history(reader, "critic"))
    with pytest.raises(UserError, match="Permission denied"):
        rollback(reader, "critic", "ben", "no")
    account("dualipo-promoter")
    assert rollback(Tracker(tracker.root, tracker.config), "critic", "ann", "done").to == critic


def test_a_promoter_releases_and_a_run_does_not(experiments, account, tmp_path):
    client = account("dualipo-promoter")
    copied = client.copy_model_version("models:/smoke-generator@champion", "release-generator")
    client.set_registered_model_alias("release-generator", "stable", copied.version)
    with pytest.raises(MlflowException, match="Permission denied"):
        client.delete_registered_model("release-generator")
    tracker = Tracker(experiments["smoke"].folder, experiments["smoke"].config)
    champion, released = tracker.resolve("smoke-generator@champion"), tracker.resolve("release-generator@stable")
    assert digest(tracker.download(released, tmp_path / "released")).md5 == champion.md5
    client = account("dualipo-runner")
    with pytest.raises(MlflowException, match="Permission denied"):
        client.set_registered_model_alias("release-generator", "champion", "1")


def test_an_experiment_without_rights_to_its_models_is_told(experiments, account):
    run, client = experiments["smoke"], account("dualipo-runner")
    named = run.config.model_copy(update={"experiment": run.config.experiment.model_copy(update={"name": "another"})})
    client.create_registered_model("another-generator")
    told = r"Permission denied.*; on a cluster the experiment 'another' needs rights to its models: docs/cluster.md$"
    with pytest.raises(UserError, match=told), Tracker(run.folder, named).store.errors():
        client.set_registered_model_alias("another-generator", "champion", "1")


# ---- the nightly backup


def test_a_backup_goes_to_s3_and_comes_back(services, experiments, repository, tmp_path):
    postgres, dump = services.postgres, tmp_path / "mlflow.dump"
    described = servers.container(services.objects, "CronJob mlflow-backup", "dump")
    variables = servers.environment(services.objects, described) | postgres.address
    command = [word.replace("/dump/", f"{tmp_path}/") for word in servers.arguments(described, variables)]
    servers.run(command, variables | {"PATH": f"{postgres.programs}{os.pathsep}{os.environ['PATH']}"})
    told = servers.script(services.objects, repository, "CronJob mlflow-backup", "upload", services.store, str(dump))
    key = told.split(": ")[0].removeprefix("s3://dualipo-backups/")
    dump.unlink()
    services.client().download_file("dualipo-backups", key, str(dump))
    for program, *arguments in (
        ("createdb", "restored"),
        ("pg_restore", "--no-owner", "--exit-on-error", "-d", "restored", str(dump)),
    ):
        servers.run([str(postgres.programs / program), *arguments], variables)
    for table in ("runs", "model_versions", "registered_model_aliases", "logged_models"):
        rows = [postgres.ask(f"SELECT count(*) FROM {table}", database) for database in ("mlflow", "restored")]
        assert rows[0] == rows[1] != ["0"]
