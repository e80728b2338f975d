"""The small world's base critic, trained from nothing in two stages, as a real one is.

First, as a vision-language model would be, on rendered clips whose captions and faults are known from how they were
drawn: no oracle, no human label. That is the critic's reference. Then the warm start: instruction tuning on the human
seed labels with their reasons, loss on the answer's tokens only (Dual-IPO 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dualipo.artifacts import atomic
from dualipo.critic.base import Critic, load_critic
from dualipo.critic.data import read_human
from dualipo.critic.questions import Answered, Question, swapped_verdict
from dualipo.critic.qwen2vl import Qwen2VL
from dualipo.media.video import decode_clip
from dualipo.world.annotators import choice_reason, choose, overall, rate_quality, rate_semantic, rating_reasons
from dualipo.world.captions import mistaken, random_captions
from dualipo.world.corrupt import Fault, random_fault, render_with_faults
from dualipo.world.optimizing import optimize
from dualipo.world.scene import BACKGROUNDS, COLOURS, DIRECTIONS, RADII, RELATIONS, SHAPES, SPEEDS, Scene
from dualipo.world.words import word_tokenizer

VERDICT_WEIGHT = 8.0
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


@dataclass(frozen=True)
class Rendered:
    """A rendered clip and all that is known of it from how it was drawn."""

    clip: np.ndarray
    shown: Scene
    smoothness: float
    faithfulness: float

    def answers(self, asked: Scene) -> tuple[dict[str, str], dict[str, str], float]:
        """Reasons and verdicts by dimension, and how good the clip is overall, as an answer to a prompt."""
        seen = {key: value for key, value in asdict(self.shown).items() if value is not None}
        wanted = {key: value for key, value in asdict(asked).items() if value is not None}
        if wanted.get("speed") or seen.get("speed"):
            seen.setdefault("speed", "still")
        holds = {key: seen.get(key) == value for key, value in wanted.items()}
        verdicts = {
            "semantic": rate_semantic(holds),
            "motion": rate_quality(self.smoothness),
            "faithfulness": rate_quality(self.faithfulness),
        }
        reasons = rating_reasons(seen, holds, self.smoothness, self.faithfulness)
        return reasons, verdicts, overall(holds, self.smoothness, self.faithfulness)


def render_answer(asked: Scene, rng: np.random.Generator) -> Rendered:
    """A clip as a generator might answer the prompt: half the time with wrong attributes, often with faults."""
    shown = mistaken(asked, rng, int(rng.choice([1, 2]))) if rng.random() < 0.5 else asked
    faults: list[Fault] = []
    if rng.random() < 0.5:
        faults = [random_fault(rng, dimension) for dimension in ("motion", "faithfulness") if rng.random() < 0.6]
    quality = {"motion": 0.93, "faithfulness": 0.9}
    for fault in faults:
        quality[fault.dimension] = 0.75 - 0.75 * fault.severity
        if fault.name in ("teleport", "vanish", "flicker"):
            other = "faithfulness" if fault.dimension == "motion" else "motion"
            quality[other] = min(quality[other], 0.95 - 0.4 * fault.severity)
    clip = render_with_faults(shown, faults, int(rng.integers(2**31)))
    return Rendered(clip, shown, quality["motion"], quality["faithfulness"])


class RenderedExamples:
    """Questions about rendered clips, answered from how the clips were drawn: two clips for each prompt."""

    def __init__(self, seed: int, prompts: int, restore: Restore | None = None):
        """`restore` passes half the clips through the generator's VAE: the critic is to know how decoded ones look."""
        self.rng = np.random.default_rng(seed)
        self.captions = random_captions(prompts, seed)
        made = [render_answer(scene, self.rng) for _, scene in self.captions for _ in range(2)]
        if restore is not None:
            for start in range(0, len(made), 64):
                part = made[start : start + 64 : 2]
                decoded = restore(np.stack([item.clip for item in part]))
                made[start : start + 64 : 2] = [
                    replace(item, clip=clip) for item, clip in zip(part, decoded, strict=True)
                ]
        self.clips = made

    def draw(self, ratings: int, choices: int) -> list[Answered]:
        """Random questions on clips named by their place in `clips`."""
        drawn = []
        for index in range(ratings):
            dimension = ("semantic", "semantic", "motion", "faithfulness")[index % 4]
            place = int(self.rng.integers(len(self.clips)))
            prompt, scene = self.captions[place // 2]
            reasons, verdicts, _ = self.clips[place].answers(scene)
            drawn.append(Answered(Question(dimension, prompt, (f"{place}",)), verdicts[dimension], reasons[dimension]))
        for _ in range(choices):
            place = int(self.rng.integers(len(self.captions)))
            prompt, scene = self.captions[place]
            order = [2 * place, 2 * place + 1] if self.rng.random() < 0.5 else [2 * place + 1, 2 * place]
            found = [self.clips[i].answers(scene) for i in order]
            question = Question("overall", prompt, (f"{order[0]}", f"{order[1]}"))
            verdict = choose(found[0][2], found[1][2])
            drawn.append(Answered(question, verdict, choice_reason([found[0][0], found[1][0]])))
        return drawn


def pretrain_vision(critic: Critic, source: RenderedExamples, steps: int, batch_size: int = 40) -> None:
    """Teaches the vision tower to tell attributes apart, as CLIP's captions teach a real one; heads are thrown away."""
    vocabularies = {
        "shape": SHAPES, "colour": tuple(COLOURS), "size": (None, *RADII), "motion": tuple(DIRECTIONS),
        "speed": (None, *SPEEDS), "background": tuple(BACKGROUNDS), "shape2": (None, *SHAPES),
        "colour2": (None, *COLOURS), "relation": (None, *RELATIONS),
    }  # fmt: skip
    quality = ("good", "normal", "bad")
    tower = critic.model.model.visual
    width = critic.see_batch(source.clips[0].clip[None])[0].tokens.numel()
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, len(words)) for name, words in vocabularies.items()})
    heads.update({name: torch.nn.Linear(width, 3) for name in ("smoothness", "faithfulness")})
    labels = {
        name: torch.tensor([words.index(getattr(c.shown, name)) for c in source.clips])
        for name, words in vocabularies.items()
    }
    for name in ("smoothness", "faithfulness"):
        labels[name] = torch.tensor([quality.index(rate_quality(getattr(c, name))) for c in source.clips])

    def loss(step: int) -> torch.Tensor:
        rows = source.rng.integers(len(source.clips), size=batch_size)
        seen = critic.see_batch(np.stack([source.clips[i].clip for i in rows]))
        flat = torch.stack([item.tokens.flatten() for item in seen])
        return torch.stack([F.cross_entropy(head(flat), labels[name][rows]) for name, head in heads.items()]).mean()

    tower.train().requires_grad_(True)
    optimize([*tower.parameters(), *heads.parameters()], loss, steps, 2e-3, "vision tower")


