"""The aligning loop against losses written out over own forward passes, finite differences, and resumed runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from models import rotary, write_preferences
from safetensors.torch import load_file

from dualipo.alignment import trainer as module
from dualipo.alignment.dataset import Dataset
from dualipo.alignment.trainer import Encoded, Trainer
from dualipo.config import Align, Config
from dualipo.errors import UserError
from dualipo.generator.base import Generator, load_generator
from dualipo.media.video import encode_clip
from dualipo.records import RealClip, write_rows
from dualipo.steps import Job
from dualipo.steps.align import align, preferred_clips
from dualipo.world.train_generator import TEXT_LENGTH, WIDTH

torch.set_num_threads(1)
SECTION = Align(
    steps=5, batch_size=3, beta=40.0, learning_rate=1e-3, warmup_steps=2, lambda_winner=0.2, lambda_real=0.1
)
PAIRS, REAL = 4, 3


def data_of(kind: str, dtype: torch.dtype = torch.float32) -> Encoded:
    """Eleven clips: winners, losers and real clips, each with a text of its own; 7 texts."""
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(2 * PAIRS + REAL, 3, 12, 8, 8, generator=source).to(dtype)
    text = torch.randn(PAIRS + REAL, TEXT_LENGTH, WIDTH, generator=source).to(dtype)
    rows = torch.tensor([6, 0, 3, 5])
    return Encoded(
        latents,
        text,
        winners=rows,
        losers=torch.tensor([1, 4, 7, 2]) if kind == "dpo" else None,
        pair_text=torch.tensor([2, 0, 3, 1]),
        desirable=None if kind == "dpo" else torch.tensor([True, False, True, False]),
        real=torch.tensor([9, 8, 10]),
        real_text=torch.tensor([4, 6, 5]),
    )


def models(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Generator, Generator]:
    """The generator, and a reference that differs from it a little."""
    generator, reference = load_generator(folder), load_generator(folder)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reference.denoiser.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=source)
    if dtype != torch.float32:
        for model in (generator, reference):
            model.denoiser.to(dtype)
    return generator, reference


def make(folder: Path, kind: str = "dpo", dtype: torch.dtype = torch.float32, **changes) -> Trainer:
    section = SECTION.model_copy(update={"loss": kind, **changes})
    return Trainer(*models(folder, dtype), data_of(kind, dtype), section, seed=5)


class Spy:
    """Notes what the trainer draws: (clean, noise, levels) of every clip, and the rows of `text` they go with."""

    def __init__(self, trainer: Trainer, patch: pytest.MonkeyPatch):
        noised, predict = trainer.generator.noised, trainer.generator.predict
        self.text = torch.empty(0)
        self.drawn: tuple[torch.Tensor, ...] = ()

        def note_noised(*arguments):
            self.drawn = arguments
            return noised(*arguments)

        def note_predict(x, levels, text):
            self.text = text
            return predict(x, levels, text)

        patch.setattr(trainer.generator, "noised", note_noised)
        patch.setattr(trainer.generator, "predict", note_predict)

    def rows(self, everything: torch.Tensor, drawn: torch.Tensor) -> list[int]:
        """Which row of `everything` each drawn one is."""
        return [next(i for i, row in enumerate(everything) if torch.equal(row, one)) for one in drawn]


def errors(trainer: Trainer, spy: Spy) -> tuple[list[float], list[float], list[int]]:
    """Denoising errors of every clip under model and reference, one clip at a time, by diffusers' own scheduler."""
    scheduler = trainer.generator.pipeline.scheduler
    found: tuple[list[float], list[float]] = ([], [])
    for clean, noise, level, text in zip(*spy.drawn, spy.text, strict=True):
        clean, noise, level = clean[None], noise[None], level[None]
        x, v = scheduler.add_noise(clean, noise, level), scheduler.get_velocity(clean, noise, level)
        for values, model in zip(found, (trainer.generator, trainer.reference), strict=True):
            with torch.no_grad():
                prediction = model.denoiser(x, text[None], level, image_rotary_emb=rotary(model.denoiser)).sample
            difference = prediction - v
            values.append(float((difference.double() ** 2).sum() / difference.numel()))
    return *found, spy.drawn[2].tolist()


