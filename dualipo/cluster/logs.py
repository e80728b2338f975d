"""A container's log, line by line, each line once however often the connection breaks."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

from dualipo.cluster.api import CONNECT, Cluster, lines, may_pass, transient_errors
from dualipo.cluster.watching import hang_up

WINDOW = 5 * 10**9
"""Nanoseconds by which lines of a log may be out of order: its two streams are written by two threads."""
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")


class Deduplicator:
    """Tells the lines of a log that was read before, wholly or in part, from new ones.

    A log is always read from its beginning, as long as the kubelet keeps it. Lines bear the time of writing; equal
    lines of the same instant are counted.
    """

    def __init__(self) -> None:
        self._newest = 0
        self._recent: Counter[bytes] = Counter()
        """Lines at most WINDOW older than the newest, and some older ones."""
        self._times: dict[bytes, int] = {}
        self.begin()

    def begin(self) -> None:
        """Before the log is read from its beginning again."""
        cut = self._newest - WINDOW
        self._forget(cut)
        self._cut, self._known = cut, Counter(self._recent)

    def new(self, line: bytes) -> str | None:
        """The text of a line that was not told before; None for one that was."""
        found = _STAMP.match(line)
        if found is None:
            # the kubelet's own remark, such as that the log cannot be read just now: it belongs to no log.
            return None
        time = _nanoseconds(found)
        if time < self._cut:
            return None
        if self._known[line] > 0:
            self._known[line] -= 1
            return None
        self._newest = max(self._newest, time)
        self._recent[line] += 1
        self._times[line] = time
        if len(self._recent) > 10_000:
            self._forget(self._newest - WINDOW)
        return line[found.end() :].decode(errors="replace")

    def _forget(self, cut: int) -> None:
        for line in [line for line, time in self._times.items() if time < cut]:
            del self._times[line], self._recent[line]


def _nanoseconds(found: re.Match[bytes]) -> int:
    second, fraction, zone = found.groups()
    moment = datetime.fromisoformat((second + (b"+00:00" if zone == b"Z" else zone)).decode())
    return int(moment.timestamp()) * 10**9 + int((fraction or b"").ljust(9, b"0"))


class LogStream:
    """A thread that tells `write` every line of a container's log until `finish` and the log's end."""

    def __init__(self, cluster: Cluster, pod: str, container: str, write: Callable[[str], None]):
        self.cluster, self.pod, self.container, self.write = cluster, pod, container, write
        self._ended = threading.Event()
        self._dropped = threading.Event()
        self._response: Any = None
        self._lines = Deduplicator()
        self._thread = threading.Thread(target=self._run, name=f"log of {pod}", daemon=True)
        self._thread.start()

    def ended(self) -> None:
        """The container has ended: what there is of its log is all there will be."""
        self._ended.set()

    def finish(self, within: float) -> None:
        """Waits for the rest of the log, then lets it go."""
        self._ended.set()
        self._thread.join(within / 2)
        # a connection that is dead without saying so: the rest is read over a new one.
        hang_up(self._response)
        self._thread.join(within / 2)
        self._dropped.set()
        hang_up(self._response)

    def _run(self) -> None:
        delays = self.cluster.patience.delays()
        while not self._dropped.is_set():
            last = self._ended.is_set()
            try:
                if self._read(follow=not last):
                    delays = self.cluster.patience.delays()
                if last:
                    return
            except transient_errors() as error:
                status = getattr(error, "status", None)
                # 400: the container has not started yet, or its log cannot be read just now.
                if status == 404 or not (may_pass(error) or status == 400):
                    return
                if last and status == 400:
                    return
            # wakes at once when the container has ended, to read the rest.
            (self._dropped if last else self._ended).wait(next(delays))

    def _read(self, follow: bool) -> bool:
        """Whether there was anything new."""
        self._lines.begin()
        response = self._response = self.cluster.log(
            self.pod,
            self.container,
            follow=follow,
            timestamps=True,
            _request_timeout=(CONNECT, self.cluster.patience.quiet_log),
        )
        told = False
        try:
            for line in lines(response, complete=not follow):
                text = self._lines.new(line)
                if text is not None:
                    told = True
                    self.write(text)
        finally:
            self._response = None
            response.close()
        return told


def tail(cluster: Cluster, pod: str, container: str, count: int) -> list[str]:
    """The last lines of a log; none where it cannot be read."""
    try:
        options = {"tail_lines": count, "_request_timeout": (CONNECT, cluster.patience.answer)}
        return cluster.log(pod, container, **options).data.decode(errors="replace").splitlines()
    except transient_errors():
        return []
