"""The experiment's parameters: one frozen, validated model per section of params.yaml.

Every section is named after the step that reads it. Unknown keys are refused, whole numbers written as floats
(`8.0`, as JSON and protobuf hand them over) are taken as integers, and NaN is refused everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dualipo.errors import UserError

PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti)$")]
"""An amount of memory as Kubernetes writes it."""
RewardLoss = Literal["btt", "bt", "regression"]
VBenchDimension = Literal[
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Experiment(Section):
    name: str = Field("small-world", pattern=r"^[a-z0-9][a-z0-9-]*$")
    """MLflow experiment; the registered models are `<name>-critic`, `<name>-generator` and `<name>-reward`."""
    seed: int = Field(0, ge=0)
    """Root of every random stream of the run."""


HUB = "hub/"
"""Begins the name of a model on the Hugging Face hub: `hub/OWNER/NAME@COMMIT`, also where its snapshot lies."""


class Models(Section):
    """The base models: folders of the data folder, `data/NAME` whatever folder that is, or `hub/OWNER/NAME@COMMIT`, one
    commit of the Hugging Face hub, fetched when it is first needed."""

    generator: str = "data/generator"
    critic: str = "data/critic"
    critic_reference: str = "data/critic_reference"
    """The critic before its warm start, which certainties refer to."""

    @field_validator("*")
    @classmethod
    def _is_a_folder_or_pinned(cls, value: str) -> str:
        name = r"[A-Za-z0-9_][-A-Za-z0-9_.]*"
        if re.fullmatch(f"{HUB}{name}/{name}(@.*)?", value):
            if not re.fullmatch(r".*@[0-9a-f]{40}", value):
                raise ValueError(
                    "pin the commit, so that the model stays the same: hub/OWNER/NAME@COMMIT with all its 40 digits, "
                    "as the model's page shows it under History"
                )
        elif not re.fullmatch(f"data(/{name})+", value):
            raise ValueError(
                "name a folder of the data folder, data/NAME, or a model of the hub, hub/OWNER/NAME@COMMIT"
            )
        return value


class Prompts(Section):
    space: str = "small_world"
    """A prompt space shipped with the library, or the path of a YAML file of one."""
    count: PositiveInt = 120
    """Prompts a round."""
    target: dict[str, dict[str, NonNegative]] = {}
    """Target shares that replace the space's own, e.g. `{difficulty: {simple: 0.5, medium: 0.5}}`."""
    schedule: dict[str, dict[str, NonNegative]] = {}
    """Per round, shares of `difficulty` that replace the target's, e.g. `{"1": {simple: 0.8, medium: 0.2}}`."""


class Generate(Section):
    candidates: int = Field(6, ge=2)
    """Clips sampled for each prompt, one seed each."""
    steps: PositiveInt = 12
    """Denoising steps."""
    guidance: NonNegative = 1.0
    """Classifier-free guidance scale; 1 switches it off."""
    batch_size: PositiveInt = 64
    """Clips sampled at once."""
    size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Frames, height and width of the clips; null is the generator's own size."""


class Label(Section):
    paths: PositiveInt = 3
    """Reasoning paths that vote on each question (self-consistency)."""
    temperature: Positive = 1.0
    max_new_tokens: PositiveInt = 64
    pairs_per_prompt: PositiveInt = 2
    """Pairs of candidates asked for each prompt, each in both orders."""
    batch_size: PositiveInt = 64
    """Questions asked at once."""
    certainty_beta: Positive = 0.1
    """Temperature of the preference certainty estimator."""
    certainty_threshold: Share = 0.5
    """A label is kept only where its certainty is above this."""
    filter_by_certainty: bool = True
    """Off: every label that survives the vote and the swap is kept (the paper's ablation)."""


