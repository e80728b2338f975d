"""The training loop on one process: each thing against a value worked out by hand, and trainings that are cut short."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_trainer import SECTION, data_of, make, models, weights

from dualipo.alignment.encoding import Shards, encode_clips, shapes
from dualipo.alignment.trainer import Encoded, Trainer, draw_noise
from dualipo.config import Training
from dualipo.errors import Terminated, UserError
from dualipo.generator.base import load_generator
from dualipo.training.average import Average
from dualipo.training.divergence import diverging
from dualipo.training.loop import train
from dualipo.training.ranks import Part, micro_batches, parts
from dualipo.training.schedule import Schedule, stable
from dualipo.training.task import Recipe, Task

torch.set_num_threads(1)


class Line(Task):
    """Fits w in y = w x by a loss that can be worked out by hand; `at` does things at a step."""

    title = "a line"

    def __init__(self, at=None, dtype: torch.dtype = torch.float32):
        self.model = torch.nn.Linear(1, 1, bias=False).to(dtype)
        torch.nn.init.constant_(self.model.weight, 1.0)
        self.at = at or (lambda step: {})

    @property
    def trained(self) -> torch.nn.Module:
        return self.model

    def begin(self, step: int):
        self.step, self.value = step, 0.0
        return [self.part]

    def part(self) -> torch.Tensor:
        loss = (self.model.weight.float() * self.at(self.step).get("scale", 1.0)).sum()
        self.value = loss.item()
        return loss

    def finish(self) -> dict[str, float]:
        return {**{k: v for k, v in self.at(self.step).items() if k != "scale"}, "loss": self.value}

    @property
    def weight(self) -> float:
        return self.model.weight.item()


def recipe(steps: int = 3, rate: float = 0.1, warmup: int = 0, every: int = 100, **training) -> Recipe:
    return Recipe(steps, rate, warmup, math.inf, every, training=Training(**training))


# Schedule


def test_the_rate_warms_up_and_is_raised_by_a_ramp(tmp_path):
    schedule = Schedule(rate=2e-6, warmup=4, raised=2e-5, after=10)
    assert [schedule.at(step, None) for step in range(5)] == pytest.approx([5e-7, 1e-6, 1.5e-6, 2e-6, 2e-6])
    assert schedule.raise_at(9, {"loss": []}) is None and schedule.raise_at(10, {"loss": []}) == 10
    raised = [schedule.at(step, 10) for step in (9, 10, 11, 12, 13, 50)]
    assert raised == pytest.approx([2e-6, 6.5e-6, 1.1e-5, 1.55e-5, 2e-5, 2e-5])
    assert Schedule(2e-6, 0).at(0, None) == 2e-6
    result = train(Line(), recipe(6, 0.1, 2, raised_learning_rate=0.5, raise_after=3), tmp_path)
    assert [rate for _, rate in result.series["learning_rate"]] == pytest.approx([0.05, 0.1, 0.1, 0.3, 0.5, 0.5])


def test_stable_means_that_two_windows_differ_less_than_they_vary():
    # means 2 and 2.5, variances 1 and 1: 0.5 <= 1; means 2 and 3.5: 1.5 > 1.
    assert stable([1, 3, 1.5, 3.5], window=2) and not stable([1, 3, 2.5, 4.5], window=2)
    assert not stable([1, 3, 1], window=2), "not before both windows are full"
    schedule = Schedule(1.0, warmup=3, raised=2.0)
    noisy = [9.0, 9.0, 9.0] + [float(step % 2) for step in range(40)]
    points = [(step + 1, value) for step, value in enumerate(noisy)]
    assert schedule.raise_at(42, {"loss": points[:42]}) is None, "steps of the warm-up do not count"
    assert schedule.raise_at(43, {"loss": points}) == 43
    falling = [(step + 1, -float(step)) for step in range(60)]
    assert schedule.raise_at(60, {"loss": falling}) is None


def test_a_measured_raise_is_the_same_after_a_kill(tmp_path):
    def noise(step: int) -> dict[str, float]:
        return {"scale": 1.0 + (step % 2)}

    options = {"steps": 60, "rate": 1e-3, "raised_learning_rate": 1e-2, "every": 45}
    whole = train(Line(noise), recipe(**options), tmp_path / "whole")
    rates = [rate for _, rate in whole.series["learning_rate"]]
    first = next(step for step, rate in enumerate(rates) if rate != 1e-3)
    assert first == 40 and rates[-1] == pytest.approx(1e-2)

    def killed(step: int) -> dict[str, float]:
        if step == 50:
            raise KeyboardInterrupt
        return noise(step)

    with pytest.raises(KeyboardInterrupt):
        train(Line(killed), recipe(**options), tmp_path / "broken")
    assert train(Line(noise), recipe(**options), tmp_path / "broken").series == whole.series


# Average


def test_the_average_by_hand(tmp_path):
    values = [torch.tensor([1.0])]
    average = Average(values, 0.15)
    expected = 1.0
    for step, weight in enumerate((2.0, 4.0, 8.0), start=1):
        values[0].fill_(weight)
        average.update(step)
        decay = min(0.15, step / (step + 9))  # 0.1, then 0.15 where 2/11 would be more
        expected = decay * expected + (1 - decay) * weight
    assert average.values[0].item() == pytest.approx(expected)
    # Adam's steps on a constant gradient are the rate: 1, 0.9, 0.8, 0.7.
    task = Line()
    train(task, recipe(3, ema_decay=0.15), tmp_path)
    by_hand = 1.0
    for decay, weight in ((0.1, 0.9), (0.15, 0.8), (0.15, 0.7)):
        by_hand = decay * by_hand + (1 - decay) * weight
    assert task.weight == pytest.approx(by_hand, abs=1e-5)


def test_a_resumed_average_equals_an_unbroken_one(generator_folder, tmp_path):
    training = Training(ema_decay=0.9)
    whole = make(generator_folder, checkpoint_every=2, training=training)
    whole.train(tmp_path / "whole")
    broken = make(generator_folder, checkpoint_every=2, training=training)
    begin = broken.begin

    def killed(step):
        if step == 3:
            raise KeyboardInterrupt
        return begin(step)

    broken.begin = killed
    with pytest.raises(KeyboardInterrupt):
        broken.train(tmp_path / "broken")
    resumed = make(generator_folder, checkpoint_every=2, training=training)
    resumed.train(tmp_path / "broken")
    plain = make(generator_folder, checkpoint_every=2)
    plain.train(tmp_path / "plain")
    first, second, third = weights(whole.generator), weights(resumed.generator), weights(plain.generator)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


# Accumulation


def gradients(trainer: Trainer, step: int = 0) -> tuple[list[torch.Tensor], dict[str, float]]:
    with torch.no_grad():
        computed = trainer.begin(step)
    for part in computed:
        part().backward()
    return [p.grad for p in trainer.trained.parameters() if p.requires_grad], trainer.finish()


@pytest.mark.parametrize("kind", ["dpo", "kto"])
@pytest.mark.parametrize("micro", [1, 2])
def test_accumulated_gradients_are_those_of_the_batch(generator_folder, kind, micro):
    """Three examples in parts of 1 or 2, KTO's Q_ref over all of them; real clips are shared out as well."""
    changes = {"lambda_real": 0.5, "omega": "snr"}
    whole, logged = gradients(make(generator_folder, kind, **changes))
    shared = make(generator_folder, kind, **changes, training=Training(micro_batch_size=micro))
    with torch.no_grad():
        assert len(shared.begin(0)) == math.ceil(3 / micro)
    accumulated, same = gradients(shared)
    if kind == "kto":
        assert logged["kl"] > 0, "the check is worth more where Q_ref is not clamped"
    largest = max(float(gradient.abs().max()) for gradient in whole)
    for first, second in zip(whole, accumulated, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5 * largest)
    assert logged.keys() == same.keys()
    for name in logged:
        assert logged[name] == pytest.approx(same[name], rel=1e-4, abs=1e-6), name


