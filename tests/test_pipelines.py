"""The compiled pipeline against the graph and dvc.yaml: ports, wiring, parameters, resources, sizes."""

import json
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

import components
from dualipo.artifacts import digest
from dualipo.config import Config, Resources, load_config, parse_config
from dualipo.engine import plan
from dualipo.errors import UserError
from dualipo.pipeline.data import MEMBERS, default_uri, fetch
from dualipo.steps import GRAPH, steps_of
from pipelines import compile as compiling
from pipelines.build import Build, make_build, must_reach
from pipelines.compile import compile_pipeline

PINNED = "ghcr.io/example/dualipo@sha256:" + "0" * 64
SHARDED = [step.name for step in GRAPH.values() if step.shards != "no"]


def artifacts(ports: dict) -> dict[str, str]:
    """KFP type by name, of a component's ports that are artifacts."""
    return {name: port.type for name, port in (ports or {}).items() if port.type.startswith("system.")}


def compiled(config: Config, tmp_path: Path, data: str = "s3://bucket/data", **build) -> tuple[dict, dict]:
    """Pipeline and platform specification."""
    file = compile_pipeline(Build(config, data, **build), tmp_path / "pipeline.yaml")
    pipeline, platform = [*yaml.load_all(file.read_text(), yaml.CSafeLoader), {}][:2]
    return pipeline, platform


def with_shards(count: int, **more) -> Config:
    """Of one round."""
    steps = {name: {"shards": count} for name in SHARDED}
    return parse_config({"rounds": {"1": {"prev": "base"}}, "resources": {"steps": steps, **more}})


@pytest.fixture(scope="module")
def one_round() -> Config:
    return parse_config({"rounds": {"1": {"prev": "base"}}})


# ---- parity


@pytest.mark.parametrize("step", GRAPH.values(), ids=lambda step: step.name)
def test_a_component_has_its_steps_ports_and_sections(step):
    spec = components.STEPS[step.name].component_spec
    inputs = artifacts(spec.inputs)
    parts = {"parts"} if step.name in components.SHARDS else set()
    assert inputs.keys() - parts == step.inputs.keys()
    outputs = artifacts(spec.outputs)
    assert outputs.keys() == step.outputs.keys()
    sections = {name.removesuffix("_params") for name in spec.inputs if name.endswith("_params")}
    assert sections == set(step.sections)
    rest = {"library"} | {"round": {"round_name"}, "run": {"run_id"}, "base": set()}[step.scope]
    assert spec.inputs.keys() == inputs.keys() | {f"{name}_params" for name in sections} | rest
    kinds = {
        "critic": "Model",
        "reward": "Model",
        "generator": "Model",
        "clips": "Dataset",
        "dataset": "Dataset",
        "page": "HTML",
    }
    for name, port in step.outputs.items():
        if port.kind in kinds:
            assert outputs[name].startswith(f"system.{kinds[port.kind]}@")
        if port.kind == "scores":
            assert "Metrics@" in outputs[name]


def test_a_shard_has_what_its_step_has_but_one_part_for_the_outputs():
    assert components.SHARDS.keys() == set(SHARDED)
    for name, shard in components.SHARDS.items():
        own, whole = shard.component_spec, components.STEPS[name].component_spec
        assert own.inputs.keys() == whole.inputs.keys() - {"parts"} | {"shard"}
        assert artifacts(own.outputs).keys() == {"part"}


def test_components_take_and_make_what_dvc_yaml_says(repository):
    """For every stage of every round, as DVC expands it."""
    config = load_config(repository / "params.yaml")
    with Repo(str(repository)) as repo:
        stages = {stage.name: stage for stage in repo.index.stages if hasattr(stage, "name")}
    for step, name in plan(config):
        stage = stages[f"{step.name}@{name}" if step.scope == "round" else step.name]
        prev = config.rounds[name].prev if name in config.rounds else ""
        spec = components.STEPS[step.name].component_spec
        deps = {dep.def_path for dep in stage.deps if not hasattr(dep, "params")} - {f"dualipo/steps/{step.name}.py"}
        takes = artifacts(spec.inputs).keys() - {"parts"}
        assert {step.inputs[port].bind("data", name, prev) for port in takes} == deps
        outs = {out.def_path for out in stage.outs}
        assert {step.outputs[port].bind("data", name, prev) for port in artifacts(spec.outputs)} == outs
        params = {p for dep in stage.deps for p in getattr(dep, "params", [])}
        assert {port.removesuffix("_params") for port in spec.inputs if port.endswith("_params")} == params


