"""gather: puts what the report reads into one folder, with an index of every artifact of the run."""

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather_base(
    run_id: str,
    experiment_params: str,
    generator: Input[Model],
    reward: Input[Model],
    critic: Input[Model],
    agreement: Input[ClassificationMetrics],
    baselines: Input[Metrics],
    scores: Input[Metrics],
    benchmark_clips: Input[Dataset],
    held_out: Input[Dataset],
    label_profile: Input[Metrics],
    settlement: Input[Artifact],
    course: Input[Artifact],
    runs: Output[Dataset],
) -> None:
    """The base models' measurements."""
    from dualipo.pipeline.call import gather

    gather(locals())


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather_round(
    run_id: str,
    experiment_params: str,
    before: Input[Dataset],
    prompts: Input[Dataset],
    prompts_audit: Input[Metrics],
    candidates: Input[Dataset],
    labels: Input[Dataset],
    label_gate: Input[Artifact],
    label_profile: Input[Metrics],
    critic_candidate: Input[Model],
    critic_curves: Input[Dataset],
    critic_candidate_agreement: Input[ClassificationMetrics],
    critic_gate: Input[Artifact],
    accepted_critic: Input[Model],
    accepted_agreement: Input[ClassificationMetrics],
    critic_decision: Input[Artifact],
    preferences: Input[Dataset],
    preference_gate: Input[Artifact],
    generator_candidate: Input[Model],
    align_curves: Input[Dataset],
    generator_candidate_scores: Input[Metrics],
    benchmark_clips: Input[Dataset],
    generator: Input[Model],
    scores: Input[Metrics],
    generator_decision: Input[Artifact],
    critic: Input[Model],
    agreement: Input[ClassificationMetrics],
    settlement: Input[Artifact],
    course: Input[Artifact],
    runs: Output[Dataset],
) -> None:
    """The rounds before and this one."""
    from dualipo.pipeline.call import gather

    gather(locals())