def test_q_refs_pass_leaves_the_references_errors_for_the_next(generator_folder, monkeypatch):
    trainer = make(generator_folder, "kto", training=Training(micro_batch_size=1))
    calls, predict = [], trainer.reference.predict
    monkeypatch.setattr(trainer.reference, "predict", lambda x, *rest: calls.append(len(x)) or predict(x, *rest))
    for step in range(2):
        trainer.loss(step)
    assert calls == [1] * 6, "each of three clips went through the reference once a step"


def test_parts_cover_a_batch_once_and_weigh_it_by_hand():
    assert parts(5, 1) == [Part(0, 5, 1.0)]
    assert parts(5, 2) == [Part(0, 2, 2 / 5), Part(2, 5, 3 / 5)]
    assert [p.rows for p in parts(1, 3)] == [slice(0, 1)], "on one process empty parts are left out"
    assert micro_batches(10, 4) == 3 and micro_batches(10, None) == 1


def test_noise_drawn_clip_by_clip_is_that_drawn_at_once():
    for shape in ((3, 4, 8), (3, 5)):
        source, again = (torch.Generator().manual_seed(1) for _ in range(2))
        whole = torch.randn((5, *shape), generator=source)
        own = [Part(1, 2, 0.2), Part(3, 5, 0.4)]
        first, second = draw_noise(5, shape, own, again)
        assert torch.equal(first, whole[1:2]) and torch.equal(second, whole[3:5])
        after, expected = torch.randn(3, generator=again), torch.randn(3, generator=source)
        assert torch.equal(after, expected), "the stream goes on as if all had been kept"