def omega_by_hand(trainer: Trainer, levels: list[int]) -> list[float]:
    """min(SNR, 5) as a weight on v's error, over its mean."""
    alphas = trainer.generator.pipeline.scheduler.alphas_cumprod.double().numpy()
    snr = alphas / np.maximum(1 - alphas, 1e-300)
    weight = np.minimum(snr, 5) / (snr + 1)
    return list(weight[levels] / weight.mean())


# The loss


@pytest.mark.parametrize("omega", ["constant", "snr"])
def test_dpo_equals_its_formula_over_own_forward_passes(generator_folder, monkeypatch, omega):
    trainer = make(generator_folder, omega=omega)
    spy = Spy(trainer, monkeypatch)
    total, logged = trainer.loss(0)
    model, reference, levels = errors(trainer, spy)
    weights = omega_by_hand(trainer, levels[:3]) if omega == "snr" else [1.0] * 3
    gaps = [after - before for after, before in zip(model, reference, strict=True)]
    arguments = [20.0 * weights[i] * (gaps[i + 3] - gaps[i]) for i in range(3)]
    dpo = sum(math.log(1 + math.exp(-z)) for z in arguments) / 3
    assert max(map(abs, arguments)) > 0.1, "beta is large enough for the check to mean something"
    assert logged["dpo_loss"] == pytest.approx(dpo, rel=1e-4)
    assert logged["nll_winner"] == pytest.approx(sum(model[:3]) / 3, rel=1e-4)
    assert len(model) == 7 and logged["nll_real"] == pytest.approx(model[6], rel=1e-4)
    assert total.item() == pytest.approx(dpo + 0.2 * sum(model[:3]) / 3 + 0.1 * model[6], rel=1e-4)
    assert logged["error_winner"] == pytest.approx(sum(gaps[:3]) / 3, rel=1e-3, abs=1e-5)
    assert logged["error_loser"] == pytest.approx(sum(gaps[3:6]) / 3, rel=1e-3, abs=1e-5)
    assert logged["margin"] == pytest.approx(logged["error_loser"] - logged["error_winner"], abs=1e-6)
    assert logged["implicit_accuracy"] == pytest.approx(sum(z > 0 for z in arguments) / 3)


@pytest.mark.parametrize("omega", ["constant", "snr"])
def test_kto_equals_its_formula_over_own_forward_passes(generator_folder, monkeypatch, omega):
    trainer = make(generator_folder, "kto", omega=omega)
    spy = Spy(trainer, monkeypatch)
    total, logged = trainer.loss(0)
    model, reference, levels = errors(trainer, spy)
    assert len(model) == 3 + 1
    weights = omega_by_hand(trainer, levels[:3]) if omega == "snr" else [1.0] * 3
    # beta times -d: how much likelier each clip has become.
    gains = [40.0 * w * (before - after) for w, before, after in zip(weights, reference, model[:3], strict=False)]
    q_ref = max(0.0, sum(gains) / 3)
    rows = spy.rows(trainer.data.latents, spy.drawn[0])[:3]
    good = {6: True, 0: False, 3: True, 5: False}
    kto = (
        -sum(1 / (1 + math.exp(-(1 if good[row] else -1) * (g - q_ref))) for row, g in zip(rows, gains, strict=True))
        / 3
    )
    assert logged["kto_loss"] == pytest.approx(kto, rel=1e-4)
    assert "nll_winner" not in logged and logged["nll_real"] == pytest.approx(model[3], rel=1e-4)
    assert total.item() == pytest.approx(kto + 0.1 * model[3], rel=1e-4)
    assert logged["kl"] == pytest.approx(q_ref / 40, rel=1e-3, abs=1e-5)
    assert len({good[row] for row in rows}) == 2


def test_terms_without_weight_are_left_out(generator_folder, monkeypatch):
    trainer = make(generator_folder, lambda_real=0.0, lambda_winner=0.0)
    spy = Spy(trainer, monkeypatch)
    total, logged = trainer.loss(0)
    assert len(spy.drawn[0]) == 6 and "nll_real" not in logged
    assert total.item() == pytest.approx(logged["dpo_loss"])


