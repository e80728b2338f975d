"""An environment with a stand-in for VBench, an interpreter of its own, and clips named as for the real one."""

from __future__ import annotations

import json
import shutil
import sys
import venv
from pathlib import Path

import numpy as np

from dualipo.evaluation.vbench.prompts import Selection
from dualipo.generator.sampling import SHARD_PROMPTS
from dualipo.media.store import ClipStore, pack_shard
from dualipo.records import Clip

VERSION = "0.1.5"


class StandIn:
    """tests/vbench_package installed into a bare environment at `folder`."""

    def __init__(self, folder: Path, version: str | None = VERSION):
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = str(folder / "bin/python")
        self.packages = folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        shutil.copytree(Path(__file__).parent / "vbench_package", self.packages, dirs_exist_ok=True)
        if version:
            self.install(version)

    def install(self, version: str) -> None:
        for old in self.packages.glob("vbench-*.dist-info"):
            shutil.rmtree(old)
        about = self.packages / f"vbench-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vbench\nVersion: {version}\n")

    def control(self, **what: object) -> None:
        (self.packages / "control.json").write_text(json.dumps(what))

    def calls(self) -> list[str]:
        """What was begun since the last time this was asked."""
        file = self.packages / "calls.txt"
        lines = file.read_text().splitlines() if file.is_file() else []
        file.unlink(missing_ok=True)
        return lines


def write_clips(folder: Path, selection: Selection, seed: int = 0, per_tar: int = SHARD_PROMPTS) -> Path:
    """A clip folder as `evaluate` samples it, of tiny noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for start in range(0, len(selection.prompts), per_tar):
        shard, members = f"clips-{start // per_tar:05d}.tar", []
        for prompt in selection.prompts[start : start + per_tar]:
            for k in range(selection.samples(prompt.id)):
                members.append((f"{prompt.id}-{k}.mp4", rng.integers(256, size=(2, 16, 16, 3), dtype=np.uint8)))
                file = f"{shard}/{prompt.id}-{k}.mp4"
                rows.append(Clip(id=f"{prompt.id}-{k}", prompt_id=prompt.id, prompt=prompt.text, file=file, seed=k))
        pack_shard(folder / shard, members, 8.0)
    ClipStore.write_manifest(folder, rows)
    return folder
