"""A promoter that waits for others in the middle: python promoters.py FOLDER REFERENCE WHERE MEETING COUNT.

WHERE: `looked`, after it saw who is champion; `writing`, with its move ready to be written; `step`, the same as a step.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 120


def meet(meeting: Path, count: int) -> None:
    (meeting / str(os.getpid())).touch()
    end = time.monotonic() + PATIENCE
    while len(list(meeting.iterdir())) < count and time.monotonic() < end:
        time.sleep(0.02)


def main(folder: Path, reference: str, where: str, meeting: Path, count: int) -> int:
    from dualipo.config import load_config
    from dualipo.errors import UserError
    from dualipo.tracking import Tracker, promotion
    from dualipo.tracking.evidence import read
    from dualipo.tracking.history import History

    def first(original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not (meeting / str(os.getpid())).exists():
                meet(meeting, count)
            return original(*args, **kwargs)

        return call

    if where == "looked":
        promotion._move = first(promotion._move)
    else:
        History._create = first(History._create)  # type: ignore[method-assign]
    tracker = Tracker(folder, load_config(overrides={"experiment.name": "tiny"}))
    by = f"promoter of {reference}"
    try:
        if where == "step":
            version = tracker.resolve(reference)
            with tracker.store.writing():
                tracker.registry.crown(version, "promote", by, "gates held", reference, read(version))
        else:
            print(promotion.promote(tracker, reference, by))
    except UserError as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    _, root, which, place, at, number = sys.argv
    sys.exit(main(Path(root), which, place, Path(at), int(number)))