def train_answers(
    critic: Critic,
    draw: Callable[[], list[Answered]],
    clips: Mapping[str, np.ndarray],
    steps: int,
    rate: float,
    label: str,
    vision: bool,
) -> None:
    """Tunes the language model, with `vision` the whole critic: mean negative log-probability of an answer's token."""
    features = {} if vision else critic.see(clips)

    def loss(step: int) -> torch.Tensor:
        drawn = draw()
        # Ratings and choices differ in length: apart, neither is padded to the other's.
        parts = [[a for a in drawn if a.question.kind == kind] for kind in ("rating", "choice")]
        names = list(dict.fromkeys(name for item in drawn for name in item.question.clips))
        seen = features or critic.see({name: clips[name] for name in names}, gradient=True)
        losses = []
        for part in filter(None, parts):
            answers = [item.answer for item in part]
            logits, labels, mask = critic.answer_logits([item.question for item in part], seen, answers)
            # The verdict, last but one before the end, is one token in fifty: it counts as several.
            last = mask.int().cumsum(1) == mask.sum(1, keepdim=True) - 1
            weight = mask[mask] + (VERDICT_WEIGHT - 1) * last[mask]
            losses.append((F.cross_entropy(logits[mask], labels[mask], reduction="none") * weight).sum() / weight.sum())
        return torch.stack(losses).mean()

    critic.model.requires_grad_(False)
    trained = critic.model if vision else critic.language_model
    trained.train().requires_grad_(True)
    optimize(trained.parameters(), loss, steps, rate, label)
    critic.model.eval()


def train_reference(folder: Path, seed: int, vision_steps: int, steps: int, restore: Restore | None) -> None:
    """Stage one: the critic before any human label."""
    torch.manual_seed(seed)
    critic = build_critic()
    source = RenderedExamples(seed, 4000, restore)
    pretrain_vision(critic, source, vision_steps)
    critic.model.eval()
    clips = {f"{i}": item.clip for i, item in enumerate(source.clips)}
    train_answers(critic, lambda: source.draw(28, 14), clips, steps, 1.5e-3, "critic, rendered clips", vision=False)
    with atomic(folder) as temporary:
        critic.save(temporary)


def warm_start(
    reference: Path, folder: Path, seed_labels: Path, seed: int, steps: int, restore: Restore | None
) -> None:
    """Stage two: instruction tuning on the human seed labels, beside rendered clips so that nothing is forgotten."""
    torch.manual_seed(seed)
    critic = load_critic(reference)
    source = RenderedExamples(seed + 1, 600, restore)
    human = read_human(seed_labels)
    clips = {name: decode_clip(seed_labels / name) for name in {clip for a in human for clip in a.question.clips}}
    clips |= {f"{i}": item.clip for i, item in enumerate(source.clips)}
    by_kind = [[a for a in human if a.question.kind == kind] for kind in ("rating", "choice")]
    rng = np.random.default_rng(seed)

    def draw() -> list[Answered]:
        chosen = []
        for own, count in zip(by_kind, (20, 12), strict=True):
            chosen += [_turned(own[i], rng) for i in rng.integers(len(own), size=count)]
        return [*chosen, *source.draw(4, 3)]

    train_answers(critic, draw, clips, steps, 5e-4, "critic, human seed labels", vision=True)
    with atomic(folder) as temporary:
        critic.save(temporary)


def _turned(answered: Answered, rng: np.random.Generator) -> Answered:
    """A pair in a random order, its answer turned with it, so that position tells nothing."""
    return answered if answered.question.kind == "rating" or rng.random() < 0.5 else swap_answer(answered)


def swap_answer(answered: Answered) -> Answered:
    """The same judgement with the clips shown the other way round."""
    first, second = answered.reason.split(" b: ", 1)
    reason = f"a: {second} b: {first.removeprefix('a: ')}"
    question = answered.question
    return Answered(question.swapped(), swapped_verdict(question, answered.verdict), reason)
