"""Processes of one training, and which examples of a global batch each of them computes.

All processes draw the same global batch and compute parts of it: N processes give what one gives, up to the order of
sums. Without torch.distributed there is one process, and nothing here changes a single bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class World:
    """This process among those of the training."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0


@dataclass(frozen=True)
class Part:
    """A micro-batch: which places of a global batch one process computes at once."""

    begin: int
    end: int
    weight: float
    """Times the mean over the part's examples: parts add up, and processes average, to the mean over the batch."""
    filler: bool = False
    """Stands for no example, has weight 0, and is computed because all processes must make the same passes."""

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.end)

    def __len__(self) -> int:
        return self.end - self.begin


def world() -> World:
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return World()
    return World(group.get_rank(), group.get_world_size())


def micro_batches(count: int, size: int | None) -> int:
    """Micro-batches of at most `size` examples in which each process computes its share of `count`; None is one."""
    share = math.ceil(count / world().size)
    return math.ceil(share / size) if size else 1


def parts(count: int, micro: int) -> list[Part]:
    """This process's parts of a batch of `count` examples that every process computes in `micro` micro-batches.

    The parts of all processes, in order of rank, are the batch in order. Where there are fewer examples than parts,
    one process leaves the empty ones out, and several fill them in.
    """
    here = world()
    total = here.size * micro
    found = []
    for index in range(here.rank * micro, (here.rank + 1) * micro):
        begin, end = index * count // total, (index + 1) * count // total
        if end > begin:
            found.append(Part(begin, end, here.size * (end - begin) / count))
        elif here.size > 1:
            place = min(begin, count - 1)
            found.append(Part(place, place + 1, 0.0, filler=True))
    return found


def merge(count: int, pieces: Sequence[tuple[Part, torch.Tensor]]) -> torch.Tensor:
    """Values of a whole batch, (count,), from those of all processes' parts; without gradient, equal everywhere."""
    if world().size == 1 and len(pieces) == 1:
        return pieces[0][1].detach()
    merged = torch.zeros(count, dtype=pieces[0][1].dtype, device=pieces[0][1].device)
    for part, values in pieces:
        if not part.filler:
            merged[part.rows] = values.detach()
    if world().size > 1:
        torch.distributed.all_reduce(merged)
    return merged


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up on any process."""
    if world().size == 1:
        return flag
    raised = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return bool(raised)


def average_gradients(parameters: Sequence[torch.nn.Parameter], bucket: int = 2**26) -> None:
    """Averages gradients over all processes, some 64e6 numbers at a time; one that is missing counts as zero."""
    if world().size == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    begin = 0
    while begin < len(parameters):
        end, held, kind = begin, 0, parameters[begin].dtype
        while end < len(parameters) and parameters[end].dtype == kind and (end == begin or held < bucket):
            held += parameters[end].numel()
            end += 1
        gradients = [p.grad for p in parameters[begin:end] if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= world().size
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))
        begin = end


def barrier() -> None:
    if world().size > 1:
        torch.distributed.barrier()