class CheckLabels(Section):
    min_kept: PositiveInt = 20
    """Pseudo-labels that must be left, of each kind."""
    max_verdict_kl: Positive = 0.5
    """Bound on KL(pseudo-labels' verdict shares || human seed labels' shares), in nats, each question apart."""
    max_position_bias: Share = 0.25
    """Bound on |share of A - share of B| over all pair questions asked, before the swap filter."""
    max_tie_share: Share = 0.8
    max_prompt_share_error: Share = 0.02
    """Bound on |share - target share| of each prompt category."""
    min_vote_entropy: NonNegative = 0.02
    """Least mean entropy of the paths' votes on a question, as a share of what random votes have: 0 where all paths
    always agree. Not asked where a question gets a single vote."""
    max_vote_entropy: NonNegative = 0.9
    """The same from above: 1 is guessing."""
    min_certainty_spread: Share = 0.001
    """Least distance between the 10 and 90 percent quantiles of the certainties of each kind of label."""
    min_kept_share: Share = 0.02
    """Least share of labels of each kind that the swap and the certainty filter leave."""
    max_kept_share: Share = 0.95
    """The same from above; not asked where `label.filter_by_certainty` is off."""
    min_choices_follow_ratings: Share = 0.45
    """Least share of choices for a clip that the critic also rates higher; 0.5 is chance. Not asked where no pair of
    rated clips was decided."""
    min_coverage: NonNegative = 0.25
    """Least share that a prompt category's value has among the kept labels, as a part of its target share."""
    max_duplicate_clips: Share = 0.01
    """Share of candidates whose file is that of another candidate, byte for byte."""
    max_drift: Share = 0.5
    """Part of the kept labels' verdicts, each question apart, that may differ from those of the last set of labels that
    passed this gate, in the first round from the human seed labels (total variation distance)."""


class Training(Section):
    """How a model is trained, whatever its loss: processes, precision, averages, when to stop. See docs/training.md."""

    processes: PositiveInt = 1
    """Processes that the step runs in on this machine, one a GPU; a batch is shared out among them."""
    zero: int = Field(0, ge=0, le=3)
    """DeepSpeed's ZeRO stage: 0 keeps all states on every process, 2 shards optimizer and gradients, 3 weights too."""
    offload: bool = False
    """Keeps the sharded optimizer states, and with ZeRO-3 the weights, in the CPU's memory."""
    precision: Literal["as_stored", "bf16"] = "as_stored"
    """`as_stored` computes in the checkpoint's own type; `bf16` computes in bfloat16 over float32 master weights."""
    gradient_checkpointing: bool = False
    """Keeps each block's input alone for the backward pass and computes the rest again."""
    micro_batch_size: PositiveInt | None = None
    """Examples that one process computes at once; gradients of micro-batches add up to the batch's. null: its share."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of the exponential moving average of weights that the candidate ends with; null keeps the last weights."""
    raised_learning_rate: Positive | None = None
    """Learning rate once training is stable (Dual-IPO: 2e-6, then 2e-5); null never raises it."""
    raise_after: PositiveInt | None = None
    """Steps before the learning rate is raised; null measures when the loss is stable (our reading)."""
    stop_on_divergence: bool = False
    """Ends a training whose loss is not finite, or whose winner and loser errors both rise; off: only says so."""
    divergence_window: PositiveInt = 20
    """Steps in each of the two windows whose means are compared."""
    divergence_bound: Positive = 0.1
    """Mean d(y) of winners and of losers above which rising is divergence; the target's variance is about 1."""

    @model_validator(mode="after")
    def _keys_fit(self) -> Training:
        if self.zero == 1:
            raise ValueError("zero: stage 1 is not offered; use 0, 2 or 3")
        if self.offload and not self.zero:
            raise ValueError("offload needs zero: 2 or 3")
        if self.raise_after is not None and self.raised_learning_rate is None:
            raise ValueError("raise_after needs raised_learning_rate")
        return self


class TrainCritic(Section):
    algorithm: Literal["srpo", "dpo", "none"] = "srpo"
    """`srpo` weights each pair's DPO loss by its certainty; `dpo` does not; `none` keeps the critic as it is."""
    update: Literal["every_round", "after_degradation"] = "every_round"
    """`after_degradation`: only in the round after one whose benchmark fell or whose training curves were pathological
    (Dual-IPO, optimization loop); in the others the critic is handed on as it is."""
    beta: Positive = 0.1
    learning_rate: Positive = 2e-5
    steps: PositiveInt = 50
    batch_size: PositiveInt = 16
    """Preference pairs of reasoning paths a step."""
    instruction_batch_size: PositiveInt = 32
    """Instruction-tuning examples a step, drawn beside the pairs."""
    instruction_weight: NonNegative = 1.0
    """Weight of the instruction-tuning loss on human seed labels and unanimous pseudo-labels."""
    seed_share: Share = 0.7
    """Share of human seed labels among the instruction-tuning examples."""
    max_grad_norm: Positive = 1.0
    checkpoint_every: PositiveInt = 20
    """Steps between checkpoints that a killed run resumes from."""
    training: Training = Training()


