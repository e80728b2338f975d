"""The critic against plain transformers, asking and voting, and SRPO against arithmetic on log-probabilities."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from models import noise_clip, write_clips

from dualipo.config import Config, TrainCritic
from dualipo.critic import srpo
from dualipo.critic.asking import Asking, ask, count_votes, pooled
from dualipo.critic.base import Critic, load_critic
from dualipo.critic.data import PathPair, TrainingSet
from dualipo.critic.frames import pad_to_multiple, sample_frames
from dualipo.critic.questions import Question, answer, human_answers, swapped_verdict
from dualipo.curves import Series
from dualipo.errors import UserError
from dualipo.heldout import hold_out, write_held_out
from dualipo.media.video import encode_clip
from dualipo.records import HumanChoice, HumanRating, PseudoChoice, PseudoRating, write_rows
from dualipo.steps import Job
from dualipo.steps.train_critic import train_critic

torch.set_num_threads(1)
CLIPS = {"x": noise_clip(1), "y": noise_clip(2), "long": noise_clip(3, frames=13)}
"""20, 20 and 28 tokens."""
RATING = Question("motion", "a small red circle moving left slowly on a black background", ("x",))
CHOICE = Question("overall", "a pillar", ("y", "x"))
MIXED = [
    RATING,
    CHOICE,
    Question("semantic", "a pillar", ("long",)),
    Question("overall", "a blue bar", ("long", "y")),
]
ANSWERS = ["motion steady . Verdict: good", "a: wrong b: all matches Verdict: b", "Verdict: bad", "tie"]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def critic(critic_folder: Path) -> Critic:
    return load_critic(critic_folder)


@pytest.fixture(scope="module")
def plain(critic_folder: Path) -> Plain:
    return Plain(critic_folder)


def patches_by_hand(clip: np.ndarray, patch: int, tubelet: int, merge: int) -> np.ndarray:
    """Qwen2-VL's patches, one pixel at a time: blocks of merge x merge patches in turn, channels before time."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    frames, height, width, _ = clip.shape
    rows = []
    for time in range(0, frames, tubelet):
        for block_y in range(0, height, patch * merge):
            for block_x in range(0, width, patch * merge):
                for y in range(block_y, block_y + patch * merge, patch):
                    for x in range(block_x, block_x + patch * merge, patch):
                        cube = clip[time : time + tubelet, y : y + patch, x : x + patch] / 255.0
                        rows.append([(cube[..., c] - mean[c]) / std[c] for c in range(3)])
    return np.array(rows).reshape(len(rows), -1)


