"""SIGTERM during a training: it ends after the step under way, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Notice:
    """Whether SIGTERM has come."""

    given: bool = False


@contextmanager
def sigterm_noted() -> Iterator[Notice]:
    """Notes SIGTERM instead of obeying it; outside the main thread nothing can be noted, and nothing is changed."""
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return

    def note(number: int, frame: object) -> None:
        notice.given = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before)
