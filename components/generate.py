"""generate: sample candidates for every prompt from the incumbent generator."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def generate(
    library: str,
    round_name: str,
    experiment_params: str,
    generate_params: str,
    flow_nrg_params: str,
    prompts: Input[Dataset],
    generator: Input[Model],
    course: Input[Artifact],
    candidates: Output[Dataset],
    parts: Input[list[Dataset]] = None,
) -> None:
    """Sample candidates for every prompt from the incumbent generator."""
    from dualipo.pipeline.call import call

    call("generate", locals())


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def generate_shard(
    library: str,
    round_name: str,
    experiment_params: str,
    generate_params: str,
    flow_nrg_params: str,
    shard: str,
    prompts: Input[Dataset],
    generator: Input[Model],
    course: Input[Artifact],
    part: Output[Dataset],
) -> None:
    """One shard's part of the work of generate."""
    from dualipo.pipeline.call import call_shard

    call_shard("generate", locals())
