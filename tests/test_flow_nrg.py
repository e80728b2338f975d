"""Flow-NRG through the steps: the reward that align trains, sampling that it steers, and what scores say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from models import write_preferences
from safetensors.torch import load_file

from dualipo.alignment.reward import RewardTrainer, clip_pairs, judgements, new_reward
from dualipo.alignment.trainer import Encoded
from dualipo.artifacts import digest
from dualipo.config import Config, LatentReward, Training, parse_config
from dualipo.errors import UserError
from dualipo.generator.base import load_generator
from dualipo.generator.latent_reward import bradley_terry_loss, load_latent_reward
from dualipo.records import ClipScores, Desirability, Preference, Prompt, write_rows
from dualipo.steps import Job
from dualipo.steps.align import align
from dualipo.steps.evaluate import evaluate
from dualipo.steps.generate import generate
from dualipo.training.loop import train

torch.set_num_threads(1)
SIZE = (9, 32, 32)
REWARD = {"train": True, "layers": 1, "steps": 4, "batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 1}
ALIGN = {"loss": "flow_dpo", "steps": 1, "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 1}
SCENE = {"shape": "circle", "colour": "red", "size": "small", "background": "black", "motion": "still"}


def config_of(**changes) -> Config:
    sampling = {"steps": 2, "size": SIZE}
    base = {
        "align": ALIGN, "latent_reward": REWARD, "generate": {**sampling, "candidates": 2},
        "evaluate": {**sampling, "samples_per_prompt": 1, "bootstrap": 10},
    }  # fmt: skip
    return parse_config({**base, **changes})


def test_guidance_without_a_reward_or_without_weights_is_refused():
    with pytest.raises(UserError, match=r"set latent_reward\.train: true"):
        parse_config({"flow_nrg": {"evaluate": 1.0}})
    with pytest.raises(UserError, match="at least one of semantic, motion and faithfulness"):
        config_of(flow_nrg={"weights": {"semantic": 0, "motion": 0, "faithfulness": 0}})
    assert config_of(flow_nrg={"generate": 1.0}).flow_nrg.weights.motion == 1.0


# ---- the reward's training


def test_judgements_compare_each_dimension_of_a_pair():
    pair = {"prompt_id": "p", "prompt": "t", "winner_score": 1, "loser_score": 0}
    pairs = [Preference(winner="a", loser="b", **pair), Preference(winner="b", loser="c", **pair)]
    rows = [
        ClipScores(clip="a", semantic=1.0, motion=0.2, faithfulness=0.5),
        ClipScores(clip="b", semantic=0.5, motion=0.4, faithfulness=0.5),
        ClipScores(clip="c", semantic=None, motion=0.1, faithfulness=0.6),
    ]
    assert judgements(pairs, rows).tolist() == [[1, -1, 0], [0, 1, -1]]
    assert judgements([Preference(winner="a", loser="x", **pair)], rows).tolist() == [[0, 0, 0]]
    assert judgements([], []).shape == (0, 3)


def test_every_two_scored_clips_of_a_prompt_are_compared_and_of_no_two():
    scores = {"p": {"a": 0.2, "b": 0.9, "c": 0.2}, "q": {"d": 0.5, "e": 0.4}, "r": {"f": 1.0}}
    rows = [
        Desirability(clip=clip, prompt_id=prompt, prompt=f"a {prompt}", desirable=True, score=score)
        for prompt, clips in scores.items()
        for clip, score in clips.items()
    ]
    pairs = clip_pairs(rows)
    assert [(p.winner, p.loser) for p in pairs] == [("b", "a"), ("a", "c"), ("b", "c"), ("d", "e")]
    assert all(p.prompt == f"a {p.prompt_id}" and p.winner_score >= p.loser_score for p in pairs)
    assert (pairs[0].winner_score, pairs[0].loser_score) == (0.9, 0.2)
    assert clip_pairs([]) == []


def reward_trainer(folder: Path, steps: int = 3, micro: int | None = None) -> RewardTrainer:
    """Eight pairs of a light and a dark latent: light is better on the first dimension, dark on the second."""
    generator = load_generator(folder)
    clean = torch.randn(8, 16, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    text = generator.encode_text(["a red circle", "a blue bar"])
    data = Encoded(
        torch.cat([clean + 1, clean - 1]), text, torch.arange(8), torch.arange(8, 16), torch.arange(8) % 2,
        None, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long),
    )  # fmt: skip
    preferred = torch.tensor([[1, -1, 0]]).repeat(8, 1)
    preferred[3, 1] = 0
    section = LatentReward(train=True, steps=steps, batch_size=6, learning_rate=3e-3, warmup_steps=1)
    reward = new_reward(generator, section, seed=7)
    return RewardTrainer(reward, generator, data, preferred, section, Training(micro_batch_size=micro), seed=4)


def test_the_loss_is_bradley_terrys_over_own_forward_passes_whatever_the_micro_batches(wan_folder):
    whole, cut = reward_trainer(wan_folder), reward_trainer(wan_folder, micro=4)
    loss, logged = whole.loss(1)
    rows, levels, data = whole.rows, whole.levels, whole.data
    noise = torch.randn(len(rows), 16, 3, 4, 4, generator=_after_draws(whole, 1))
    sides = []
    for side in (data.winners, data.losers):
        clips = [
            whole.reward(whole.generator.noised(data.latents[side[r : r + 1]], n[None], t[None]), t[None], text[None])
            for r, n, t, text in zip(rows.tolist(), noise, levels, data.text[data.pair_text[rows]], strict=True)
        ]
        sides.append(torch.cat(clips))
    expected = bradley_terry_loss(*sides, whole.preferred[rows])
    assert [loss.item(), logged["loss"]] == pytest.approx([expected.item()] * 2, rel=1e-4)
    right = (torch.sign(sides[0] - sides[1]) == whole.preferred[rows]) & (whole.preferred[rows] != 0)
    assert logged["accuracy"] == pytest.approx(right.sum().item() / (whole.preferred[rows] != 0).sum().item())
    loss.backward()
    again, same = cut.loss(1)
    again.backward()
    assert len(cut.begin(1)) == 2 and same["loss"] == pytest.approx(logged["loss"], rel=1e-5)
    for mine, other in zip(whole.reward.parameters(), cut.reward.parameters(), strict=True):
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-6)


def _after_draws(task: RewardTrainer, step: int) -> torch.Generator:
    """The step's stream after rows and levels were drawn from it."""
    from dualipo.alignment.trainer import draw_rows
    from dualipo.steps import derive_seed

    source = torch.Generator().manual_seed(derive_seed(task.seed, step))
    assert torch.equal(draw_rows(8, 6, source), task.rows)
    assert torch.equal(task.generator.draw_levels(6, source), task.levels)
    return source


