"""check_critic: agreement of the critic candidate with the human test set, and its gate."""

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check_critic(
    library: str,
    round_name: str,
    experiment_params: str,
    check_critic_params: str,
    label_params: str,
    candidate: Input[Model],
    incumbent_agreement: Input[ClassificationMetrics],
    test_labels: Input[Dataset],
    held_out: Input[Dataset],
    baselines: Input[Metrics],
    course: Input[Artifact],
    agreement: Output[ClassificationMetrics],
    gate: Output[Artifact],
) -> None:
    """Agreement of the critic candidate with the human test set, and its gate."""
    from dualipo.pipeline.call import call

    call("check_critic", locals())
