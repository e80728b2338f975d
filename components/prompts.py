"""prompts: draw the round's prompts from the structured space, clear of every held-out prompt."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prompts(
    library: str,
    round_name: str,
    experiment_params: str,
    prompts_params: str,
    test_labels: Input[Dataset],
    benchmark: Input[Dataset],
    course: Input[Artifact],
    prompts: Output[Dataset],
    audit: Output[Metrics],
) -> None:
    """Draw the round's prompts from the structured space, clear of every held-out prompt."""
    from dualipo.pipeline.call import call

    call("prompts", locals())