class Plain:
    """The same checkpoint through transformers' own forward: one row at a time, no padding, no cache."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.video = self.model.config.video_token_id

    def inputs(self, question: Question, template: str = "{}") -> dict[str, torch.Tensor]:
        shown, pixels, grids = [], [], []
        for name in question.clips:
            clip = CLIPS[name]
            clip = np.concatenate([clip, clip[-1:]]) if len(clip) % 2 else clip
            grids.append([len(clip) // 2, 8, 8])
            pixels.append(patches_by_hand(clip, patch=4, tubelet=2, merge=4))
            shown.append("<|vision_start|>" + "<|video_pad|>" * (len(clip) // 2 * 4) + "<|vision_end|>")
        text = template.format(" ".join([*shown, question.text()]))
        return {
            "input_ids": self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids,
            "pixel_values_videos": torch.tensor(np.concatenate(pixels), dtype=torch.float32),
            "video_grid_thw": torch.tensor(grids),
        }

    @torch.no_grad()
    def logits(self, question: Question, tail: Sequence[int], template: str = "{}") -> tuple[torch.Tensor, int]:
        """Logits (length, vocabulary) over the question and `tail`, and how long the question is."""
        inputs = self.inputs(question, template)
        start = inputs["input_ids"].shape[1]
        ids = torch.cat([inputs["input_ids"], torch.tensor([list(tail)], dtype=torch.long)], 1)
        kinds = (ids == self.video).int() * 2
        return self.model(**{**inputs, "input_ids": ids}, mm_token_type_ids=kinds).logits[0], start

    def logprob(self, question: Question, text: str, template: str = "{}") -> float:
        tail = [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        logits, start = self.logits(question, tail, template)
        rows = logits.double().log_softmax(-1)
        return sum(rows[start - 1 + i, token].item() for i, token in enumerate(tail))

    def next_logits(self, question: Question, tail: Sequence[int] = ()) -> torch.Tensor:
        return self.logits(question, tail)[0][-1]


# Log-probabilities and batches


def test_logprobs_equal_the_models_own_forward_one_row_at_a_time(critic, plain):
    found = critic.logprobs(MIXED, critic.see(CLIPS), ANSWERS)
    expected = [plain.logprob(question, text) for question, text in zip(MIXED, ANSWERS, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=2e-3, rel=1e-5)
    # The check is worth something only where the answer's odds depend on clip, prompt and question.
    others = [RATING, Question("motion", RATING.prompt, ("y",)), Question("semantic", RATING.prompt, ("x",))]
    odds = [plain.logprob(question, ANSWERS[0]) for question in others]
    assert min(abs(odds[0] - odds[1]), abs(odds[0] - odds[2])) > 0.05


def test_a_chat_template_is_obeyed(critic, plain):
    critic.tokenizer.chat_template = (
        "{% for m in messages %}prompt : {{ m.content }} side{% endfor %}{% if add_generation_prompt %} clip{% endif %}"
    )
    found = critic.logprobs([CHOICE], critic.see(CLIPS), [ANSWERS[1]])
    assert found.item() == pytest.approx(plain.logprob(CHOICE, ANSWERS[1], "prompt : {} side clip"), abs=2e-3)


def test_logprobs_do_not_depend_on_what_else_is_in_the_batch(critic):
    seen = critic.see(CLIPS)
    together = critic.logprobs(MIXED, seen, ANSWERS)
    alone = [critic.logprobs([q], seen, [text]).item() for q, text in zip(MIXED, ANSWERS, strict=True)]
    backwards = critic.logprobs(MIXED[::-1], seen, ANSWERS[::-1]).flip(0)
    assert together.tolist() == pytest.approx(alone, abs=2e-3)
    torch.testing.assert_close(together, backwards, rtol=0, atol=2e-3)


def test_answer_lengths_count_every_token_and_the_end(critic):
    assert critic.answer_lengths(["", "tie", "a: wrong Verdict: b"]).tolist() == [1, 2, 7]


def test_logprobs_carry_gradients_to_the_language_model_only(critic):
    critic.language_model.requires_grad_(True)
    critic.logprobs([RATING], critic.see(CLIPS), ["tie"]).sum().backward()
    assert all(p.grad is not None for p in critic.language_model.parameters())
    assert all(p.grad is None for p in critic.model.model.visual.parameters())


def test_left_padding_does_not_change_the_next_word(critic, plain):
    inputs = critic.embed(MIXED, critic.see(CLIPS), None, pad_left=True)
    assert (inputs["attention_mask"][:, -1] == 1).all() and (inputs["attention_mask"].sum(1).unique().numel() > 2)
    with torch.no_grad():
        hidden, _ = critic.hidden(**inputs, use_cache=False)
        found = critic.head(hidden[:, -1])
    expected = torch.stack([plain.next_logits(question) for question in MIXED])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_a_clip_is_seen_the_same_in_any_batch(critic):
    seen = critic.see(CLIPS, batch_size=1)
    for name, found in critic.see(dict(reversed(CLIPS.items()))).items():
        torch.testing.assert_close(found.tokens, seen[name].tokens, **CLOSE)
        assert found.grid == seen[name].grid
    assert seen["long"].grid == (7, 8, 8) and seen["long"].tokens.shape == (28, 128)


# Sampled paths


def test_equal_seeds_give_equal_texts(critic):
    seen = critic.see(CLIPS)
    first, again, other = (critic.paths(MIXED, seen, 3, 1.0, 6, seed) for seed in (5, 5, 6))
    assert first == again != other
    assert [len(paths) for paths in first] == [3] * len(MIXED)
    assert len({text for paths in first for text in paths}) > 6


def test_paths_equal_token_by_token_sampling_without_a_cache(critic, plain, monkeypatch):
    questions, count, temperature = [RATING, MIXED[3]], 2, 0.7
    logits, tokens = [], []
    head, multinomial = critic.head, torch.multinomial
    monkeypatch.setattr(critic, "head", lambda hidden: logits.append(head(hidden)) or logits[-1])

    def spy(shares, number, generator):
        tokens.append((shares, multinomial(shares, number, generator=generator)))
        return tokens[-1][1]

    monkeypatch.setattr(torch, "multinomial", spy)
    texts = critic.paths(questions, critic.see(CLIPS), count, temperature, 5, seed=3)
    end = plain.tokenizer.eos_token_id
    checked = 0
    for row, question in enumerate(q for q in questions for _ in range(count)):
        written: list[int] = []
        for shares, chosen in tokens:
            expected = (plain.next_logits(question, written) / temperature).softmax(-1)
            torch.testing.assert_close(shares[row], expected, rtol=2e-3, atol=1e-5)
            checked += 1
            written.append(int(chosen[row]))
            if written[-1] == end:
                break
        text = plain.tokenizer.decode(written, skip_special_tokens=True)
        assert texts[row // count][row % count] == text
    assert checked > 12 and len(logits) == len(tokens)


def test_cold_paths_equal_transformers_greedy_generation(critic, plain):
    texts = critic.paths(MIXED, critic.see(CLIPS), 1, 1e-4, 8, seed=0)
    for question, (text,) in zip(MIXED, texts, strict=True):
        inputs = plain.inputs(question)
        kinds = (inputs["input_ids"] == plain.video).int() * 2
        ids = plain.model.generate(**inputs, mm_token_type_ids=kinds, do_sample=False, max_new_tokens=8)
        new = ids[0, inputs["input_ids"].shape[1] :]
        assert text == plain.tokenizer.decode(new, skip_special_tokens=True)


def test_a_path_ends_at_its_end_token(critic, monkeypatch):
    word, end = critic.tokenizer.convert_tokens_to_ids("good"), critic.tokenizer.eos_token_id
    script = iter([[word, end], [end, word], [word, word]])
    monkeypatch.setattr(torch, "multinomial", lambda shares, number, generator: torch.tensor([next(script)]).T)
    assert critic.paths([RATING], critic.see(CLIPS), 2, 1.0, 9, seed=0) == [["good", ""]]
    assert next(script) == [word, word], "sampling stops once every path has ended"


# Pixels and frames


def test_pixels_equal_transformers_image_processor(critic):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(patch_size=4, temporal_patch_size=2, merge_size=4, do_resize=False)
    image = noise_clip(4, frames=1, height=32, width=48)
    expected = processor(images=[image[0]], return_tensors="pt")
    pixels, grid = critic.pixels(image[None])
    assert grid == tuple(expected["image_grid_thw"][0].tolist()) == (1, 8, 12)
    torch.testing.assert_close(pixels, expected["pixel_values"].float(), rtol=1e-5, atol=1e-5)


def test_pixels_equal_a_hand_written_loop(critic):
    clips = np.stack([noise_clip(seed, frames=4, height=32, width=16) for seed in (5, 6)])
    pixels, grid = critic.pixels(clips)
    expected = np.concatenate([patches_by_hand(clip, patch=4, tubelet=2, merge=4) for clip in clips])
    assert grid == (2, 8, 4)
    np.testing.assert_allclose(pixels.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_frames_are_padded_not_cropped(critic):
    clip = noise_clip(7, frames=3, height=10, width=20)
    padded = pad_to_multiple(clip[None], frames=2, pixels=16)[0]
    assert padded.shape == (4, 16, 32, 3)
    assert np.array_equal(padded[:3, :10, :20], clip)
    assert np.array_equal(padded[3], padded[2]), "the last frame repeats"
    assert not padded[:, 10:].any() and not padded[:, :, 20:].any(), "borders are black"
    assert critic.pixels(clip[None])[1] == (2, 4, 8)


@pytest.mark.parametrize("total", [1, 9, 16, 17, 31, 49, 100])
def test_at_most_16_frames_evenly_spread(total):
    clip = np.arange(total, dtype=np.float32).reshape(1, total, 1, 1, 1)
    frames = sample_frames(clip).ravel()
    assert len(frames) == min(total, 16)
    assert frames[0] == 0 and frames[-1] == total - 1
    gaps = np.diff(frames)
    assert total == 1 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


# Questions and people's answers


def test_questions_in_words():
    assert RATING.text() == f"Prompt: {RATING.prompt}. Rate the motion smoothness: good, normal or bad?"
    assert CHOICE.text() == "Prompt: a pillar. Which clip is better overall: a, b or tie?"
    better = Question("faithfulness", "a pillar", ("x", "y"))
    assert better.text() == "Prompt: a pillar. Which clip has better video faithfulness: a, b or tie?"
    assert (RATING.kind, RATING.topic) == ("rating", "rating/motion")
    assert (CHOICE.kind, CHOICE.topic) == ("choice", "choice/overall")
    assert CHOICE.swapped() == Question("overall", "a pillar", ("x", "y"))
    assert [swapped_verdict(CHOICE, v) for v in ("a", "b", "tie")] == ["b", "a", "tie"]
    assert swapped_verdict(RATING, "good") == "good"
    assert answer(" all matches . ", "good") == "all matches . Verdict: good"


def rating(annotator: str, verdict: str, reason: str, clip: str = "x") -> HumanRating:
    return HumanRating(
        clip=clip, prompt="a pillar", annotator=annotator, dimension="motion", verdict=verdict, reason=reason
    )


def choice(annotator: str, verdict: str, reason: str) -> HumanChoice:
    return HumanChoice(clip_a="x", clip_b="y", prompt="a pillar", annotator=annotator, verdict=verdict, reason=reason)


def test_human_answers_take_the_majority_and_its_first_reason():
    rows = [
        rating("1", "bad", "jumpy"),
        rating("1", "normal", "so so", clip="y"),
        rating("2", "good", "steady"),
        choice("1", "b", "b is clear"),
        rating("3", "good", "quite steady"),
        choice("2", "tie", "alike"),
        choice("3", "b", "a is blurred"),
    ]
    found = [(a.question.clips, a.question.topic, a.verdict, a.answer) for a in human_answers(rows)]
    assert found == [
        (("x",), "rating/motion", "good", "steady Verdict: good"),
        (("y",), "rating/motion", "normal", "so so Verdict: normal"),
        (("x", "y"), "choice/overall", "b", "b is clear Verdict: b"),
    ]


def test_a_tied_human_vote_needs_somebody_who_gave_the_middle_verdict():
    assert human_answers([rating("1", "good", "steady"), rating("2", "bad", "jumpy")]) == []
    settled = human_answers([rating("1", "good", "g"), rating("2", "bad", "b"), rating("3", "normal", "n")])
    assert [a.answer for a in settled] == ["n Verdict: normal"]


# Asking


class Echo:
    """Answers from the question alone, so that batches cannot matter; notes the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.seeds: list[int] = []

    def paths(self, questions, features, count, temperature, max_new_tokens, seed):
        self.batches.append([question.topic for question in questions])
        self.seeds.append(seed)
        words = {"rating": ["good", "normal", "bad"], "choice": ["a", "b", "tie"]}
        picks = [int(q.prompt) * (k + 1) % 3 for q in questions for k in range(count)]
        kinds = [q.kind for q in questions for _ in range(count)]
        texts = [f"Verdict: {words[kind][pick]}" for kind, pick in zip(kinds, picks, strict=True)]
        return [texts[i : i + count] for i in range(0, len(texts), count)]


