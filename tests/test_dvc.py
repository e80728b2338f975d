"""dvc.yaml against the graph, and DVC's own commands on it, with steps that cost nothing for the real ones."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from projects import HELD, Project

from dualipo.artifacts import digest
from dualipo.config import Config, load_config
from dualipo.engine import plan
from dualipo.steps import GRAPH


@dataclass
class Fakes(Project):
    """With the real dvc.yaml, made-up data, and a `dualipo` on the PATH whose steps are fakes."""

    def lock(self) -> dict:
        return yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]

    def md5s(self) -> dict[str, str]:
        return {out["path"]: out["md5"] for stage in self.lock().values() for out in stage["outs"]}

    def clone(self, target: Path) -> "Fakes":
        self.do("git", "clone", str(self.folder), str(target))
        return Fakes(target, self.environment)


@pytest.fixture(scope="module")
def project(tmp_path_factory, repository) -> Fakes:
    """After a first `dvc repro` of two rounds, committed."""
    base = tmp_path_factory.mktemp("dvc")
    program = base / "bin/dualipo"
    program.parent.mkdir()
    project = Fakes(base / "project", {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"})
    tests = str(Path(__file__).parent)
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {tests!r})\nimport fake_steps\nfake_steps.as_dualipo()\n"
    )
    program.chmod(0o755)
    for name in ("params.yaml", *HELD):
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, project.folder / name)
    text = (project.folder / "params.yaml").read_text()
    (project.folder / "params.yaml").write_text(text.replace('  "3": {prev: "2"}\n', ""))
    for step in GRAPH.values():
        source = project.folder / f"dualipo/steps/{step.name}.py"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(f"# {step.name}\n")
        for port in step.inputs.values():
            path = project.folder / port.bind("data", "", "")
            if path.suffix and "{data}" in port.path:
                path.write_text("{}")
            elif "{data}" in port.path:
                path.mkdir(parents=True, exist_ok=True)
                (path / "content").write_text(port.path)
    project.do("git", "init", "-b", "main")
    project.dvc("add", "data")
    project.dvc("push")
    project.commit("data")
    project.dvc("repro")
    project.commit("first run")
    return project


def test_every_stage_is_a_step_with_its_ports_and_sections(repository):
    """Expanded by DVC itself."""
    from dvc.repo import Repo

    with Repo(str(repository)) as repo:
        stages = {stage.name: stage for stage in repo.index.stages if hasattr(stage, "name")}
    config = load_config(repository / "params.yaml")
    planned = plan(config)
    assert set(stages) == {f"{s.name}@{r}" if s.scope == "round" else s.name for s, r in planned}
    for step, round_name in planned:
        stage = stages[f"{step.name}@{round_name}" if step.scope == "round" else step.name]
        prev = config.rounds[round_name].prev if step.scope == "round" else ""
        assert stage.cmd == f"dualipo {step.name}" + (f" --round {round_name}" if step.scope == "round" else "")
        deps = {dep.def_path for dep in stage.deps if not hasattr(dep, "params")}
        inputs = {port.bind("data", round_name, prev) for port in step.inputs.values()}
        assert deps == inputs | {f"dualipo/steps/{step.name}.py"}
        assert {p for dep in stage.deps for p in getattr(dep, "params", [])} == set(step.sections)
        for name, kind in (("metric", "scores"), ("plot", "curves")):
            marked = {out.def_path for out in stage.outs if getattr(out, name)}
            assert marked == {p.bind("data", round_name, prev) for p in step.outputs.values() if p.kind == kind}
        assert {out.def_path for out in stage.outs} == {
            port.bind("data", round_name, prev) for port in step.outputs.values()
        }
        assert all(out.use_cache and not out.persist for out in stage.outs)


def test_the_models_stages_depend_on_are_the_parameters(repository, tmp_path):
    from dvc.repo import Repo

    for name in ("dvc.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    models = {"generator": f"hub/acme/tiny@{'0' * 40}", "critic": "data/other", "critic_reference": "data/third"}
    params = yaml.safe_load((repository / "params.yaml").read_text()) | {"models": models}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with Repo(str(tmp_path), uninitialized=True) as repo:
        stages = {stage.name: {dep.def_path for dep in stage.deps} for stage in repo.index.stages}
    config = load_config(tmp_path / "params.yaml")
    for name, own in (
        ("start", {"generator", "critic"}),
        ("label@1", {"critic_reference"}),
        ("align@2", {"generator"}),
    ):
        ports = GRAPH[name.partition("@")[0]].inputs.values()
        bound = {port.bind("data", "", "", config.models) for port in ports if port.model}
        assert bound == {models[key] for key in own} <= stages[name]
        assert not stages[name] & {"data/generator", "data/critic", "data/critic_reference"}


def test_params_yaml_names_every_parameter_and_presets_fit_it(repository):
    written = yaml.safe_load((repository / "params.yaml").read_text())
    assert {s: set(keys) for s, keys in written.items() if s != "rounds"} == {
        s: set(keys) for s, keys in Config().model_dump().items() if s != "rounds"
    }
    presets = list((repository / "params").glob("*.yaml"))
    assert any(preset.name == "smoke.yaml" for preset in presets)
    for preset in presets:
        assert load_config(repository / "params.yaml", preset) != load_config(repository / "params.yaml")


def test_the_remote_lies_in_the_repository(project, repository, tmp_path):
    from dvc.repo import Repo

    with Repo(str(repository)) as repo:
        assert repo.config["core"]["analytics"] is False and repo.config["core"]["autostage"] is False
        assert Path(repo.config["remote"]["bundled"]["url"]) == repository / "data-remote"
    clone = project.clone(tmp_path / "clone")
    assert not (clone.folder / "data").exists()
    clone.dvc("pull", "data.dvc")
    assert digest(clone.folder / "data") == digest(project.folder / "data")


def test_a_second_repro_does_nothing(project):
    before = (project.folder / "dvc.lock").read_text()
    assert "Data and pipelines are up to date." in project.dvc("repro")
    assert (project.folder / "dvc.lock").read_text() == before
    assert project.do("git", "status", "--porcelain") == ""


def test_dvc_and_the_engine_know_an_output_by_the_same_md5(project):
    records = [json.loads(path.read_text()) for path in (project.folder / ".dualipo/done").iterdir()]
    ours = {entry["path"]: entry["md5"] for record in records for entry in record["outputs"].values()}
    assert ours == project.md5s() and len(ours) > 40
    runs = next(dep["md5"] for dep in project.lock()["report"]["deps"] if dep["path"] == "runs")
    assert digest(project.folder / "runs").md5 == runs


def test_the_run_command_makes_what_repro_makes_and_dvc_takes_it_over(project, tmp_path):
    clone = project.clone(tmp_path / "clone")
    clone.dvc("pull", "data.dvc")
    (clone.folder / "dvc.lock").unlink()
    clone.do("dualipo", "run")
    clone.dvc("commit", "--force", "--quiet")
    assert clone.md5s() == project.md5s()
    assert "Data and pipelines are up to date." in clone.dvc("repro")


def test_an_experiment_runs_what_depends_on_its_parameter_and_is_compared(project):
    before = project.md5s()
    told = project.dvc("exp", "run", "-S", "align.beta=500")
    first_round = [step.name for step in GRAPH.values() if step.scope == "round"]
    again = first_round[first_round.index("align") :]
    for name in first_round:
        assert (f"Running stage '{name}@1'" in told) is (name in again)
        assert (f"Running stage '{name}@2'" in told) is (name != "prompts")
    assert "Running stage 'report'" in told and "Running stage 'start'" not in told
    after = project.md5s()
    assert before["runs/1/preferences"] == after["runs/1/preferences"]
    assert before["runs/1/generator"] != after["runs/1/generator"]

    changes = json.loads(project.dvc("metrics", "diff", "--json"))
    changed = {path: values["total.mean"] for path, values in changes.items()}
    assert changed["runs/1/scores.json"]["diff"] != 0
    assert "runs/1/accepted_agreement.json" not in changed

    project.dvc("plots", "show")
    page = (project.folder / "dvc_plots/index.html").read_text()
    for name in ("runs/1/align_curves.csv", "runs/2/critic_curves.csv"):
        assert name in page