def wiring(dag: dict, of_component: dict[str, str], given: dict[str, str]) -> dict[str, dict[str, str]]:
    """By step: the path, as in GRAPH, of the artifact that arrives at each of its input ports."""

    def path(source: dict) -> str:
        if "componentInputArtifact" in source:
            return given[source["componentInputArtifact"].removeprefix("pipelinechannel--")]
        made = source["taskOutputArtifact"]
        return GRAPH[of_component[made["producerTask"]]].outputs[made["outputArtifactKey"]].path

    return {
        name: {port: path(source) for port, source in dag["tasks"][task]["inputs"]["artifacts"].items()}
        for task, name in of_component.items()
    }


def test_a_rounds_tasks_are_joined_as_the_graph_says(tmp_path):
    pipeline, _ = compiled(Config(), tmp_path)
    given = {f"data_{name}": f"{{data}}/{path}" for name, path in MEMBERS.items()}
    given |= {f"prev_{name}": f"runs/{{prev}}/{name}" for name in ("generator", "critic")}
    files = ("agreement", "scores", "label_profile", "settlement", "course")
    given |= {f"prev_{name}": f"runs/{{prev}}/{name}.json" for name in files}
    given |= {"base_reward": "runs/base/reward", "base_baselines": "runs/base/baselines.json"}
    given |= {"base_held_out": "runs/base/held_out.json"}
    rounds = [name for name in pipeline["components"] if name.startswith("comp-dual-ipo-round")]
    assert len(rounds) == 3
    for name in rounds:
        dag = pipeline["components"][name]["dag"]
        of_component = {task: task.replace("-", "_") for task in dag["tasks"] if task != "gather-round"}
        found = wiring(dag, of_component, given)
        expected = {s.name: {port: there.path for port, there in s.inputs.items()} for s in steps_of("round")}
        assert found == expected


def test_the_rounds_follow_the_configurations_chain(tmp_path):
    rounds = {"1": {"prev": "base"}, "2": {"prev": "1"}, "b": {"prev": "1"}}
    pipeline, _ = compiled(parse_config({"rounds": rounds}), tmp_path)
    tasks = pipeline["root"]["dag"]["tasks"]
    name = {t: task["inputs"]["parameters"]["round_name"]["runtimeValue"]["constant"] for t, task in tasks.items()
            if t.startswith("dual-ipo-round")}  # fmt: skip
    start = {"start": "base"} | name
    for task, found in name.items():
        source = tasks[task]["inputs"]["artifacts"]["prev_generator"]["taskOutputArtifact"]
        assert start[source["producerTask"]] == rounds[found]["prev"]


# ---- parameters


def test_parameters_are_one_string_a_section_and_come_back_as_they_were(repository, tmp_path):
    config = load_config(repository / "params.yaml", repository / "params/single-gpu.yaml")
    pipeline, _ = compiled(config, tmp_path)
    given = pipeline["root"]["inputDefinitions"]["parameters"]
    assert {parameter["parameterType"] for parameter in given.values()} == {"STRING"}
    sections = {name.removesuffix("_params"): json.loads(parameter["defaultValue"])
                for name, parameter in given.items() if name.endswith("_params")}  # fmt: skip
    assert sections == config.model_dump(mode="json", exclude={"promotion", "tracking", "resources", "train_job"})
    assert isinstance(sections["align"]["steps"], int)


def test_the_cache_notices_another_library(one_round):
    pinned = one_round.model_copy(update={"resources": Resources(image=PINNED)})
    told = [Build(config, "", commit=commit * 40).library for config in (one_round, pinned) for commit in "ab"]
    assert told[0] != told[1] and told[2:] == ["", ""]
    assert Build(pinned.model_copy(update={"resources": Resources(image=PINNED[:-1])}), "", commit="a").library