def test_omega_changes_the_loss_and_only_its_preference_term(generator_folder):
    constant, snr = (make(generator_folder, omega=omega).loss(1)[1] for omega in ("constant", "snr"))
    assert constant["dpo_loss"] != pytest.approx(snr["dpo_loss"], rel=1e-3)
    for name in ("nll_winner", "nll_real", "margin", "error_winner"):
        assert constant[name] == snr[name]


# What is drawn


def test_winner_and_loser_share_text_noise_and_level(generator_folder, monkeypatch):
    trainer = make(generator_folder)
    spy, data = Spy(trainer, monkeypatch), trainer.data
    pairs = {int(w): (int(lost), int(t)) for w, lost, t in zip(data.winners, data.losers, data.pair_text, strict=True)}
    real = dict(zip(data.real.tolist(), data.real_text.tolist(), strict=True))
    seen = []
    for step in range(4):
        trainer.loss(step)
        clean, noise, levels = spy.drawn
        rows, texts = spy.rows(data.latents, clean), spy.rows(data.text, spy.text)
        assert len(set(rows[:3])) == 3, "no pair twice in a batch"
        for winner, loser, own, other in zip(rows[:3], rows[3:6], texts[:3], texts[3:6], strict=True):
            assert pairs[winner] == (loser, own) and own == other
        assert torch.equal(noise[:3], noise[3:6]) and torch.equal(levels[:3], levels[3:6])
        assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[6])
        assert real[rows[6]] == texts[6]
        seen.append((rows, levels.tolist()))
    assert len({str(step) for step in seen}) == 4, "every step draws anew"
    assert len({row for rows, _ in seen for row in rows}) > 8
    trainer.loss(0)
    assert (spy.rows(data.latents, spy.drawn[0]), spy.drawn[2].tolist()) == seen[0], "a step always draws the same"


def test_small_sets_fill_a_batch_by_repeating(generator_folder, monkeypatch):
    trainer = make(generator_folder, batch_size=10)
    spy = Spy(trainer, monkeypatch)
    trainer.loss(0)
    rows = spy.rows(trainer.data.latents, spy.drawn[0])
    counts = [rows[:10].count(row) for row in trainer.data.winners.tolist()]
    assert len(rows) == 10 + 10 + 5 and set(counts) == {2, 3}
    assert {rows[20:].count(row) for row in trainer.data.real.tolist()} == {1, 2}


def test_one_clip_may_stand_in_many_pairs(generator_folder):
    """Six pairs of three clips: more pairs than latents."""
    data = data_of("dpo")
    six = Encoded(
        data.latents[:3], data.text, torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([1, 2, 0, 2, 0, 1]),
        torch.zeros(6, dtype=torch.long), None, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long),
    )  # fmt: skip
    total, logged = Trainer(*models(generator_folder), six, SECTION.model_copy(update={"batch_size": 6}), 0).loss(0)
    assert total.isfinite() and "nll_real" not in logged


# Gradients


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_gradients_equal_finite_differences(generator_folder, kind):
    trainer = make(generator_folder, kind, torch.float64, batch_size=2)
    for model in (trainer.generator, trainer.reference):
        # diffusers rotates in float32, which differences of a millionth do not survive.
        model.denoiser.register_to_config(use_rotary_positional_embeddings=False)
    names = ("patch_embed.proj.weight", "transformer_blocks.1.attn1.to_q.weight", "time_embedding.linear_1.bias",
             "norm_out.linear.weight", "proj_out.weight")  # fmt: skip
    parameters = dict(trainer.denoiser.named_parameters())
    trainer.loss(0)[0].backward()

    def value() -> float:
        # Q_ref is a constant of the step: the loss may move through it, the gradient may not.
        with torch.no_grad():
            return trainer.loss(0)[0].item()

    if kind == "kto":
        compute = module.diffusion_kto_loss
        held = {}

        def constant(error, reference, desirable, beta, q_ref=None, omega=None):
            if not held:
                held["q"] = beta * max(0.0, float((reference - error).mean()))
            return compute(error, reference, desirable, beta, q_ref=held["q"], omega=omega)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "diffusion_kto_loss", constant)
            value()
            _compare(parameters, names, value)
        assert held["q"] > 0, "the check is worth more where Q_ref is not clamped"
    else:
        _compare(parameters, names, value)


