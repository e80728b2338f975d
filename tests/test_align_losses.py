"""Every loss through the one loop, on a diffusion and on a flow model, and low-rank adapters in it."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import torch
from models import write_preferences
from safetensors import safe_open
from safetensors.torch import load_file

from dualipo.alignment import adapter
from dualipo.alignment.dataset import Dataset
from dualipo.alignment.trainer import REFERRED, Encoded, Trainer
from dualipo.config import Align, Config, load_config
from dualipo.errors import UserError
from dualipo.generator.base import Generator, load_generator
from dualipo.steps import Job
from dualipo.steps.align import align, preferred_clips
from dualipo.world.train_generator import TEXT_LENGTH, WIDTH

torch.set_num_threads(1)
SECTION = Align(steps=3, batch_size=3, beta=40.0, learning_rate=1e-3, warmup_steps=1, checkpoint_every=1)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
REWARDS = torch.tensor([1.5, -0.5, 0.25, 9.0])


def data_of(kind: str, latent: tuple[int, ...], width: int) -> Encoded:
    """Eleven clips: winners, losers and real clips, each with a text of its own; 7 texts."""
    source = torch.Generator().manual_seed(0)
    return Encoded(
        torch.randn(11, *latent, generator=source),
        torch.randn(7, TEXT_LENGTH, width, generator=source),
        winners=torch.tensor([6, 0, 3, 5]),
        losers=torch.tensor([1, 4, 7, 2]) if kind in ("dpo", "flow_dpo") else None,
        pair_text=torch.tensor([2, 0, 3, 1]),
        desirable=torch.tensor([True, False, True, False]) if kind == "kto" else None,
        real=torch.tensor([9, 8, 10]),
        real_text=torch.tensor([4, 6, 5]),
        rewards=REWARDS if kind == "rwr" else None,
    )


def moved(folder: Path) -> Generator:
    """A reference that differs a little."""
    reference, source = load_generator(folder), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reference.denoiser.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=source)
    return reference


def make(folder: Path, kind: str, **changes) -> Trainer:
    generator = load_generator(folder)
    section = SECTION.model_copy(update={"loss": kind, **changes})
    reference = moved(folder) if kind in REFERRED and section.lora is None else None
    shape = generator.latent_shape(None) if not generator.flow else (16, 3, 4, 4)
    return Trainer(generator, reference, data_of(kind, shape, 32 if generator.flow else WIDTH), section, seed=5)


@pytest.fixture(params=["wan", "generator"])
def folder(request) -> Path:
    return request.getfixturevalue(f"{request.param}_folder")


def drawn(trainer: Trainer, patch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Filled by the next loss: clean clips, noise, levels and texts."""
    found: dict[str, torch.Tensor] = {}
    noised, predict = trainer.generator.noised, trainer.generator.predict
    patch.setattr(
        trainer.generator,
        "noised",
        lambda clean, noise, levels: (
            found.update(clean=clean, noise=noise, levels=levels) or noised(clean, noise, levels)
        ),
    )
    patch.setattr(
        trainer.generator,
        "predict",
        lambda x, levels, text: found.setdefault("text", text) is None or predict(x, levels, text),
    )
    return found


def wan_errors(model: Generator, found: dict[str, torch.Tensor]) -> list[float]:
    """Velocity errors of every clip, one at a time, by Wan's transformer itself."""
    errors = []
    for clean, noise, level, text in zip(*(found[key] for key in ("clean", "noise", "levels", "text")), strict=True):
        t = level / 1000
        with torch.no_grad():
            x = (1 - t) * clean[None] + t * noise[None]
            guess = model.denoiser(hidden_states=x, timestep=level[None], encoder_hidden_states=text[None]).sample
        errors.append(float((guess - (noise - clean)[None]).double().square().mean()))
    return errors


# The losses


