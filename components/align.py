"""align: align the generator with the preferences (Diffusion-DPO or Diffusion-KTO)."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def align(
    library: str,
    round_name: str,
    experiment_params: str,
    latent_reward_params: str,
    align_params: str,
    preferences: Input[Dataset],
    candidates: Input[Dataset],
    real_clips: Input[Dataset],
    generator: Input[Model],
    base_generator: Input[Model],
    held_out: Input[Dataset],
    course: Input[Artifact],
    candidate: Output[Model],
    curves: Output[Dataset],
) -> None:
    """Align the generator with the preferences (Diffusion-DPO or Diffusion-KTO)."""
    from dualipo.pipeline.call import call

    call("align", locals())