class TrainReward(Section):
    """How a VideoReward is trained. VideoAlign: k 5, rank 64, alpha 128, learning rate 2e-6, batch 32, two epochs."""

    enabled: bool = False
    """Whether the experiment trains one on its human seed labels: an observer beside the critic, or `prefer`'s scorer.
    `dualipo reward train` asks for one by itself."""
    loss: RewardLoss = "btt"
    """`btt` Bradley-Terry with ties, `bt` without (ties dropped), `regression` on ratings alone."""
    tie_tendency: float = Field(5.0, gt=1)
    """k of Bradley-Terry with ties."""
    implied_pairs: bool = True
    """Two clips of one prompt with different ratings on a dimension are a pair of that dimension as well."""
    steps: PositiveInt = 200
    batch_size: PositiveInt = 32
    """Pairs a step, or rated clips with `regression`."""
    learning_rate: Positive = 1e-4
    warmup_steps: int = Field(10, ge=0)
    train_vision: bool = True
    """Off: the vision tower is frozen and every clip seen once."""
    lora_rank: int = Field(0, ge=0)
    """Rank of LoRA on the language model's linear layers; 0 trains all of it."""
    lora_alpha: Positive = 128.0
    max_grad_norm: NonNegative = 1.0
    validation_share: float = Field(0.2, gt=0, lt=1)
    """Share of the seed prompts held out of training, for normalisation and thresholds."""
    checkpoint_every: PositiveInt = 40
    training: Training = Training()

    @model_validator(mode="after")
    def _one_process(self) -> TrainReward:
        if self.training.processes > 1 or self.training.zero:
            raise ValueError("training: a VideoReward is trained in one process; leave processes at 1 and zero at 0")
        return self


class CheckCritic(Section):
    min_agreement: Share = 0.75
    """Smallest share of the human test pairs on which an accepted critic agrees."""
    bound: Literal["mean", "low"] = "mean"
    """What has to reach it: the share itself, or the lower end of its 95 percent interval over prompts."""
    max_drop: Share = 0.0
    """Largest loss of agreement against the incumbent critic, of 1; 1 switches this off."""
    max_rating_drop: Share = 0.1
    """Largest loss, in any one dimension, of the share of ratings on which it agrees; 1 switches this off. Preferences
    follow ratings, and agreement on pairs hardly shows it where those are lost."""
    paths: PositiveInt = 3
    batch_size: PositiveInt = 64


class Weights(Section):
    """How much each dimension counts; only their ratios matter."""

    semantic: NonNegative = 1.0
    motion: NonNegative = 1.0
    faithfulness: NonNegative = 1.0

    @model_validator(mode="after")
    def _some_count(self) -> Weights:
        if not any(self.model_dump().values()):
            raise ValueError("at least one of semantic, motion and faithfulness must be above 0")
        return self

    def of(self, dimensions: Iterable[str]) -> list[float]:
        return [getattr(self, name) for name in dimensions]


class Prefer(Section):
    scorer: Literal["critic", "videoreward"] = "critic"
    """Whose scores the preferences follow: the accepted critic's, or those of the experiment's own VideoReward
    (`train_reward.enabled`); generators are then promoted only if it agrees with people as a critic has to."""
    paths: PositiveInt | None = None
    """Reasoning paths that vote on a clip; null: `label.paths`. A score is a mean of votes: more paths tell more clips
    apart."""
    weights: Weights = Weights()
    """How much each dimension counts in a clip's score, as the annotators' guideline has it."""
    confirm: bool = True
    """Keep a prompt's top-1 and bottom-1 only where the pairwise verdict, asked in both orders, does not contradict."""
    min_margin: NonNegative = 0.05
    """Smallest difference of the two critic scores, of 1."""
    max_winner_is_loser: Share = 0.0
    min_pairs: PositiveInt = 16
    """Preference pairs below which a round's generator may not be promoted."""