def test_every_task_of_a_step_is_cached_and_takes_the_library_and_none_that_keeps_an_index_is(tmp_path):
    pipeline, _ = compiled(with_shards(2), tmp_path)
    dags = [part["dag"] for part in [pipeline["root"], *pipeline["components"].values()] if "dag" in part]
    leaves = {
        task["componentRef"]["name"]: task
        for dag in dags
        for task in dag["tasks"].values()
        if "executorLabel" in pipeline["components"][task["componentRef"]["name"]]
    }
    cached = {name for name, task in leaves.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert {name for name in leaves if name not in cached} == {
        "comp-gather-base", "comp-report", "comp-gather-round"
    }  # fmt: skip
    assert all("library" in leaves[name]["inputs"]["parameters"] for name in cached)


def test_a_parameter_of_another_step_is_in_nothing_that_the_cache_looks_at(one_round, tmp_path):
    """KFP's key: image, command, inputs, outputs, volumes' names and, since 2.18, the container's own variables."""

    def of_generate(beta: float, commit: str) -> tuple[dict, dict]:
        config = one_round.model_copy(update={"align": one_round.align.model_copy(update={"beta": beta})})
        config = config.model_copy(update={"resources": Resources(image=PINNED)})
        pipeline, platform = compiled(config, tmp_path, commit=commit * 40)
        executor = pipeline["deploymentSpec"]["executors"]["exec-generate"]
        pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-generate"]
        round_ = pipeline["components"]["comp-dual-ipo-round"]["dag"]["tasks"]["generate"]
        return {"executor": executor, "inputs": round_["inputs"]}, pod

    (key, pod), (same, other) = of_generate(500.0, "a"), of_generate(600.0, "b")
    assert key == same
    told = pod["podMetadata"]["annotations"]
    assert json.loads(told["dualipo.io/config"])["align"]["beta"] == 500.0 and told["dualipo.io/commit"] == "a" * 40
    assert other["podMetadata"]["annotations"].keys() == told.keys()
    assert {item["name"]: item["fieldPath"] for item in pod["fieldPathAsEnv"]} == {
        "DUALIPO_CONFIG": "metadata.annotations['dualipo.io/config']",
        "DUALIPO_COMMIT": "metadata.annotations['dualipo.io/commit']",
    }
    assert "{{" not in told["dualipo.io/config"]  # Argo's own brackets


def test_the_image_is_the_same_everywhere_and_pinned_as_asked(tmp_path):
    pipeline, _ = compiled(with_shards(2, image=PINNED), tmp_path)
    assert {e["container"]["image"] for e in pipeline["deploymentSpec"]["executors"].values()} == {PINNED}


# ---- resources


def test_the_papers_preset_asks_for_its_resources(repository, tmp_path):
    config = load_config(repository / "params.yaml", repository / "params/cogvideox-2b.yaml")
    pipeline, platform = compiled(config, tmp_path)
    executors = pipeline["deploymentSpec"]["executors"]
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    def gpus(name: str) -> int:
        return int(executors[name]["container"].get("resources", {}).get("accelerator", {}).get("resourceCount", 0))

    assert config.prompts.count == 100_000
    for name, found in pipeline["components"].items():
        for task in found.get("dag", {}).get("tasks", {}).values():
            if items := task.get("parameterIterator"):
                shards = json.loads(items["items"]["raw"])
                assert shards == [f"{number}/128" for number in range(128)], name
    for round_ in ("", "-2", "-3"):
        assert gpus(f"exec-align{round_}") == gpus(f"exec-train-critic{round_}") == 8
        for step in ("generate", "label", "prefer", "evaluate"):
            assert gpus(f"exec-{step}-shard{round_}") == 1 and gpus(f"exec-{step}{round_}") == 0
        assert gpus(f"exec-prompts{round_}") == gpus(f"exec-promote-generator{round_}") == 0
    # it also measures the critic.
    assert gpus("exec-start-shard") == gpus("exec-start") == 1
    align = pods["exec-align"]
    assert align["emptyDirMounts"] == [
        {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "64Gi", "volumeName": "shm"}
    ]
    assert {mount["constant"]: mount["mountPath"] for mount in align["pvcMount"]} == {
        "dualipo-scratch": "/scratch", "dualipo-models": "/models"
    }  # fmt: skip
    assert align["nodeSelector"]["labels"] and align["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert align["secretAsEnv"][0]["secretName"] == "dualipo-s3" and align["activeDeadlineSeconds"] == "1209600"
    assert "nodeSelector" not in pods["exec-prompts"] and "tolerations" not in pods["exec-generate"]
    assert executors["exec-align"]["container"]["resources"]["resourceMemoryLimit"] == "512Gi"
    for executor in executors.values():
        # of a pod without limits k8s/base/limits makes one with half a CPU, and refuses what asks for more.
        asked = executor["container"]["resources"]
        assert asked["resourceCpuLimit"] == asked["resourceCpuRequest"]
        assert asked["resourceMemoryLimit"] == asked["resourceMemoryRequest"]
    environment = {item["name"]: item["value"] for item in executors["exec-align"]["container"]["env"]}
    assert environment["MLFLOW_TRACKING_URI"] and environment["DUALIPO_SCRATCH"] == "/scratch"
    retries = {task["retryPolicy"]["maxRetryCount"] for found in pipeline["components"].values()
               for task in found.get("dag", {}).get("tasks", {}).values() if "retryPolicy" in task}  # fmt: skip
    assert retries == {5}


def test_resources_change_neither_identity_nor_what_a_task_is_told():
    asking = with_shards(8, image=PINNED)
    plain = asking.model_copy(update={"resources": Resources()})
    assert plain.digest() == asking.digest()
    assert Build(plain, "x").whole() == Build(asking, "x").whole()


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ({"alignn": {"gpus": 8}}, "alignn"),
        ({"align": {"shards": 2}}, "can't be shared"),
        ({"generate": {"shards": 257}}, "256"),
        ({"generate": {"gpu_type": "a"}}, "gpu_type"),
    ],
)
def test_unusable_resources_are_refused(steps, told):
    with pytest.raises(UserError, match=told):
        parse_config({"resources": {"steps": steps}})


