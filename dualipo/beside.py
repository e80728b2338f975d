"""Processes beside this one that make chunks of its step: one a GPU, or one a core where there is none.

A step's long loop (dualipo/resume.py) asks `sharing` whether others help. The engine sets it: chunks of the loop then
go to processes that live as long as the run, since starting one takes seconds of imports, and this process makes chunks
with them. What comes out is the same as alone, byte for byte.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dualipo.config import Config
from dualipo.resume import sharing
from dualipo.runtime import chunk_threads, gpus, prepare_torch, processes, seed_everything
from dualipo.steps import GRAPH, Job

AHEAD = 2
"""Chunks a process is given at a time: what it makes, and what it goes on with while this process is busy."""


@dataclass(frozen=True)
class Loop:
    """What another process must know to make chunks of a step's loop."""

    step: str
    config: Config
    job: Job
    inputs: dict[str, Path]


@contextlib.contextmanager
def helped(loop: Loop) -> Iterator[None]:
    """The step's loop is shared within, if this machine has room for more than one process."""
    helpers = processes() - 1
    before = sharing.set(functools.partial(_share, loop, helpers) if helpers else None)
    try:
        yield
    finally:
        sharing.reset(before)


def _share(
    loop: Loop, helpers: int, indices: Sequence[int], make: Callable[[int], None], tell: Callable[[], Any]
) -> None:
    def give() -> None:
        while left and sum(not future.done() for future in given) < AHEAD * helpers:
            given.append(_pool(helpers).submit(_make, loop, left.popleft()))
            given[-1].add_done_callback(lambda future: tell())

    left, given = deque(indices), list[Future[None]]()
    try:
        give()
        while left:
            make(left.pop())  # from the back: the others were given the front
            tell()
            give()
        for future in given:
            future.result()
    except BrokenProcessPool:
        _stop()
        warnings.warn(
            "a process that made chunks beside this one has died, perhaps for want of memory; this one goes on alone. "
            "DUALIPO_PROCESSES=1 starts none",
            stacklevel=2,
        )
        for index in indices:
            make(index)
    except BaseException:
        _stop()
        raise


# ---- the processes

_running: ProcessPoolExecutor | None = None


def _pool(helpers: int) -> ProcessPoolExecutor:
    global _running
    if _running is None:
        context = multiprocessing.get_context("spawn")
        devices = context.Queue()
        for device in range(1, helpers + 1):
            devices.put(device)
        _running = ProcessPoolExecutor(helpers, context, _begin, (devices,))
    return _running


def _stop() -> None:
    """Ends the processes at once: a chunk is in its place whole, or not at all."""
    global _running
    if _running is not None:
        _running.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        _running = None


def _begin(devices: Any) -> None:
    """Settles a new process: quiet, on a GPU of its own, and gone when its parent is."""
    parent = multiprocessing.parent_process()
    assert parent
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    os.environ["TQDM_DISABLE"] = "1"
    device = devices.get()
    if gpus():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[device] if seen else str(device)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


_last: tuple[Loop, Any] | None = None


def _make(loop: Loop, index: int) -> None:
    """Makes one chunk; keeps the loop, and the models that it has loaded, for the next."""
    global _last
    if _last is None or _last[0] != loop:
        _last = None
        prepare_torch(chunk_threads())
        seed_everything(loop.job.seed, torch_too=True)
        _last = loop, GRAPH[loop.step].chunks(loop.config, loop.job, **loop.inputs)
    _last[1].make_one(index)
