"""A stand-in for the package `vbench` 0.1.5: its entry, names, warnings and result files, with scores out of thin air.

What it measures is a number made from the clip's bytes. `control.json` beside the package says what goes wrong:
{"fail": [dimensions], "drop": {dimension: how many clips}, "empty": [dimensions], "sleep": {dimension: seconds}}.
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


def compute(dimension, entries, control):
    clips = [path for entry in entries if dimension in entry["dimension"] for path in entry["video_list"]]
    if dimension in control.get("empty", ()):
        clips = []
    clips = clips[control.get("drop", {}).get(dimension, 0) :]
    rows = []
    for clip in clips:
        score = number(clip)
        if dimension == "color" and clip.endswith("-0.mp4"):
            continue  # no object of any colour was seen
        if dimension == "imaging_quality":
            score *= 100
        elif dimension in ("dynamic_degree", "human_action"):
            score = clip.endswith(("-0.mp4", "-2.mp4"))
        rows.append({"video_path": clip, "video_results": score})
    mean = sum(row["video_results"] for row in rows) / len(rows) if rows else float("nan")
    return [mean / 100 if dimension == "imaging_quality" else mean, rows]
