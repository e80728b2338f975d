"""The ZeRO backend: optimizer states, gradients and (stage 3) weights sharded over processes by DeepSpeed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dualipo.artifacts import read_json, remove, write_json
from dualipo.errors import UserError
from dualipo.training.backend import Result, Tensors, autocast
from dualipo.training.deepspeed import deepspeed_config
from dualipo.training.ranks import barrier, world
from dualipo.training.state import read_tensors, write_tensors
from dualipo.training.task import Recipe, Task

MARKER = "training_state.json"
"""Says which step's shards are whole; each process's lie beside it."""


class _Root(torch.nn.Module):
    """What DeepSpeed wraps: a pass is whatever is computed inside, through any module of the model."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()


class Zero:
    """DeepSpeed's engine, set up by accelerate. One a process: DeepSpeed's state is global.

    Checkpoints are safetensors of this process's shards, which DeepSpeed's own, pickled ones are not; they fit the same
    number of processes only.
    """

    def __init__(self, task: Task, recipe: Recipe):
        from accelerate import Accelerator
        from accelerate.utils import DeepSpeedPlugin

        self.task, self.recipe = task, recipe
        trainable = [p for p in task.trained.parameters() if p.requires_grad]
        if recipe.training.precision == "as_stored" and any(p.dtype != torch.float32 for p in trainable):
            raise UserError(f"{task.title}: ZeRO needs training.precision: bf16 for weights stored in 16 bits")
        if not torch.distributed.is_initialized():
            raise UserError(f"{task.title}: ZeRO needs torchrun's environment; start it by dualipo.training.worker")
        self.dtypes = {name: p.dtype for name, p in task.root.named_parameters(remove_duplicate=False)}
        buffers = {name: (b, b.detach().clone()) for name, b in task.root.named_buffers() if "inv_freq" in name}
        root, cuda = _Root(task.root), trainable[0].is_cuda
        self.device = trainable[0].device
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(recipe, cuda))
        precision = "bf16" if recipe.training.precision == "bf16" else "no"
        accelerator = Accelerator(deepspeed_plugin=plugin, mixed_precision=precision)
        self.engine: Any = accelerator.prepare(root, _optimizer(trainable, recipe))[0]
        for buffer, value in buffers.values():
            # DeepSpeed casts every buffer; frequencies of rotary positions must stay exact.
            buffer.data = value
        self.sharded = self.engine.optimizer
        self.stage3 = recipe.training.zero == 3

    @property
    def weights(self) -> list[torch.Tensor]:
        if self.stage3:
            return list(self.sharded.fp32_partitioned_groups_flat)
        return list(self.sharded.single_partition_of_fp32_groups)

    def without_gradient(self, compute: Callable[[], Result]) -> Result:
        with torch.no_grad(), autocast(self.recipe, self.device):
            return self.engine.module(compute)

    def backward(self, compute: Callable[[], torch.Tensor], last: bool) -> None:
        def run() -> torch.Tensor:
            with autocast(self.recipe, self.device):
                return compute()

        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(self.engine(run))

    def step(self, rate: float) -> float:
        for group in self.sharded.param_groups:
            group["lr"] = rate
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        # None: DeepSpeed took no step, since the norm was not finite.
        return math.nan if norm is None or self.sharded.overflow else float(norm)

    # ---- checkpoints

    def _state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This process's shards by name, the optimizer's made where it has none yet."""
        for index, weight in enumerate(self.weights):
            yield f"weights/{index}", weight
            for key, value in self.sharded.optimizer.state.get(weight, {}).items():
                if isinstance(value, torch.Tensor):
                    yield f"optimizer/{index}/{key}", value

    def _shard(self, folder: Path, step: int) -> Path:
        here = world()
        return folder / f"training_state-{step:07d}-{here.rank:05d}-of-{here.size:05d}.safetensors"

    def save(self, folder: Path, step: int, extra: dict[str, Any], more: Tensors) -> None:
        tensors = dict(self._state()) | {f"more/{name}": value for name, value in more.items()}
        write_tensors(self._shard(folder, step), tensors, {"step": step, "extra": extra})
        barrier()
        if world().main:
            write_json(folder / MARKER, {"step": step, "processes": world().size, "zero": self.recipe.training.zero})
        barrier()
        for old in folder.glob(f"training_state-*-{world().rank:05d}-of-*.safetensors"):
            if old != self._shard(folder, step):
                remove(old)

    def load(self, folder: Path, more: Tensors) -> tuple[int, dict[str, Any]] | None:
        if not (folder / MARKER).is_file():
            return None
        marker = read_json(folder / MARKER)
        own = {"step": marker["step"], "processes": world().size, "zero": self.recipe.training.zero}
        if marker != own:
            raise UserError(
                f"{folder / MARKER}: a training on {marker['processes']} processes with ZeRO-{marker['zero']}, "
                f"this one is on {own['processes']} with ZeRO-{own['zero']}; go on alike, or remove it to start anew"
            )
        header, tensors = read_tensors(self._shard(folder, marker["step"]))
        if any(tensors[f"weights/{index}"].shape != w.shape for index, w in enumerate(self.weights)):
            raise UserError(f"{folder / MARKER}: belongs to another model; remove it to train from the start")
        for index, weight in enumerate(self.weights):
            weight.data.copy_(tensors[f"weights/{index}"])
            prefix = f"optimizer/{index}/"
            found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if found:
                # Adam's step counter stays on the CPU, as AdamW has it.
                self.sharded.optimizer.state[weight] = {
                    key: value.to(weight.device) if value.dim() else value for key, value in found.items()
                }
        for name, value in more.items():
            value.copy_(tensors[f"more/{name}"])
        self._publish()
        return header["step"], header["extra"]

    def _publish(self) -> None:
        """Makes the model's weights those of the float32 shards."""
        if not self.stage3:
            self.sharded.update_lp_params()
            return
        shards = self.sharded
        for flat, weight, group in zip(
            shards.fp16_partitioned_groups_flat, self.weights, shards.fp16_partitioned_groups, strict=True
        ):
            if flat is not None and flat.numel():
                flat.data.copy_(weight.data)
                for parameter, value in zip(group, shards.unflatten(flat, group), strict=True):
                    parameter.data = value.data
        if shards.persistent_parameters:
            shards.persistent_parameters[0].partition(shards.persistent_parameters)
            shards.persistent_parameters[0].all_gather(shards.persistent_parameters)

    def close(self) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        model, kept = self.task.root, {}
        for parameter in dict.fromkeys(model.parameters()):
            value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if value is None:
                with GatheredParameters([parameter]):
                    value = parameter.detach().clone()
            kept[parameter] = value.cpu() if world().main else torch.empty(0)
        self.engine.destroy()
        fresh: dict[tuple[torch.nn.Parameter, torch.dtype], torch.nn.Parameter] = {}
        for prefix, module in model.named_modules(remove_duplicate=False):
            own = dict(module._parameters)
            module._parameters = {}
            for name, parameter in own.items():
                if parameter is None:
                    module._parameters[name] = None
                    continue
                dtype = self.dtypes[f"{prefix}.{name}" if prefix else name]
                if (parameter, dtype) not in fresh:
                    value = kept[parameter].to(dtype)
                    fresh[parameter, dtype] = torch.nn.Parameter(value, parameter.requires_grad)
                module._parameters[name] = fresh[parameter, dtype]


def _optimizer(parameters: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; where its states are offloaded, DeepSpeed's for the CPU, several times as fast there."""
    if recipe.training.offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(
            parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0, adamw_mode=True
        )
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0)
