"""What surrounds a step: its lock, its random streams and threads, the git commit, and disks that are full."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dualipo.errors import UserError

MAX_PROCESSES = 8
"""Each loads its own models."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@contextlib.contextmanager
def lock(path: Path, title: str) -> Iterator[None]:
    """Holds a lock of the operating system, which ends with the process however that ends.

    Raises UserError at once where another process holds it; `title` says what is going on.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{title} is already going on in this folder ({path}); wait until it ends, or stop it"
        ) from None
    try:
        yield
    finally:
        held.release()


def seed_everything(seed: int, torch_too: bool) -> None:
    """The same global random streams in a step, whether its process ran other steps before or not."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch_too:
        import torch

        torch.manual_seed(seed)


def prepare_torch(count: int | None = None) -> None:
    """Deterministic algorithms, and `count` threads (None: `threads()`), on which the order of sums depends."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(count or threads())
    if not torch.cuda.is_available():
        # where DeepSpeed is installed, saving a model imports it, and it tells stdout that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def release_gpu() -> None:
    """Gives what this process holds of a GPU's memory without using it to others, such as a process it starts."""
    import gc

    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def threads() -> int:
    """Threads of tensor operations: DUALIPO_THREADS, else every core that this process may use."""
    return _asked("DUALIPO_THREADS") or cores()


def processes() -> int:
    """Processes that make the chunks of a step: DUALIPO_PROCESSES, else one a GPU, else one a core, eight at most."""
    return _asked("DUALIPO_PROCESSES") or _usual_processes()


def chunk_threads() -> int:
    """Threads of each of them. It does not depend on DUALIPO_PROCESSES: nor do the bits that come out."""
    return max(threads() // _usual_processes(), 1)


def _usual_processes() -> int:
    return gpus() or min(threads(), MAX_PROCESSES)


def gpus() -> int:
    import torch

    return torch.cuda.device_count()


def cores() -> int:
    """Cores that this process may use, by its affinity and by its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, CPU_QUOTA.read_text(encoding="ascii").split())  # "max" where there is none
        count = min(count, max(quota // period, 1))
    return count


def _asked(variable: str) -> int | None:
    asked = os.environ.get(variable)
    if asked is None:
        return None
    if not asked.isdigit() or int(asked) < 1:
        raise UserError(f"{variable}={asked!r}: a whole number of at least 1 is needed")
    return int(asked)


def git_commit(folder: Path) -> str | None:
    """The commit checked out in `folder`, with `-dirty` where tracked files differ; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--verify", "HEAD")
        # dvc.lock is what a running `dvc repro` changes itself.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


@contextlib.contextmanager
def disk_trouble(title: str, folder: Path) -> Iterator[None]:
    """Turns a full disk, and any other error of the operating system, into a UserError of one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if full := disk_full(error):
            usage = shutil.disk_usage(next(f for f in [folder, *folder.absolute().parents] if f.is_dir()))
            free, total = usage.free / 2**20, usage.total / 2**20
            raise UserError(
                f"{title}: {full} while writing under {folder.absolute()}; without the unfinished outputs, which are "
                f"removed, {free:.1f} of {total:.0f} MiB are free: make room and run the same command again"
            ) from error
        if isinstance(error, OSError):
            raise UserError(f"{title}: {error}; check that path and its permissions, then run it again") from error
        raise


_FULL = {
    errno.ENOSPC: ("the disk is full", ("No space left on device", "disk is full")),
    errno.EDQUOT: ("the disk quota is used up", ("Disk quota exceeded",)),
    errno.EFBIG: ("a file grew over the allowed size", ("File too large",)),
}


def disk_full(error: BaseException | None) -> str | None:
    """Says in words that a disk was full. Libraries wrap the system's error in their own: causes are looked at too."""
    while error is not None:
        for number, (message, signs) in _FULL.items():
            if getattr(error, "errno", None) == number or any(sign in str(error) for sign in signs):
                return message
        error = error.__cause__ or error.__context__
    return None
