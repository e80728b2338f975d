"""label: judge the candidates with the incumbent critic: vote over reasoning paths, swap, filter by certainty."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def label(
    library: str,
    round_name: str,
    experiment_params: str,
    label_params: str,
    candidates: Input[Dataset],
    critic: Input[Model],
    critic_reference: Input[Model],
    course: Input[Artifact],
    labels: Output[Dataset],
    parts: Input[list[Dataset]] = None,
) -> None:
    """Judge the candidates with the incumbent critic: vote over reasoning paths, swap, filter by certainty."""
    from dualipo.pipeline.call import call

    call("label", locals())


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def label_shard(
    library: str,
    round_name: str,
    experiment_params: str,
    label_params: str,
    shard: str,
    candidates: Input[Dataset],
    critic: Input[Model],
    critic_reference: Input[Model],
    course: Input[Artifact],
    part: Output[Dataset],
) -> None:
    """One shard's part of the work of label."""
    from dualipo.pipeline.call import call_shard

    call_shard("label", locals())
