"""Files and folders that are whole or absent, and their one identity: DVC's md5."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualipo.errors import UserError

PARTIAL = ".partial"
INDEX = "index.json"
"""In a `runs` folder that a pipeline gathered: what each artifact of the run is, also of those left out of it."""


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renamed over it on success, removed on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    remove(temporary)
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {path}")
        replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def replace(source: Path, target: Path) -> None:
    """Renames `source` to `target`, taking the place of a file or folder there, and flushes the folder entry."""
    aside = source.with_name(f"{source.name}.old")
    if target.exists() and (target.is_dir() or source.is_dir()):
        # a folder can't be renamed over: moved away whole first, so that a kill leaves no half-deleted target.
        remove(aside)
        os.replace(target, aside)
    os.replace(source, target)
    remove(aside)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """`replace`, or between file systems a copy that is whole or absent; the source may stay behind then."""
    try:
        replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy(source, target)


def remove(path: str | Path) -> None:
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copies a file or a folder, whole or not at all."""
    with atomic(target) as temporary:
        (copy_folder if source.is_dir() else shutil.copyfile)(source, temporary)


def copy_folder(source: str | Path, target: str | Path) -> None:
    """Copies a model folder. No hard links: an edit of one would reach the other, and DVC's cache behind it."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)


def write_json(path: str | Path, content: Any) -> None:
    """Sorted, indented, NaN refused; whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(json_bytes(content))


def json_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a line of JSON a row, keys as they stand, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Raises UserError where the file is missing or no JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the step that makes it first") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


@dataclass(frozen=True)
class Digest:
    """What DVC writes into dvc.lock of a file or folder; a folder's md5 ends in `.dir`."""

    md5: str
    size: int
    files: int


def digest(path: str | Path) -> Digest:
    """DVC's identity of a file or folder (DVC 3: plain md5 of the bytes; of the sorted listing for a folder).

    Raises UserError where there is nothing at `path`.
    """
    path = Path(path)
    if path.is_file():
        return Digest(_md5(path), path.stat().st_size, 1)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; run the step that makes it first")
    entries, size = [], 0
    for file in path.rglob("*"):
        if file.is_file():
            entries.append({"md5": _md5(file), "relpath": file.relative_to(path).as_posix()})
            size += file.stat().st_size
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True).encode()
    return Digest(hashlib.md5(listing).hexdigest() + ".dir", size, len(entries))


def digest_of_json(content: Any) -> Digest:
    """Of the file that `write_json` makes of it."""
    made = json_bytes(content)
    return Digest(hashlib.md5(made).hexdigest(), len(made), 1)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
