"""Steps whose work is shared: shards in folders of their own, put together, against one process."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from dualipo.artifacts import read_json, write_json
from dualipo.config import parse_config
from dualipo.critic.videoreward.settings import write_none
from dualipo.engine import Outcome, execute, execute_shard
from dualipo.errors import UserError
from dualipo.steps import GRAPH
from dualipo.steps.sharding import Shard

torch.set_num_threads(1)
CONFIG = parse_config(
    {
        "generate": {"candidates": 2, "steps": 2},
        "label": {"paths": 2, "pairs_per_prompt": 1},
        "prefer": {"min_margin": 0.0},
        "evaluate": {"samples_per_prompt": 2, "steps": 2, "bootstrap": 10},
    }
)
SHARED = ["generate", "label", "prefer", "evaluate"]


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """Three chunks of five prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualipo.generator.sampling.SHARD_PROMPTS", 2)
        patch.setattr("dualipo.steps.label.PROMPTS_A_CHUNK", 2)
        patch.setattr("dualipo.steps.prefer.PROMPTS_A_CHUNK", 2)
        yield


@pytest.fixture(scope="module")
def inputs(repository, course, tmp_path_factory) -> dict[str, Path]:
    """By port, for all of the steps."""
    data, folder = repository / "data", tmp_path_factory.mktemp("inputs")
    prompts = folder / "prompts.jsonl"
    with open(data / "benchmark.jsonl") as lines:
        prompts.write_text("".join(itertools.islice(lines, 5)))
    models = {name: data / name for name in ("generator", "critic", "critic_reference")}
    write_none(folder / "reward")
    return models | {
        "reward": folder / "reward",
        "prompts": prompts,
        "benchmark": prompts,
        "candidate": data / "generator",
        "course": course,
    }


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory) -> dict[str, Outcome]:
    """Each step in one process; what `generate` makes is judged by the others."""
    made: dict[str, Outcome] = {}
    for name in SHARED:
        step, root = GRAPH[name], tmp_path_factory.mktemp(name)
        bindings = {port: inputs[port] for port in step.inputs}
        made[name] = execute(step, CONFIG, root, "1", bindings, track=False)
        inputs |= made[name].outputs if name == "generate" else {}
    return made


def make_parts(name: str, count: int, inputs: dict[str, Path], folder: Path, config=CONFIG) -> list[Path]:
    step, parts = GRAPH[name], []
    for number in range(count):
        parts.append(folder / f"part-{number}")
        bindings = {port: inputs[port] for port in step.inputs}
        execute_shard(step, config, Shard(number, count), parts[-1], folder / f"root-{number}", "1", bindings)
    return parts


def unwanted(*_: object) -> None:
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize(("name", "count"), [("generate", 4), ("label", 2), ("prefer", 3), ("evaluate", 2)])
def test_shards_put_together_equal_one_process(whole, inputs, tmp_path, monkeypatch, name, count):
    parts = make_parts(name, count, inputs, tmp_path)
    chunks = [len(list(part.glob("*.jsonl"))) for part in parts]
    assert sum(chunks) == 3 and max(chunks) - min(chunks) <= 1
    # whatever loads a model has nothing left to do.
    for target in ("generator.sampling.load_generator", "critic.base.load_critic", "critic.scoring.load_scorer"):
        monkeypatch.setattr(f"dualipo.{target}", unwanted)
    step = GRAPH[name]
    bindings = {port: inputs[port] for port in step.inputs}
    outcome = execute(step, CONFIG, tmp_path / "root", "1", bindings, track=False, parts=parts)
    assert outcome.digests == whole[name].digests
    assert outcome.summary.metrics == whole[name].summary.metrics
    assert not [path for path in outcome.outputs[next(iter(step.outputs))].rglob("*") if path.is_symlink()]


def test_a_killed_shard_goes_on_where_it_was(whole, inputs, tmp_path, monkeypatch):
    from dualipo.generator.cogvideox import CogVideoX

    batches, calls = CogVideoX.batches, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return batches(*arguments)

    monkeypatch.setattr(CogVideoX, "batches", killed)
    with pytest.raises(KeyboardInterrupt):
        make_parts("generate", 1, inputs, tmp_path)
    assert not (tmp_path / "part-0").exists()
    make_parts("generate", 1, inputs, tmp_path)
    assert len(calls) == 4
    assert not list((tmp_path / "root-0/.dualipo").glob("work/*"))


@pytest.fixture(scope="module")
def parts(inputs, tmp_path_factory) -> list[Path]:
    return make_parts("generate", 3, inputs, tmp_path_factory.mktemp("parts"))


def put_together(parts: list[Path], inputs: dict[str, Path], root: Path, config=CONFIG) -> None:
    bindings = {port: inputs[port] for port in GRAPH["generate"].inputs}
    execute(GRAPH["generate"], config, root, "1", bindings, track=False, parts=parts)


def test_a_missing_shard_is_refused(parts, inputs, tmp_path):
    with pytest.raises(UserError, match=r"shards are missing, 1/3;"):
        put_together([parts[0], parts[2]], inputs, tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_shard_twice_is_refused(parts, inputs, tmp_path):
    with pytest.raises(UserError, match=r"shard 0/3 is there twice"):
        put_together([*parts, parts[0]], inputs, tmp_path)


def test_shards_of_another_division_are_refused(parts, inputs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(parts[0], other)
    write_json(other / "part.json", read_json(other / "part.json") | {"shard": "0/4"})
    with pytest.raises(UserError, match="shards of 3 and of 4 are mixed"):
        put_together([other, *parts[1:]], inputs, tmp_path / "root")


def test_shards_made_from_something_else_are_refused(parts, inputs, tmp_path):
    other = CONFIG.model_copy(update={"generate": CONFIG.generate.model_copy(update={"steps": 3})})
    with pytest.raises(UserError, match="other inputs or parameters"):
        put_together(parts, inputs, tmp_path, other)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "0/0"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UserError, match="as in 0/8"):
        Shard.parse(text)


def test_shards_divide_the_chunks():
    for chunks, count in itertools.product(range(12), range(1, 6)):
        every = [index for number in range(count) for index in Shard(number, count).indices(chunks)]
        assert sorted(every) == list(range(chunks))
    assert str(Shard.parse("3/8")) == "3/8"
