"""Public sets of compared pairs: VideoAlign's training table, VideoGen-RewardBench, GenAI-Bench.

All three give one settled label a pair and dimension, no annotators and no reasons. So each label becomes one row of a
choices table whose annotator is the set's name and whose reason only names the dimension: a critic can be measured on
them, and learn verdicts from them, but no chain of thought.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dualipo.critic.questions import NAMES
from dualipo.formats.base import Broken, Found, Item, Unusable, clip_of, open_table, table_rows, text_of
from dualipo.records import HumanChoice

DIMENSION_OF = {"TA": "semantic", "MQ": "motion", "VQ": "faithfulness", "Overall": "overall"}
"""VideoAlign: text alignment, motion quality, visual quality. Our reading: visual quality stands for faithfulness."""
AB = {"a": "a", "b": "b", "same": "tie", "tie": "tie"}
VOTES = {"leftvote": "a", "rightvote": "b", "tievote": "tie", "bothbadvote": "tie"}


def videoalign(source: Path, clips: Path | None = None, majority: bool = False) -> Found:
    """VideoAlign's training table (VideoAlign 3.1).

    Assumed layout: a CSV with the columns `path_A,path_B,prompt,VQ,MQ,TA` and `fps_A,num_frames_A,fps_B,num_frames_B`;
    labels `A`, `B`, `same`; paths relative to the table's folder or its `videos/`. An empty label means that the pair
    was not judged there. The last four columns may be absent and are not read: the files themselves say more.

    The set has no overall label. With `majority` each pair also gets one, our own: the clip that wins more of the
    three dimensions, a tie where both win equally many.
    """

    def labels(row: dict[str, Any]) -> dict[str, tuple[str, str]]:
        found = {DIMENSION_OF[name]: (_verdict(row, name, AB), "videoalign") for name in ("VQ", "MQ", "TA")}
        found = {dimension: label for dimension, label in found.items() if label[0]}
        if majority and len(found) == 3:
            verdicts = [verdict for verdict, _ in found.values()]
            lead = verdicts.count("a") - verdicts.count("b")
            found["overall"] = ("a" if lead > 0 else "b" if lead < 0 else "tie", "videoalign-majority")
        return found

    return _read(source, clips, ("path_A", "path_B"), ("VQ", "MQ", "TA"), labels)


def videogen_rewardbench(source: Path, clips: Path | None = None) -> Found:
    """VideoGen-RewardBench (VideoAlign H.1: 26.5k triplets, labels on VQ, MQ, TA and Overall).

    Assumed layout: a CSV with the columns `path_A,path_B,prompt,VQ,MQ,TA,Overall` and perhaps others; labels and paths
    as in VideoAlign's training table.
    """

    def labels(row: dict[str, Any]) -> dict[str, tuple[str, str]]:
        found = {DIMENSION_OF[name]: (_verdict(row, name, AB), "videogen-rewardbench") for name in DIMENSION_OF}
        return {dimension: label for dimension, label in found.items() if label[0]}

    return _read(source, clips, ("path_A", "path_B"), tuple(DIMENSION_OF), labels)


def genai_bench(source: Path, clips: Path | None = None) -> Found:
    """GenAI-Bench's video part (VideoAlign H.1: 1.9k pairs, overall quality only).

    Assumed layout: a CSV or JSON lines with the columns `left_video,right_video,prompt,vote_type` and perhaps others;
    votes `leftvote`, `rightvote`, `tievote`, `bothbad_vote`. Our reading: both bad is a tie.
    """

    def labels(row: dict[str, Any]) -> dict[str, tuple[str, str]]:
        verdict = _verdict({"vote_type": str(row["vote_type"] or "").replace("_", "")}, "vote_type", VOTES)
        return {"overall": (verdict, "genai-bench")} if verdict else {}

    return _read(source, clips, ("left_video", "right_video"), ("vote_type",), labels)


def _read(
    source: Path,
    clips: Path | None,
    paths: tuple[str, str],
    columns: tuple[str, ...],
    labels: Callable[[dict[str, Any]], dict[str, tuple[str, str]]],
) -> Found:
    table = open_table(source)
    folders = [clips] if clips else [table.parent, table.parent / "videos"]
    for where, row in table_rows(table, (*paths, "prompt", *columns)):
        try:
            prompt = text_of(row, "prompt")
            clip_a, clip_b = (clip_of(row, path, folders) for path in paths)
            found = labels(row)
            if not found:
                raise Unusable(f"no label in {', '.join(columns)}")
        except Unusable as error:
            yield Broken(where, str(error))
            continue
        rows = [
            HumanChoice.model_validate(
                {
                    "clip_a": clip_a, "clip_b": clip_b, "prompt": prompt, "annotator": annotator,
                    "dimension": dimension, "verdict": verdict, "reason": f"Compared on {NAMES[dimension]}.",
                }
            )
            for dimension, (verdict, annotator) in found.items()
        ]  # fmt: skip
        yield Item(where, tuple(rows))


def _verdict(row: dict[str, Any], column: str, words: Mapping[str, str]) -> str:
    """Our word for a label; empty where the cell is. Raises Unusable on any other."""
    label = str(row[column] if row[column] is not None else "").strip().lower()
    if label and label not in words:
        raise Unusable(f"{column} {row[column]!r} is none of {', '.join(words)}")
    return words.get(label, "")
