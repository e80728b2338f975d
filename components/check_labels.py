"""check_labels: Great Expectations on the prompts and the pseudo-labels."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check_labels(
    library: str,
    round_name: str,
    check_labels_params: str,
    label_params: str,
    prompts_params: str,
    prompts: Input[Dataset],
    candidates: Input[Dataset],
    labels: Input[Dataset],
    seed_labels: Input[Dataset],
    previous_profile: Input[Metrics],
    course: Input[Artifact],
    gate: Output[Artifact],
    label_profile: Output[Metrics],
) -> None:
    """Great Expectations on the prompts and the pseudo-labels."""
    from dualipo.pipeline.call import call

    call("check_labels", locals())