def test_the_reward_learns_which_of_two_noised_clips_is_preferred_and_loads_as_it_was(wan_folder, tmp_path):
    from dualipo.generator.latent_reward import FOLDER, save_latent_reward

    task = reward_trainer(wan_folder, steps=30)
    result = train(task, task.recipe(1.0, 100), tmp_path / "work")
    losses = [value for _, value in result.series["loss"]]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    reward, generator, source = task.reward.eval(), task.generator, torch.Generator().manual_seed(9)
    levels, noise = torch.full((8,), 500.0), torch.randn(8, 16, 3, 4, 4, generator=source)
    text = task.data.text[torch.zeros(8, dtype=torch.long)]
    with torch.no_grad():
        noised = [generator.noised(task.data.latents[rows], noise, levels) for rows in torch.arange(16).view(2, 8)]
        better, worse = (reward(x, levels, text) for x in noised)
        assert ((better - worse)[:, 0] > 0).all() and ((better - worse)[:, 1] < 0).all()
        generator.save(tmp_path / "model")
        save_latent_reward(reward, tmp_path / "model")
        loaded = load_latent_reward(load_generator(tmp_path / "model"), tmp_path / "model")
        torch.testing.assert_close(loaded(noised[0], levels, text), better)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    (tmp_path / "model" / FOLDER / "config.json").write_text('{"layers": 99}')
    with pytest.raises(UserError, match=r"not a reward of this generator .*layers: 1 to 2"):
        load_latent_reward(generator, tmp_path / "model")