# Memory


@pytest.mark.parametrize("name", ["generator_folder", "wan_folder"])
def test_checkpointed_gradients_are_the_same(request, name):
    from test_align_losses import make as make_any

    folder = request.getfixturevalue(name)
    plain, recomputed = make_any(folder, "dpo"), make_any(folder, "dpo")
    recomputed.denoiser.enable_gradient_checkpointing()
    blocks = []
    for module in recomputed.denoiser.modules():
        if "block" in type(module).__name__.lower():
            module.register_forward_hook(lambda *_: blocks.append(1))
    first, _ = gradients(plain)
    passes = len(blocks)
    second, _ = gradients(recomputed)
    assert len(blocks) > passes and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_critics_checkpointed_training_is_the_same(critic_folder, tmp_path):
    from test_critic import trained

    plain, _ = trained(critic_folder, tmp_path / "plain", steps=2)
    other, _ = trained(critic_folder, tmp_path / "other", steps=2, training=Training(gradient_checkpointing=True))
    first, second = plain.model.state_dict(), other.model.state_dict()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)
    assert not other.language_model.training


def test_the_critics_accumulated_training_is_the_same(critic_folder, tmp_path):
    from test_critic import trained

    _, series = trained(critic_folder, tmp_path / "plain", steps=2)
    _, same = trained(critic_folder, tmp_path / "other", steps=2, training=Training(micro_batch_size=1))
    assert series.keys() == same.keys()
    for name in ("loss", "grad_norm", "margin", "certainty", "instruction_loss"):
        values = [value for _, value in series[name]]
        assert [value for _, value in same[name]] == pytest.approx(values, rel=1e-3, abs=1e-5), name


def test_bf16_trains_float32_weights_and_hands_back_the_type_they_came_in(tmp_path):
    task = Line(dtype=torch.bfloat16)
    train(task, recipe(1, rate=1e-4), tmp_path / "a")
    assert task.weight == 1.0, "a small step vanishes in 16 bits"
    seen = []
    task = Line(lambda step: seen.append(task.model.weight.dtype) or {}, torch.bfloat16)
    train(task, recipe(100, rate=1e-4, precision="bf16"), tmp_path / "b")
    assert set(seen) == {torch.float32} and task.model.weight.dtype == torch.bfloat16
    assert task.weight == pytest.approx(0.99, abs=0.004)


def test_bf16_computes_in_bfloat16(generator_folder, tmp_path):
    trainer = make(generator_folder, steps=1, training=Training(precision="bf16"))
    kinds = []
    trainer.denoiser.transformer_blocks[0].attn1.to_q.register_forward_hook(
        lambda module, inputs, output: kinds.append((module.weight.dtype, output.dtype))
    )
    series = trainer.train(tmp_path).series
    assert set(kinds) == {(torch.float32, torch.bfloat16)}
    exact = make(generator_folder, steps=1).train(tmp_path / "exact").series
    assert series["loss"][0][1] == pytest.approx(exact["loss"][0][1], rel=0.05)


# When to stop


def test_a_loss_that_is_not_finite_is_never_stepped_on(tmp_path):
    def broken(step: int) -> dict[str, float]:
        return {"scale": math.nan if step == 2 else 1.0}

    task = Line(broken)
    with pytest.raises(UserError, match=r"^a line: loss is nan at step 3 of 5; lower learning_rate, or set training\."):
        train(task, recipe(5), tmp_path / "a")
    task = Line(broken)
    result = train(task, recipe(5, stop_on_divergence=True), tmp_path / "b")
    assert task.weight == pytest.approx(0.8, abs=1e-5), "two steps of 0.1"
    assert result.metrics == {"stopped_at": 2.0} and result.tags == {"stopped": "loss is nan at step 3"}
    assert [step for step, _ in result.series["loss"]] == [1, 2]


