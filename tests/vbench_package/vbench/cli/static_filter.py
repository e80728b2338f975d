"""VBench's static filter, which here calls every third clip a moving one."""

import glob
import json
import os
import re
import shutil

from vbench.utils import load_control, note, number

DEVICE = "cuda"


def static_filter(args):
    assert DEVICE == "cpu"
    note("static_filter")
    found = {}
    for path in sorted(glob.glob(os.path.join(args.videos_path, "*.mp4"))):
        prompt = re.sub(r"-\d+$", "", os.path.basename(path)[: -len(".mp4")])
        entry = found.setdefault(prompt, {"static_count": 0, "static_path": []})
        control = load_control()
        moves = control.get("all_move") or prompt in control.get("moving", ()) or number(path) < 1 / 3
        if not moves and entry["static_count"] < 5:
            entry["static_count"] += 1
            entry["static_path"].append(path)
    target = os.path.join(args.result_path, "filtered_videos")
    os.makedirs(target, exist_ok=True)
    with open(os.path.join(args.result_path, args.store_name), "w") as file:
        json.dump(found, file)
    for prompt, entry in found.items():
        for index, path in enumerate(entry["static_path"]):
            shutil.copy(path, os.path.join(target, f"{prompt}-{index}.mp4"))
