"""The cluster's servers on this machine: what the rendered manifests run, with their commands, variables and probes.

Only what a pod gets from its surroundings is another: addresses, ports, folders, the values of secrets.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualipo.cluster.render import Object, of_kind, templates

SECRETS = {
    "dualipo-s3": {"AWS_ACCESS_KEY_ID": "one-key", "AWS_SECRET_ACCESS_KEY": "one-secret"},
    "dualipo-mlflow-db": {"username": "mlflow", "password": "a-password"},
}
HERE = "127.0.0.1"
PATIENCE = 300
"""Seconds for a server to start: what the manifests' startup probes give it."""
SCRIPTS = {"migrate.py": "base/mlflow", "upload.py": "base/postgres", "buckets.py": "overlays/local"}
"""Where k8s/ has what the pods find under /scripts."""


def container(objects: list[Object], workload: str, name: str) -> Object:
    """A container of a workload such as `Deployment mlflow`."""
    [pod] = [template for template in templates(objects) if template.name == workload]
    [found] = [each for each in pod.containers if each["name"] == name]
    return found


def environment(objects: list[Object], described: Object) -> dict[str, str]:
    """A container's variables as the kubelet makes them."""
    made: dict[str, str] = {}
    for source in described.get("envFrom", []):
        if "configMapRef" in source:
            [found] = [
                o for o in of_kind(objects, "ConfigMap") if o["metadata"]["name"] == source["configMapRef"]["name"]
            ]
            made |= found["data"]
        else:
            made |= SECRETS[source["secretRef"]["name"]]
    for variable in described.get("env", []):
        if "value" in variable:
            made[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            made[variable["name"]] = SECRETS[reference["name"]][reference["key"]]
    return made


def arguments(described: Object, variables: dict[str, str]) -> list[str]:
    """A container's command, its `$(NAME)` replaced."""
    words = [*described["command"], *described.get("args", [])]
    return [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in words]


def free_ports(count: int) -> list[int]:
    """Ports that are free, as are those 10000 above them, which SeaweedFS takes for gRPC."""
    found: list[int] = []
    for port in random.sample(range(20000, 30000), 1000):
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind((HERE, port))
            other.bind((HERE, port + 10000))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def program(name: str) -> str:
    """One of the test extra's."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, f"{name} is not installed"
    return found


@contextlib.contextmanager
def _running(
    command: list[str], variables: dict[str, str], folder: Path, ready: Callable[[], object], **options: Any
) -> Iterator[None]:
    """A server from when it is ready until it is no longer needed, with all of its processes."""
    log = folder / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, env=variables, stdout=file, stderr=file, cwd=folder, start_new_session=True, **options
        )
    try:
        patiently(ready, lambda: process.poll() is None, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def patiently(call: Callable[[], Any], alive: Callable[[], bool] = lambda: True, log: Path | None = None) -> Any:
    """What `call` returns once it no longer fails."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except Exception as error:
            if not alive() or time.monotonic() > end:
                raise AssertionError(f"{error}\n{log.read_text()[-3000:] if log else ''}") from error
            time.sleep(0.25)


def _answers(port: int, described: Object) -> Callable[[], object]:
    startup = described["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == PATIENCE
    path = described["readinessProbe"]["httpGet"]["path"]
    return lambda: urllib.request.urlopen(f"http://{HERE}:{port}{path}", timeout=5).close()


# ---- the object store


@contextlib.contextmanager
def seaweedfs(objects: list[Object], folder: Path) -> Iterator[str]:
    """The object store's address."""
    folder.mkdir()
    described = container(objects, "StatefulSet seaweedfs", "seaweedfs")
    variables = environment(objects, described) | {"HOME": str(folder)}
    s3, master, volume, filer = free_ports(4)
    moved = {"weed": program("weed"), "-dir=/data": f"-dir={folder}", "-s3.port=8333": f"-s3.port={s3}"}
    command = [moved.pop(word, word) for word in arguments(described, variables)]
    assert not moved
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    with _running(command, variables, folder, _answers(s3, described)):
        yield f"http://{HERE}:{s3}"


# ---- the database


def lacking() -> str:
    """What these servers need and this machine lacks, with its remedy; empty where they can be started."""
    if _postgres() is None:
        return "no PostgreSQL on this machine: apt-get install postgresql"
    if importlib.util.find_spec("mlflow_kubernetes_plugins") is None:
        return "no mlflow-kubernetes-plugins in this environment: make test installs it"
    return ""


def _postgres() -> Path | None:
    """Debian's newest programs, else those on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    there = shutil.which("initdb")
    return found[-1].parent if found else Path(there).resolve().parent if there else None


@dataclass(frozen=True)
class Postgres:
    port: int
    programs: Path
    account: dict[str, str]
    """Variables of the database's one user."""

    @property
    def address(self) -> dict[str, str]:
        """What the service's name leads to."""
        return {"PGHOST": HERE, "PGPORT": str(self.port)}

    def ask(self, query: str, database: str = "mlflow") -> list[str]:
        """Rows of one column."""
        command = [str(self.programs / "psql"), "-d", database, "--tuples-only", "--no-align", "--command", query]
        return run(command, self.address | self.account).split()


@contextlib.contextmanager
def postgres(objects: list[Object]) -> Iterator[Postgres]:
    """A database made as the image's entry point makes it of the container's variables."""
    variables = environment(objects, container(objects, "StatefulSet postgres", "postgres"))
    programs, [port] = _postgres(), free_ports(1)
    assert programs
    # not among pytest's folders, which are root's alone: PostgreSQL refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="dualipo-postgres-"))
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:
        owner = {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres", "postgres")
    try:
        secret = folder / "password"
        secret.write_text(variables["POSTGRES_PASSWORD"])
        secret.chmod(0o644)
        user, database = variables["POSTGRES_USER"], variables["POSTGRES_DB"]
        initdb = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", user, f"--pwfile={secret}"]
        run([*initdb, *variables["POSTGRES_INITDB_ARGS"].split()], {"LC_ALL": "C.UTF-8"}, cwd=folder, **owner)
        command = [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
        made = Postgres(port, programs, {"PGUSER": user, "PGPASSWORD": variables["POSTGRES_PASSWORD"]})

        def create() -> None:
            run([str(programs / "createdb"), database], made.address | made.account)

        with _running([*command, "-h", HERE, "-F"], {"LC_ALL": "C.UTF-8"}, folder, create, **owner):
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- MLflow


def run(command: list[str], variables: dict[str, str], **options: Any) -> str:
    """To its end; what it printed."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(command, env=path | variables, capture_output=True, text=True, timeout=300, **options)
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def script(objects: list[Object], repository: Path, workload: str, name: str, where: dict[str, str], *more: str) -> str:
    """Runs a container that runs a script of the manifests, with `where` over its variables; what it printed."""
    described = container(objects, workload, name)
    variables = environment(objects, described) | where
    interpreter, path, *_ = arguments(described, variables)
    assert interpreter == "python" and path.startswith("/scripts/")
    file = path.removeprefix("/scripts/")
    return run([sys.executable, str(repository / "k8s" / SCRIPTS[file] / file), *more], variables)


@contextlib.contextmanager
def mlflow(objects: list[Object], where: dict[str, str], folder: Path) -> Iterator[str]:
    """The tracking server's address. `where`: variables of what it finds in its surroundings."""
    folder.mkdir()
    described = container(objects, "Deployment mlflow", "mlflow")
    variables = environment(objects, described) | where | {"HOME": str(folder), "TMPDIR": str(folder)}
    [port] = free_ports(1)
    moved = {"mlflow": program("mlflow"), "--host=0.0.0.0": f"--host={HERE}", "--port=5000": f"--port={port}"}
    command = [moved.pop(word, word) for word in arguments(described, variables)]
    assert not moved
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with _running(command, path | variables, folder, _answers(port, described)):
        yield f"http://{HERE}:{port}"


@contextlib.contextmanager
def bare_mlflow(folder: Path, port: int, artifacts: str) -> Iterator[str]:
    """A tracking server on the database in `folder`, whose clients keep artifacts at `artifacts` themselves."""
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--no-serve-artifacts"]
    command = [program("mlflow"), "server", *store, "--default-artifact-root", artifacts, "--workers", "1"]
    variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    uri = f"http://{HERE}:{port}"
    with _running(
        [*command, "--host", HERE, "--port", str(port)],
        variables,
        folder,
        lambda: urllib.request.urlopen(f"{uri}/health", timeout=5).close(),
    ):
        yield uri


class Door:
    """A port that leads to another one of this machine, while it is open; shut, it cuts every connection."""

    def __init__(self, target: int):
        [self.port] = free_ports(1)
        self.target = target
        self.sockets: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        listener = socket.create_server((HERE, self.port), reuse_port=False)
        self.sockets = [listener]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((HERE, self.target))
                self.sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