@pytest.mark.parametrize("omega", ["constant", "derived"])
def test_flow_dpo_equals_its_formula_over_own_forward_passes(wan_folder, monkeypatch, omega):
    trainer = make(wan_folder, "flow_dpo", omega=omega)
    found = drawn(trainer, monkeypatch)
    total, logged = trainer.loss(0)
    model, reference = (wan_errors(each, found) for each in (trainer.generator, trainer.reference))
    assert len(model) == 3 + 3 + 1
    times = [level / 1000 for level in found["levels"][:3].tolist()]
    betas = [40 * (1 - t) ** 2 if omega == "derived" else 40.0 for t in times]
    gaps = [after - before for after, before in zip(model, reference, strict=True)]
    arguments = [beta / 2 * (gaps[i + 3] - gaps[i]) for i, beta in enumerate(betas)]
    assert max(map(abs, arguments)) > 1e-3, "the check means something"
    expected = sum(math.log1p(math.exp(-z)) for z in arguments) / 3
    assert logged["flow_dpo_loss"] == pytest.approx(expected, rel=1e-4)
    nll = sum(model[:3]) / 3
    assert total.item() == pytest.approx(expected + 0.2 * nll + 0.1 * model[6], rel=1e-4)
    assert logged["margin"] == pytest.approx(sum(gaps[3:6]) / 3 - sum(gaps[:3]) / 3, rel=1e-2, abs=1e-5)
    assert torch.equal(found["levels"][:3], found["levels"][3:6]) and torch.equal(
        found["noise"][:3], found["noise"][3:6]
    )


def test_rwr_and_sft_equal_their_formulas_over_own_forward_passes(wan_folder, monkeypatch):
    for kind in ("rwr", "sft"):
        with monkeypatch.context() as patch:
            trainer = make(wan_folder, kind)
            found = drawn(trainer, patch)
            total, logged = trainer.loss(0)
            errors = wan_errors(trainer.generator, found)
        assert len(errors) == 3 + 1 and "nll_winner" not in logged
        rows = [
            next(i for i, x in enumerate(trainer.data.latents) if torch.equal(x, one)) for one in found["clean"][:3]
        ]
        rewards = dict(zip([6, 0, 3, 5], REWARDS.tolist(), strict=True))
        weights = [math.exp(min(rewards[row], 3.0)) if kind == "rwr" else 1.0 for row in rows]
        expected = sum(weight * error for weight, error in zip(weights, errors[:3], strict=True)) / 3
        assert logged[f"{kind}_loss"] == pytest.approx(expected, rel=1e-4)
        assert logged["nll_real"] == pytest.approx(errors[3], rel=1e-4)
        assert total.item() == pytest.approx(expected + 0.1 * errors[3], rel=1e-4)
        assert ("effective_share" in logged) == (kind == "rwr") and "implicit_accuracy" not in logged


def test_dpo_on_a_flow_is_flow_dpo_with_constant_beta(wan_folder):
    first, second = (make(wan_folder, kind).loss(0)[0].item() for kind in ("dpo", "flow_dpo"))
    assert first == second
    snr = make(wan_folder, "dpo", omega="snr").loss(0)[0].item()
    assert snr != pytest.approx(first, rel=1e-5)


def test_flow_dpo_of_a_diffusion_model_is_refused(generator_folder):
    with pytest.raises(UserError, match="flow_dpo needs a rectified-flow generator, CogVideoX is none; use dpo"):
        make(generator_folder, "flow_dpo")


def test_a_reference_is_given_only_where_it_is_needed(generator_folder):
    trainer = make(generator_folder, "sft")
    with pytest.raises(ValueError, match="reference"):
        Trainer(trainer.generator, moved(generator_folder), trainer.data, trainer.section, 0)


@pytest.mark.parametrize(
    ("loss", "omega"), [("flow_dpo", "snr"), ("dpo", "derived"), ("rwr", "snr"), ("sft", "derived")]
)
def test_an_omega_that_does_not_fit_the_loss_is_refused(loss, omega):
    with pytest.raises(UserError, match=f"align: omega {omega} goes with loss .*; use omega: constant"):
        load_config(overrides={"align.loss": loss, "align.omega": omega})