def test_votes_come_in_the_order_of_the_questions_whatever_the_batches():
    questions = [
        Question(("motion", "semantic", "overall")[i % 3], str(i), ("x", "y") if i % 3 == 2 else ("x",))
        for i in range(20)
    ]
    critics = {size: Echo() for size in (1, 4, 64)}
    results = {
        size: ask(critic, questions, {}, Asking(paths=5, temperature=1.0, max_new_tokens=4, batch_size=size), seed=1)
        for size, critic in critics.items()
    }
    assert results[1] == results[4] == results[64]
    assert [vote.question for vote in results[4]] == questions
    shuffled = np.random.default_rng(0).permutation(20)
    again = ask(Echo(), [questions[i] for i in shuffled], {}, Asking(5, 1.0, 4, 4), seed=1)
    assert [again[list(shuffled).index(i)] for i in range(20)] == results[4]
    assert sum(len(set(batch)) > 1 for batch in critics[4].batches) <= 2, "topics share a batch only at their borders"
    assert len(set(critics[4].seeds)) == len(critics[4].batches), "every batch has a stream of its own"


@pytest.mark.parametrize(
    ("question", "verdicts", "verdict", "chosen", "rejected"),
    [
        (RATING, ["good", "good", "bad", "nonsense"], "good", 0, 2),
        (RATING, ["bad", "good", "good"], "good", 1, 0),
        (RATING, ["good", "good"], "good", 0, None),
        (RATING, ["good", "nonsense"], "good", 0, None),
        (RATING, ["good", "bad"], "normal", None, 0),
        (RATING, ["good", "bad", "normal", "good", "bad"], "normal", 2, 0),
        (CHOICE, ["a", "b", "tie"], "tie", 2, 0),
        (CHOICE, ["a", "b"], "tie", None, 0),
        (CHOICE, ["nonsense", "good"], None, None, None),
    ],
)
def test_count_votes(question, verdicts, verdict, chosen, rejected):
    paths = [f"path {i} Verdict: {word}" for i, word in enumerate(verdicts)]
    vote = count_votes(question, paths)
    assert vote.verdict == verdict
    assert vote.chosen == (None if chosen is None else paths[chosen])
    assert vote.rejected == (None if rejected is None else paths[rejected])
    readable = [w for w in verdicts if w in (("good", "normal", "bad") if question is RATING else ("a", "b", "tie"))]
    assert vote.votes["invalid"] == len(verdicts) - len(readable)
    assert {w: n for w, n in vote.votes.items() if n and w != "invalid"} == {w: readable.count(w) for w in readable}


