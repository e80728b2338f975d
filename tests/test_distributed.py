"""Two processes on the CPU against one: the same gradients, weights and curves, whatever is sharded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import write_preferences
from safetensors.torch import load_file
from test_critic import trained as train_critic
from test_trainer import SECTION, data_of, models, weights

from dualipo.alignment.trainer import Trainer
from dualipo.config import Config, Training
from dualipo.steps import Job
from dualipo.steps.align import align

torch.set_num_threads(1)
RANKS = Path(__file__).with_name("ranks.py")
CASES = {
    "dpo-0": ("align", {"loss": "dpo", "training": {"zero": 0}}),
    "dpo-2": ("align", {"loss": "dpo", "training": {"zero": 2}}),
    "dpo-3": ("align", {"loss": "dpo", "training": {"zero": 3}}),
    # Three examples for two processes: one computes two, or fills in; Q_ref and diagnostics are the whole batch's.
    "kto-0": ("align", {"loss": "kto", "training": {"zero": 0, "micro_batch_size": 1}}),
    "kto-3": ("align", {"loss": "kto", "training": {"zero": 3, "micro_batch_size": 1, "ema_decay": 0.5}}),
    "lora-2": ("align", {"loss": "dpo", "lora": 2, "training": {"zero": 2, "gradient_checkpointing": True}}),
    "critic-3": ("critic", {"steps": 2, "training": {"zero": 3, "micro_batch_size": 1}}),
}


def launch(cases: dict, out: Path) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(RANKS), json.dumps(cases), str(out),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))


def same(curves: dict, series: dict) -> None:
    assert curves.keys() == series.keys()
    for key, points in series.items():
        # Before the first step a model may equal its reference: then rounding decides who is ahead.
        skipped = 1 if "accuracy" in key else 0
        found, expected = ([value for _, value in each[skipped:]] for each in (curves[key], points))
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-5), key


@pytest.fixture(scope="module")
def together(generator_folder, critic_folder, tmp_path_factory) -> Path:
    """What two processes made of each case."""
    out = tmp_path_factory.mktemp("together")
    folders = {"align": generator_folder, "critic": critic_folder}
    cases = {
        name: {"folder": str(folders[task]), "task": task, "section": section}
        for name, (task, section) in CASES.items()
    }
    found = launch(cases, out)
    assert found.returncode == 0, found.stderr[-4000:]
    return out


@pytest.mark.parametrize("name", [name for name, (task, _) in CASES.items() if task == "align"])
def test_two_processes_give_what_one_gives(generator_folder, tmp_path, together, name):
    changes = CASES[name][1]
    decay = changes["training"].get("ema_decay")
    section = SECTION.model_copy(update={**changes, "training": Training(ema_decay=decay)})
    generator, reference = models(generator_folder)
    alone = Trainer(generator, None if section.lora else reference, data_of(section.loss), section, seed=5)
    with torch.no_grad():
        parts = alone.begin(0)
    parts[0]().backward()
    first = {n: p.grad.clone() for n, p in alone.trained.named_parameters() if p.requires_grad}
    alone.trained.zero_grad()
    series = alone.train(tmp_path).series
    found, curves = load_file(together / f"{name}.safetensors"), json.loads((together / f"{name}.json").read_text())
    gradients = {key: value for key, value in found.items() if key.startswith("gradient/")}
    assert {key.removeprefix("gradient/") for key in gradients} == set(first)
    largest = max(float(value.abs().max()) for value in first.values())
    assert largest > 1e-6
    for key, value in first.items():
        torch.testing.assert_close(gradients[f"gradient/{key}"], value, rtol=1e-3, atol=1e-5 * largest)
    same(curves, series)
    before = weights(models(generator_folder)[0])
    for key, value in weights(alone.generator).items():
        # Adam moves weights of tiny gradients by the sign of rounding: most must agree to a hundredth of a step.
        apart = (found[f"weight/{key}"] - value).abs()
        assert float((apart < 5e-5).float().mean()) > 0.97 and float(apart.max()) < 5e-3, key
    assert any(not torch.equal(found[f"weight/{key}"], value) for key, value in before.items())


def test_two_processes_train_the_critic_as_one_does(critic_folder, tmp_path, together):
    alone, series = train_critic(critic_folder, tmp_path, steps=2)
    curves = json.loads((together / "critic-3.json").read_text())
    same(curves, series)
    found = load_file(together / "critic-3.safetensors")
    for key, value in alone.language_model.state_dict().items():
        apart = (found[f"weight/{key}"] - value).abs()
        assert float((apart < 1e-4).float().mean()) > 0.97, key


def test_a_killed_training_on_two_processes_goes_on_to_the_same_weights(generator_folder, tmp_path, together):
    """SIGKILL of one process ends both, SIGTERM to one stops both after the same step; the floats are the same."""

    def case(name: str, kill: list | None) -> dict:
        section = {**CASES[name][1], "checkpoint_every": 2}
        return {name: {"folder": str(generator_folder), "task": "align", "section": section, "kill": kill}}

    found = launch(case("kto-3", [1, 3, "SIGKILL"]), tmp_path)
    assert found.returncode != 0
    assert json.loads((tmp_path / "kto-3-work" / "training_state.json").read_text())["step"] == 2
    # In this order: a ZeRO-3 engine leaves its own, otherwise rounded product behind in the process.
    found = launch({**case("dpo-2", [1, 3, "SIGTERM"]), **case("kto-3", None)}, tmp_path)
    assert found.returncode == 0, found.stderr[-4000:]
    assert (tmp_path / "dpo-2.stopped").read_text() == ("aligning: SIGTERM, stopped after step 4 of 5; checkpoint kept")
    assert json.loads((tmp_path / "dpo-2-work" / "training_state.json").read_text())["step"] == 4
    assert len(list((tmp_path / "dpo-2-work").glob("*.safetensors"))) == 2, "older shards are removed"
    for name in ("kto-3", "dpo-2"):
        whole, resumed = (load_file(folder / f"{name}.safetensors") for folder in (together, tmp_path))
        kept = [key for key in whole if key.startswith("weight/")]
        assert kept and all(torch.equal(whole[key], resumed[key]) for key in kept)
        assert (together / f"{name}.json").read_text() == (tmp_path / f"{name}.json").read_text()


def test_the_step_starts_its_processes_and_the_first_writes(generator_folder, tmp_path):
    folders = write_preferences(tmp_path / "data")
    found = {}
    for name, training in (("one", {}), ("two", {"processes": 2, "zero": 2})):
        section = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1, "training": training}
        out = tmp_path / name
        (out / "work").mkdir(parents=True)
        found[name] = align(
            Config.model_validate({"align": section}), Job("1", 0, out / "work"), preferences=folders["full"],
            candidates=folders["candidates"],
            held_out=folders["held_out"], real_clips=folders["real"], generator=generator_folder,
            base_generator=generator_folder, candidate=out / "candidate", curves=out / "curves.csv",
        )  # fmt: skip
    one, two = found["one"], found["two"]
    assert one.metrics.keys() == two.metrics.keys()
    for key, value in one.metrics.items():
        assert two.metrics[key] == pytest.approx(value, rel=2e-3, abs=1e-5), key
    assert one.curves.keys() == two.curves.keys() and (tmp_path / "two" / "curves.csv").is_file()
    stored = "transformer/diffusion_pytorch_model.safetensors"
    first, second = (load_file(tmp_path / name / "candidate" / stored) for name in ("one", "two"))
    assert first.keys() == second.keys()
    apart = torch.cat([(first[key] - second[key]).abs().flatten() for key in first])
    assert float((apart < 5e-5).float().mean()) > 0.97
