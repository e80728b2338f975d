"""report: one self-contained page of the whole run."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    library: str,
    experiment_params: str,
    models_params: str,
    rounds_params: str,
    prompts_params: str,
    generate_params: str,
    label_params: str,
    check_labels_params: str,
    train_critic_params: str,
    train_reward_params: str,
    check_critic_params: str,
    prefer_params: str,
    latent_reward_params: str,
    align_params: str,
    flow_nrg_params: str,
    evaluate_params: str,
    promote_generator_params: str,
    settle_params: str,
    run_id: str,
    runs: Input[Dataset],
    page: Output[HTML],
) -> None:
    """One self-contained page of the whole run."""
    from dualipo.pipeline.call import call

    call("report", locals())
