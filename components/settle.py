"""settle: roll the critic back where the benchmark fell after its update, and say whether another round is worth it."""

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def settle(
    library: str,
    round_name: str,
    settle_params: str,
    train_critic_params: str,
    align_params: str,
    critic_decision: Input[Artifact],
    generator_decision: Input[Artifact],
    accepted_critic: Input[Model],
    accepted_agreement: Input[ClassificationMetrics],
    former_critic: Input[Model],
    former_agreement: Input[ClassificationMetrics],
    scores: Input[Metrics],
    preferences: Input[Dataset],
    critic_curves: Input[Dataset],
    align_curves: Input[Dataset],
    former_settlement: Input[Artifact],
    course: Input[Artifact],
    critic: Output[Model],
    agreement: Output[ClassificationMetrics],
    settlement: Output[Artifact],
    next_course: Output[Artifact],
) -> None:
    """Roll the critic back where the benchmark fell after its update, and say whether another round is worth it."""
    from dualipo.pipeline.call import call

    call("settle", locals())
