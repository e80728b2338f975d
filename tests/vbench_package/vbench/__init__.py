"""A stand-in for the package `vbench` 0.1.5: its entry, names, warnings and result files, with scores out of thin air.

What it measures is a number made from the clip's bytes. `control.json` beside the package says what goes wrong:
{"fail": [dimensions], "drop": {dimension: how many clips}, "empty": [dimensions], "sleep": {dimension: seconds},
"colourless": [prompts that show no object of any colour], "moving": [prompts without a static clip], "all_move": true}.
`calls.txt` there gets a line for each dimension begun.
"""

import json
import os
import time
from pathlib import Path

from vbench.utils import load_control, note, number


class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info_dir, self.output_path = device, full_info_dir, output_path
        os.makedirs(self.output_path, exist_ok=True)

    def build_full_info_json(self, videos_path, name, dimension_list):
        found = []
        names = os.listdir(videos_path)
        postfix = Path(names[0]).suffix
        for entry in json.loads(Path(self.full_info_dir).read_text(encoding="utf-8")):
            if set(dimension_list) & set(entry["dimension"]):
                entry["video_list"] = []
                for index in range(5):
                    intended = f"{entry['prompt_en']}-{index}{postfix}"
                    if intended in names:
                        entry["video_list"].append(os.path.join(videos_path, intended))
                    else:
                        print(f"WARNING!!! This required video is not found! The missing video is: {intended}")
                found.append(entry)
        path = os.path.join(self.output_path, name + "_full_info.json")
        Path(path).write_text(json.dumps(found, indent=4), encoding="utf-8")
        return path

    def evaluate(self, videos_path, name, prompt_list=(), dimension_list=None, local=False, read_frame=False):
        control, results = load_control(), {}
        info = self.build_full_info_json(videos_path, name, dimension_list)
        for dimension in dimension_list:
            note(dimension)
            time.sleep(control.get("sleep", {}).get(dimension, 0))
            if dimension in control.get("fail", ()):
                raise ModuleNotFoundError("No module named 'detectron2'")
            results[dimension] = compute(dimension, json.loads(Path(info).read_text(encoding="utf-8")), control)
        output = os.path.join(self.output_path, name + "_eval_results.json")
        Path(output).write_text(json.dumps(results, indent=4), encoding="utf-8")


FRAMES = 16
"""That VBench looks at in each clip where it judges frames."""


def compute(dimension, entries, control):
    clips = [path for entry in entries if dimension in entry["dimension"] for path in entry["video_list"]]
    if dimension in control.get("empty", ()):
        clips = []
    clips = clips[control.get("drop", {}).get(dimension, 0) :]
    if dimension == "color":
        return color(clips, control)
    rows = [{"video_path": clip, **score(dimension, clip)} for clip in clips]
    return [mean(dimension, rows) if rows else float("nan"), rows]


def score(dimension, clip):
    value = number(clip)
    if dimension in ("object_class", "multiple_objects", "scene"):
        good = int(value * FRAMES)
        return {"video_results": good / FRAMES, "success_frame_count": good, "frame_count": FRAMES}
    if dimension in ("appearance_style", "spatial_relationship"):
        frames = [value * k / FRAMES for k in range(FRAMES)]
        return {"video_results": sum(frames) / FRAMES, "frame_results": frames}
    if dimension == "background_consistency":
        return {"video_results": value, "video_sim": value * (FRAMES - 1), "cnt_per_video": FRAMES - 1}
    if dimension in ("dynamic_degree", "human_action"):
        return {"video_results": clip.endswith(("-0.mp4", "-2.mp4"))}
    return {"video_results": value * 100 if dimension == "imaging_quality" else value}


def mean(dimension, rows):
    if dimension in ("object_class", "multiple_objects", "scene"):
        return sum(row["success_frame_count"] for row in rows) / sum(row["frame_count"] for row in rows)
    found = sum(row["video_results"] for row in rows) / len(rows)
    return found / 100 if dimension == "imaging_quality" else found


def color(clips, control):
    success_frame_count_all, video_count = 0, 0
    rows = []
    for clip in clips:
        if clip.endswith("-0.mp4") or Path(clip).stem.rpartition("-")[0] in control.get("colourless", ()):
            continue  # no object of any colour was seen
        success_frame_count_all += number(clip)
        video_count += 1
        rows.append({"video_path": clip, "video_results": number(clip)})
    success_rate = success_frame_count_all / video_count
    return [success_rate, rows]
