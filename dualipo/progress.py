"""One progress bar over a whole run, measured in expected seconds, so that the time left is right."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from tqdm import tqdm

FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed} passed, {remaining} left"


class Progress:
    """`steps`: (name, expected seconds) of every step to come. The bar moves on within a step, and learns: the time
    that a step took becomes what later steps of the same name are expected to take."""

    def __init__(self, steps: list[tuple[str, float]]):
        self._steps = steps
        self._next = 0
        self._past = 0.0
        """Expected seconds of the steps that were done, not skipped."""
        self._begin: float | None = None
        # a terminal's bar moves each second; a log file gets a line now and then.
        self._interval = 1.0 if sys.stderr.isatty() else 60.0
        self._bar = tqdm(total=self._total(), bar_format=FORMAT, file=sys.stderr, smoothing=0, dynamic_ncols=True)
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._ticker.join()
        self._bar.close()

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Callable[[Any], None]]:
        """Around one step; the value yielded takes the step's Outcome and prints its line."""

        name, expected = self._steps[self._next]
        self._bar.set_description_str(title, refresh=False)
        begin = self._begin = time.monotonic()
        outcomes: list[Any] = []
        try:
            yield outcomes.append
        finally:
            self._begin = None
        self._next += 1
        if outcomes and not outcomes[0].skipped:
            expected = max(time.monotonic() - begin, 0.1)
            self._past += expected
            rest = [(n, expected if n == name else seconds) for n, seconds in self._steps[self._next :]]
            self._steps = self._steps[: self._next] + rest
        self._bar.total, self._bar.n = self._total(), self._past
        for outcome in outcomes:
            tqdm.write(str(outcome), file=sys.stderr)
        self._bar.refresh()

    def _total(self) -> float:
        return self._past + sum(seconds for _, seconds in self._steps[self._next :])

    def _tick(self) -> None:
        while not self._stop.wait(self._interval):
            begin = self._begin
            if begin is not None:
                expected = self._steps[self._next][1]
                # never claims that a step is over before it is.
                self._bar.n = self._past + min(time.monotonic() - begin, 0.95 * expected)
            self._bar.refresh()