# ---- the steps


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """As the align step reads them, with scores of each dimension."""
    made = write_preferences(tmp_path_factory.mktemp("nrg"))
    rows = [
        ClipScores(clip=f"{p}-{k}", semantic=k / 2, motion=1 - k / 2, faithfulness=0.5)
        for p in ("p0", "p1")
        for k in range(3)
    ]
    for name in ("full", "empty"):
        write_rows(made[name] / "dimensions.jsonl", rows if name == "full" else [])
    return made


def aligned(folders, generator: Path, out: Path, preferences: str = "full", config: Config | None = None):
    return align(
        config or config_of(), Job("1", 0, out / "work"), preferences=folders[preferences],
        candidates=folders["candidates"],
        held_out=folders["held_out"], real_clips=folders["real"], generator=generator, base_generator=generator,
        candidate=out / "candidate", curves=out / "curves.csv",
    )  # fmt: skip


@pytest.fixture(scope="module")
def candidate(folders, wan_folder, tmp_path_factory) -> Path:
    """A Wan aligned with a reward beside it."""
    out = tmp_path_factory.mktemp("aligned")
    summary = aligned(folders, wan_folder, out)
    assert math.isfinite(summary.metrics["latent_reward_loss"]) and "latent_reward_accuracy" in summary.curves
    assert (out / "curves.csv").read_text().startswith("step,") and "latent_reward_loss" in (
        out / "curves.csv"
    ).read_text()
    return out / "candidate"


def test_the_reward_goes_with_the_candidate_which_is_the_one_aligned_without(candidate, folders, wan_folder, tmp_path):
    from diffusers import WanPipeline

    assert {p.name for p in (candidate / "latent_reward").iterdir()} == {"config.json", "model.safetensors"}
    aligned(folders, wan_folder, tmp_path, config=config_of(latent_reward={}))
    assert not (tmp_path / "candidate/latent_reward").exists()
    weights = "transformer/diffusion_pytorch_model.safetensors"
    first, second = load_file(candidate / weights), load_file(tmp_path / "candidate" / weights)
    assert all(torch.equal(first[name], second[name]) for name in second)
    opened = WanPipeline.from_pretrained(candidate)
    opened.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 1, "max_sequence_length": 24}
    assert opened("a red circle", output_type="np", **call).frames.shape == (1, 9, 32, 32, 3)


def test_without_a_pair_the_incumbents_reward_goes_on(candidate, folders, tmp_path):
    aligned(folders, candidate, tmp_path, "empty")
    assert digest(tmp_path / "candidate/latent_reward") == digest(candidate / "latent_reward")


@pytest.mark.parametrize("loss", ["kto", "sft"])
def test_losses_on_single_clips_train_the_reward_on_the_same_pairs(candidate, folders, wan_folder, tmp_path, loss):
    aligned(folders, wan_folder, tmp_path, config=config_of(align={**ALIGN, "loss": loss}))
    weights = "latent_reward/model.safetensors"
    first, second = load_file(candidate / weights), load_file(tmp_path / "candidate" / weights)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("pairs", "compared", "clips"), [("all", 6, 6), ("preferences", 2, 4)])
def test_the_reward_compares_all_scored_clips_or_the_preference_pairs(
    folders, wan_folder, tmp_path, monkeypatch, pairs, compared, clips
):
    from dualipo.alignment import reward

    made = []
    new = reward.RewardTrainer.__init__
    monkeypatch.setattr(reward.RewardTrainer, "__init__", lambda self, *args: made.append(args) or new(self, *args))
    aligned(folders, wan_folder, tmp_path, config=config_of(latent_reward={**REWARD, "pairs": pairs}))
    ((_, _, data, preferred, *_),) = made
    assert preferred.shape == (compared, 3) and len(data.latents) == 2 + clips, "two real clips"
    # of p0 and p1, the later clip is better on the first dimension and worse on the second: `folders`.
    assert (preferred[:, 0] == -preferred[:, 1]).all() and not preferred[:, 2].any()
    best = {int(row) for row, sign in zip(data.winners, preferred[:, 0], strict=True) if sign > 0}
    assert len(best) == (2 if pairs == "all" else 1)


