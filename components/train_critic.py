"""train_critic: refine the critic on human seed labels and kept pseudo-labels (SRPO)."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_critic(
    library: str,
    round_name: str,
    experiment_params: str,
    train_critic_params: str,
    candidates: Input[Dataset],
    labels: Input[Dataset],
    seed_labels: Input[Dataset],
    critic: Input[Model],
    held_out: Input[Dataset],
    course: Input[Artifact],
    candidate: Output[Model],
    curves: Output[Dataset],
) -> None:
    """Refine the critic on human seed labels and kept pseudo-labels (SRPO)."""
    from dualipo.pipeline.call import call

    call("train_critic", locals())
