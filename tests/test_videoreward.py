"""VideoReward against plain transformers with real special tokens, its training and calibration, and its use."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from models import flat_clip, noise_clip, write_clips

from dualipo.config import Config, Prefer, TrainReward, Weights
from dualipo.critic.base import load_critic
from dualipo.critic.questions import Answered, Question
from dualipo.critic.scoring import Reward, Voting, load_scorer
from dualipo.critic.videoreward import training
from dualipo.critic.videoreward.data import ClipFiles, Pair, chosen_pairs, implied_pairs, rated_clips, split_prompts
from dualipo.critic.videoreward.model import VideoReward, load_videoreward
from dualipo.critic.videoreward.settings import Settings, write_none
from dualipo.critic.videoreward.training import train_reward
from dualipo.curves import Series
from dualipo.errors import UserError
from dualipo.evaluation.agreement import measure_agreement
from dualipo.evaluation.calibration import Calibration
from dualipo.media.video import encode_clip
from dualipo.records import HumanChoice, HumanRating, read_rows, write_rows
from dualipo.steps import Job
from dualipo.steps.prefer import prefer

torch.set_num_threads(1)
CLIPS = {"x": noise_clip(1), "y": noise_clip(2), "long": noise_clip(3, frames=13)}
ASKED = [("a pillar", "x"), ("a small red circle moving left slowly on a black background", "long"), ("a pillar", "y")]


def fresh(critic_folder: Path, seed: int = 0, **settings) -> VideoReward:
    return VideoReward(load_critic(critic_folder), Settings(**settings), seed).eval()


def raw(model: VideoReward, asked=ASKED) -> torch.Tensor:
    with torch.no_grad():
        return model.raw(asked, model.see(CLIPS))


# The model


@pytest.mark.parametrize(
    ("before", "text"),
    [
        (
            ("motion", "faithfulness"),
            "{clip} motion smoothness: <|mq|> video faithfulness: <|vq|> "
            "Prompt: {prompt}. semantic consistency: <|ta|>",
        ),
        (
            (),
            "{clip} Prompt: {prompt}. semantic consistency: <|ta|> "
            "motion smoothness: <|mq|> video faithfulness: <|vq|>",
        ),
    ],
)
def test_scores_equal_plain_transformers_with_special_tokens_in_its_vocabulary(critic_folder, before, text):
    from test_critic import patches_by_hand
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = fresh(critic_folder, before_prompt=before)
    with torch.no_grad():
        model.head.bias.fill_(0.25)
    plain = AutoModelForImageTextToText.from_pretrained(critic_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(critic_folder)
    tokens = ["<|ta|>", "<|mq|>", "<|vq|>"]
    tokenizer.add_tokens(tokens, special_tokens=True)
    plain.resize_token_embeddings(len(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert len(set(ids)) == 3 and min(ids) >= len(load_critic(critic_folder).tokenizer)
    with torch.no_grad():
        plain.get_input_embeddings().weight[ids] = model.queries
    expected = []
    for prompt, name in ASKED:
        clip = np.concatenate([CLIPS[name], CLIPS[name][-1:]])
        shown = "<|vision_start|>" + "<|video_pad|>" * (len(clip) // 2 * 4) + "<|vision_end|>"
        row = tokenizer(text.format(clip=shown, prompt=prompt), add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = plain.model(
                input_ids=row,
                pixel_values_videos=torch.tensor(patches_by_hand(clip, 4, 2, 4), dtype=torch.float32),
                video_grid_thw=torch.tensor([[len(clip) // 2, 8, 8]]),
                mm_token_type_ids=(row == plain.config.video_token_id).int() * 2,
            ).last_hidden_state[0]
        at = [(row[0] == token).nonzero().item() for token in ids]
        expected.append([(model.head.weight[0] @ hidden[i]).item() + 0.25 for i in at])
    np.testing.assert_allclose(raw(model).numpy(), expected, rtol=1e-4, atol=2e-4)
    assert np.std(expected, axis=0).min() > 1e-2, "the scores depend on what is judged"


def test_scores_do_not_depend_on_what_else_is_in_the_batch(critic_folder):
    model = fresh(critic_folder)
    alone = torch.cat([raw(model, [pair]) for pair in ASKED])
    torch.testing.assert_close(raw(model), alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.raw_scores(ASKED, model.see(CLIPS), 2), alone.numpy(), rtol=1e-4, atol=1e-4)


def test_tokens_before_the_prompt_see_the_clip_alone(critic_folder):
    asked = [("a pillar", "x"), ("a blue bar", "x")]
    one, two = raw(fresh(critic_folder), asked).tolist()
    assert one[1:] == pytest.approx(two[1:], abs=1e-5), "motion and faithfulness of one clip are what they are"
    assert abs(one[0] - two[0]) > 1e-3
    one, two = raw(fresh(critic_folder, before_prompt=()), asked).tolist()
    assert all(abs(a - b) > 1e-3 for a, b in zip(one, two, strict=True))


def test_a_prompt_cannot_smuggle_in_a_token(critic_folder):
    model = fresh(critic_folder)
    torch.testing.assert_close(raw(model, [("a\ue000 pillar", "x")]), raw(model, [("a pillar", "x")]), rtol=0, atol=0)


def test_every_part_gets_a_gradient_and_the_vision_tower_too(critic_folder):
    model = fresh(critic_folder).requires_grad_(True)
    model.raw(ASKED, model.backbone.see(CLIPS, gradient=True))[:, 0].sum().backward()
    assert model.queries.grad[0].abs().sum() > 0
    assert model.head.weight.grad.abs().sum() > 0
    assert model.head.bias.grad.item() == 3
    assert model.model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0
    assert model.backbone.language_model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_normalised_scores_and_their_mean(critic_folder):
    settings = Settings(mean=(0.1, -0.2, 0.3), deviation=(1.0, 2.0, 0.5))
    model = VideoReward(load_critic(critic_folder), settings).eval()
    found = model.scores([*ASKED, ASKED[0]], model.see(CLIPS))
    assert list(found) == ASKED
    for row, pair in zip(raw(model).tolist(), ASKED, strict=True):
        normal = [(row[0] - 0.1) / 1, (row[1] + 0.2) / 2, (row[2] - 0.3) / 0.5]
        named = dict(zip(("semantic", "motion", "faithfulness"), normal, strict=True))
        assert found[pair] == pytest.approx({**named, "overall": sum(normal) / 3}, abs=1e-3)
    with pytest.raises(UserError, match="no normalisation"):
        fresh(critic_folder).scores(ASKED, model.see(CLIPS))


CALIBRATED = {
    "mean": (0.0, 0.1, -0.1),
    "deviation": (1.0, 2.0, 0.5),
    "calibration": Calibration(
        ties={"overall": 0.1}, ratings={d: (-0.5, 0.5) for d in ("semantic", "motion", "faithfulness")}
    ),
}


@pytest.fixture(scope="module")
def reward_folder(critic_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "reward"
    fresh(critic_folder, seed=3, **CALIBRATED).save(folder)
    return folder


def test_a_saved_videoreward_scores_as_before(critic_folder, reward_folder):
    from transformers import AutoModelForImageTextToText

    model, again = fresh(critic_folder, seed=3, **CALIBRATED), load_videoreward(reward_folder)
    assert again.settings == model.settings
    torch.testing.assert_close(raw(again), raw(model), rtol=0, atol=0)
    assert not torch.equal(raw(again), raw(fresh(critic_folder)))
    assert not any(p.requires_grad for p in again.parameters())
    assert {path.suffix for path in reward_folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    assert type(AutoModelForImageTextToText.from_pretrained(reward_folder / "backbone")).__name__.startswith("Qwen2VL")


def _change(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / "config.json").unlink(), "no VideoReward here"),
        (lambda f: _change(f, deviation=[1, 0, 1]), "config.json: top level: .*deviation"),
        (lambda f: _change(f, mean=[1.0]), "one number a dimension"),
        (lambda f: _change(f, before_prompt=["beauty"]), "beauty is no dimension"),
        (lambda f: _change(f, tie_tendency=1), "tie_tendency"),
        (lambda f: _change(f, extra=1), "extra"),
        (lambda f: (f / "head.safetensors").unlink(), "head.safetensors: does not load"),
        (lambda f: (f / "head.safetensors").write_bytes(b"no"), "head.safetensors: does not load"),
        (lambda f: _change(f, dimensions=["motion", "semantic"], before_prompt=[], mean=None, deviation=None), "2 dim"),
        (lambda f: shutil.rmtree(f / "backbone"), "backbone: no critic checkpoint"),
    ],
)
def test_a_folder_that_does_not_load_is_named(reward_folder, tmp_path, spoil, sentence):
    shutil.copytree(reward_folder, tmp_path / "reward")
    spoil(tmp_path / "reward")
    with pytest.raises(UserError, match=f"(?s)^{tmp_path}/reward.*{sentence}") as raised:
        load_videoreward(tmp_path / "reward")
    assert "\n" not in str(raised.value).replace("Value error,", "")


def test_a_step_that_needs_reasoning_says_so(reward_folder):
    with pytest.raises(UserError, match="writes no reasoning"):
        load_critic(reward_folder)


# What it learns from


def choice(prompt: str, a: str, b: str, verdict: str, dimension: str = "overall") -> Answered:
    return Answered(Question(dimension, prompt, (a, b)), verdict, "because")


def rating(prompt: str, clip: str, verdict: str, dimension: str) -> Answered:
    return Answered(Question(dimension, prompt, (clip,)), verdict, "because")


def test_pairs_chosen_and_implied():
    answered = [
        choice("p", "1", "2", "tie"),
        choice("p", "2", "3", "b", "motion"),
        rating("p", "1", "good", "motion"),
        rating("p", "2", "bad", "motion"),
        rating("p", "3", "bad", "motion"),
        rating("q", "1", "normal", "motion"),
        rating("p", "1", "good", "semantic"),
    ]
    assert chosen_pairs(answered) == [Pair("p", "1", "2", "overall", 2), Pair("p", "2", "3", "motion", 1)]
    assert implied_pairs(answered) == [Pair("p", "1", "2", "motion", 0), Pair("p", "1", "3", "motion", 0)]
    assert [item.value for item in rated_clips(answered)] == [1.0, 0.0, 0.0, 0.5, 1.0]
    assert implied_pairs([rating("p", "a", "bad", "motion"), rating("p", "b", "normal", "motion")])[0].verdict == 1


@pytest.mark.parametrize(("prompts", "share", "count"), [(10, 0.2, 2), (2, 0.01, 1), (2, 0.99, 1), (7, 0.5, 4)])
def test_whole_prompts_are_held_out(prompts, share, count):
    answered = [rating(f"p{i % prompts}", str(i), "good", "motion") for i in range(3 * prompts)]
    learnt, held = split_prompts(answered, share, seed=1)
    sides = [{item.question.prompt for item in side} for side in (learnt, held)]
    assert len(sides[1]) == count and not sides[0] & sides[1]
    assert sorted(map(id, [*learnt, *held])) == sorted(map(id, answered))
    assert split_prompts(answered[::-1], share, seed=1)[1] == held[::-1]


def test_one_prompt_cannot_be_split():
    with pytest.raises(ValueError, match="two prompts"):
        split_prompts([rating("p", "1", "good", "motion")], 0.5, 0)


# Training: people like bright clips


def bright_clip(level: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 20, size=(3, 32, 32, 3))
    return (level + noise).astype(np.uint8)


def bright_labels(prompts: int) -> tuple[list[Answered], dict[str, np.ndarray]]:
    """Three clips a prompt, dark to bright, in an order that changes from prompt to prompt."""
    answered, clips = [], {}
    for index in range(prompts):
        prompt = ("a pillar", "a blue bar", "a red circle", "a large cross", "a small square", "a white cross")[index]
        order = np.random.default_rng(index).permutation(3).tolist()
        for place, level in enumerate(order):
            clips[f"{index}-{place}"] = bright_clip(20 + 90 * level, 10 * index + place)
            word = ("bad", "normal", "good")[level]
            answered += [rating(prompt, f"{index}-{place}", word, d) for d in ("semantic", "motion", "faithfulness")]
        for a, b in ((0, 1), (1, 2), (2, 0)):
            answered.append(choice(prompt, f"{index}-{a}", f"{index}-{b}", "a" if order[a] > order[b] else "b"))
        answered.append(choice(prompt, f"{index}-0", f"{index}-0", "tie"))
    return answered, clips


LABELS, BRIGHT = bright_labels(6)
SECTION = TrainReward(steps=4, batch_size=8, learning_rate=1e-3, warmup_steps=2, validation_share=0.34)


def trained(critic_folder: Path, work: Path, **changes) -> tuple[VideoReward, Series]:
    torch.manual_seed(0)
    model = fresh(critic_folder)
    section = SECTION.model_copy(update=changes)
    return model, train_reward(model, LABELS, BRIGHT, section, work, seed=5).series


@pytest.mark.parametrize("loss", ["btt", "bt", "regression"])
def test_it_learns_the_order_of_clips_and_holds_on_other_prompts(critic_folder, tmp_path, loss):
    model, series = trained(critic_folder, tmp_path, loss=loss, steps=40)
    assert series["loss"][-1][1] < 0.6 * series["loss"][0][1]
    _, held = split_prompts(LABELS, SECTION.validation_share, seed=5)
    asked = [(i.question.prompt, clip) for i in held for clip in i.question.clips]
    scores = model.scores(asked, model.see(BRIGHT))
    pairs = [i for i in held if i.question.kind == "choice" and i.verdict != "tie"]
    assert len(pairs) == 6
    for item in pairs:
        a, b = (scores[item.question.prompt, clip]["overall"] for clip in item.question.clips)
        assert (a > b) == (item.verdict == "a")


def test_the_first_loss_by_hand(critic_folder, tmp_path):
    """All items in one batch, at the weights that the model starts from."""
    learnt, _ = split_prompts(LABELS, SECTION.validation_share, seed=5)
    model = fresh(critic_folder)
    with torch.no_grad():
        asked = list(dict.fromkeys((i.question.prompt, clip) for i in learnt for clip in i.question.clips))
        scores = dict(zip(asked, model.raw(asked, model.see(BRIGHT)).tolist(), strict=True))
    names = ("semantic", "motion", "faithfulness")

    def score(prompt: str, clip: str, dimension: str) -> float:
        own = scores[prompt, clip]
        return sum(own) / 3 if dimension == "overall" else own[names.index(dimension)]

    losses = {"btt": [], "bt": []}
    pairs = [(i.question.prompt, *i.question.clips, i.question.dimension, i.verdict) for i in learnt
             if i.question.kind == "choice"]  # fmt: skip
    rated = [i for i in learnt if i.question.kind == "rating"]
    value = {"good": 1.0, "normal": 0.5, "bad": 0.0}
    for one in rated:
        for two in rated:
            same = (one.question.prompt, one.question.dimension) == (two.question.prompt, two.question.dimension)
            if same and value[one.verdict] > value[two.verdict]:
                better = (one.question.clips[0], two.question.clips[0])
                pairs.append((one.question.prompt, *better, one.question.dimension, "a"))
    for prompt, a, b, dimension, verdict in pairs:
        gap = score(prompt, a, dimension) - score(prompt, b, dimension)
        p_a, p_b = 1 / (1 + 5 * math.exp(-gap)), 1 / (1 + 5 * math.exp(gap))
        losses["btt"].append(-math.log({"a": p_a, "b": p_b, "tie": 24 * p_a * p_b}[verdict]))
        if verdict != "tie":
            losses["bt"].append(math.log(1 + math.exp(-gap if verdict == "a" else gap)))
    squares = [
        (score(i.question.prompt, i.question.clips[0], i.question.dimension) - value[i.verdict]) ** 2 for i in rated
    ]
    for loss, expected in (("btt", losses["btt"]), ("bt", losses["bt"]), ("regression", squares)):
        _, series = trained(critic_folder, tmp_path / loss, loss=loss, steps=1, batch_size=1000)
        assert series["loss"][0][1] == pytest.approx(sum(expected) / len(expected), rel=1e-4), loss
    _, series = trained(critic_folder, tmp_path / "chosen", steps=1, batch_size=1000, implied_pairs=False)
    chosen = losses["btt"][: sum(i.question.kind == "choice" for i in learnt)]
    assert series["loss"][0][1] == pytest.approx(sum(chosen) / len(chosen), rel=1e-4)


def test_what_is_held_out_normalises_and_calibrates_and_is_not_learnt_from(critic_folder, tmp_path, monkeypatch):
    seen_in_training = set()
    compute = training._loss

    def spy(batch, scores, section):
        seen_in_training.update(item.prompt for item in batch)
        return compute(batch, scores, section)

    monkeypatch.setattr(training, "_loss", spy)
    model, _ = trained(critic_folder, tmp_path, batch_size=1000)
    _, held = split_prompts(LABELS, SECTION.validation_share, seed=5)
    prompts = {item.question.prompt for item in held}
    assert len(prompts) == 2 and not prompts & seen_in_training and len(seen_in_training) == 4
    asked = list(dict.fromkeys((i.question.prompt, clip) for i in held for clip in i.question.clips))
    values = model.raw_scores(asked, model.see(BRIGHT))
    np.testing.assert_allclose(model.settings.mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.settings.deviation, values.std(0), rtol=1e-5)
    normal = {pair: ((row - values.mean(0)) / values.std(0)).mean() for pair, row in zip(asked, values, strict=True)}
    gaps = [
        (normal[i.question.prompt, i.question.clips[0]] - normal[i.question.prompt, i.question.clips[1]], i.verdict)
        for i in held
        if i.question.kind == "choice"
    ]

    def right(threshold: float) -> int:
        return sum(("tie" if abs(g) <= threshold else "a" if g > 0 else "b") == v for g, v in gaps)

    best = max(right(threshold) for threshold in [0.0, *(abs(g) for g, _ in gaps)])
    assert right(model.settings.calibration.ties["overall"] + 1e-9) == best
    assert set(model.settings.calibration.ratings) == {"semantic", "motion", "faithfulness"}


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2, "train_vision": False}])
def test_a_killed_training_equals_an_unbroken_one(critic_folder, tmp_path, monkeypatch, changes):
    changes = {**changes, "steps": 5, "checkpoint_every": 2, "batch_size": 4}
    whole, series = trained(critic_folder, tmp_path / "whole", **changes)
    compute, calls = training._scores, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(training, "_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(critic_folder, tmp_path / "broken", **changes)
    resumed, again = trained(critic_folder, tmp_path / "broken", **changes)
    assert len(calls) == 4 + 3, "goes on after the second step"
    assert again == series and resumed.settings == whole.settings
    first, second = weights(whole), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_lora_is_merged_and_leaves_the_rest_alone(critic_folder, tmp_path):
    before, (model, _) = (
        weights(fresh(critic_folder)),
        trained(critic_folder, tmp_path, lora_rank=2, train_vision=False),
    )
    after = weights(model)
    assert before.keys() == after.keys(), "no adapter is left behind"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    language = {name for name in changed if name.startswith("model.")}
    assert {"queries", "head.weight"} <= changed
    assert language and all(".layers." in name and name.endswith("proj.weight") for name in language)
    difference = after["model.model.language_model.layers.0.mlp.up_proj.weight"].double()
    difference -= before["model.model.language_model.layers.0.mlp.up_proj.weight"].double()
    sizes = torch.linalg.svdvals(difference)
    assert sizes[0] > 1e-5 and sizes[2] < 1e-3 * sizes[0], "of rank 2"


def test_a_frozen_tower_sees_each_clip_once(critic_folder, tmp_path, monkeypatch):
    looked = []
    see = VideoReward.see
    monkeypatch.setattr(VideoReward, "see", lambda self, clips: looked.append(set(clips)) or see(self, clips))
    model, _ = trained(critic_folder, tmp_path, train_vision=False)
    assert len(looked) == 2 and not looked[0] & looked[1], "clips to learn from, then those held out"
    before = weights(fresh(critic_folder))
    assert all(torch.equal(before[n], v) for n, v in weights(model).items() if ".visual." in n)
    moved, _ = trained(critic_folder, tmp_path / "vision")
    assert any(not torch.equal(before[n], v) for n, v in weights(moved).items() if ".visual." in n)


@pytest.mark.parametrize(
    ("labels", "changes", "sentence"),
    [
        (LABELS[:1], {}, "at least two prompts"),
        ([i for i in LABELS if i.question.kind == "choice"], {"loss": "regression"}, "no ratings"),
        ([i for i in LABELS if i.question.kind == "rating"], {"implied_pairs": False}, "no preferences"),
        ([i for i in LABELS if i.verdict == "tie"], {"loss": "bt"}, "no preferences .* by bt"),
    ],
)
def test_labels_that_do_not_suffice_are_named(critic_folder, tmp_path, labels, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        train_reward(fresh(critic_folder), labels, BRIGHT, SECTION.model_copy(update=changes), tmp_path, 0)


def test_held_out_clips_that_all_score_alike_are_named(critic_folder, tmp_path):
    labels = [choice(prompt, "0-0", "0-0", "tie") for prompt in ("a pillar", "a circle")]
    with pytest.raises(UserError, match="cannot be normalised on 1 held-out clips"):
        train_reward(fresh(critic_folder), labels, BRIGHT, SECTION.model_copy(update={"steps": 1}), tmp_path, 0)


def test_clip_files_are_decoded_when_asked(tmp_path):
    clip = flat_clip(4).repeat(4, axis=0)
    (tmp_path / "a.mp4").write_bytes(encode_clip(clip))
    files = ClipFiles(tmp_path, ["a.mp4", "none.mp4", "a.mp4"])
    assert list(files) == ["a.mp4", "none.mp4"] and len(files) == 2
    assert files["a.mp4"].shape == (16, 32, 32, 3), "no more frames than a critic looks at"
    assert np.abs(files["a.mp4"][-1].astype(int) - clip[-1]).max() < 12
    with pytest.raises(UserError, match=r"none.mp4: no such clip"):
        files["none.mp4"]


# In the loop


def test_the_folder_says_which_critic_scores(critic_folder, reward_folder):
    sections = Config().label, Config().prefer
    assert isinstance(load_scorer(critic_folder, *sections), Voting)
    assert isinstance(load_scorer(reward_folder, *sections), Reward)


def test_a_videorewards_scores_weigh_the_dimensions_as_asked(reward_folder):
    from dualipo.records import Clip

    clips = [Clip(id=f"c{k}", prompt_id="p", prompt="a pillar", seed=k, file="none") for k in range(3)]
    model = load_videoreward(reward_folder)
    frames = {clip.id: flat_clip(k) for k, clip in enumerate(clips)}
    known = model.settings.dimensions
    weights = Weights(**{name: float(k) for k, name in enumerate(known, 1)})
    for section in (Prefer(), Prefer(weights=weights)):
        scorer = load_scorer(reward_folder, Config().label, section)
        rated = scorer.rate(clips, scorer.see(frames), 0)
        for clip in clips:
            own = [rated[clip.id].dimensions[name] for name in known]
            share = section.weights.of(known)
            whole = sum(a * b for a, b in zip(own, share, strict=True)) / sum(share)
            assert rated[clip.id].score == pytest.approx(NormalDist().cdf(whole), abs=1e-9)


def test_preferences_follow_the_scores(reward_folder, tmp_path):
    store = write_clips(tmp_path / "candidates", {"p0": "a red circle", "p1": "a pillar"}, each=4)
    out = {"preferences": tmp_path / "preferences", "gate": tmp_path / "gate"}
    config = Config(prefer=Prefer(min_pairs=1, min_margin=0.0))
    job = Job("1", 3, tmp_path / "work")
    write_none(tmp_path / "none")
    inputs = {"candidates": tmp_path / "candidates", "critic": reward_folder, "reward": tmp_path / "none"}
    summary = prefer(config, job, **inputs, **out)
    model = load_videoreward(reward_folder)
    seen = model.see({clip.id: store[clip.id] for clip in store.clips})
    scores = {clip.id: model.scores([(clip.prompt, clip.id)], seen)[clip.prompt, clip.id] for clip in store.clips}
    from dualipo.records import Desirability, Preference

    pairs = read_rows(out["preferences"] / "pairs.jsonl", Preference)
    assert {pair.prompt_id for pair in pairs} == {"p0", "p1"} and summary.metrics["pairs"] == 2
    for pair in pairs:
        own = {clip: value["overall"] for clip, value in scores.items() if clip.startswith(pair.prompt_id)}
        assert (pair.winner, pair.loser) == (max(own, key=own.get), min(own, key=own.get))
        assert pair.winner_score == pytest.approx(NormalDist().cdf(own[pair.winner]), abs=1e-4)
    for row in read_rows(out["preferences"] / "desirability.jsonl", Desirability):
        lowest = min(v for d, v in scores[row.clip].items() if d != "overall")
        assert row.desirable == (lowest > -0.5)
        assert row.score == pytest.approx(NormalDist().cdf(scores[row.clip]["overall"]), abs=1e-4)


def test_agreement_of_a_videoreward(reward_folder, tmp_path):
    (tmp_path / "clips").mkdir()
    for name in range(4):
        (tmp_path / f"clips/{name}.mp4").write_bytes(encode_clip(flat_clip(name)))
    files = [f"clips/{name}.mp4" for name in range(4)]
    model = load_videoreward(reward_folder)
    scores = model.scores([("a pillar", f) for f in files], model.see(ClipFiles(tmp_path, files)))
    rows, hits = [], []
    for a, b, verdict in ((0, 1, "a"), (1, 2, "b"), (2, 3, "tie"), (3, 0, "a")):
        row = {"clip_a": files[a], "clip_b": files[b], "prompt": "a pillar", "annotator": "1", "reason": "so"}
        rows.append(HumanChoice(**row, verdict=verdict))
        gap = scores["a pillar", files[a]]["overall"] - scores["a pillar", files[b]]["overall"]
        hits.append(verdict == ("tie" if abs(gap) <= 0.1 else "a" if gap > 0 else "b"))
    write_rows(tmp_path / "choices.jsonl", rows)
    rated = {"clip": files[0], "prompt": "a pillar", "annotator": "1", "dimension": "motion", "reason": "so"}
    write_rows(tmp_path / "ratings.jsonl", [HumanRating(**rated, verdict="good")])
    found = measure_agreement(Config(), reward_folder, tmp_path)
    assert found["agreement"]["mean"] == sum(hits) / 4
    assert found["tie_threshold"] == {"overall": 0.1}
    assert found["rating_agreement"]["motion"] == float(scores["a pillar", files[0]]["motion"] > 0.5)