def test_clips_that_do_not_differ_teach_no_reward(candidate, folders, wan_folder, tmp_path):
    alike = [
        ClipScores(clip=f"{p}-{k}", semantic=1, motion=None, faithfulness=0.5) for p in ("p0", "p1") for k in range(3)
    ]
    same = tmp_path / "same"
    same.mkdir()
    for name in ("pairs.jsonl", "desirability.jsonl"):
        (same / name).write_bytes((folders["full"] / name).read_bytes())
    write_rows(same / "dimensions.jsonl", alike)
    aligned({**folders, "same": same}, candidate, tmp_path, "same")
    assert digest(tmp_path / "candidate/latent_reward") == digest(candidate / "latent_reward")


def test_a_diffusion_model_and_too_many_layers_are_refused(folders, generator_folder, wan_folder, tmp_path):
    with pytest.raises(UserError, match=r"latent_reward\.train: .* rectified-flow generator, CogVideoX is none"):
        aligned(folders, generator_folder, tmp_path / "a", config=config_of(align={**ALIGN, "loss": "dpo"}))
    with pytest.raises(UserError, match=r"latent_reward\.layers: 1 to 2 are there, 9 asked for"):
        aligned(folders, wan_folder, tmp_path / "b", config=config_of(latent_reward={**REWARD, "layers": 9}))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write_rows(path, [Prompt(id="b0", text="a small red circle staying still on a black background", attributes=SCENE)])
    return path


def measured(candidate: Path, prompts: Path, out: Path, **flow_nrg) -> tuple[dict, bytes, dict[str, str]]:
    """scores.json, the clips' bytes and the tags."""
    summary = evaluate(
        config_of(flow_nrg=flow_nrg), Job("1", 0, out / "work"), candidate=candidate, benchmark=prompts,
        scores=out / "scores.json", benchmark_clips=out / "clips",
    )  # fmt: skip
    return json.loads((out / "scores.json").read_text()), (out / "clips/clips-00000.tar").read_bytes(), summary.tags


def test_evaluation_is_guided_where_asked_and_says_so(candidate, wan_folder, prompts, tmp_path):
    for out in "abcd":
        (tmp_path / out / "work").mkdir(parents=True)
    plain, clips, tags = measured(candidate, prompts, tmp_path / "a")
    assert "guided" not in plain and not tags
    weights = {"semantic": 0.0, "motion": 3.0, "faithfulness": 1.0}
    found, steered, tags = measured(candidate, prompts, tmp_path / "b", evaluate=300.0, weights=weights)
    assert found["guided"] == {"scale": 300.0, "weights": weights} == json.loads(tags["guided"])
    assert steered != clips
    _, others, _ = measured(candidate, prompts, tmp_path / "c", evaluate=300.0)
    assert others != steered, "the user's weights matter"
    # a generator without a reward, as the base is, is sampled and reported without.
    bare, _, tags = measured(wan_folder, prompts, tmp_path / "d", evaluate=300.0)
    assert "guided" not in bare and not tags


def test_candidates_are_guided_where_asked(candidate, prompts, tmp_path):
    made = []
    for name, scale in (("a", 0.0), ("b", 300.0)):
        (tmp_path / name / "work").mkdir(parents=True)
        config, job = config_of(flow_nrg={"generate": scale}), Job("2", 0, tmp_path / name / "work")
        generate(config, job, prompts=prompts, generator=candidate, candidates=tmp_path / name / "candidates")
        made.append((tmp_path / name / "candidates/clips-00000.tar").read_bytes())
    assert made[0] != made[1]


def test_a_larger_scale_raises_the_reward_that_steers(candidate):
    from dualipo.generator.guidance import Steering

    generator = load_generator(candidate)
    reward = load_latent_reward(generator, candidate)
    text, null_text = generator.encode_text(["a red circle"] * 3), generator.encode_text([""])
    ends = []
    for scale in (0.0, 30.0, 300.0):
        guide = Steering(scale).guide(generator, candidate)
        assert (guide is None) == (scale == 0)
        latents = generator.sample(text, null_text, [1, 2, 3], 4, 1.0, SIZE, guide)
        with torch.no_grad():
            ends.append(reward(latents.clone(), torch.zeros(3), text.clone()).mean().item())
    assert ends[0] < ends[1] < ends[2]