def _compare(parameters, names, value, step: float = 1e-5) -> None:
    for name in names:
        parameter = parameters[name]
        index = int(parameter.grad.abs().argmax())
        flat = parameter.data.view(-1)
        before = flat[index].item()
        values = []
        for sign in (1, -1):
            flat[index] = before + sign * step
            values.append(value())
        flat[index] = before
        found = parameter.grad.view(-1)[index].item()
        # The timestep's embedding is float32 by construction, hence no tighter.
        assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-8), name
        assert abs(found) > 1e-6, name


# The loop


def weights(model: Generator) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.denoiser.state_dict().items()}


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_killed_training_equals_an_unbroken_one(generator_folder, tmp_path, monkeypatch, kind):
    whole = make(generator_folder, kind, checkpoint_every=2)
    series = whole.train(tmp_path / "whole").series
    broken = make(generator_folder, kind, checkpoint_every=2)
    compute, steps = broken.begin, []

    def killed(step):
        steps.append(step)
        if step == 3:
            raise KeyboardInterrupt
        return compute(step)

    monkeypatch.setattr(broken, "begin", killed)
    with pytest.raises(KeyboardInterrupt):
        broken.train(tmp_path / "broken")
    resumed = make(generator_folder, kind, checkpoint_every=2)
    compute_again = resumed.begin
    monkeypatch.setattr(resumed, "begin", lambda step: steps.append(step) or compute_again(step))
    assert resumed.train(tmp_path / "broken").series == series
    assert steps == [0, 1, 2, 3, 2, 3, 4]
    first, second = weights(whole.generator), weights(resumed.generator)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], weights(models(generator_folder)[0])[name]) for name in first)


def test_the_curves_hold_every_step_and_the_warm_up(generator_folder, tmp_path):
    series = make(generator_folder).train(tmp_path).series
    names = "loss dpo_loss implicit_accuracy margin error_winner error_loser nll_winner nll_real kl grad_norm"
    assert set(series) == {*names.split(), "learning_rate"}
    assert all([step for step, _ in points] == [1, 2, 3, 4, 5] for points in series.values())
    assert [rate for _, rate in series["learning_rate"]] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    for index in range(5):
        parts = {name: points[index][1] for name, points in series.items()}
        total = parts["dpo_loss"] + 0.2 * parts["nll_winner"] + 0.1 * parts["nll_real"]
        assert parts["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("kind", "beta"), [("dpo", 400.0), ("kto", 40.0)])
def test_the_loss_falls_on_a_repeated_batch_and_the_reference_stays(
    generator_folder, tmp_path, monkeypatch, kind, beta
):
    monkeypatch.setattr(module, "derive_seed", lambda *names: 0)
    trainer = make(generator_folder, kind, steps=8, lambda_real=0.0, lambda_winner=0.0, beta=beta, learning_rate=3e-4)
    before = weights(trainer.reference)
    series = trainer.train(tmp_path).series
    losses = [value for _, value in series["loss"]]
    assert losses[-1] < losses[0] - 0.05
    assert series["margin"][-1][1] > series["margin"][0][1]
    after = weights(trainer.reference)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in trainer.reference.denoiser.parameters())
    assert not any(p.requires_grad for p in trainer.denoiser.parameters()), "frozen again once trained"


# The step


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return write_preferences(tmp_path_factory.mktemp("align"))


