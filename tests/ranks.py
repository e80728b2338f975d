"""One of several processes that train a tiny model; torchrun starts it: ranks.py CASES OUT.

CASES is JSON: {name: {"folder", "task": "align" or "critic", "section": {...}, "kill": [rank, step, signal] or null}}.
Writes OUT/<name>.safetensors, weights and the gradients of the first step, and OUT/<name>.json, the curves. After
SIGTERM it notes what was said in OUT/<name>.stopped and goes on from the checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def main(cases: dict[str, Any], out: Path) -> None:
    from dualipo.training.worker import _join

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    _join(zero=True)
    import torch

    torch.set_num_threads(1)
    for name, case in cases.items():
        run(name, case, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run(name: str, case: dict[str, Any], out: Path) -> None:
    from accelerate.state import AcceleratorState
    from safetensors.torch import save_file

    from dualipo.errors import Terminated
    from dualipo.training import loop
    from dualipo.training.ranks import world

    AcceleratorState._reset_state(reset_partial_state=False)  # several engines in one process, which no step has
    held: dict[str, Any] = {}
    backend_of = loop._backend

    def noted(task: Any, recipe: Any) -> Any:
        backend = backend_of(task, recipe)
        held["task"], begin, step = task, task.begin, backend.step

        def killing(number: int) -> Any:
            if case.get("kill") and case["kill"][:2] == [world().rank, number]:
                os.kill(os.getpid(), getattr(signal, case["kill"][2]))
            return begin(number)

        def stepping(rate: float) -> float:
            if not recipe.training.zero:
                loop_average(backend.parameters)
            if "gradients" not in held:
                held["gradients"] = gradients(task, recipe.training.zero)
            return step(rate)

        task.begin, backend.step = killing, stepping
        return backend

    from dualipo.training.backend import average_gradients as loop_average

    loop._backend = noted
    try:
        series = train(case, out / f"{name}-work").series
    except Terminated as error:
        if world().main:
            (out / f"{name}.stopped").write_text(str(error))
        run(name, {**case, "kill": None}, out)  # goes on
        return
    finally:
        loop._backend = backend_of
    if world().main:
        weights = {f"weight/{k}": v.detach().clone() for k, v in held["task"].trained.state_dict().items()}
        save_file({**weights, **held.get("gradients", {})}, out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps(series))


def gradients(task: Any, zero: int) -> dict[str, Any]:
    """Whole gradients by parameter, averaged over processes, before clipping."""
    from deepspeed.utils import safe_get_full_grad

    found = {}
    for name, parameter in task.trained.named_parameters():
        if parameter.requires_grad:
            value = safe_get_full_grad(parameter) if zero else parameter.grad
            found[f"gradient/{name}"] = value.detach().float().clone()
    return found


def train(case: dict[str, Any], work: Path) -> Any:
    folder = Path(case["folder"])
    if case["task"] == "critic":
        from test_critic import SECTION, sets

        from dualipo.config import TrainCritic
        from dualipo.critic.base import load_critic
        from dualipo.critic.srpo import train_srpo

        critic = load_critic(folder)
        section = TrainCritic.model_validate({**SECTION.model_dump(), **case["section"]})
        return train_srpo(critic, *sets(critic), section, work, seed=7)
    from test_trainer import SECTION as ALIGN
    from test_trainer import data_of, models

    from dualipo.alignment.trainer import Trainer
    from dualipo.config import Align

    section = Align.model_validate({**ALIGN.model_dump(), **case["section"]})
    generator, reference = models(folder)
    own = None if section.lora else reference
    return Trainer(generator, own, data_of(section.loss), section, seed=5).train(work)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
