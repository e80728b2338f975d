"""evaluate: benchmark the generator candidate on held-out prompts."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    library: str,
    round_name: str,
    experiment_params: str,
    evaluate_params: str,
    flow_nrg_params: str,
    candidate: Input[Model],
    benchmark: Input[Dataset],
    course: Input[Artifact],
    scores: Output[Metrics],
    benchmark_clips: Output[Dataset],
    parts: Input[list[Dataset]] = None,
) -> None:
    """Benchmark the generator candidate on held-out prompts."""
    from dualipo.pipeline.call import call

    call("evaluate", locals())


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate_shard(
    library: str,
    round_name: str,
    experiment_params: str,
    evaluate_params: str,
    flow_nrg_params: str,
    shard: str,
    candidate: Input[Model],
    benchmark: Input[Dataset],
    course: Input[Artifact],
    part: Output[Dataset],
) -> None:
    """One shard's part of the work of evaluate."""
    from dualipo.pipeline.call import call_shard

    call_shard("evaluate", locals())
