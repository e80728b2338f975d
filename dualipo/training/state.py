"""Checkpoints of a training in a step's scratch folder: a killed training goes on as if it had never stopped.

One safetensors file holds the trainable parameters, the buffers, the optimizer's state and the random streams; what is
not a tensor stands in the file's header as JSON. Nothing is pickled, and the file is whole or absent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualipo.artifacts import atomic
from dualipo.errors import UserError

if TYPE_CHECKING:
    import torch

STATE = "training_state.safetensors"


def save_state(
    folder: str | Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any] | None = None,
    more: dict[str, torch.Tensor] | None = None,
) -> None:
    """Stores the state after `step` steps in `folder`, in the place of the state before.

    Frozen parameters are left out: whoever resumes builds the model from the same weights. `extra` is what else the
    training needs, as JSON: counters, logged curves, the state of a learning rate schedule; `more` its tensors, such as
    averages of weights. Raises OSError where the disk is full.
    """
    import torch

    tensors = {f"model/{name}": value for name, value in _model_tensors(model).items()}
    tensors |= {f"more/{name}": value for name, value in (more or {}).items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"random/cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    packed = optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, state in packed["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    header = {"step": step, "groups": packed["param_groups"], "scalars": scalars, "extra": extra or {}}
    write_tensors(Path(folder) / STATE, tensors, header)


def load_state(
    folder: str | Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    more: dict[str, torch.Tensor] | None = None,
) -> tuple[int, dict[str, Any]] | None:
    """Puts the stored state into `model`, `optimizer` and `more`; returns (step, extra), or None without a stored one.

    Restores the global random streams too. Training on from here gives the same floats as a training that was never
    stopped. Raises UserError where the file is unreadable or belongs to another model.
    """
    import torch

    path = Path(folder) / STATE
    if not path.is_file():
        return None
    header, tensors = read_tensors(path)
    stored = _part(tensors, "model")
    own = _model_tensors(model)
    if {k: v.shape for k, v in stored.items()} != {k: v.shape for k, v in own.items()}:
        raise UserError(f"{path}: belongs to another model; remove it to train from the start")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(stored[name])
        kept = _part(tensors, "more")
        for name, value in (more or {}).items():
            value.copy_(kept[name])
    state: dict[int, dict[str, Any]] = {int(index): values for index, values in header["scalars"].items()}
    for name, value in _part(tensors, "optimizer").items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = value
    groups = [_like(group, own) for group, own in zip(header["groups"], optimizer.param_groups, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    random = _part(tensors, "random")
    torch.set_rng_state(random.pop("cpu"))
    if torch.cuda.is_available() and len(random) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([random[f"cuda{i}"] for i in range(len(random))])
    return header["step"], header["extra"]


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """One safetensors file with `header` as JSON, whole or absent."""
    import torch
    from safetensors.torch import save_file

    # clone: safetensors refuses tensors that share memory, and views of one buffer are common.
    content = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    with atomic(path) as temporary:
        save_file(content, temporary, {"state": json.dumps(header)})


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of such a file. Raises UserError where it is unreadable."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a readable training state ({error}); remove it to train from the start") from None
    return header, tensors


def _model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters and persistent buffers by name, tied ones once."""
    kept = model.state_dict(keep_vars=True)
    tensors: dict[str, torch.Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return tensors | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{prefix}/"): v for name, v in tensors.items() if name.startswith(f"{prefix}/")}


def _like(stored: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples: gives the values of a parameter group back the types that the optimizer made."""
    return {key: tuple(value) if isinstance(own.get(key), tuple) else value for key, value in stored.items()}
