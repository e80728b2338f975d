"""Low-rank adapters (LoRA, Hu et al. 2021) on a denoiser: switched off it is its own reference, merged it is plain."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from dualipo.alignment.losses import widen
from dualipo.artifacts import atomic
from dualipo.errors import UserError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
"""Attention's projections, as diffusers names them (VideoAlign, appendix I: q, k, v, o)."""
FILE = "adapter/adapter.safetensors"
"""Inside a generator folder: the adapter that its merged weights hold, where it belongs to the base model."""


def attach(denoiser: Any, rank: int, seed: int) -> None:
    """Adds an adapter of the given rank to every attention; only its parameters ask for gradients afterwards.

    alpha is twice the rank, as in VideoAlign (64 and 128). It starts as the identity. Raises UserError where the
    denoiser has none of the projections.
    """
    from peft import LoraConfig

    denoiser.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=TARGETS, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            denoiser.add_adapter(config)
        except ValueError as error:
            raise UserError(f"align.lora: no adapter for {type(denoiser).__name__} ({error}); use lora: null") from None
    for parameter in denoiser.parameters():
        if parameter.requires_grad:  # steps of a small learning rate vanish in bfloat16
            parameter.data = widen(parameter.data)


@contextmanager
def switched_off(denoiser: Any) -> Iterator[None]:
    """The denoiser as it was before `attach`, in evaluation mode."""
    training = denoiser.training
    denoiser.disable_adapters()
    denoiser.eval()
    try:
        yield
    finally:
        denoiser.enable_adapters()
        denoiser.train(training)


def weights(denoiser: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the attached adapter's parameters, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in denoiser.named_parameters() if ".lora_" in name}


def merge(denoiser: Any) -> None:
    """Adds the adapter to the weights that it adapts and takes it off: a plain model, of the same size as before."""
    denoiser.fuse_lora()
    denoiser.unload_lora()


def save(folder: Path, tensors: dict[str, torch.Tensor], base: Path) -> None:
    """Stores adapter weights in the generator folder whose merged weights hold them; `base` is the model adapted."""
    from safetensors.torch import save_file

    (folder / FILE).parent.mkdir(exist_ok=True)
    with atomic(folder / FILE) as temporary:
        save_file(tensors, temporary, {"base": _identity(base)})


def load(folder: Path, denoiser: torch.nn.Module, base: Path) -> None:
    """Puts the adapter stored in generator folder `folder` into the one attached to `denoiser`, the model of `base`.

    Without a stored one, `folder` must hold the base model itself. Raises UserError where it holds anything else, or an
    adapter of another base model or rank: then the base model is not the incumbent with its adapter switched off.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    advice = "use align.reference: previous, or lora: null"
    if not path.is_file():
        if _identity(folder) != _identity(base):
            raise UserError(f"{folder}: neither the base model nor the base model with an adapter; {advice}")
        return
    try:
        with safe_open(path, framework="pt") as file:
            of = (file.metadata() or {}).get("base")
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable adapter ({error}); {advice}") from None
    own = {name: p for name, p in denoiser.named_parameters() if ".lora_" in name}
    if of != _identity(base):
        raise UserError(f"{path}: an adapter of another base model; {advice}")
    if {name: value.shape for name, value in stored.items()} != {name: p.shape for name, p in own.items()}:
        raise UserError(f"{path}: an adapter of another rank; keep align.lora as it was, or {advice}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])


def carry(source: Path, target: Path) -> None:
    """Hands a stored adapter on to another folder of the same weights; nothing where there is none."""
    if (source / FILE).is_file():
        (target / FILE).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / FILE, target / FILE)


def _identity(folder: Path) -> str:
    """md5 over the denoiser's weights by name, whatever files they lie in."""
    from safetensors import safe_open

    found = hashlib.md5()
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(f, "pt")) for f in (folder / "transformer").glob("*.safetensors")]
        for name, file in sorted(((n, f) for f in files for n in f.keys()), key=lambda entry: entry[0]):  # noqa: SIM118 (not a dict)
            tensor = file.get_tensor(name)
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
