"""Images: their tags stand in k8s/pins, and this writes the digest of each beside it.

A tag can be moved, a digest can't. Digests of other people's images are asked of their registries and never guessed;
one's own have a digest only once they are pushed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import yaml

from dualipo.errors import UserError

OWN = "dualipo"
"""Images whose name begins so are built here (k8s/images)."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BASE = re.compile(r"^(ARG PYTHON=)([^@\s]+)(@\S+)?$", re.MULTILINE)


def pin(folder: Path, registry: str | None) -> list[str]:
    """Writes digests into `folder`/pins and the Dockerfiles of `folder`/images; returns every image as it is now.

    `registry`: where one's own images lie, e.g. ghcr.io/someone; without one those not yet named with a registry stay
    as they are. Nothing is written unless every digest was found. Raises UserError otherwise.
    """
    file = folder / "pins" / "kustomization.yaml"
    if not file.is_file():
        raise UserError(f"{file}: not there; run from the repository's root or name its k8s folder")
    text = file.read_text()
    content = yaml.safe_load(text)
    shown = []
    for image in content["images"]:
        own = image["name"].startswith(OWN)
        if own and registry:
            image["newName"] = f"{registry.rstrip('/')}/{image['name']}"
        name = image.get("newName", image["name"])
        if own and "/" not in name:
            shown.append(f"{name}:{image['newTag']}  local: push it and name its registry for a digest")
            continue
        image["digest"] = _digest(f"{name}:{image['newTag']}")
        shown.append(f"{name}:{image['newTag']}@{image['digest']}")
    written = {file: _header(text) + yaml.safe_dump(content, sort_keys=False)}
    for dockerfile in sorted((folder / "images").glob("*Dockerfile")):
        source = dockerfile.read_text()
        for base in _BASE.finditer(source):
            digest = _digest(base[2])
            source = source.replace(base[0], f"{base[1]}{base[2]}@{digest}")
            shown.append(f"{dockerfile.name}: {base[2]}@{digest}")
        written[dockerfile] = source
    for path, made in written.items():
        path.write_text(made)
    return shown


def _digest(reference: str) -> str:
    crane = shutil.which("crane")
    if crane is None:
        raise UserError("crane not found, which asks registries for digests; install it: go-containerregistry")
    asked = subprocess.run([crane, "digest", reference], capture_output=True, text=True, timeout=120)
    found = asked.stdout.strip()
    if asked.returncode or not DIGEST.fullmatch(found):
        raise UserError(f"{reference}: the registry gives no digest: {' '.join((asked.stderr or found).split())}")
    return found


def _header(text: str) -> str:
    """Comment lines at the top."""
    return "".join(line for line in text.splitlines(keepends=True)[: _first_code(text)])


def _first_code(text: str) -> int:
    return next(index for index, line in enumerate(text.splitlines()) if not line.startswith("#"))