# Adapters


def stir(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Gives the adapter an effect; returns base weights plus 2 B A, by the base's own names."""
    source = torch.Generator().manual_seed(8)
    parameters = dict(trainer.denoiser.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=source))
    merged = {}
    for name, value in trainer.denoiser.state_dict().items():
        if ".lora_" in name:
            continue
        plain, value = name.replace(".base_layer", ""), value.clone()
        a, b = (parameters.get(plain.replace(".weight", f".lora_{side}.default.weight")) for side in "AB")
        merged[plain] = value if a is None or not plain.endswith(".weight") else value + 2 * (b @ a).detach()
    return merged


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_with_an_adapter_the_loss_is_that_of_the_merged_model_against_the_base(folder, kind):
    trainer = make(folder, kind, lora=4)
    merged = stir(trainer)
    total, logged = trainer.loss(0)
    whole = load_generator(folder)
    before = {name: value.clone() for name, value in whole.denoiser.state_dict().items()}
    assert sum(not torch.equal(merged[name], before[name]) for name in before) >= 8
    whole.denoiser.load_state_dict(merged)
    section = trainer.section.model_copy(update={"lora": None})
    expected, other = Trainer(whole, load_generator(folder), trainer.data, section, seed=5).loss(0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert abs(logged["margin"]) > 1e-5 and logged.keys() == other.keys()
    for name in logged:
        assert logged[name] == pytest.approx(other[name], rel=1e-2, abs=1e-5), name


def test_the_reference_is_the_base_model_and_no_second_copy_is_held(folder):
    base = load_generator(folder)
    kind = type(base.denoiser)
    gc.collect()
    held = sum(isinstance(thing, kind) for thing in gc.get_objects())
    trainer = make(folder, "dpo", lora=4)
    stir(trainer)
    assert sum(isinstance(thing, kind) for thing in gc.get_objects()) == held + 1 and trainer.reference is None
    count = sum(p.numel() for p in base.denoiser.parameters())
    trained = sum(p.numel() for p in trainer.trained.parameters() if p.requires_grad)
    assert sum(p.numel() for p in trainer.denoiser.parameters()) == count + trained and trained < count / 4
    assert all(".lora_" in name for name, p in trainer.denoiser.named_parameters() if p.requires_grad)
    x, text = trainer.data.latents[:2], trainer.data.text[:2]
    levels = torch.tensor([300, 800])
    with torch.no_grad():
        expected = base.predict(x, levels, text)
        with trainer._as_reference() as reference:
            assert torch.equal(reference.predict(x, levels, text), expected)
        assert trainer.denoiser.training
        assert (trainer.generator.predict(x, levels, text) - expected).abs().max() > 1e-3, "switched on again"


def test_a_fresh_adapter_changes_nothing(folder):
    _, logged = make(folder, "dpo", lora=4).loss(0)
    assert logged["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert logged["margin"] == pytest.approx(0, abs=1e-6)


def test_training_an_adapter_moves_its_targets_alone_and_leaves_a_plain_model(folder, tmp_path):
    import diffusers

    trainer = make(folder, "dpo", lora=4)
    before = {name: value.clone() for name, value in load_generator(folder).denoiser.state_dict().items()}
    trainer.train(tmp_path / "work")
    after = trainer.denoiser.state_dict()
    assert after.keys() == before.keys()
    for name, value in after.items():
        a, b = (trainer.adapter.get(name.replace(".weight", f".lora_{side}.default.weight")) for side in "AB")
        if name.endswith(".weight") and a is not None:
            assert b.abs().max() > 0 and a.shape[0] == 4
            torch.testing.assert_close(value, before[name] + 2 * (b @ a), rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in trainer.denoiser.parameters())
    trainer.generator.save(tmp_path / "saved")
    opened = getattr(diffusers, trainer.generator.pipeline_class).from_pretrained(tmp_path / "saved")
    stored = opened.transformer.state_dict()
    assert stored.keys() == after.keys() and all(torch.equal(stored[name], after[name]) for name in after)


@pytest.mark.parametrize(("kind", "lora"), [("flow_dpo", None), ("dpo", 4), ("rwr", 4), ("sft", None)])
def test_a_killed_training_equals_an_unbroken_one(wan_folder, tmp_path, monkeypatch, kind, lora):
    whole = make(wan_folder, kind, lora=lora)
    series = whole.train(tmp_path / "whole").series
    broken = make(wan_folder, kind, lora=lora)
    compute = broken.begin

    def killed(step):
        if step == 2:
            raise KeyboardInterrupt
        return compute(step)

    monkeypatch.setattr(broken, "begin", killed)
    with pytest.raises(KeyboardInterrupt):
        broken.train(tmp_path / "broken")
    if lora:
        with safe_open(tmp_path / "broken" / "training_state.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.startswith("model/")]  # noqa: SIM118 (not a dict)
        assert names and all(".lora_" in name for name in names), "the frozen weights are not stored again"
    resumed = make(wan_folder, kind, lora=lora)
    assert resumed.train(tmp_path / "broken").series == series
    first, second = whole.denoiser.state_dict(), resumed.denoiser.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_denoiser_without_the_projections_is_named(generator_folder):
    trainer = make(generator_folder, "sft")
    for module in trainer.denoiser.modules():
        for name in ("to_q", "to_k", "to_v", "to_out"):
            if hasattr(module, name):
                delattr(module, name)
    with pytest.raises(UserError, match=r"no adapter for CogVideoXTransformer3DModel .*; use lora: null"):
        adapter.attach(trainer.denoiser, 4, 0)


# The step


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return write_preferences(tmp_path_factory.mktemp("align"))


def run(folders, generator: Path, base: Path, out: Path, preferences: str = "full", **changes):
    section = SECTION.model_copy(update={"steps": 1, "learning_rate": 1e-2, **changes})
    return align(
        Config(align=section), Job("1", 0, out / "work"), preferences=folders[preferences],
        candidates=folders["candidates"],
        held_out=folders["held_out"], real_clips=folders["real"], generator=generator, base_generator=base,
        candidate=out / "candidate", curves=out / "curves.csv",
    )  # fmt: skip


def test_the_step_hands_each_loss_its_clips(wan_folder, folders, tmp_path):
    model = load_generator(wan_folder)

    def encoded(loss: str) -> Encoded:
        dataset = Dataset(model, folders["candidates"], folders["real"], tmp_path)
        return preferred_clips(dataset, loss, folders["full"])

    pairs, chosen, scored = (encoded(loss) for loss in ("flow_dpo", "sft", "rwr"))
    torch.testing.assert_close(pairs.latents[pairs.winners], chosen.latents[chosen.winners], rtol=1e-3, atol=1e-3)
    assert pairs.losers is not None and pairs.rewards is None and chosen.losers is None and chosen.rewards is None
    assert len(chosen.latents) == 2 + 2 and len(scored.winners) == 6 and scored.losers is None
    deviation = math.sqrt(((0.5 - 0.5) ** 2 + 0.3**2 + 0.3**2) / 3)
    assert scored.rewards.tolist() == pytest.approx([0, -0.3 / deviation, 0.3 / deviation] * 2, abs=1e-5)


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize(
    ("name", "loss"),
    [("wan", "flow_dpo"), *((name, loss) for name in ("wan", "generator") for loss in ("dpo", "kto", "rwr", "sft"))],
)
def test_each_loss_makes_a_folder_that_plain_diffusers_samples_from(request, folders, tmp_path, name, loss, lora):
    import diffusers

    folder = request.getfixturevalue(f"{name}_folder")
    summary = run(folders, folder, folder, tmp_path, loss=loss, lora=lora)
    assert math.isfinite(summary.metrics["loss"]) and f"{loss}_loss" in summary.metrics
    first, second = load_file(folder / WEIGHTS), load_file(tmp_path / "candidate" / WEIGHTS)
    assert first.keys() == second.keys() and any(not torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "candidate" / "adapter").exists()
    kind = {"wan": "WanPipeline", "generator": "CogVideoXPipeline"}[name]
    opened = getattr(diffusers, kind).from_pretrained(tmp_path / "candidate")
    opened.set_progress_bar_config(disable=True)
    frames = opened(
        "a red circle", height=32, width=32, num_frames=9, num_inference_steps=1, max_sequence_length=TEXT_LENGTH,
        output_type="np",
    ).frames  # fmt: skip
    assert frames.shape == (1, 9, 32, 32, 3)


def test_losses_without_a_reference_and_adapters_open_one_model(wan_folder, folders, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "dualipo.generator.base.load_generator", lambda path: opened.append(path) or load_generator(path)
    )
    run(folders, wan_folder, wan_folder, tmp_path / "sft", loss="sft")
    run(folders, wan_folder, wan_folder, tmp_path / "lora", loss="dpo", lora=2)
    assert opened == [wan_folder] * 2


def test_one_adapter_trained_on_over_rounds_keeps_the_base_as_its_reference(wan_folder, folders, tmp_path):
    how = {"loss": "dpo", "lora": 2, "reference": "base"}
    first = run(folders, wan_folder, wan_folder, tmp_path / "1", **how)
    champion = tmp_path / "1" / "candidate"
    assert first.metrics["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)
    second = run(folders, champion, wan_folder, tmp_path / "2", **how)
    assert second.metrics["dpo_loss"] != pytest.approx(math.log(2), abs=1e-4), "the reference is the base, not this one"
    fresh = run(folders, champion, wan_folder, tmp_path / "3", **{**how, "reference": "previous"})
    assert fresh.metrics["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)
    base, merged = load_file(wan_folder / WEIGHTS), load_file(tmp_path / "2" / "candidate" / WEIGHTS)
    stored = load_file(tmp_path / "2" / "candidate" / adapter.FILE)
    for name, value in merged.items():
        a, b = (stored.get(name.replace(".weight", f".lora_{side}.default.weight")) for side in "AB")
        if a is not None and name.endswith(".weight"):
            value = value - 2 * (b @ a)
        torch.testing.assert_close(value, base[name], rtol=1e-5, atol=1e-6)
    # A round without preferences hands the adapter on with the weights.
    run(folders, champion, wan_folder, tmp_path / "4", "empty", **how)
    again = run(folders, tmp_path / "4" / "candidate", wan_folder, tmp_path / "5", **how)
    assert again.metrics["dpo_loss"] == second.metrics["dpo_loss"]


def test_an_adapter_that_does_not_stand_on_the_base_is_refused(wan_folder, folders, tmp_path):
    how = {"loss": "dpo", "lora": 2, "reference": "base"}
    run(folders, wan_folder, wan_folder, tmp_path / "1", **{**how, "reference": "previous"})
    trained = tmp_path / "1" / "candidate"
    with pytest.raises(UserError, match=r"neither the base model nor .*; use align\.reference: previous"):
        run(folders, trained, wan_folder, tmp_path / "2", **how)
    run(folders, wan_folder, wan_folder, tmp_path / "3", **how)
    champion = tmp_path / "3" / "candidate"
    with pytest.raises(UserError, match="an adapter of another base model"):
        run(folders, champion, trained, tmp_path / "4", **how)
    with pytest.raises(UserError, match=r"an adapter of another rank; keep align\.lora as it was"):
        run(folders, champion, wan_folder, tmp_path / "5", **{**how, "lora": 3})
    (champion / adapter.FILE).write_bytes(b"half an adapter")
    with pytest.raises(UserError, match="not a readable adapter"):
        run(folders, champion, wan_folder, tmp_path / "6", **how)
