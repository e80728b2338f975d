"""What the benchmarks of speed share: two ways in turns, peak memory in fresh processes, the machine, and reports."""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from dualipo import __version__
from dualipo.artifacts import write_json
from dualipo.plan import GPUS
from dualipo.runtime import git_commit, prepare_torch, threads

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks/results"
MIB = 2**20
CAVEAT = (
    "The small world's own benchmark (0 to 100, scored by its oracle on held-out prompts) with simulated annotators. "
    "It is not VBench, and says nothing about videos of the real world."
)
Result = TypeVar("Result")


# ---- time


def now() -> float:
    """Seconds: on a GPU the wall's, once it is idle; on a CPU those computed by this process, whatever else runs."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


@dataclass(frozen=True)
class Times:
    """Seconds of two ways taken in turns."""

    ours: list[float]
    textbook: list[float]

    @property
    def faster(self) -> dict[str, float]:
        """Times faster: the median of the paired ratios, and an interval for it."""
        return median([plain / own for own, plain in zip(self.ours, self.textbook, strict=True)])

    def row(self) -> list[str]:
        return [*(f"{statistics.median(own):.2f}" for own in (self.ours, self.textbook)), spoken(self.faster)]

    @property
    def content(self) -> dict[str, Any]:
        return {"seconds": self.ours, "seconds_textbook": self.textbook, "times_faster": self.faster}


def alternate(
    ours: Callable[[int], Result], textbook: Callable[[int], Result], repetitions: int, warm_up: int = 1
) -> tuple[Times, list[tuple[Result, Result]]]:
    """Calls both with 0, 1, ... in turns, each first every other time. The first `warm_up` calls are not timed."""
    seconds: tuple[list[float], list[float]] = ([], [])
    results = []
    for repetition in range(warm_up + repetitions):
        found: dict[int, Result] = {}
        for which in (0, 1) if repetition % 2 else (1, 0):
            begin = now()
            found[which] = (ours, textbook)[which](repetition)
            if repetition >= warm_up:
                seconds[which].append(now() - begin)
        results.append((found[0], found[1]))
    return Times(*seconds), results


def median(values: Sequence[float]) -> dict[str, float]:
    """The median with the narrowest interval of values that holds the true one in 95 percent of cases, whatever their
    distribution; fewer than six values: all of them, whose `coverage` is less."""
    ordered, count = sorted(values), len(values)

    def coverage(cut: int) -> float:
        """Of the interval without the `cut` smallest and greatest values."""
        return 1 - 2 * sum(math.comb(count, i) for i in range(cut + 1)) / 2**count

    cut = max((c for c in range(1, (count - 1) // 2 + 1) if coverage(c) >= 0.95), default=0)
    found = {"median": statistics.median(ordered), "low": ordered[cut], "high": ordered[-1 - cut]}
    return {**found, "coverage": coverage(cut) if count > 1 else 0.0}


def spoken(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


# ---- memory


def peak_memory(
    prepare: Callable[..., Callable[[int], Any]], size: Any, smallest: Any, *arguments: Any
) -> dict[str, float]:
    """Bytes at the peak of work(1), where work = prepare(size, *arguments) ran work(0) before, in a fresh process:
    `step`; and of all from before `prepare`: `whole`.

    On a GPU what torch allocated; on a CPU resident memory above that of the process when it has done the same with
    `smallest`, so that libraries do not count.
    """
    return fresh(_measure, prepare, size, smallest, arguments)


def fresh(function: Callable[..., Result], *arguments: Any) -> Result:
    """What the function returns in a process of its own, where freed tensors go back to the system at once."""
    # glibc would keep those under 32 MiB.
    kept = {name: os.environ.get(name) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")}
    os.environ.update(dict.fromkeys(kept, "65536"))
    context = get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=_answer, args=(function, arguments, answer))
    try:
        process.start()
        process.join()
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    if process.exitcode:
        sys.exit(f"{function.__name__} failed in a process of its own")
    return answer.get()


def _answer(function: Callable[..., Any], arguments: Sequence[Any], answer: Any) -> None:
    prepare_torch()
    answer.put(function(*arguments))


def _measure(
    prepare: Callable[..., Callable[[int], Any]], size: Any, smallest: Any, arguments: Sequence[Any]
) -> dict[str, float]:
    if not torch.cuda.is_available():
        work = prepare(smallest, *arguments)
        work(0), work(1)
        del work
        gc.collect()
    base = restart_peak()
    work = prepare(size, *arguments)
    work(0)
    whole = peak()
    gc.collect()
    restart_peak()
    work(1)
    return {"step": peak() - base, "whole": max(whole, peak()) - base}


def restart_peak() -> float:
    """Counts the peak anew; bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return 0.0
    with open("/proc/self/clear_refs", "w") as file:  # Linux: VmHWM becomes VmRSS
        file.write("5")
    return _status("VmRSS")


