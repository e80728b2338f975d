"""What a round costs before anyone pays for it: memory, GPU-hours and storage, with every assumption said.

Pure arithmetic over a configuration and the models' sizes (dualipo/sizes.py). Operations over peak rate times
utilisation give hours; writing reasoning paths is bound by memory, and takes what reading weights and caches takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from dualipo.config import Config, Training
from dualipo.critic.frames import MAX_FRAMES
from dualipo.evaluation.vbench.prompts import Selection, select
from dualipo.sizes import Backbone, Critic

GB = 1e9
QUESTION_TOKENS = 64
"""Words of a question around the clips and the prompt."""
BLOCK_BYTES = 34
"""Bytes of activations a token, layer and unit of width in 16 bits, without the attention matrix (Korthikanti et al.
2022, eq. 2 without its last term)."""


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float
    """GB."""
    tflops: float
    """Peak of dense bf16 products, in 1e12 operations a second."""
    bandwidth: float
    """TB a second."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 80, 989, 3.35),
        Gpu("h200", 141, 989, 4.8),
        Gpu("a100", 80, 312, 2.04),
        Gpu("l40s", 48, 362, 0.864),
    )
}
"""As their maker's data sheets say (SXM where there is one), without sparsity."""


@dataclass(frozen=True)
class Setup:
    """What the configuration does not hold."""

    gpus: int = 1
    utilisation: float = 0.4
    """Share of the peak rate that training and sampling reach."""
    bandwidth_use: float = 0.7
    """Share of the memory's bandwidth that writing paths reaches."""
    zero: int = 2
    """DeepSpeed's stage: optimiser and gradients sharded over the GPUs with 2, the weights too with 3."""
    lora: int | None = None
    """Rank of an adapter on the generator; None trains all of it."""
    checkpointing: bool = True
    """Gradient checkpointing: a forward pass more, and one block's activations at a time."""
    prompt_tokens: int = 60
    test_pairs: int = 1000
    """Pairs of the human test set."""
    benchmark_prompts: int = 944
    """As many as VBench has, where another suite than VBench measures."""
    bits_a_pixel: float = 1.0
    """Of stored clips, H.264 at high quality."""


@dataclass(frozen=True)
class Plan:
    title: str
    gpu: Gpu
    gpus: int
    hours: dict[str, float]
    """GPU-hours of each step."""
    memory: dict[str, float]
    """GB a GPU at the peak of each step."""
    storage: dict[str, float]
    """GB a round."""
    assumptions: list[str] = field(default_factory=list)

    @property
    def total(self) -> float:
        return sum(self.hours.values())

    @property
    def too_big(self) -> list[str]:
        """Steps that don't fit into a GPU."""
        return [step for step, needed in self.memory.items() if needed > self.gpu.memory]


def plan(config: Config, backbone: Backbone, critic: Critic, gpu: Gpu, setup: Setup, title: str = "a round") -> Plan:
    """A round of `config`: every step once, every prompt giving a pair. GPU-hours, GB a GPU, GB of storage."""
    cost = _Cost(config, backbone, critic, gpu, setup)
    return Plan(title, gpu, setup.gpus, cost.hours(), cost.memory(), cost.storage(), cost.assumptions())


