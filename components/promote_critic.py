"""promote_critic: hand on the critic candidate if every gate holds, else the incumbent."""

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_critic(
    library: str,
    round_name: str,
    candidate: Input[Model],
    candidate_agreement: Input[ClassificationMetrics],
    incumbent: Input[Model],
    incumbent_agreement: Input[ClassificationMetrics],
    label_gate: Input[Artifact],
    critic_gate: Input[Artifact],
    course: Input[Artifact],
    critic: Output[Model],
    agreement: Output[ClassificationMetrics],
    decision: Output[Artifact],
) -> None:
    """Hand on the critic candidate if every gate holds, else the incumbent."""
    from dualipo.pipeline.call import call

    call("promote_critic", locals())