def test_the_step_pairs_clips_with_their_texts(generator_folder, folders, tmp_path):
    from dualipo.media.store import ClipStore
    from dualipo.media.video import decode_clip

    model, store = load_generator(generator_folder), ClipStore(folders["candidates"])

    def latent(clip: np.ndarray) -> torch.Tensor:
        return model.encode_clips(clip[None])[0]

    def same(rows: torch.Tensor, expected: list[torch.Tensor]) -> None:
        torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-3, atol=1e-3)

    dataset = Dataset(model, folders["candidates"], folders["real"], tmp_path)
    dpo = preferred_clips(dataset, "dpo", folders["full"])
    same(dpo.latents[dpo.winners], [latent(store[name]) for name in ("p0-2", "p1-1")])
    same(dpo.latents[dpo.losers], [latent(store[name]) for name in ("p0-0", "p1-2")])
    same(dpo.text[dpo.pair_text], list(model.encode_text(["a red circle", "a pillar"])))
    same(dpo.latents[dpo.real], [latent(decode_clip(folders["real"] / "clips" / f"{n}.mp4")) for n in ("u", "v")])
    same(dpo.text[dpo.real_text], list(model.encode_text(["a u", "a v"])))
    assert dpo.desirable is None and len(dpo.latents) == 6, "dropped clips are not encoded"
    kto = preferred_clips(dataset, "kto", folders["full"])
    same(kto.latents[kto.winners], [latent(store[f"p{i}-{k}"]) for i in (0, 1) for k in range(3)])
    assert kto.losers is None and kto.desirable.tolist() == [True, False, True] * 2


@pytest.mark.parametrize("reference", ["previous", "base"])
def test_the_step_trains_against_the_reference_asked_for(generator_folder, folders, tmp_path, monkeypatch, reference):
    from diffusers import CogVideoXPipeline

    opened = []
    monkeypatch.setattr(
        "dualipo.generator.base.load_generator", lambda path: opened.append(path) or load_generator(path)
    )
    base = tmp_path / "base"
    base.symlink_to(generator_folder)
    config = Config(align=SECTION.model_copy(update={"steps": 1, "reference": reference}))
    out = {"candidate": tmp_path / "candidate", "curves": tmp_path / "curves.csv"}
    summary = align(
        config, Job("1", 0, tmp_path / "work"), preferences=folders["full"], candidates=folders["candidates"],
        held_out=folders["held_out"],
        real_clips=folders["real"], generator=generator_folder, base_generator=base, **out,
    )  # fmt: skip
    assert opened == [generator_folder, base if reference == "base" else generator_folder]
    assert summary.metrics["preferences"] == 2 and summary.metrics["dpo_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert out["curves"].read_text().startswith("step,") and len(out["curves"].read_text().splitlines()) == 2
    trained, before = (
        load_file(f / "transformer/diffusion_pytorch_model.safetensors") for f in (out["candidate"], base)
    )
    assert any(not torch.equal(trained[name], before[name]) for name in trained)
    assert type(CogVideoXPipeline.from_pretrained(out["candidate"])).__name__ == "CogVideoXPipeline"


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_without_preferences_the_incumbents_weights_go_on(generator_folder, folders, tmp_path, kind):
    out = {"candidate": tmp_path / "candidate", "curves": tmp_path / "curves.csv"}
    summary = align(
        Config(align=SECTION.model_copy(update={"loss": kind})), Job("1", 0, tmp_path / "work"),
        preferences=folders["empty"], candidates=folders["candidates"],
        held_out=folders["held_out"], real_clips=folders["real"],
        generator=generator_folder, base_generator=generator_folder, **out,
    )  # fmt: skip
    assert summary.metrics == {"preferences": 0.0}
    for path in generator_folder.rglob("*.safetensors"):
        found, expected = load_file(out["candidate"] / path.relative_to(generator_folder)), load_file(path)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert out["curves"].read_text() == "step,loss\n"


def test_clips_of_a_size_that_the_generator_cannot_make_are_refused(generator_folder, folders, tmp_path):
    real = tmp_path / "real"
    (real / "clips").mkdir(parents=True)
    (real / "clips" / "wide.mp4").write_bytes(encode_clip(np.zeros((9, 32, 48, 3), np.uint8)))
    write_rows(real / "captions.jsonl", [RealClip(clip="clips/wide.mp4", prompt="a pillar")])
    with pytest.raises(UserError, match=r"^real/clips/wide.mp4: size \[9, 32, 48\]: this generator has learnt"):
        dataset = Dataset(load_generator(generator_folder), folders["candidates"], real, tmp_path)
        preferred_clips(dataset, "dpo", folders["full"])