class Align(Section):
    loss: Literal["dpo", "kto", "flow_dpo", "rwr", "sft"] = "dpo"
    """Diffusion-DPO, Diffusion-KTO, Flow-DPO (rectified flow alone), reward-weighted regression on all scored clips
    (Flow-RWR), or fine-tuning on the winners (SFT)."""
    beta: Positive = 1000.0
    """Strength of the bond to the reference in DPO and KTO; Flow-DPO's paper uses 500."""
    learning_rate: Positive = 1e-4
    warmup_steps: int = Field(10, ge=0)
    steps: PositiveInt = 100
    batch_size: PositiveInt = 16
    """Preference pairs a step (DPO, Flow-DPO) or clips a step."""
    lambda_winner: NonNegative = 0.2
    """Weight of the diffusion loss on winners (lambda_1; DPO and Flow-DPO only)."""
    lambda_real: NonNegative = 0.1
    """Weight of the diffusion loss on real clips (lambda_2; lambda in KTO)."""
    omega: Literal["constant", "snr", "derived"] = "constant"
    """Weight over noise levels: folded into beta; min(SNR, 5) normalised (DPO, KTO); (1 - t)^2, which follows from the
    derivation but hacks the reward (Flow-DPO)."""
    reference: Literal["previous", "base"] = "previous"
    """Frozen reference: the previous round's champion, or the base model for good."""
    lora: PositiveInt | None = None
    """Rank of a low-rank adapter on attention's projections, the reference being the adapter switched off; null trains
    every weight against a second copy."""
    max_grad_norm: Positive = 1.0
    checkpoint_every: PositiveInt = 40
    """Steps between checkpoints that a killed run resumes from."""
    training: Training = Training()

    @model_validator(mode="after")
    def _omega_fits_the_loss(self) -> Align:
        fitting = {"snr": ("dpo", "kto"), "derived": ("flow_dpo",)}.get(self.omega)
        if fitting and self.loss not in fitting:
            raise ValueError(f"omega {self.omega} goes with loss {' or '.join(fitting)}; use omega: constant")
        return self


class LatentReward(Section):
    train: bool = False
    """`prefer` also writes each clip's score on each dimension, and `align` trains on them the reward on noisy latents
    that Flow-NRG steers by, into the candidate's folder. Rectified-flow generators alone."""
    layers: PositiveInt = 1
    """The generator's first blocks that it is built on."""
    pairs: Literal["all", "preferences"] = "all"
    """What it compares: every two scored clips of a prompt, or the preference pairs alone. All need every candidate
    encoded."""
    learning_rate: Positive = 3e-4
    warmup_steps: int = Field(10, ge=0)
    steps: PositiveInt = 300
    batch_size: PositiveInt = 16
    """Pairs a step."""


class FlowNrg(Section):
    """Reward guidance at sampling (VideoAlign eq. 11); a generator without a reward, as the base one, does without."""

    generate: NonNegative = 0.0
    """Scale w of the reward's gradient where candidates are sampled; 0 samples without."""
    evaluate: NonNegative = 0.0
    """The same where a generator candidate is measured."""
    weights: Weights = Weights()


class Evaluate(Section):
    suite: Literal["small_world", "vbench"] = "small_world"
    samples_per_prompt: PositiveInt = 3
    """Clips of each prompt; `vbench` takes VBench's 5 whatever stands here."""
    steps: PositiveInt = 12
    guidance: NonNegative = 1.0
    batch_size: PositiveInt = 64
    size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """As `generate.size`."""
    bootstrap: PositiveInt = 2000
    """Resamples over prompts behind each confidence interval."""
    vbench_python: str | None = None
    """Interpreter of the environment that has VBench (docs/vbench.md); null samples, and takes scores by --import."""
    vbench_dimensions: tuple[VBenchDimension, ...] | None = None
    """Of VBench's 16, those to measure; without one of them the totals that need it are undefined. null: all."""
    vbench_prompts: PositiveInt | None = None
    """Prompts of each of VBench's eleven kinds, a subset that the metrics' name tells; null: the official suite."""
    vbench_static_filter: bool = True
    """25 clips of temporal flickering's prompts, of which VBench's static filter leaves up to 5, as VBench asks; off: 5
    unfiltered ones, which the metrics' name tells."""

    def identity(self) -> dict[str, Any]:
        """What changes the scores: not where VBench is, and of another suite nothing of VBench."""
        content = self.model_dump(mode="json")
        hidden = ["vbench_python"] if self.suite == "vbench" else [key for key in content if key.startswith("vbench_")]
        return {key: value for key, value in content.items() if key not in hidden}


