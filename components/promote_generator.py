"""promote_generator: hand on the generator candidate, or the incumbent."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_generator(
    library: str,
    round_name: str,
    promote_generator_params: str,
    prefer_params: str,
    check_critic_params: str,
    candidate: Input[Model],
    candidate_scores: Input[Metrics],
    incumbent: Input[Model],
    incumbent_scores: Input[Metrics],
    label_gate: Input[Artifact],
    preferences: Input[Dataset],
    preference_gate: Input[Artifact],
    baselines: Input[Metrics],
    former_settlement: Input[Artifact],
    course: Input[Artifact],
    generator: Output[Model],
    scores: Output[Metrics],
    decision: Output[Artifact],
) -> None:
    """Hand on the generator candidate if its gates hold and its benchmark does not degrade, else the incumbent."""
    from dualipo.pipeline.call import call

    call("promote_generator", locals())
