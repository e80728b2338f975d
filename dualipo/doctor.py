"""What an experiment needs of the machine and of its folder: what is there, what is missing, what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dualipo.config import HUB
from dualipo.errors import UserError
from dualipo.runtime import threads
from dualipo.steps import GRAPH

if TYPE_CHECKING:
    from dualipo.config import Config, Models

ENOUGH_DISK = 2.0
"""GiB that the small world's run and its MLflow artifacts fit in with room to spare."""


@dataclass(frozen=True)
class Finding:
    name: str
    state: Literal["ok", "optional", "missing"]
    found: str
    advice: str = ""


def examine(folder: Path, data: Path, config: Callable[[], Config]) -> list[Finding]:
    """Looks at everything, changes nothing. `config` reads the parameters, and may raise UserError."""
    findings = [*_machine(folder), *_packages(), *_tools()]
    models = None
    try:
        parameters = config()
        models = parameters.models
        findings.append(Finding("parameters", "ok", f"{len(parameters.rounds)} rounds"))
    except UserError as error:
        findings.append(Finding("parameters", "missing", str(error), "correct params.yaml"))
    return [*findings, *_data(folder, data, models), _tracking(folder)]


def format_findings(findings: list[Finding]) -> str:
    """A table: state, name, what was found; under it what to do."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8}  {finding.name:{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':8}  {'':{width}}  -> {finding.advice}")
    missing = sum(finding.state == "missing" for finding in findings)
    lines.append("ready to run" if not missing else f"{missing} to mend before a run")
    return "\n".join(lines)


def _machine(folder: Path) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    wanted = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if wanted else "missing", version, "" if wanted else "install Python 3.11 or newer")
    try:
        yield Finding("threads", "ok", str(threads()))
    except UserError as error:
        yield Finding("threads", "missing", str(error), "correct or unset DUALIPO_THREADS")
    free = shutil.disk_usage(folder).free / 2**30
    advice = "" if free >= ENOUGH_DISK else f"make room: {ENOUGH_DISK:.0f} GiB are enough for the small world"
    yield Finding("disk", "missing" if advice else "ok", f"{free:.1f} GiB free in {folder.absolute()}", advice)
    writable = os.access(folder, os.W_OK)
    advice = "" if writable else "choose a folder that you may write to, with --folder"
    yield Finding("folder", "ok" if writable else "missing", str(folder.absolute()), advice)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    extras: dict[str, list[str]] = {}
    for text in metadata.requires("dualipo") or []:
        wanted = Requirement(text)
        extra = next(
            (e for e in ("cluster", "train", "test") if wanted.marker and wanted.marker.evaluate({"extra": e})), None
        )
        if extra is None and wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found = ""
        fits = bool(found) and wanted.specifier.contains(found, prereleases=True)
        if extra is None:
            advice = "" if fits else f"pip install '{wanted.name}{wanted.specifier}' -c constraints.txt"
            yield Finding(wanted.name, "ok" if fits else "missing", found or "not installed", advice)
        elif not fits:
            extras.setdefault(extra, []).append(wanted.name)
    for extra, names in extras.items():
        advice = f"if you want it: pip install -e '.[{extra}]' -c constraints.txt"
        yield Finding(f"[{extra}]", "optional", f"not installed: {', '.join(names)}", advice)
    yield _accelerator()
    yield _encoder()


def _accelerator() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("accelerator", "optional", "unknown without torch")
    if torch.cuda.is_available():
        return Finding("accelerator", "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    return Finding("accelerator", "optional", "none, steps run on the CPU", "fine for the small world")


def _encoder() -> Finding:
    try:
        import av

        av.codec.Codec("libx264", "w")
    except (ImportError, ValueError) as error:
        advice = "install PyAV's own wheel: pip install --force-reinstall --only-binary av av -c constraints.txt"
        return Finding("H.264", "missing", f"no libx264 ({error})", advice)
    return Finding("H.264", "ok", "libx264")


def _tools() -> Iterator[Finding]:
    for tool, why in (("git", "DVC needs it"), ("dvc", "dvc pull and dvc repro"), ("dualipo", "dvc repro calls it")):
        # beside this Python, as in a virtual environment that is not activated, or on the PATH.
        beside = Path(sys.executable).with_name(tool)
        found = shutil.which(tool)
        if found:
            yield Finding(tool, "ok", found)
        elif beside.exists():
            advice = f"`dvc repro` wants it on the PATH: . {beside.parent}/activate"
            yield Finding(tool, "optional", f"{beside}, not on the PATH", advice)
        else:
            yield Finding(tool, "optional", "not found", f"install it for this: {why}")
    browser = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
    advice = "" if browser else "only the report's browser test needs one: apt-get install chromium chromium-driver"
    yield Finding("browser", "ok" if browser else "optional", browser or "not found", advice)


def _data(folder: Path, data: Path, models: Models | None) -> Iterator[Finding]:
    ports = [port for step in GRAPH.values() for port in step.inputs.values() if "{data}" in port.path]
    absent = {path for port in ports if not (folder / (path := port.bind(str(data), "", "", models))).exists()}
    ours = sorted(Path(path).name for path in absent if not path.startswith(HUB))
    if ours:
        advice = "fetch it with `dvc pull data.dvc`, or name another folder with --data"
        yield Finding("data", "missing", f"{folder / data}: without {', '.join(ours)}", advice)
    else:
        yield Finding("data", "ok", str(folder / data))
    for path in sorted(path for path in absent if path.startswith(HUB)):
        yield Finding(
            "model", "optional", f"{path}: not here yet", "`dualipo run` fetches it; to do so now: dualipo fetch"
        )


def _tracking(folder: Path) -> Finding:
    from dualipo.tracking import tracking_uri

    uri = tracking_uri(folder)
    if not uri.startswith(("http://", "https://")):
        return Finding("MLflow", "ok", uri)
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            return Finding("MLflow", "ok", uri)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding("MLflow", "missing", f"{uri}: {error}", "start that server, or correct MLFLOW_TRACKING_URI")
