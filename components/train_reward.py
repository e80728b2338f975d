"""train_reward: train a VideoReward on the human seed labels, if one is asked for."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_reward(
    library: str,
    experiment_params: str,
    train_reward_params: str,
    seed_labels: Input[Dataset],
    critic_reference: Input[Model],
    held_out: Input[Dataset],
    reward: Output[Model],
) -> None:
    """Train a VideoReward on the human seed labels, if one is asked for."""
    from dualipo.pipeline.call import call

    call("train_reward", locals())