def test_votes_of_both_orders_are_pooled_by_clip():
    forward = count_votes(CHOICE, ["Verdict: a", "Verdict: a", "Verdict: tie"])
    backward = count_votes(CHOICE.swapped(), ["Verdict: b", "Verdict: a", "who knows"])
    assert backward.turned == {"a": 1, "b": 1, "tie": 0, "invalid": 1}
    assert pooled(forward, backward) == {"a": 3, "b": 1, "tie": 1, "invalid": 1}


# SRPO

PAIRS = [
    PathPair(RATING, "motion steady . Verdict: good", "motion jumpy . Verdict: bad"),
    PathPair(CHOICE, "a: wrong b: clear Verdict: b", "Verdict: tie"),
]
UNANIMOUS = (Question("overall", "a blue bar", ("long", "y")), "all matches Verdict: a")
HUMAN = (Question("semantic", "a pillar", ("long",)), "shape wrong . Verdict: bad")
SECTION = TrainCritic(
    steps=3,
    batch_size=4,
    instruction_batch_size=4,
    seed_share=0.75,
    beta=0.3,
    learning_rate=1e-4,
    instruction_weight=0.5,
)


def sets(critic: Critic, pairs: bool = True, unanimous: bool = True) -> tuple[TrainingSet, TrainingSet]:
    seen = critic.see(CLIPS)
    return TrainingSet(seen, [HUMAN]), TrainingSet(seen, [UNANIMOUS] * unanimous, PAIRS * pairs)


