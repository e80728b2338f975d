"""The small world's base critic, trained from nothing in two stages, as a real one is.

First, as a vision-language model would be, on rendered clips whose captions and faults are known from how they were
drawn: no oracle, no human label. That is the critic's reference. Then the warm start: instruction tuning on the human
seed labels with their reasons, loss on the answer's tokens only (Dual-IPO 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dualipo.artifacts import atomic
from dualipo.critic.base import Critic
from dualipo.critic.qwen2vl import Qwen2VL
from dualipo.critic.questions import Answered, Question, human_answers, swapped_verdict
from dualipo.media.video import decode_clip
from dualipo.records import HumanChoice, HumanRating, find_table, read_rows
from dualipo.world.annotators import choice_reason, choose, overall, rate_quality, rate_semantic, rating_reasons
from dualipo.world.captions import mistaken, random_captions
from dualipo.world.corrupt import Fault, random_fault, render_with_faults
from dualipo.world.scene import Scene
from dualipo.world.words import word_tokenizer

Example = tuple[list[np.ndarray], Answered]
"""The clips of a question, in the order shown, and its answer."""
Restore = Callable[[np.ndarray], np.ndarray]


def build_critic() -> Critic:
    """A Qwen2-VL of two million parameters with random weights: patches of 4 pixels and 2 frames, 20 tokens a clip."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = word_tokenizer(512)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|video_pad|>", "<|image_pad|>")}
    special = {
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        "video_token_id": ids["<|video_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
    }
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 64,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 3,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "spatial_merge_size": 4,
        },
        tie_word_embeddings=True,
        **special,
    )
    return Qwen2VL(Qwen2VLForConditionalGeneration(config), tokenizer)


class RenderedExamples:
    """Questions about rendered clips, answered from how the clips were drawn."""

    def __init__(self, seed: int, restore: Restore | None = None):
        self.rng = np.random.default_rng(seed)
        self.captions = random_captions(4000, seed)
        self.restore = restore
        """Passes clips through the generator's VAE, so that the critic knows the look of decoded clips."""

    def batch(self, ratings: int, choices: int) -> list[Example]:
        examples: list[Example] = []
        for index in range(ratings):
            dimension = ("semantic", "semantic", "motion", "faithfulness")[index % 4]
            prompt, scene = self._prompt()
            clip, part, verdicts = self._clip(scene)
            question = Question(dimension, prompt, ("a",))
            examples.append(([clip], Answered(question, verdicts[dimension], part[dimension])))
        for _ in range(choices):
            prompt, scene = self._prompt()
            (clip_a, part_a, verdicts_a), (clip_b, part_b, verdicts_b) = self._clip(scene), self._clip(scene)
            verdict = choose(verdicts_a["overall"], verdicts_b["overall"])
            question = Question("overall", prompt, ("a", "b"))
            examples.append(([clip_a, clip_b], Answered(question, verdict, choice_reason([part_a, part_b]))))
        if self.restore is not None:
            examples = self._decoded(examples)
        return examples

    def _prompt(self) -> tuple[str, Scene]:
        return self.captions[self.rng.integers(len(self.captions))]

    def _clip(self, asked: Scene) -> tuple[np.ndarray, dict[str, str], dict[str, Any]]:
        rng = self.rng
        shown = mistaken(asked, rng, int(rng.choice([1, 2]))) if rng.random() < 0.5 else asked
        faults: list[Fault] = []
        if rng.random() < 0.5:
            faults = [random_fault(rng, dimension) for dimension in ("motion", "faithfulness") if rng.random() < 0.6]
        clip = render_with_faults(shown, faults, int(rng.integers(2**31)))
        seen = {key: value for key, value in asdict(shown).items() if value is not None}
        wanted = {key: value for key, value in asdict(asked).items() if value is not None}
        if wanted.get("speed") or seen.get("speed"):
            seen.setdefault("speed", "still")
        holds = {key: seen.get(key) == value for key, value in wanted.items()}
        quality = {"motion": 0.93, "faithfulness": 0.9}
        for fault in faults:
            quality[fault.dimension] = 0.75 - 0.75 * fault.severity
            if fault.name in ("teleport", "vanish", "flicker"):
                other = "faithfulness" if fault.dimension == "motion" else "motion"
                quality[other] = min(quality[other], 0.95 - 0.4 * fault.severity)
        part = rating_reasons(seen, holds, quality["motion"], quality["faithfulness"], asked)
        verdicts = {
            "semantic": rate_semantic(holds),
            "motion": rate_quality(quality["motion"]),
            "faithfulness": rate_quality(quality["faithfulness"]),
            "overall": overall(holds, quality["motion"], quality["faithfulness"]),
        }
        return clip, part, verdicts

    def _decoded(self, examples: list[Example]) -> list[Example]:
        assert self.restore is not None
        flat = np.stack([clip for clips, _ in examples for clip in clips])
        chosen = self.rng.random(len(flat)) < 0.5
        if chosen.any():
            flat[chosen] = self.restore(flat[chosen])
        remaining = iter(flat)
        return [([next(remaining) for _ in clips], answered) for clips, answered in examples]


