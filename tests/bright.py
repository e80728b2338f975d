"""Human labels of one person who likes bright clips, and an external model that reads brightness off them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dualipo.media.video import encode_clip
from dualipo.records import HumanChoice, HumanRating, write_rows

LEVELS = {"dark": 20, "grey": 110, "white": 220}


def write_labels(folder: Path, prompts: list[str]) -> Path:
    """Ratings, choices and clips; three clips of each prompt."""
    folder.mkdir()
    ratings, choices = [], []
    for index, prompt in enumerate(prompts):
        for name, level in LEVELS.items():
            clip = np.full((3, 32, 32, 3), level + index, np.uint8)
            (folder / f"{index}-{name}.mp4").write_bytes(encode_clip(clip))
            said = {"prompt": prompt, "annotator": "1", "reason": "light"}
            word = {"dark": "bad", "grey": "normal", "white": "good"}[name]
            ratings += [
                HumanRating(clip=f"{index}-{name}.mp4", dimension=d, verdict=word, **said)
                for d in ("semantic", "motion", "faithfulness")
            ]
        for a, b, verdict in (("dark", "grey", "b"), ("white", "dark", "a"), ("grey", "grey", "tie")):
            pair = {"clip_a": f"{index}-{a}.mp4", "clip_b": f"{index}-{b}.mp4", "verdict": verdict}
            choices.append(HumanChoice(**pair, **said))
    write_rows(folder / "ratings.jsonl", ratings)
    write_rows(folder / "choices.jsonl", choices)
    return folder


def write_scores(file: Path, labels: Path) -> Path:
    """Scores of every clip by an external model: how bright it is, and the length of its name."""
    rows = [f"{p.name},{LEVELS[p.stem.partition('-')[2]]},{len(p.stem)}" for p in sorted(labels.glob("*.mp4"))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(["clip,light,length", *rows]))
    return file
