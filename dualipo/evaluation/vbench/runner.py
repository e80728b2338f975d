"""Runs VBench's Python entry on one dimension; started by its path, with the interpreter that has VBench.

This file imports nothing of dualipo and runs on Python 3.8 and later. VBench's own command line exits with 0 where it
failed; this one exits with 1 then, and with 2 where the environment is not the one that was asked for.

  runner.py --version 0.1.5 --dimension color --clips FOLDER --info FILE.json --out FOLDER [--part]
  runner.py --version 0.1.5 --static-filter --clips FOLDER --out FOLDER
  runner.py --version 0.1.5

The first writes OUT/<dimension>_eval_results.json; the second copies the clips without movement to OUT/filtered_videos
and names them in OUT/filtered_static_video.json; the third only looks at the environment. With --part the clips are
some of those that are scored in all, and none of them needs to show an object of any colour: the result is [null, []]
then, where VBench divides by the number of those that do.
"""

import argparse
import json
import os
import sys
import threading
import time
from importlib import metadata
from typing import NoReturn

WRONG_ENVIRONMENT = 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", required=True)
    parser.add_argument("--dimension")
    parser.add_argument("--static-filter", action="store_true")
    parser.add_argument("--clips")
    parser.add_argument("--info")
    parser.add_argument("--out")
    parser.add_argument("--part", action="store_true")
    options = parser.parse_args()
    # The folder of this file comes first otherwise, and names in it would hide VBench's.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    _end_with_parent()
    try:
        found = metadata.version("vbench")
    except metadata.PackageNotFoundError:
        _refuse(f"vbench is not installed in {sys.executable}; pip install vbench=={options.version} there")
    if found != options.version:
        _refuse(f"vbench is {found} in {sys.executable}; pip install vbench=={options.version} there")
    if not (options.dimension or options.static_filter):
        return
    os.makedirs(options.out, exist_ok=True)
    written = _static_filter(options) if options.static_filter else _evaluate(options)
    if not os.path.isfile(written):
        sys.exit(f"VBench ended without writing {written}")


def _evaluate(options: argparse.Namespace) -> str:
    from vbench import VBench

    bench = VBench(_device(), options.info, options.out)
    written = os.path.join(options.out, options.dimension + "_eval_results.json")
    try:
        bench.evaluate(videos_path=options.clips, name=options.dimension, dimension_list=[options.dimension])
    except ZeroDivisionError as error:
        if not (options.part and _left_out_every_clip(error)):
            raise
        with open(written, "w") as file:
            json.dump({options.dimension: [None, []]}, file)
    return written


def _left_out_every_clip(error: ZeroDivisionError) -> bool:
    """Whether this is VBench's division, in color.py, by the number of clips that it did not leave out."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return False
    return trace.tb_frame.f_code.co_name == "color" and trace.tb_frame.f_locals.get("video_count") == 0


def _static_filter(options: argparse.Namespace) -> str:
    from vbench.cli import static_filter as module
    from vbench.utils import CACHE_DIR, init_submodules

    init_submodules(["dynamic_degree"])  # fetches RAFT, which the filter takes for granted
    module.DEVICE = _device()
    os.chdir(options.clips)  # it globs, and a path may hold brackets
    store = "filtered_static_video.json"
    module.static_filter(
        argparse.Namespace(
            model=os.path.join(CACHE_DIR, "raft_model/models/raft-things.pth"),
            videos_path=".",
            result_path=options.out,
            store_name=store,
            small=False,
            mixed_precision=False,
            alternate_corr=False,
            filter_scope="temporal_flickering",
        )
    )
    return os.path.join(options.out, store)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(message + "\n")
    sys.exit(WRONG_ENVIRONMENT)


def _end_with_parent() -> None:
    """Whoever started this may be killed; a GPU must not be kept busy for nobody."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
