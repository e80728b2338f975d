"""Follows objects of the API server: a list, then a watch from there, over again whenever it is cut."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dualipo.cluster.api import CONNECT, Cluster, lines, may_pass, transient_errors

Items = list[dict[str, Any]]


@dataclass(frozen=True)
class Seen:
    """What a follower tells: all there is (`kind` SYNC), a change (ADDED, MODIFIED, DELETED), or its end (ERROR)."""

    source: str
    kind: str
    items: Items
    error: Exception | None = None


class _Expired(Exception):
    """The resource version is too old to watch from (410 Gone)."""


class Follower:
    """A thread that puts everything that happens to the objects of one list into a queue.

    It bears disconnects, 410 Gone and a server that restarts; it gives up where the server refuses, or has not
    answered for `patience.unreachable` seconds.
    """

    def __init__(
        self, source: str, cluster: Cluster, call: Callable[..., Any], into: queue.Queue[Seen], **selectors: str
    ):
        self.source, self.cluster, self.into = source, cluster, into
        self._call, self._selectors = call, selectors
        self._stop = threading.Event()
        self._response: Any = None
        self._version: str | None = None
        """To watch from; None where everything has to be listed."""
        self._heard = 0.0
        self._thread = threading.Thread(target=self._run, name=f"follow {source}", daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        hang_up(self._response)
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        patience = self.cluster.patience
        delays, answered = patience.delays(), time.monotonic()
        while not self._stop.is_set():
            begin = time.monotonic()
            try:
                if self._version is None:
                    self._list()
                answered = time.monotonic()
                self._watch()
                answered = time.monotonic()
                # a server that ends watches at once is asked ever more rarely, one that keeps them is asked at once.
                if answered - begin > patience.longest_backoff:
                    delays = patience.delays()
            except _Expired:
                self._version = None
            except transient_errors() as error:
                if not may_pass(error) or time.monotonic() - max(answered, self._heard) > patience.unreachable:
                    self.into.put(Seen(self.source, "ERROR", [], error))
                    return
            self._stop.wait(next(delays))

    def _list(self) -> None:
        answer = self._call(
            _preload_content=False, _request_timeout=(CONNECT, self.cluster.patience.answer), **self._selectors
        )
        found = json.loads(answer.data)
        self.into.put(Seen(self.source, "SYNC", found["items"]))
        self._version = found["metadata"]["resourceVersion"]

    def _watch(self) -> None:
        seconds = self.cluster.patience.watch
        try:
            response = self._response = self._call(
                watch=True,
                resource_version=self._version,
                allow_watch_bookmarks=True,
                timeout_seconds=seconds,
                _preload_content=False,
                _request_timeout=(CONNECT, seconds + self.cluster.patience.answer),
                **self._selectors,
            )
        except transient_errors() as error:
            if getattr(error, "status", None) == 410:
                raise _Expired from None
            raise
        try:
            for line in lines(response):
                event = json.loads(line)
                thing = event["object"]
                if event["type"] == "ERROR":
                    if thing.get("code") == 410:
                        raise _Expired
                    raise OSError(f"the watch ended: {thing.get('message')}")
                if event["type"] != "BOOKMARK":
                    self.into.put(Seen(self.source, event["type"], [thing]))
                self._version, self._heard = thing["metadata"]["resourceVersion"], time.monotonic()
                if self._stop.is_set():
                    return
        finally:
            self._response = None
            response.close()


def hang_up(response: Any) -> None:
    """Ends another thread's reading of an answer."""
    if response is not None:
        with contextlib.suppress(Exception):
            response.shutdown()