def peak() -> float:
    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _status("VmHWM")


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1]) * 1024


# ---- operations


class Operations:
    """Counts floating-point operations of matrix products, convolutions and attention; a multiply-add is two."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

        def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
            return sdpa_flop_count(query, key, value)

        def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
            return sdpa_backward_flop_count(gradient, query, key, value)

        # The CPU's attention is not known to torch's counter.
        aten = torch.ops.aten
        own = {
            aten._scaled_dot_product_flash_attention_for_cpu: forward,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        }
        self._mode = FlopCounterMode(display=False, custom_mapping=own)

    def __enter__(self) -> Operations:
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)

    @property
    def total(self) -> int:
        return self._mode.get_total_flops()


def peak_rate() -> tuple[float, str]:
    """Operations a second that the machine can do at most, and by whose word: a GPU's data sheet, or a product of two
    square float32 matrices timed here."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name().lower()
        known = next((gpu for gpu in GPUS.values() if gpu.name in name), None)
        return (known.tflops * 1e12, f"{known.name}'s data sheet, bf16") if known else (math.nan, "unknown GPU")
    matrix = torch.randn(1024, 1024)
    taken = []
    for _ in range(5):
        begin = now()
        matrix @ matrix
        taken.append(now() - begin)
    return 2 * 1024**3 / min(taken[1:]), "a product of 1024x1024 matrices here"


# ---- what is shown


def machine() -> dict[str, Any]:
    if torch.cuda.is_available():
        kind = f"GPU, {torch.cuda.get_device_name()}"
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        kind = f"CPU, {model or platform.machine()}"
    return {"kind": kind, "threads": threads(), "clock": "wall" if torch.cuda.is_available() else "CPU seconds"}


def machine_line() -> str:
    here = machine()
    count = f"{here['threads']} thread" + ("s" if here["threads"] > 1 else "")
    return f"{here['kind']}; {count}; seconds are {'the wall' if here['clock'] == 'wall' else 'the CPU'}'s."


def between(value: dict[str, float], scale: float = 1.0, signed: bool = False) -> str:
    """A mean with its interval, times `scale`."""
    sign = "+" if signed else ""
    mean, low, high = (value[key] * scale for key in ("mean", "low", "high"))
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def versions() -> dict[str, str]:
    import diffusers
    import transformers

    libraries = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    return {"dualipo": __version__, "python": platform.python_version(), **libraries}


def finish(name: str, parts: Sequence[str], content: dict[str, Any], faults: Sequence[str], out: Path) -> None:
    """Prints a report, writes `out`/`name`.json, and exits with 1 where there are faults."""
    print("\n\n".join(parts))
    print()
    for fault in faults:
        print(f"Not met: {fault}.")
    if not faults:
        print("All requirements are met.")
    common = {"machine": machine(), "git_commit": git_commit(REPOSITORY), "versions": versions()}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", {**content, "faults": list(faults), "passed": not faults, **common})
    print(f"Written to {out / name}.json")
    sys.exit(bool(faults))
