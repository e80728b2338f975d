"""One round as a pipeline, which the loop nests: GRAPH's steps of a round, joined by the paths of their ports."""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model

import components
from dualipo.steps import HANDED_ON, Step, steps_of
from pipelines.build import Build
from pipelines.resources import dress

Channels = dict[str, Any]


class Handed(NamedTuple):
    """What a round hands on to the next."""

    generator: Model
    critic: Model
    agreement: ClassificationMetrics
    scores: Metrics
    label_profile: Metrics
    settlement: Artifact
    course: Artifact
    runs: Dataset


def add_step(step: Step, build: Build, common: Channels, sections: Channels, files: Channels) -> None:
    """Adds the step's task, or a task for each of its shards and one that puts them together. Takes its inputs from
    `files`, by their ports' paths, and adds its outputs there."""
    arguments = common | {f"{name}_params": sections[name] for name in step.sections}
    arguments |= {port: files[there.path] for port, there in step.inputs.items()}
    shards = build.shards(step)
    if shards == 1:
        task = dress(components.STEPS[step.name](**arguments), build, step)
    else:
        with dsl.ParallelFor(items=[f"{number}/{shards}" for number in range(shards)]) as shard:
            part = dress(components.SHARDS[step.name](shard=shard, **arguments), build, step)
        parts = dsl.Collected(part.outputs["part"])
        task = components.STEPS[step.name](parts=parts, **arguments)
        dress(task, build, step, gpus=step.shards != "all")
    files |= {there.path: task.outputs[port] for port, there in step.outputs.items()}


def gathered(files: Channels) -> Channels:
    """The artifacts of a round, or of the base, by the names that `gather` knows them by."""
    made = {path: channel for path, channel in files.items() if path.startswith("runs/{round}/")}
    return {path.rpartition("/")[2].partition(".")[0]: channel for path, channel in made.items()}


def make_round(build: Build) -> Any:
    """The pipeline `dual_ipo_round`. Its parameters are the sections of the configuration, one JSON string each."""

    @dsl.pipeline(name="dual-ipo-round", description="One round of Dual-IPO: the critic, then the generator.")
    def dual_ipo_round(
        library: str,
        round_name: str,
        experiment_params: str,
        prompts_params: str,
        generate_params: str,
        label_params: str,
        check_labels_params: str,
        train_critic_params: str,
        check_critic_params: str,
        prefer_params: str,
        latent_reward_params: str,
        align_params: str,
        flow_nrg_params: str,
        evaluate_params: str,
        promote_generator_params: str,
        settle_params: str,
        data_generator: Input[Model],
        data_critic_reference: Input[Model],
        data_seed: Input[Dataset],
        data_test: Input[Dataset],
        data_real: Input[Dataset],
        data_benchmark: Input[Dataset],
        base_reward: Input[Model],
        base_baselines: Input[Metrics],
        base_held_out: Input[Dataset],
        prev_generator: Input[Model],
        prev_critic: Input[Model],
        prev_agreement: Input[ClassificationMetrics],
        prev_scores: Input[Metrics],
        prev_label_profile: Input[Metrics],
        prev_settlement: Input[Artifact],
        prev_course: Input[Artifact],
        before: Input[Dataset],
    ) -> Handed:
        given = locals()
        sections = {k.removesuffix("_params"): v for k, v in given.items() if k.endswith("_params")}
        files = {f"{{data}}/{k.removeprefix('data_')}": v for k, v in given.items() if k.startswith("data_")}
        files["{data}/benchmark.jsonl"] = files.pop("{data}/benchmark")
        for path in HANDED_ON:
            files[f"runs/{{prev}}/{path}"] = given[f"prev_{path.partition('.')[0]}"]
        files |= {"runs/base/reward": base_reward, "runs/base/baselines.json": base_baselines}
        files |= {"runs/base/held_out.json": base_held_out}
        for step in steps_of("round"):
            add_step(step, build, {"library": library, "round_name": round_name}, sections, files)
        artifacts = gathered(files)
        gather = components.gather_round(
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, experiment_params=experiment_params, before=before, **artifacts
        )
        # its index is kept under this run's id: never another run's.
        dress(gather, build, None).set_caching_options(False)
        handed = {name: artifacts[name] for name in Handed._fields if name != "runs"}
        return Handed(**handed, runs=gather.outputs["runs"])

    return dual_ipo_round