def test_a_gradient_that_is_not_finite_is_never_stepped_on(tmp_path):
    class Cliff(Line):
        def part(self) -> torch.Tensor:
            self.value = 1.0
            return torch.sqrt(self.model.weight * 0).sum()

    task = Cliff()
    with pytest.raises(UserError, match="grad_norm is nan at step 1"):
        train(task, recipe(5), tmp_path)
    assert task.weight == 1.0


def test_divergence_is_both_errors_rising_beyond_the_bound(tmp_path):
    def series(winner: list[float], loser: list[float]) -> dict:
        pairs = {"error_winner": winner, "error_loser": loser}
        return {name: list(enumerate(values)) for name, values in pairs.items()}

    rising, falling = [0.0, 0.1, 0.2, 0.3], [0.3, 0.2, 0.2, 0.1]
    assert diverging(series(rising, rising), 2, 0.2)
    assert not diverging(series(rising, rising), 2, 0.25), "means of 0.25 are not above it"
    assert not diverging(series(rising, falling), 2, 0.05) and not diverging(series(falling, rising), 2, 0.05)
    assert not diverging(series(rising[:3], rising[:3]), 2, 0.0) and not diverging({"loss": [(1, 9.0)]}, 1, 0.0)

    def worse(step: int) -> dict[str, float]:
        return {"error_winner": 0.1 * step, "error_loser": 0.2 * step}

    options = {"steps": 9, "divergence_window": 2, "divergence_bound": 0.3}
    told = train(Line(worse), recipe(**options), tmp_path / "a")
    # Winners' mean over steps 4 and 5 (0-based) is 0.45, over 3 and 4 it is 0.35: the first above 0.3.
    assert told.metrics == {"diverged_at": 5.0} and told.stopped_at is None and len(told.series["loss"]) == 9
    ended = train(Line(worse), recipe(**options, stop_on_divergence=True), tmp_path / "b")
    assert ended.metrics == {"stopped_at": 5.0, "diverged_at": 5.0} and len(ended.series["loss"]) == 5
    assert statistics.fmean(v for _, v in ended.series["error_winner"][-2:]) > 0.3


# Kills

PROGRAM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_trainer import make
from dualipo.errors import Terminated
trainer = make(Path({folder!r}), checkpoint_every=2)
begin = trainer.begin
def killed(step):
    if step == 3:
        os.kill(os.getpid(), signal.{signal})
    return begin(step)
trainer.begin = killed
try:
    trainer.train(Path({work!r}))
except Terminated as error:
    print(error)
    sys.exit(143)