@dataclass(frozen=True)
class _Cost:
    config: Config
    backbone: Backbone
    critic: Critic
    gpu: Gpu
    setup: Setup

    # ---- counts

    @property
    def clips(self) -> int:
        return self.config.prompts.count * self.config.generate.candidates

    @property
    def benchmark_prompts(self) -> int:
        return len(self._vbench.prompts) if self._vbench else self.setup.benchmark_prompts

    @property
    def benchmark_clips(self) -> int:
        if self._vbench:
            return self._vbench.clips
        return self.setup.benchmark_prompts * self.config.evaluate.samples_per_prompt

    @cached_property
    def _vbench(self) -> Selection | None:
        section = self.config.evaluate
        if section.suite != "vbench":
            return None
        return select(section.vbench_dimensions, section.vbench_prompts, section.vbench_static_filter)

    @property
    def step_clips(self) -> tuple[int, int]:
        """Clips of an alignment step: judged (pairs count twice) and real."""
        section = self.config.align
        judged = section.batch_size * (1 if section.loss == "kto" else 2)
        return judged, max(section.batch_size // 2, 1) if section.lambda_real > 0 else 0

    @property
    def held_clips(self) -> int:
        """Clips in a GPU at once while aligning: a micro-batch, of one example where none is set, and a real clip."""
        judged, real = self.step_clips
        return (self.config.align.training.micro_batch_size or 1) * judged // self.config.align.batch_size + bool(real)

    def context(self, clips: int) -> int:
        """Tokens before the answer to a question about so many clips."""
        seen = self.critic.visual_tokens(min(self.backbone.frames, MAX_FRAMES), *self._size)
        return clips * seen + self.setup.prompt_tokens + QUESTION_TOKENS

    @property
    def _size(self) -> tuple[int, int]:
        return self.backbone.height, self.backbone.pixel_width

    # ---- operations and seconds

    def seconds(self, operations: float) -> float:
        return operations / (self.gpu.tflops * 1e12 * self.setup.utilisation)

    @property
    def reward_pass(self) -> float:
        """Operations of the latent reward on a clip, as a part of the denoiser's: its first blocks alone."""
        return min(self.config.latent_reward.layers / self.backbone.layers, 1.0)

    def sampling(self, clips: int, prompts: int, steps: int, guidance: float, steered: float = 0.0) -> float:
        """Seconds to sample clips: text once a prompt, denoising steps (twice under guidance), the VAE's decoder.

        A reward that steers (`steered` above 0) is run forward and backward in every step.
        """
        passes = steps * ((1 if guidance == 1 else 2) + (3 * self.reward_pass if steered else 0.0))
        text = 2.0 * self.backbone.text_encoder * self.backbone.text_tokens * prompts
        return self.seconds(
            clips * (passes * self.backbone.forward + self.backbone.vae_decode * self.backbone.pixels) + text
        )

    def seeing(self, clips: int) -> float:
        """Seconds of the vision tower."""
        return self.seconds(clips * self.critic.see(min(self.backbone.frames, MAX_FRAMES), *self._size))

    def asking(self, questions: int, clips: int, paths: int, batch: int) -> float:
        """Seconds to read questions of `clips` clips once each and to write `paths` answers to each.

        A written token takes the longer of its operations and of reading all weights and the batch's caches once.
        """
        label, critic = self.config.label, self.critic
        context, rows = self.context(clips), min(batch, max(questions, 1)) * paths
        compute = self.seconds(rows * critic.read(1))
        cached = rows * (context + label.max_new_tokens / 2) * critic.cache
        bound = (2.0 * critic.language + cached) / (self.gpu.bandwidth * 1e12 * self.setup.bandwidth_use)
        batches = questions * paths / rows
        return self.seconds(questions * critic.read(context)) + batches * label.max_new_tokens * max(compute, bound)

    def preferring(self) -> float:
        """Seconds of the critic's ratings and its confirmation, of a VideoReward's scores, or of both."""
        config, label = self.config, self.config.label
        scoring = self.seeing(self.clips) + self.seconds(self.clips * self.critic.read(self.context(1)))
        if config.prefer.scorer == "videoreward":
            return scoring
        paths = config.prefer.paths or label.paths
        rating = self.asking(3 * self.clips, 1, paths, label.batch_size)
        asked = 2 * config.prompts.count if config.prefer.confirm else 0
        confirming = self.asking(asked, 2, paths, label.batch_size) if asked else 0.0
        return self.seeing(self.clips) + rating + confirming + (scoring if config.train_reward.enabled else 0.0)

    def hours(self) -> dict[str, float]:
        config, backbone, critic = self.config, self.backbone, self.critic
        label, train, check, align, evaluate = (
            config.label, config.train_critic, config.check_critic, config.align, config.evaluate
        )  # fmt: skip
        prompts = config.prompts.count
        backward = 2 + self.setup.checkpointing
        answered = [self.context(clips) + label.max_new_tokens for clips in (1, 2)]
        # the certainty filter reads each chosen path under the critic and its reference.
        pairs = prompts * label.pairs_per_prompt
        rewards = 2 * (3 * self.clips * critic.read(answered[0]) + pairs * critic.read(answered[1]))
        rating = self.asking(3 * self.clips, 1, label.paths, label.batch_size)
        seconds = {
            "generate": self.sampling(
                self.clips, prompts, config.generate.steps, config.generate.guidance, config.flow_nrg.generate
            ),
            "label": 2 * self.seeing(self.clips)
            + rating
            + self.asking(2 * pairs, 2, label.paths, label.batch_size)
            + self.seconds(rewards),
            "train_critic": 0.0,
            "check_critic": self.seeing(2 * self.setup.test_pairs)
            + self.asking(2 * self.setup.test_pairs, 2, check.paths, check.batch_size),
            "prefer": self.preferring(),
            "evaluate": self.sampling(
                self.benchmark_clips,
                self.benchmark_prompts,
                evaluate.steps,
                evaluate.guidance,
                config.flow_nrg.evaluate,
            ),
        }
        if train.algorithm != "none":
            # two paths a pair, once more under the reference; two clips a question, the longer kind.
            learned = 2 * train.batch_size * (1 + backward + 1)
            learned += train.instruction_batch_size * (1 + backward) if train.instruction_weight else 0
            seen = 2 * (train.batch_size + train.instruction_batch_size) * train.steps
            seconds["train_critic"] = self.seconds(train.steps * learned * critic.read(answered[1])) + self.seeing(seen)
        judged, real = self.step_clips
        passes: float = judged * (1 + backward + 1) + real * (1 + backward)
        if config.latent_reward.train:
            steered = config.latent_reward
            passes += 2 * steered.batch_size * steered.steps * 3 * self.reward_pass / align.steps
        encoded = min(judged * align.steps, self._judged_clips) + real * align.steps
        if config.latent_reward.train and config.latent_reward.pairs == "all":
            encoded = self.clips + real * align.steps
        seconds["align"] = self.seconds(
            align.steps * passes * backbone.forward
            + encoded * backbone.vae_encode * backbone.pixels
            + 2.0 * backbone.text_encoder * backbone.text_tokens * prompts
        )
        order = ("generate", "label", "train_critic", "check_critic", "prefer", "align", "evaluate")
        return {step: seconds[step] / 3600 for step in order}

    @property
    def _judged_clips(self) -> int:
        """Clips that preferences name: two a prompt, for KTO all."""
        return self.clips if self.config.align.loss == "kto" else 2 * self.config.prompts.count

    # ---- bytes

    def states(self, weights: float, trained: float, training: Training) -> float:
        """Bytes of 16-bit weights and gradients and of Adam's 32-bit master weights and two moments, a GPU.

        A moving average is one more copy in 32 bits; what is offloaded lies in the CPU's memory.
        """
        shards = self.setup.gpus
        held = 0.0 if training.offload and self.setup.zero == 3 else 2 * weights
        kept = 2 if training.offload else 18 if training.ema_decay else 14
        return held / (shards if self.setup.zero == 3 else 1) + kept * trained / (shards if self.setup.zero else 1)

    def activations(self, tokens: float, width: int, layers: int) -> float:
        """Bytes kept for the backward pass."""
        block = BLOCK_BYTES * tokens * width
        return layers * tokens * width * 2 + block if self.setup.checkpointing else layers * block

    def memory(self) -> dict[str, float]:
        """GB a GPU. Training holds a micro-batch and a real clip at a time, and accumulates to its batch."""
        backbone, critic, config, setup = self.backbone, self.critic, self.config, self.setup
        pipeline = 2.0 * backbone.pipeline
        decoded = 3 * 2 * backbone.vae_channels * backbone.vae_chunk * backbone.height * backbone.pixel_width
        decoded += 3 * 4 * backbone.pixels

        def sampling(batch: int, guidance: float) -> float:
            rows = batch * (1 if guidance == 1 else 2)
            return pipeline + max(rows * 8 * 2 * backbone.sequence * backbone.width, batch * decoded)

        def judging(models: int, batch: int, paths: int) -> float:
            context = self.context(2) + config.label.max_new_tokens
            return models * 2.0 * critic.parameters + batch * paths * context * critic.cache

        tokens = self.context(2) + config.label.max_new_tokens
        learning = self.states(critic.language, critic.language, config.train_critic.training) + 2.0 * critic.vision
        # logits and their gradient in 32 bits, for the answer alone.
        learning += self.activations(2 * tokens, critic.width, critic.layers)
        learning += 2 * 2 * 4 * config.label.max_new_tokens * critic.vocabulary
        trained = backbone.lora(setup.lora) if setup.lora else backbone.parameters
        adapter = backbone.lora(setup.lora) if setup.lora else 0
        aligning = self.states(backbone.parameters + adapter, trained, config.align.training)
        aligning += 0 if setup.lora else 2.0 * backbone.parameters
        held = self.held_clips
        aligning += self.activations(held * backbone.sequence, backbone.width, backbone.layers)
        check = config.check_critic
        beside = config.train_reward.enabled and config.prefer.scorer == "critic"
        found = {
            "generate": sampling(config.generate.batch_size, config.generate.guidance),
            "label": judging(2, config.label.batch_size, config.label.paths),
            "train_critic": learning if config.train_critic.algorithm != "none" else 0.0,
            "check_critic": judging(1, check.batch_size, check.paths),
            "prefer": judging(1 + beside, config.label.batch_size, config.prefer.paths or config.label.paths),
            "align": aligning,
            "evaluate": sampling(config.evaluate.batch_size, config.evaluate.guidance),
        }
        return {step: needed / GB for step, needed in found.items()}

    def storage(self) -> dict[str, float]:
        """GB. Candidate and promoted model lie in the round's folder, and the registry keeps a copy of either; the
        accepted critic lies there too, beside the one that goes on."""
        backbone, critic, config = self.backbone, self.critic, self.config
        clip = backbone.pixels * self.setup.bits_a_pixel / 8
        frames, channels, height, width = backbone.latent
        encoded = self._judged_clips + self.step_clips[1] * config.align.steps
        trained = backbone.lora(self.setup.lora) if self.setup.lora else backbone.parameters
        found = {
            "candidate clips": self.clips * clip,
            "benchmark clips": self.benchmark_clips * clip,
            "latents, encoded once": 2.0 * encoded * frames * channels * height * width,
            "text embeddings": 2.0 * config.prompts.count * backbone.text_tokens * backbone.text_width,
            "generators": 4 * 2.0 * backbone.pipeline,
            "critics": 5 * 2.0 * critic.parameters,
            "one training checkpoint": 14.0 * max(trained, critic.language),
        }
        return {what: size / GB for what, size in found.items()}

    def assumptions(self) -> list[str]:
        backbone, critic, gpu, setup, config = self.backbone, self.critic, self.gpu, self.setup, self.config
        frames, channels, height, width = backbone.latent
        judged, real = self.step_clips
        observed = config.train_reward.enabled
        adapter = f"LoRA of rank {setup.lora}, the reference is the adapter switched off"
        return [
            f"generator {backbone.name}: {backbone.parameters / GB:.2f}e9 parameters in the transformer, "
            f"{backbone.text_encoder / GB:.2f}e9 in the text encoder, {backbone.vae / GB:.2f}e9 in the VAE",
            f"a clip: {backbone.frames} frames of {backbone.height}x{backbone.pixel_width} at {backbone.fps} a second; "
            f"latents {frames}x{channels}x{height}x{width}, {backbone.sequence} tokens in self-attention",
            f"one pass of a clip: {backbone.forward / 1e12:.0f}e12 operations (2 a weight and token, 4 L^2 d a layer)",
            f"critic {critic.name}: {critic.parameters / GB:.2f}e9 parameters; "
            f"{self.context(1)} tokens before a rating, "
            f"{self.context(2)} before a choice: {min(backbone.frames, MAX_FRAMES)} frames a clip, "
            f"{setup.prompt_tokens} tokens of prompt",
            f"{gpu.name}: {gpu.tflops:g}e12 operations a second in bf16, {gpu.memory:g} GB, {gpu.bandwidth:g} TB/s",
            f"{setup.utilisation:.0%} of the peak rate is reached, "
            f"writing paths {setup.bandwidth_use:.0%} of the bandwidth",
            f"every one of {config.prompts.count} prompts gives a pair; every path is {config.label.max_new_tokens} "
            f"tokens long; all candidates are labelled, and rated again by the accepted critic",
            f"backward costs twice forward{', and checkpointing one forward more' if setup.checkpointing else ''}; "
            f"the reference runs forward on judged clips, {judged} judged and {real} real clips a step",
            f"bf16 weights and gradients, Adam in 32 bits, ZeRO-{setup.zero} over {setup.gpus} "
            f"GPU{'s' if setup.gpus > 1 else ''}; "
            f"{adapter if setup.lora else 'all weights train, a second copy is the reference'}",
            f"a training step holds {self.held_clips} clips at a time and accumulates; "
            f"{BLOCK_BYTES} bytes a token and unit of width in a block, attention's matrix never stored",
            f"VAE: {backbone.vae_decode / 1e6:.1f}e6 operations a pixel to decode, "
            f"{backbone.vae_encode / 1e6:.1f}e6 to encode; "
            f"3 feature maps of {backbone.vae_channels} channels for {backbone.vae_chunk} frames are alive",
            f"human test set of {setup.test_pairs} pairs; benchmark of {self.benchmark_prompts} prompts, "
            f"{self.benchmark_clips} clips; its scoring is not counted",
            "text encoder and VAE stay on the GPU while sampling, and leave it while aligning",
            f"clips at {setup.bits_a_pixel:g} bit a pixel; models four times: candidate, promoted, "
            "and both registered; critics once more, as accepted",
            "waiting, start-up, data loading, failures and communication are not counted",
            *(["VideoReward is of the critic's size; its training, once before the rounds, is not counted"] * observed),
        ]


def format_plan(found: Plan) -> str:
    """Tables for a terminal: hours, memory, storage, assumptions one a line."""
    width = max(map(len, [*found.hours, *found.storage]))
    lines = [f"{found.title} on {found.gpus} x {found.gpu.name}", ""]
    lines.append(f"{'step':{width}}  {'GPU-hours':>12}  {'share':>6}  {'GB a GPU':>9}")
    for step, hours in found.hours.items():
        needed = found.memory[step]
        fits = "" if needed <= found.gpu.memory else f"  does not fit into {found.gpu.memory:g} GB"
        lines.append(f"{step:{width}}  {hours:12,.1f}  {hours / found.total:6.1%}  {needed:9.1f}{fits}")
    lines.append(f"{'a round':{width}}  {found.total:12,.1f}  {'':6}  {max(found.memory.values()):9.1f}")
    lines.append(f"{'':{width}}  {found.total / found.gpus / 24:12,.2f}  days, if all GPUs work all the time")
    lines += ["", f"{'storage':{width}}  {'GB':>12}"]
    lines += [f"{what:{width}}  {size:12,.1f}" for what, size in found.storage.items()]
    lines.append(f"{'a round':{width}}  {sum(found.storage.values()):12,.1f}")
    return "\n".join([*lines, "", "assumptions", *(f"- {text}" for text in found.assumptions)])
