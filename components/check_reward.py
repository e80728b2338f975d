"""check_reward: agreement of trivial critics, the VideoReward and external models' scores with the human test set."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check_reward(
    library: str,
    experiment_params: str,
    check_critic_params: str,
    reward: Input[Model],
    seed_labels: Input[Dataset],
    test_labels: Input[Dataset],
    baselines: Output[Metrics],
) -> None:
    """Agreement of trivial critics, the VideoReward and external models' scores with the human test set."""
    from dualipo.pipeline.call import call

    call("check_reward", locals())
