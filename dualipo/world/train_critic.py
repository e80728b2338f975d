"""The small world's base critic, trained from nothing in two stages, as a real one is.

First, as a vision-language model would be, on clips described by others (examples.py): no human label. That is the
critic's reference. Then the warm start: instruction tuning on the human seed labels with their reasons, loss on the
answer's tokens only (Dual-IPO 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dualipo.artifacts import atomic
from dualipo.critic.base import Critic, load_critic
from dualipo.critic.data import read_human
from dualipo.critic.questions import Answered, swapped_verdict
from dualipo.critic.qwen2vl import Qwen2VL
from dualipo.media.video import decode_clip
from dualipo.world.examples import Examples, Pair, Restore, rendered_pairs
from dualipo.world.optimizing import optimize
from dualipo.world.scene import BACKGROUNDS, COLOURS, DIRECTIONS, RADII, RELATIONS, SHAPES, SPEEDS
from dualipo.world.words import word_tokenizer

VERDICT_WEIGHT = 8.0


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


def pretrain_vision(critic: Critic, source: Examples, steps: int, batch_size: int = 40) -> None:
    """Teaches the vision tower to tell attributes apart, as CLIP's captions teach a real one; heads are thrown away."""
    vocabularies = {
        "shape": SHAPES, "colour": tuple(COLOURS), "size": (None, *RADII), "motion": tuple(DIRECTIONS),
        "speed": (None, "still", *SPEEDS), "background": tuple(BACKGROUNDS), "shape2": (None, *SHAPES),
        "colour2": (None, *COLOURS), "relation": (None, *RELATIONS),
    }  # fmt: skip
    quality = ("good", "normal", "bad")
    described = source.described
    tower = critic.model.model.visual
    width = critic.see_batch(described[0].clip[None])[0].tokens.numel()
    labels = {
        name: torch.tensor([words.index(item.seen.get(name)) for item in described])
        for name, words in vocabularies.items()
    }
    for name in ("motion", "faithfulness"):
        labels[f"how {name}"] = torch.tensor([quality.index(item.verdicts[name]) for item in described])
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, int(known.max()) + 1) for name, known in labels.items()})

    def loss(step: int) -> torch.Tensor:
        rows = source.rng.integers(len(described), size=batch_size)
        seen = critic.see_batch(np.stack([described[i].clip for i in rows]))
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


def train_reference(
    folder: Path, seed: int, generated: Sequence[Pair], restore: Restore | None, steps: tuple[int, int, int]
) -> None:
    """Stage one: the critic before any human label.

    `steps`: of the vision tower and of the language model on rendered clips, and of both on `generated` ones.
    """
    torch.manual_seed(seed)
    critic = build_critic()
    rendered = Examples(rendered_pairs(4000, seed, restore), seed)
    pretrain_vision(critic, rendered, steps[0])
    critic.model.eval()
    draw = lambda: rendered.draw(28, 14)  # noqa: E731
    train_answers(critic, draw, rendered.clips, steps[1], 1.5e-3, "critic, rendered clips", vision=False)
    describe(critic, seed, generated, rendered, steps[2])
    with atomic(folder) as temporary:
        critic.save(temporary)


def describe(critic: Critic, seed: int, generated: Sequence[Pair], rendered: Examples, steps: int) -> None:
    """Tunes the whole critic on described clips of the generator, beside rendered ones."""
    own = Examples(generated, seed, prefix="generated-")

    def draw() -> list[Answered]:
        return [*own.draw(24, 8), *rendered.draw(4, 2)]

    train_answers(critic, draw, own.clips | rendered.clips, steps, 8e-4, "critic, generated clips", vision=True)


def warm_start(
    reference: Path, folder: Path, seed_labels: Path, seed: int, steps: int, restore: Restore | None
) -> None:
    """Stage two: instruction tuning on the human seed labels, beside rendered clips so that nothing is forgotten."""
    torch.manual_seed(seed)
    critic = load_critic(reference)
    rendered = Examples(rendered_pairs(600, seed + 1, restore), seed + 1)
    human = read_human(seed_labels)
    clips = {name: decode_clip(seed_labels / name) for name in {clip for a in human for clip in a.question.clips}}
    by_kind = [[a for a in human if a.question.kind == kind] for kind in ("rating", "choice")]
    rng = np.random.default_rng(seed)

    def draw() -> list[Answered]:
        chosen = []
        for own, count in zip(by_kind, (20, 12), strict=True):
            chosen += [_turned(own[i], rng) for i in rng.integers(len(own), size=count)]
        return [*chosen, *rendered.draw(4, 3)]

    train_answers(critic, draw, clips | rendered.clips, steps, 2e-4, "critic, human seed labels", vision=True)
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