class PromoteGenerator(Section):
    max_drop: NonNegative = 0.0
    """Points of the benchmark's total that a candidate may lose against the incumbent and still be promoted."""
    max_shift: Positive = 0.5
    """Standard deviations by which brightness, saturation, sharpness, motion or diversity may differ between winners
    and losers, or candidate and incumbent: an interval wholly beyond it is named (docs/settle.md)."""
    hold_on_watch: bool = False
    """Whether what is named, such a difference or reward hacking, also holds the candidate's promotion."""


class Study(Section):
    """Counts of a blind comparison of a round's generator with the one before it."""

    wins: int = Field(0, ge=0)
    ties: int = Field(0, ge=0)
    losses: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_was_compared(self) -> Study:
        if not self.wins + self.ties + self.losses:
            raise ValueError("a study of no comparisons says nothing; remove it")
        return self


class Settle(Section):
    """How a round ends: whether its critic stays, and whether another round is worth its cost (docs/settle.md)."""

    roll_back_critic: bool = False
    """Whether the former critic comes back where the benchmark fell after an update (Dual-IPO, appendix C)."""
    stop: bool = False
    """Whether the rounds end where retries are used up or the stopping rule says so; off: it is only said."""
    max_retries: int = Field(1, ge=0)
    """Rounds without a new champion are tried again so often in a row before the rounds end."""
    patience: PositiveInt = 1
    """Rounds over which the stopping rule looks at least (Dual-IPO, appendix D)."""
    min_gain: Positive = 0.5
    """Points of the benchmark's total a round below which another is not worth its cost."""
    studies: dict[str, Study] = {}
    """By round: what people said of its generator against the one before: `{"2": {wins: 31, ties: 12, losses: 17}}`."""


class Promotion(Section):
    """Who moves the registry's champion. Changes nothing that is made, and is in no fingerprint."""

    require_approval: bool = False
    """The loop goes on with what its gates accept, but the champion in MLflow waits for a person: `dualipo promote
    NAME/VERSION --approve`. The first champion is the base model all the same."""


class Tracking(Section):
    """What becomes of a step's record while MLflow is away. Changes nothing that is made, and is in no fingerprint."""

    outage: Literal["spool", "stop"] = "spool"
    """`spool`: where MLflow at this address has recorded steps of this folder before, the record is kept in
    .dualipo/spool and the run goes on; `stop`: the step is done but not recorded, and the run stops, as it does at an
    address that never answered."""
    patience: NonNegative = 120.0
    """Seconds for which recording a step is tried again before that."""


