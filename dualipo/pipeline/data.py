"""Brings the data folder into a pipeline: from a folder anywhere, or straight from a DVC remote."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualipo.artifacts import Digest, copy, digest, remove
from dualipo.config import HUB, Models
from dualipo.errors import UserError
from dualipo.hub import fetch_snapshot
from dualipo.pipeline.index import download

REMOTE = "dvc+"
"""Begins the URI of a DVC remote, e.g. dvc+s3://bucket/path; what follows is the remote's own URL."""
MEMBERS = {
    "generator": "generator",
    "critic": "critic",
    "critic_reference": "critic_reference",
    "seed": "seed",
    "test": "test",
    "real": "real",
    "benchmark": "benchmark.jsonl",
}
"""Names of the artifacts that a data folder becomes, and where each lies in it by default."""


def sources(models: Models) -> dict[str, str]:
    """Where each artifact comes from: `data/...`, a path in the data folder, or a model of the hub."""
    return {name: f"data/{path}" for name, path in MEMBERS.items()} | models.model_dump()


def fetch(uri: str, md5: str, targets: Mapping[str, Path], where: Mapping[str, str] | None = None) -> dict[str, Digest]:
    """Copies the members of the data folder at `uri`, and models of the hub, to `targets`; returns their digests.

    `where` is of `sources`, by default those of the data folder alone.
    `md5` is what data.dvc says of the folder. Of a DVC remote it is what to look for; of a folder it is checked, unless
    empty. Raises UserError where the data cannot be read, is not of that md5 or lacks a member.
    """
    where = where or sources(Models())
    with tempfile.TemporaryDirectory(dir=next(iter(targets.values())).parent) as staging:
        folder = Path(staging) / "data"
        if uri.startswith(REMOTE):
            from_remote(uri.removeprefix(REMOTE), md5, folder)
        else:
            download(uri, folder, folder_wanted=True)
        if md5 and (found := digest(folder).md5) != md5:
            raise UserError(f"{uri}: holds data of md5 {found}, not {md5} as data.dvc says; push or name the right one")
        digests = {}
        for name, target in targets.items():
            remove(target)
            if where[name].startswith(HUB):
                fetch_snapshot(where[name], target)
            else:
                inside = where[name].removeprefix("data/")
                if not (folder / inside).exists():
                    raise UserError(f"{uri}: {inside} is missing; docs/data.md says what a data folder holds")
                copy(folder / inside, target)
            digests[name] = digest(target)
    return digests


def from_remote(url: str, md5: str, target: Path) -> None:
    """Checks the folder of md5 `md5` out of a DVC remote (the layout of DVC 3), without git and without DVC."""
    if not md5.endswith(".dir"):
        raise UserError(f"{url}: the md5 of a folder in this remote is needed, as data.dvc has it (found {md5!r})")
    with tempfile.TemporaryDirectory(dir=target.parent) as staging:
        listing = Path(staging) / "listing"
        download(_object(url, md5), listing, folder_wanted=False)
        entries: list[dict[str, Any]] = json.loads(listing.read_text())
    files, root = _open(url)
    there = [f"{root}/files/md5/{entry['md5'][:2]}/{entry['md5'][2:]}" for entry in entries]
    here = [target / entry["relpath"] for entry in entries]
    for folder in {path.parent for path in here}:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        files.get(there, [str(path) for path in here])  # all at once: stores answer in parallel
    except OSError as error:
        raise UserError(f"{url}: the remote lacks files of {md5} ({error}); run `dvc push` first") from error


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    files, root = fsspec.core.url_to_fs(url.rstrip("/"))
    return files, root


def _object(url: str, md5: str) -> str:
    return f"{url.rstrip('/')}/files/md5/{md5[:2]}/{md5[2:]}"


def default_uri(folder: Path, data: Path) -> tuple[str, str]:
    """URI and md5 of an experiment's data: its default DVC remote and data.dvc where there are both, else `data`
    itself, relative to `folder` or absolute."""
    import yaml

    pointer = folder / "data.dvc"
    if data == Path("data") and pointer.is_file():
        from dvc.exceptions import NotDvcRepoError
        from dvc.repo import Repo

        md5 = yaml.safe_load(pointer.read_text())["outs"][0]["md5"]
        with contextlib.suppress(NotDvcRepoError), Repo(str(folder)) as repo:
            if name := repo.config["core"].get("remote"):
                return REMOTE + repo.config["remote"][name]["url"], md5
    return str((folder / data).absolute()), ""