# ---- sizes


def test_fan_out_is_not_unrolled_and_stays_under_the_servers_limits(tmp_path):
    few, many = (compiled(with_shards(count), tmp_path)[0] for count in (2, 256))
    assert few["components"].keys() == many["components"].keys()
    assert len(many["deploymentSpec"]["executors"]) == len(few["deploymentSpec"]["executors"])
    assert (tmp_path / "pipeline.yaml").stat().st_size < compiling.MAX_BYTES


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_PARAMETER_BYTES"])
def test_a_pipeline_too_large_for_a_server_is_refused(limit, one_round, tmp_path, monkeypatch):
    assert compiled(one_round, tmp_path)
    monkeypatch.setattr(compiling, limit, 1000)
    with pytest.raises(UserError, match=r"a server takes .*1000"):
        compiled(one_round, tmp_path)


# ---- data


def test_data_come_from_the_dvc_remote_by_their_hash_alone(repository, tmp_path):
    uri, md5 = default_uri(repository, Path("data"))
    assert uri == f"dvc+{repository / 'data-remote'}"
    assert md5 == yaml.safe_load((repository / "data.dvc").read_text())["outs"][0]["md5"]
    found = fetch(uri, md5, {name: tmp_path / name for name in MEMBERS})
    for name, path in MEMBERS.items():
        assert digest(tmp_path / name) == digest(repository / "data" / path) == found[name]


def test_data_that_are_not_what_data_dvc_says_are_refused(tmp_path):
    for path in MEMBERS.values():
        (tmp_path / "data" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / path).write_text(path)
    md5 = digest(tmp_path / "data").md5
    targets = {name: tmp_path / "out" / name for name in MEMBERS}
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=md5):
        fetch(str(tmp_path / "data"), "0" * 32 + ".dir", targets)
    fetch((tmp_path / "data").as_uri(), md5, targets)
    assert targets["benchmark"].read_text() == "benchmark.jsonl"
    (tmp_path / "data/seed").unlink()
    with pytest.raises(UserError, match="seed is missing"):
        fetch(str(tmp_path / "data"), "", targets)
    with pytest.raises(UserError, match="cannot be read"):
        fetch(f"dvc+{tmp_path}", md5, targets)


def test_a_build_names_a_folder_where_no_remote_is_known_and_pods_must_reach_it(tmp_path, repository):
    build = make_build(Config(), tmp_path, None, Path("data"))
    assert (build.data, build.data_md5) == (str(tmp_path / "data"), "")
    mounted = parse_config({"resources": {"default": {"model_cache": "dualipo-models"}}})
    for here in (build.data, "dvc+/srv/remote", "file:///srv/data"):
        for config in (Config(), mounted):
            with pytest.raises(UserError, match="pods cannot read"):
                must_reach(here, config)
    must_reach("dvc+s3://bucket/remote", Config())
    must_reach("file:///models/data", mounted)
    with pytest.raises(UserError, match="pods cannot read"):
        must_reach("file:///models/data", Config())