class TrainJob(Section):
    """Where `align` and `train_critic` train: changes nothing of what they make, and is in no fingerprint."""

    launcher: Literal["local", "kubeflow"] = "local"
    """`local`: the step's own process and GPUs; `kubeflow`: a TrainJob of Kubeflow Trainer v2 on several nodes."""
    image: str | None = Field(None, pattern=r"^[^@\s]+@sha256:[0-9a-f]{64}$")
    """Image of the nodes, pinned by digest: `registry/name@sha256:...`."""
    namespace: str = Field("dualipo", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    runtime: str = "dualipo-deepspeed"
    """The runtime that the nodes start from; k8s/trainer holds this one."""
    runtime_kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"] = "TrainingRuntime"
    """Of the namespace, or one that the cluster's operators give to all."""
    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = 8
    """Also the processes on each node."""
    cpus_per_node: PositiveInt = 32
    memory_per_node: Quantity = "256Gi"
    shared_memory: Quantity = "64Gi"
    """Size of /dev/shm, which counts as memory."""
    env: dict[str, str] = {}
    """Environment of the nodes. No secrets: those go through `secret_env`."""
    secret_env: dict[str, Annotated[str, Field(pattern=r"^[a-z0-9][-a-z0-9.]*/[-._a-zA-Z0-9]+$")]] = {}
    """Variables taken from Secrets, as `secret/key`, e.g. `{AWS_ACCESS_KEY_ID: dualipo-s3/access_key}`."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes to train on."""
    models_claim: str = "dualipo-models"
    """PersistentVolumeClaim of base models, read-only under /models."""
    scratch_claim: str = "dualipo-scratch"
    """ReadWriteMany claim under /scratch: what the nodes read, write and resume from."""
    pending_seconds: PositiveInt = 3600
    """How long the nodes may wait for a place and their images; time in a queue, suspended, does not count."""
    deadline_seconds: PositiveInt = 604800
    """How long the job may run."""
    retries: int = Field(3, ge=0)
    """New attempts after an eviction, a preemption or a lost node; each resumes from the scratch claim."""
    keep_failed: bool = False
    """Leaves a failed job and its pods for debugging; the next run of the step replaces it."""

    @model_validator(mode="after")
    def _kubeflow_needs_an_image(self) -> TrainJob:
        if self.launcher == "kubeflow" and self.image is None:
            raise ValueError("launcher kubeflow needs `image`, pinned by digest: registry/name@sha256:...")
        reserved = sorted(n for n in {*self.env, *self.secret_env} if n.startswith("PET_"))
        if reserved:
            raise ValueError(f"{reserved[0]} is set by Kubeflow Trainer; remove it from env")
        both = sorted(set(self.env) & set(self.secret_env))
        if both:
            raise ValueError(f"{both[0]} stands in both env and secret_env; keep one")
        return self


class Round(Section):
    prev: str


class Toleration(Section):
    """As in a pod's specification."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Request(Section):
    """What one step's pod asks of a cluster. Null: as `resources.default` says, and there: nothing is asked."""

    shards: int | None = Field(None, ge=1, le=256)
    """Pods that share the step's work, each with all that is asked here; of steps whose work can be shared only. What
    puts the shards together is told of each in one argument of its command, which Linux limits to 128 KiB."""
    gpus: int | None = Field(None, ge=0)
    """GPUs of one pod."""
    gpu: str | None = None
    """The GPUs' resource name, e.g. `nvidia.com/gpu`."""
    cpu: str | None = None
    """Cores that are reserved, e.g. `"8"`."""
    memory: str | None = None
    """Reserved, and the limit, e.g. `64Gi`."""
    shm: str | None = None
    """Size of /dev/shm, which PyTorch's processes talk through; it counts as memory."""
    node_selector: dict[str, str] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    secrets: dict[str, dict[str, str]] | None = None
    """Of each secret, which of its keys becomes which environment variable."""
    env: dict[str, str] | None = None
    """Environment variables, e.g. `MLFLOW_TRACKING_URI`. No passwords: these are readable in the pipeline."""
    model_cache: str | None = None
    """PersistentVolumeClaim that HF_HOME lies on."""
    scratch: str | None = None
    """PersistentVolumeClaim for checkpoints, so that a step goes on after its pod was evicted; else they go with it."""
    retries: int | None = Field(None, ge=0)
    """How often a failed pod is started again."""
    timeout: PositiveInt | None = None
    """Seconds after which a pod is stopped."""


class Resources(Section):
    """Where the pipeline's steps run on a cluster. Changes nothing that they make."""

    image: str = "dualipo:latest"
    """Container image of every step; by digest (`name@sha256:...`) wherever results should be cached."""
    default: Request = Request(shards=1, gpus=0, gpu="nvidia.com/gpu", retries=2)
    steps: dict[str, Request] = {}
    """By step: what replaces the default."""

    @model_validator(mode="after")
    def _steps_are_known(self) -> Resources:
        from dualipo.steps import GRAPH

        for name, request in self.steps.items():
            if name not in GRAPH:
                raise ValueError(f"steps: {name!r} is no step; known: {', '.join(GRAPH)}")
            if (request.shards or 1) > 1 and GRAPH[name].shards == "no":
                able = ", ".join(step.name for step in GRAPH.values() if step.shards != "no")
                raise ValueError(f"steps.{name}.shards: the work of {name} can't be shared; it can of {able}")
        return self

    def of(self, step: str | None) -> Request:
        """What `step` asks for; None stands for the pipeline's own small tasks."""
        own = self.steps[step].model_dump(exclude_none=True) if step in self.steps else {}
        return Request.model_validate(self.default.model_dump() | own)


class Config(Section):
    """All of params.yaml."""

    experiment: Experiment = Experiment()
    models: Models = Models()
    prompts: Prompts = Prompts()
    generate: Generate = Generate()
    label: Label = Label()
    check_labels: CheckLabels = CheckLabels()
    train_critic: TrainCritic = TrainCritic()
    train_reward: TrainReward = TrainReward()
    check_critic: CheckCritic = CheckCritic()
    prefer: Prefer = Prefer()
    latent_reward: LatentReward = LatentReward()
    align: Align = Align()
    flow_nrg: FlowNrg = FlowNrg()
    evaluate: Evaluate = Evaluate()
    promote_generator: PromoteGenerator = PromoteGenerator()
    promotion: Promotion = Promotion()
    tracking: Tracking = Tracking()
    settle: Settle = Settle()
    train_job: TrainJob = TrainJob()
    resources: Resources = Resources()
    rounds: dict[str, Round] = {"1": Round(prev="base"), "2": Round(prev="1"), "3": Round(prev="2")}

    @model_validator(mode="after")
    def _the_scorer_is_trained(self) -> Config:
        if self.prefer.scorer == "videoreward" and not self.train_reward.enabled:
            raise ValueError("prefer.scorer: videoreward needs train_reward.enabled: true")
        return self

    @model_validator(mode="after")
    def _rounds_form_a_chain(self) -> Config:
        known = {"base"}
        for name, entry in self.rounds.items():
            if name == "base" or not name.isalnum():
                raise ValueError(f"rounds: {name!r} is not a usable round name; use 1, 2, 3 and so on")
            if entry.prev not in known:
                raise ValueError(f"rounds: round {name} follows {entry.prev!r}, which does not stand above it")
            known.add(name)
        return self

    @model_validator(mode="after")
    def _studies_are_of_rounds(self) -> Config:
        if unknown := sorted(self.settle.studies.keys() - self.rounds.keys()):
            raise ValueError(f"settle.studies: {unknown[0]!r} is no round; known: {', '.join(self.rounds)}")
        return self

    @model_validator(mode="after")
    def _guidance_has_a_reward(self) -> Config:
        if (self.flow_nrg.generate or self.flow_nrg.evaluate) and not self.latent_reward.train:
            raise ValueError("flow_nrg: reward guidance needs a reward; set latent_reward.train: true")
        return self

    def identity(self, section: str) -> dict[str, Any]:
        """A section's parameters as far as they change what is made."""
        found = getattr(self, section)
        if isinstance(found, Evaluate):
            return found.identity()
        return self.model_dump(mode="json", include={section})[section]

    def digest(self) -> str:
        """md5 over all parameters that change what is made, the same for equal ones however they were written down."""
        import hashlib

        shown = set(Evaluate.model_fields) - self.evaluate.identity().keys()
        exclude: dict[str, bool | set[str]] = {
            **dict.fromkeys(("promotion", "tracking", "resources", "train_job"), True),
            "evaluate": shown,
        }
        return hashlib.md5(self.model_dump_json(exclude=exclude).encode()).hexdigest()


def load_config(*files: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Reads params files, later ones over earlier ones, then dotted overrides such as `{"align.beta": 500}`.

    Raises UserError where a file is missing, is no YAML mapping, or holds an unknown key or an unusable value.
    """
    merged: dict[str, Any] = {}
    for file in files:
        path = Path(file)
        if not path.is_file():
            raise UserError(
                f"{path}: no such parameter file; run from the experiment's folder or name one with --params"
            )
        try:
            content = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise UserError(f"{path}: a mapping of sections was expected, found {type(content).__name__}")
        _merge(merged, content)
    for dotted, value in (overrides or {}).items():
        *parents, leaf = dotted.split(".")
        node = merged
        for key in parents:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
            if not isinstance(node, dict):
                raise UserError(f"{dotted}: {key!r} holds a value, not a section; check the name before the last dot")
        node[leaf] = value
    where = ", ".join(str(f) for f in files) or "parameters"
    return parse_config(merged, where)


def parse_config(content: dict[str, Any], where: str = "parameters") -> Config:
    """Validates a mapping of sections; raises UserError that names the first offending key."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: unknown key {key!r}; {_known_keys(first['loc'])}") from None
        message = first["msg"].removeprefix("Value error, ")
        # a check of the whole names its section itself.
        told = f"{key}: {message} (found {first['input']!r:.80})" if key else message
        raise UserError(f"{where}: {told}") from None


def config_json(config: Config) -> str:
    """The whole configuration as one JSON string, fit for a pipeline parameter or an MLflow artifact."""
    return json.dumps(config.model_dump(mode="json"), sort_keys=True, indent=2)


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if key != "rounds" and isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _known_keys(location: tuple[int | str, ...]) -> str:
    model: Any = Config
    for part in location[:-1]:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field else None
    if model is None or not hasattr(model, "model_fields"):
        return "remove it"
    return f"known here: {', '.join(model.model_fields)}"
