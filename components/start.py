"""start: adopt the base generator and critic, and measure both before the first round."""

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def start(
    library: str,
    experiment_params: str,
    check_critic_params: str,
    evaluate_params: str,
    base_generator: Input[Model],
    base_critic: Input[Model],
    seed_labels: Input[Dataset],
    test_labels: Input[Dataset],
    real_clips: Input[Dataset],
    benchmark: Input[Dataset],
    generator: Output[Model],
    critic: Output[Model],
    agreement: Output[ClassificationMetrics],
    scores: Output[Metrics],
    benchmark_clips: Output[Dataset],
    held_out: Output[Dataset],
    label_profile: Output[Metrics],
    settlement: Output[Artifact],
    next_course: Output[Artifact],
    parts: Input[list[Dataset]] = None,
) -> None:
    """Adopt the base generator and critic, and measure both before the first round."""
    from dualipo.pipeline.call import call

    call("start", locals())


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def start_shard(
    library: str,
    experiment_params: str,
    check_critic_params: str,
    evaluate_params: str,
    shard: str,
    base_generator: Input[Model],
    base_critic: Input[Model],
    seed_labels: Input[Dataset],
    test_labels: Input[Dataset],
    real_clips: Input[Dataset],
    benchmark: Input[Dataset],
    part: Output[Dataset],
) -> None:
    """One shard's part of the work of start."""
    from dualipo.pipeline.call import call_shard

    call_shard("start", locals())