def instruction_loss(critic: Critic, examples: Sequence[Example]) -> torch.Tensor:
    """Mean negative log-probability of an answer token, with gradient through the vision tower."""
    clips = np.stack([clip for shown, _ in examples for clip in shown])
    seen = critic.see_batch(clips)
    features, questions, place = {}, [], 0
    for shown, answered in examples:
        names = tuple(str(place + i) for i in range(len(shown)))
        features.update({name: seen[place + i] for i, name in enumerate(names)})
        questions.append(Question(answered.question.dimension, answered.question.prompt, names))
        place += len(shown)
    answers = [answered.answer for _, answered in examples]
    return -critic.logprobs(questions, features, answers).sum() / critic.answer_lengths(answers).sum()


def train(critic: Critic, draw: Callable[[], list[Example]], steps: int, learning_rate: float, label: str) -> None:
    """AdamW with warm-up and cosine decay on batches that `draw` gives; ratings and choices go through apart."""
    critic.model.train().requires_grad_(True)
    parameters = list(critic.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 50, 0.5 * (1 + math.cos(math.pi * s / steps)) + 0.02)
    )
    for _ in (bar := tqdm(range(steps), desc=label)):
        examples = draw()
        optimizer.zero_grad()
        parts = [[e for e in examples if e[1].question.kind == kind] for kind in ("rating", "choice")]
        losses = [instruction_loss(critic, part) for part in parts if part]
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=" ".join(f"{loss.item():.3f}" for loss in losses))
    critic.model.eval().requires_grad_(False)


def seed_examples(folder: Path) -> list[Example]:
    """Human seed labels with their clips."""
    rows: list[HumanRating | HumanChoice] = [
        *read_rows(find_table(folder, "ratings"), HumanRating),
        *read_rows(find_table(folder, "choices"), HumanChoice),
    ]
    clips: dict[str, np.ndarray] = {}
    for answered in (answers := human_answers(rows)):
        for clip in answered.question.clips:
            if clip not in clips:
                clips[clip] = decode_clip(folder / clip)
    return [([clips[clip] for clip in answered.question.clips], answered) for answered in answers]


def train_reference(folder: Path, seed: int, steps: int, restore: Restore | None) -> None:
    """Stage one: the critic before any human label."""
    torch.manual_seed(seed)
    critic = build_critic()
    source = RenderedExamples(seed, restore)
    train(critic, lambda: source.batch(28, 8), steps, 1.5e-3, "critic, rendered clips")
    with atomic(folder) as temporary:
        critic.save(temporary)


def warm_start(reference: Path, folder: Path, seed_labels: Path, seed: int, steps: int, restore: Restore | None) -> None:
    """Stage two: instruction tuning on the human seed labels, beside rendered clips so that nothing is forgotten."""
    from dualipo.critic.base import load_critic

    torch.manual_seed(seed)
    critic = load_critic(reference)
    source = RenderedExamples(seed + 1, restore)
    rng = np.random.default_rng(seed)
    human = seed_examples(seed_labels)
    by_kind = [[e for e in human if e[1].question.kind == kind] for kind in ("rating", "choice")]

    def draw() -> list[Example]:
        chosen = [_shuffled(kind[i], rng) for kind, count in zip(by_kind, (16, 8), strict=True) for i in rng.integers(len(kind), size=count)]
        return [*chosen, *source.batch(8, 4)]

    train(critic, draw, steps, 4e-4, "critic, human seed labels")
    with atomic(folder) as temporary:
        critic.save(temporary)


def _shuffled(example: Example, rng: np.random.Generator) -> Example:
    """A pair in a random order, its answer turned with it, so that position tells nothing."""
    clips, answered = example
    if answered.question.kind == "rating" or rng.random() < 0.5:
        return example
    return clips[::-1], swap_answer(answered)


def swap_answer(answered: Answered) -> Answered:
    """The same judgement with the clips shown the other way round."""
    first, second = answered.reason.split(" b: ", 1)
    reason = f"a: {second} b: {first.removeprefix('a: ')}"
    question = answered.question
    return Answered(question.swapped(), swapped_verdict(question, answered.verdict), reason)