def trained(folder: Path, work: Path, **changes) -> tuple[Critic, Series]:
    critic = load_critic(folder)
    section = SECTION.model_copy(update=changes)
    return critic, srpo.train_srpo(critic, *sets(critic), section, work, seed=7).series


def weights(critic: Critic) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in critic.model.state_dict().items()}


def path_logprobs(critic: Critic) -> list[tuple[float, float]]:
    """(chosen, rejected) of every pair, one path at a time."""
    seen = critic.see(CLIPS)
    return [
        tuple(critic.logprobs([pair.question], seen, [text]).item() for text in (pair.chosen, pair.rejected))
        for pair in PAIRS
    ]


def test_srpo_equals_plain_arithmetic_step_by_step(critic_folder, tmp_path):
    _, series = trained(critic_folder, tmp_path / "3")
    reference = path_logprobs(load_critic(critic_folder))
    mean_reward = 0.0
    for step in (1, 2, 3):
        # The model as it stood before this step; the warm-up is over after the first in each of these runs.
        before = (
            load_critic(critic_folder)
            if step == 1
            else trained(critic_folder, tmp_path / f"to{step}", steps=step - 1)[0]
        )
        rewards = [
            (w - ref_w, lost - ref_l)
            for (w, lost), (ref_w, ref_l) in zip(path_logprobs(before), reference, strict=True)
        ]
        certainties = [1 / (1 + math.exp(-0.3 * (r_w - mean_reward))) for r_w, _ in rewards]
        losses = [math.log(1 + math.exp(-0.3 * (r_w - r_l))) for r_w, r_l in rewards]
        expected = sum(p * loss for p, loss in zip(certainties, losses, strict=True)) / 2
        assert series["srpo_loss"][step - 1] == (step, pytest.approx(expected, abs=1e-4)), step
        assert series["certainty"][step - 1][1] == pytest.approx(sum(certainties) / 2, abs=1e-4)
        assert series["margin"][step - 1][1] == pytest.approx(sum(w - lost for w, lost in rewards) / 2, abs=2e-3)
        # 0.75 of the 4 instruction examples are human, and there is one of each kind: 3 times this, once that.
        seen, total, tokens = before.see(CLIPS), 0.0, 0
        for (question, text), times in ((HUMAN, 3), (UNANIMOUS, 1)):
            total += times * before.logprobs([question], seen, [text]).item()
            tokens += times * (len(before.tokenizer(text, add_special_tokens=False).input_ids) + 1)
        assert series["instruction_loss"][step - 1][1] == pytest.approx(-0.5 * total / tokens, abs=1e-4)
        both = series["srpo_loss"][step - 1][1] + series["instruction_loss"][step - 1][1]
        assert series["loss"][step - 1][1] == pytest.approx(both)
        mean_reward = 0.9 * mean_reward + 0.1 * sum(w + lost for w, lost in rewards) / 4
    assert abs(mean_reward) > 1e-3 and expected != pytest.approx(0.5 * math.log(2), abs=1e-3)
    assert series["margin"][-1][1] > series["margin"][1][1] > 0, "the chosen path gains on the rejected one"


