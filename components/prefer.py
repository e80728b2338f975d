"""prefer: score the candidates with the accepted critic or a VideoReward and keep each prompt's best and worst."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prefer(
    library: str,
    round_name: str,
    experiment_params: str,
    label_params: str,
    prefer_params: str,
    latent_reward_params: str,
    candidates: Input[Dataset],
    critic: Input[Model],
    reward: Input[Model],
    course: Input[Artifact],
    preferences: Output[Dataset],
    gate: Output[Artifact],
    parts: Input[list[Dataset]] = None,
) -> None:
    """Score the candidates with the accepted critic or a VideoReward and keep each prompt's best and worst."""
    from dualipo.pipeline.call import call

    call("prefer", locals())


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prefer_shard(
    library: str,
    round_name: str,
    experiment_params: str,
    label_params: str,
    prefer_params: str,
    latent_reward_params: str,
    shard: str,
    candidates: Input[Dataset],
    critic: Input[Model],
    reward: Input[Model],
    course: Input[Artifact],
    part: Output[Dataset],
) -> None:
    """One shard's part of the work of prefer."""
    from dualipo.pipeline.call import call_shard

    call_shard("prefer", locals())