"""


@pytest.mark.parametrize(("name", "status", "done"), [("SIGKILL", -9, 2), ("SIGTERM", 143, 4)])
def test_a_killed_process_goes_on_and_ends_with_the_weights_of_an_unbroken_one(
    generator_folder, tmp_path, name, status, done
):
    whole = make(generator_folder, checkpoint_every=2)
    series = whole.train(tmp_path / "whole").series
    program = PROGRAM.format(
        tests=str(Path(__file__).parent), folder=str(generator_folder), work=str(tmp_path / "work"), signal=name
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert found.returncode == status, found.stderr
    if name == "SIGTERM":
        assert found.stdout.strip().endswith("aligning: SIGTERM, stopped after step 4 of 5; checkpoint kept")
    resumed = make(generator_folder, checkpoint_every=2)
    steps, begin = [], resumed.begin
    resumed.begin = lambda step: steps.append(step) or begin(step)
    assert resumed.train(tmp_path / "work").series == series and steps[0] == done
    first, second = weights(whole.generator), weights(resumed.generator)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_sigterm_in_the_last_step_is_not_lost(tmp_path):
    def late(step: int) -> dict[str, float]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="stopped after step 3 of 3"):
        train(Line(late), recipe(3), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    task = Line(lambda step: pytest.fail("no step is left"))
    train(task, recipe(3), tmp_path)
    assert task.weight == pytest.approx(0.7, abs=1e-5)


# Shapes and files


def test_a_step_holds_clips_of_one_shape(wan_folder, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(0)
    first = torch.randn(7, 16, 3, 4, 4, generator=source)
    second = torch.randn(3, 16, 2, 4, 6, generator=source)
    places = []
    for index, rows in enumerate((first, second)):
        save_file({"rows": rows}, tmp_path / f"{index}.safetensors")
        places += [(tmp_path / f"{index}.safetensors", row) for row in range(len(rows))]
    latents = Shards(places, torch.device("cpu"))
    assert shapes(latents)[0] == (16, 3, 4, 4) and shapes(latents)[9] == (16, 2, 4, 6) and len(latents) == 10
    assert torch.equal(latents[torch.tensor([8, 7])], second[[1, 0]])
    data = Encoded(
        latents, torch.randn(5, 24, 32, generator=source), winners=torch.tensor([0, 1, 2, 7]),
        losers=torch.tensor([3, 4, 5, 8]), pair_text=torch.arange(4), desirable=None, real=torch.tensor([9]),
        real_text=torch.tensor([4]),
    )  # fmt: skip
    generator, reference = models(wan_folder)
    section = SECTION.model_copy(update={"batch_size": 2})
    trainer = Trainer(generator, reference, data, section, seed=3)
    seen: list[list[tuple[int, ...]]] = []
    noised = generator.noised
    monkeypatch.setattr(
        generator, "noised", lambda clean, *rest: seen[-1].append(tuple(clean.shape)) or noised(clean, *rest)
    )
    for step in range(30):
        seen.append([])
        total, logged = trainer.loss(step)
        assert total.isfinite() and "nll_real" in logged
    # With three of four pairs in the first shape: its real clip is of the other one, and takes a pass of its own.
    kinds = [tuple(shape[1:] for shape in passes) for passes in seen]
    large, small = ((16, 2, 4, 6), (16, 3, 4, 4)), ((16, 2, 4, 6),)
    assert set(kinds) == {large, small} and 15 < kinds.count(large) < 29


def test_encoding_goes_on_where_it_was_and_reads_only_what_is_new(wan_folder, tmp_path):
    from models import noise_clip

    generator = load_generator(wan_folder)
    clips = {f"c{i}": noise_clip(i, frames=5 if i % 3 == 0 else 9) for i in range(70)}
    asked: list[str] = []

    def read(name: str) -> np.ndarray:
        asked.append(name)
        if len(asked) == 66:
            raise KeyboardInterrupt
        return clips[name]

    def content(name: str) -> bytes:
        return clips[name].tobytes()

    with pytest.raises(KeyboardInterrupt):
        encode_clips(generator, list(clips), read, content, tmp_path)
    del asked[:]
    found = encode_clips(generator, list(clips), read, content, tmp_path)
    assert asked == [f"c{i}" for i in range(64, 70)], "the first shard was whole"
    for index in (0, 1, 3, 65, 66):
        expected = generator.encode_clips(clips[f"c{index}"][None])[0]
        torch.testing.assert_close(found[torch.tensor([index])][0], expected, rtol=1e-3, atol=1e-3)
    del asked[:]
    clips["c69"] = noise_clip(100)
    encode_clips(generator, list(clips), read, content, tmp_path)
    assert asked == [f"c{i}" for i in range(64, 70)], "what holds a changed clip is encoded anew"
    assert all(set(load_file(path)) == {"rows"} for path in tmp_path.rglob("*.safetensors"))


def test_single_process_training_needs_neither_accelerate_nor_deepspeed(tmp_path):
    program = (
        "import sys; import dualipo.training.loop, dualipo.training.backend, dualipo.steps.align; import json;"
        "print(json.dumps([m for m in ('accelerate', 'deepspeed', 'torch.distributed.run') if m in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_keys_that_do_not_fit_are_refused():
    from dualipo.config import load_config

    for override, message in (
        ({"align.training.zero": 1}, "stage 1 is not offered"),
        ({"align.training.offload": True}, "offload needs zero"),
        ({"train_critic.training.raise_after": 3}, "raise_after needs raised_learning_rate"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(overrides=override)
    assert load_config(overrides={"align.training.zero": 2.0}).align.training.zero == 2


def test_data_of_the_trainer_is_still_a_plain_tensor():
    assert shapes(data_of("dpo").latents) == [(3, 12, 8, 8)] * 11
