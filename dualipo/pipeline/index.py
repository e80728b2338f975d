"""Where every artifact of a pipeline's run lies, and bringing them home."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dualipo.artifacts import INDEX, Digest, atomic, copy_folder, digest, move, read_json, write_json
from dualipo.errors import UserError
from dualipo.media.store import MANIFEST
from dualipo.steps import Kind
from dualipo.tracking.entries import MODELS


@dataclass(frozen=True)
class Entry:
    """One artifact of a run."""

    path: str
    """Where it belongs in an experiment's folder."""
    kind: Kind
    md5: str
    size: int
    files: int
    uri: str
    """Where its bytes are."""

    @classmethod
    def of(cls, artifact: Any) -> Entry:
        """Of a KFP artifact that `dualipo.pipeline.call` made."""
        about = artifact.metadata
        size, files = int(about["size"]), int(about["files"])  # protobuf has made floats of them
        return cls(about["path"], about["kind"], about["md5"], size, files, artifact.uri)


def read_index(runs: Path) -> dict[str, Entry]:
    """The index of a gathered `runs` folder, by path."""
    return parse_index(read_json(runs / INDEX))


def parse_index(content: Mapping[str, Any]) -> dict[str, Entry]:
    return {path: Entry(**entry) for path, entry in content.items()}


def gather_runs(runs: Path, before: Path | None, artifacts: Iterable[Any]) -> None:
    """Writes the folder `runs` as the report reads it, from that of the rounds `before` and this round's artifacts.

    Models, and the clips that are only trained on, are left out: their index entries say what they were.
    """
    with atomic(runs) as temporary:
        if before:
            copy_folder(before, temporary)
        else:
            temporary.mkdir()
        index = read_index(before) if before else {}
        for artifact in artifacts:
            entry = Entry.of(artifact)
            index[entry.path] = entry
            target = temporary / Path(entry.path).relative_to("runs")
            target.parent.mkdir(parents=True, exist_ok=True)
            source = Path(artifact.path)
            if entry.kind in MODELS:
                continue
            if source.is_file():
                shutil.copyfile(source, target)
            elif entry.kind == "clips" and target.name == "candidates" and (source / MANIFEST).is_file():
                target.mkdir()
                shutil.copyfile(source / MANIFEST, target / MANIFEST)
            else:
                copy_folder(source, target)
        write_json(temporary / INDEX, {path: asdict(entry) for path, entry in index.items()})


def bring(folder: Path, index: Mapping[str, Entry]) -> list[str]:
    """Fetches what is not in the experiment's folder yet; returns the paths fetched.

    Raises UserError where an artifact cannot be read or is not what the run made.
    """
    fetched = []
    for path, entry in index.items():
        target = folder / path
        if target.exists() and digest(target).md5 == entry.md5:
            continue
        with tempfile.TemporaryDirectory(dir=_beside(target)) as staging:
            copy = Path(staging) / target.name
            download(entry.uri, copy, folder_wanted=entry.md5.endswith(".dir"))
            if digest(copy) != Digest(entry.md5, entry.size, entry.files):
                raise UserError(f"{entry.uri}: not what the run made for {path} ({entry.md5}); was it overwritten?")
            move(copy, target)
        fetched.append(path)
    return fetched


def _beside(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent


def download(uri: str, target: Path, folder_wanted: bool) -> None:
    """Copies a file or folder from any store that fsspec knows (s3://, gs://, a path; KFP's minio:// is S3)."""
    import fsspec

    location = f"s3://{uri.removeprefix('minio://')}" if uri.startswith("minio://") else uri
    try:
        files, path = fsspec.core.url_to_fs(location.rstrip("/"))
        if folder_wanted:
            target.mkdir()
            for name in files.find(path):
                local = target / name.removeprefix(path).lstrip("/")
                local.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(name, str(local))
        else:
            files.get_file(path, str(target))
    except Exception as error:  # each store's library has errors of its own: no connection is none of the system's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{uri}: cannot be read ({reason}); check the address and its credentials") from error