def test_srpo_gradient_equals_that_of_the_loss_written_out(critic_folder, tmp_path):
    """After one step, with the certainty as a constant: sums of gradients of single log-probabilities."""
    _, series = trained(critic_folder, tmp_path / "2", steps=2)
    before, _ = trained(critic_folder, tmp_path / "1", steps=1)
    reference, now = path_logprobs(load_critic(critic_folder)), path_logprobs(before)
    before.language_model.requires_grad_(True)
    seen, total = before.see(CLIPS), 0.0
    for pair, (w, lost), (ref_w, ref_l) in zip(PAIRS, now, reference, strict=True):
        certain = 1 / (1 + math.exp(-0.3 * (w - ref_w)))  # Q is still 0: at the first step all rewards were.
        slope = -0.3 / (1 + math.exp(0.3 * ((w - ref_w) - (lost - ref_l))))
        chosen, rejected = (before.logprobs([pair.question], seen, [text]) for text in (pair.chosen, pair.rejected))
        total = total + certain * slope * (chosen - rejected).sum() / 2
    human, unanimous = (before.logprobs([q], seen, [text]).sum() for q, text in (HUMAN, UNANIMOUS))
    lengths = before.answer_lengths([HUMAN[1], UNANIMOUS[1]]).tolist()
    total = total - 0.5 * (3 * human + unanimous) / (3 * lengths[0] + lengths[1])
    gradients = torch.autograd.grad(total, list(before.language_model.parameters()))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    assert series["grad_norm"][1][1] == pytest.approx(norm, rel=1e-3)


