"""Commands in processes of their own without the seconds that imports take: forks of a server that has made them.

    python warm.py serve SOCKET
    python warm.py SOCKET dualipo ARGUMENTS...      as `dualipo ARGUMENTS...` here, or a Python file in its place

The command has the caller's folder, environment, standard streams and exit status; 137 if it was killed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

MODULES = (
    "torch",
    "mlflow",
    "great_expectations",
    "diffusers.pipelines.cogvideo.pipeline_cogvideox",
    "transformers.models.t5.modeling_t5",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "av",
    "PIL.ImageFont",
    "dualipo.cli",
    "dualipo.engine",
    "dualipo.tracking",
    "kfp.dsl.executor_main",
)
KILLED = 128 + signal.SIGKILL


class Warm:
    """A running server. `with Warm(folder) as warm: warm.run("dualipo", "start", cwd=...)`."""

    def __init__(self, folder: Path):
        self.socket = folder / "warm.socket"

    def __enter__(self) -> Warm:
        self.server = subprocess.Popen([sys.executable, __file__, "serve", str(self.socket)])
        while not self.socket.exists():
            assert self.server.poll() is None, "the server has ended"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.kill()
        self.server.wait()

    @property
    def prefix(self) -> list[str]:
        return [sys.executable, "-S", __file__, str(self.socket)]

    def run(self, *command: object, cwd: Path) -> subprocess.CompletedProcess:
        return subprocess.run([*self.prefix, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300)


def serve(path: str) -> None:
    for name in MODULES:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a process with threads must not fork"
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.new")
        server.listen()
        server.settimeout(5)
        os.replace(f"{path}.new", path)
        while os.getppid() == parent:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                if os.fork() == 0:
                    server.close()
                    _serve_one(connection)


def _serve_one(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    argv, cwd, environment = json.loads(connection.makefile().readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    status = _call(argv[0])
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(bytes([status]))
    os._exit(status)


def _call(program: str) -> int:
    import runpy
    import traceback

    try:
        if program == "dualipo":
            importlib.import_module("dualipo.cli").main()
        else:
            runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def call(path: str, argv: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"x"], [0, 1, 2])
        connection.sendall(json.dumps([argv, os.getcwd(), dict(os.environ)]).encode() + b"\n")
        answer = connection.recv(1)
    return answer[0] if answer else KILLED


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