def test_plain_dpo_drops_the_certainty(critic_folder, tmp_path):
    _, plain_dpo = trained(critic_folder, tmp_path / "dpo", steps=1, algorithm="dpo")
    _, weighted = trained(critic_folder, tmp_path / "srpo", steps=1)
    # Before the first step critic and reference are equal: DPO's loss is log 2 and every certainty one half.
    assert plain_dpo["srpo_loss"][0][1] == pytest.approx(math.log(2), abs=1e-5)
    assert weighted["srpo_loss"][0][1] == pytest.approx(math.log(2) / 2, abs=1e-5)
    assert weighted["certainty"][0][1] == pytest.approx(0.5, abs=1e-6)


def test_a_killed_srpo_equals_an_unbroken_one(critic_folder, tmp_path, monkeypatch):
    whole, series = trained(critic_folder, tmp_path / "whole", steps=5, checkpoint_every=2)
    compute, calls = srpo._Srpo._preference, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(srpo._Srpo, "_preference", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(critic_folder, tmp_path / "broken", steps=5, checkpoint_every=2)
    resumed, again = trained(critic_folder, tmp_path / "broken", steps=5, checkpoint_every=2)
    assert len(calls) == 4 + 3, "goes on after the second step"
    assert series == again
    first, second = weights(whole), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_the_language_model_learns(critic_folder, tmp_path):
    critic, _ = trained(critic_folder, tmp_path, steps=1)
    before, after = weights(load_critic(critic_folder)), weights(critic)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("visual" in name for name in changed)
    assert torch.equal(after["lm_head.weight"], after["model.language_model.embed_tokens.weight"])
    assert not any(p.requires_grad for p in critic.model.parameters())


def test_without_pairs_the_critic_still_learns_from_people(critic_folder, tmp_path):
    critic = load_critic(critic_folder)
    human, pseudo = sets(critic, pairs=False, unanimous=False)
    series = srpo.train_srpo(critic, human, pseudo, SECTION.model_copy(update={"steps": 6}), tmp_path, seed=0).series
    assert set(series) == {"loss", "instruction_loss", "grad_norm", "learning_rate"}
    assert series["loss"][-1][1] < series["loss"][0][1]


def test_without_pairs_and_instruction_nothing_changes(critic_folder, tmp_path):
    critic = load_critic(critic_folder)
    section = SECTION.model_copy(update={"steps": 2, "instruction_weight": 0.0})
    series = srpo.train_srpo(critic, *sets(critic, pairs=False), section, tmp_path, seed=0).series
    assert [value for _, value in series["loss"]] == [0.0, 0.0]
    before, after = weights(load_critic(critic_folder)), weights(critic)
    assert all(torch.equal(before[name], after[name]) for name in before)


# The step


def step_inputs(tmp_path: Path) -> dict[str, Path]:
    store = write_clips(tmp_path / "candidates", {"p0": "a red circle", "p1": "a pillar"}, each=2)
    seed = tmp_path / "seed"
    (seed / "clips").mkdir(parents=True)
    for name in ("x", "y"):
        (seed / "clips" / f"{name}.mp4").write_bytes(encode_clip(store["p0-0" if name == "x" else "p1-1"]))
    rows = [rating(str(i), "good", "motion steady", "clips/x.mp4") for i in range(3)]
    write_rows(seed / "ratings.jsonl", rows)
    pair = HumanChoice(
        clip_a="clips/x.mp4", clip_b="clips/y.mp4", prompt="a pillar", annotator="1", verdict="a", reason="b: wrong"
    )
    write_rows(seed / "choices.jsonl", [pair])
    common = {"prompt_id": "p0", "prompt": "a red circle", "certainty": 0.6, "votes": {}}
    ratings = [
        PseudoRating(
            clip="p0-0", dimension="motion", verdict="good", kept=kept, chosen="Verdict: good", rejected=lost, **common
        )
        for kept, lost in ((True, "Verdict: bad"), (True, None), (False, "Verdict: bad"))
    ]
    turned = {"forward": "a", "backward": "a", "consistent": True}
    choices = [
        PseudoChoice(
            clip_a="p0-0", clip_b="p0-1", dimension="overall", verdict="a", kept=kept, chosen="Verdict: a",
            rejected="Verdict: b", **turned, **common,
        )
        for kept in (True, False)
    ]  # fmt: skip
    write_rows(tmp_path / "labels" / "ratings.jsonl", ratings)
    write_rows(tmp_path / "labels" / "choices.jsonl", choices)
    write_held_out(tmp_path / "held_out.json", hold_out(["a held-out prompt"], ["another one"]))
    (tmp_path / "course.json").write_text('{"stop": false}')
    return {
        "candidates": tmp_path / "candidates",
        "labels": tmp_path / "labels",
        "seed_labels": seed,
        "held_out": tmp_path / "held_out.json",
        "course": tmp_path / "course.json",
    }


def test_the_step_learns_from_kept_labels_and_saves_what_plain_transformers_loads(critic_folder, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    config = Config(train_critic=SECTION)
    out = {"candidate": tmp_path / "candidate", "curves": tmp_path / "curves.csv"}
    job = Job("1", 3, tmp_path / "work")
    summary = train_critic(config, job, critic=critic_folder, **step_inputs(tmp_path), **out)
    assert summary.metrics == {"pairs": 2.0, "examples": 3.0}, "what was not kept is not learnt from"
    header, *lines = out["curves"].read_text().splitlines()
    names = "step loss srpo_loss instruction_loss certainty margin accuracy grad_norm learning_rate"
    assert set(header.split(",")) == set(names.split())
    assert [line.split(",")[0] for line in lines] == ["1", "2", "3"]
    assert {path.suffix for path in out["candidate"].iterdir()} == {".json", ".safetensors"}
    model = AutoModelForImageTextToText.from_pretrained(out["candidate"])
    tokenizer = AutoTokenizer.from_pretrained(out["candidate"])
    ours = load_critic(out["candidate"])
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert tokenizer("a red circle").input_ids == ours.tokenizer("a red circle").input_ids
    assert all(torch.equal(value, weights(ours)[name]) for name, value in model.state_dict().items())
    before = weights(load_critic(critic_folder))
    assert any(not torch.equal(value, before[name]) for name, value in weights(ours).items())


def test_the_step_hands_the_incumbent_on_where_the_critic_is_not_updated(critic_folder, course, tmp_path):
    config = Config(train_critic=SECTION.model_copy(update={"algorithm": "none"}))
    missing = {name: tmp_path / name for name in ("candidates", "labels", "seed_labels", "held_out")}
    missing["course"] = course
    out = {"candidate": tmp_path / "candidate", "curves": tmp_path / "curves.csv"}
    summary = train_critic(config, Job("1", 3, tmp_path / "work"), critic=critic_folder, **missing, **out)
    assert summary.metrics == {"pairs": 0.0, "examples": 0.0}
    for path in critic_folder.iterdir():
        assert (out["candidate"] / path.name).read_bytes() == path.read_bytes()
    assert out["curves"].read_text() == "step,loss\n"


# Checkpoints that do not load


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _other_family(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))


def _unknown_family(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vila"}))


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_no_config, r"no critic checkpoint here \(config.json is missing\); put a transformers folder there"),
        (_broken_config, "the checkpoint does not load"),
        (_other_family, "no critic family for qwen3_vl; known: qwen2_vl"),
        (_unknown_family, "vila"),
        (_no_weights, "the checkpoint does not load .*model.safetensors"),
        (_pickled_weights, "the checkpoint does not load .*safetensors"),
        (_truncated_weights, "the checkpoint does not load"),
        (_other_shapes, "the checkpoint does not load"),
        (_no_tokenizer, "the tokenizer cannot write a verdict; put the checkpoint.s tokenizer files there"),
    ],
)
def test_a_checkpoint_that_does_not_load_is_named(critic_folder, tmp_path, spoil, sentence):
    folder = tmp_path / "critic"
    shutil.copytree(critic_folder, folder)
    spoil(folder)
    with pytest.raises(UserError, match=f"(?s)^{folder}: .*{sentence}") as raised:
        load_critic(folder)
    assert "\n" not in str(raised.value)
