"""Models of the Hugging Face hub: one commit of a repository as a plain folder, safetensors and text files alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from dualipo.artifacts import atomic
from dualipo.config import HUB, Models
from dualipo.errors import UserError
from dualipo.steps import Port

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Weights, configurations, tokenizers' words and SentencePiece models. Nothing pickled, no code."""
TWICE = ("*.fp16.*", "*.fp16-*")
"""Second copies of weights, which are not read."""


def fetch_model(models: Models, port: Port, root: Path, path: Path) -> None:
    """Makes the folder `path` where `port` is a model of the hub that is not there yet; else does nothing.

    A port that was bound to another path than its own is left alone. Raises UserError as `fetch_snapshot`.
    """
    source: str = getattr(models, port.model) if port.model else ""
    if source.startswith(HUB) and path == root / source and not path.exists():
        fetch_snapshot(source, path)


def fetch_models(models: Models, root: Path) -> list[Path]:
    """Makes the folder of every model of the hub that is not there yet; returns all of them. Raises UserError as
    `fetch_snapshot`."""
    sources = [source for source in dict.fromkeys(models.model_dump().values()) if source.startswith(HUB)]
    for source in sources:
        if not (root / source).exists():
            fetch_snapshot(source, root / source)
    return [root / source for source in sources]


def fetch_snapshot(source: str, target: Path) -> None:
    """Copies the model `source` (`hub/OWNER/NAME@COMMIT`) into the folder `target`, whole or not at all.

    Downloads go through the hub's own cache (HF_HOME), are resumed there and shared by experiments; what it holds is
    taken without a network. HF_ENDPOINT names a mirror, HF_TOKEN opens gated models. Raises UserError where the hub
    cannot be reached and the cache lacks the commit, where there is no such model or commit, where it is not open to
    this user, or where it holds no safetensors.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined] # exported without saying so

    allowed, ignored = list(FILES), list(TWICE)
    repository, _, commit = source.removeprefix(HUB).partition("@")
    try:
        snapshot = Path(snapshot_download(repository, revision=commit, allow_patterns=allowed, ignore_patterns=ignored))
    except GatedRepoError:
        raise UserError(
            f"{source}: the model is gated; accept its terms on its page and set HF_TOKEN to a token of yours"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{source}: the model has no commit {commit}; its page lists them under History") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{source}: no such model at {constants.ENDPOINT}, or it is private; correct the name, or set HF_TOKEN"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{source}: not in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be read "
            f"({' '.join(str(error.__cause__ or error).split())[:160]}); connect once, bring a cache that holds it as "
            f"HF_HOME, or put the model's folder at {target}"
        ) from None
    # The cache may hold more of this commit than was asked for here.
    there = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    files = list(filter_repo_objects(there, allow_patterns=allowed, ignore_patterns=ignored))
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(
            f"{source}: this commit holds no safetensors; choose one that does, its pickled weights are not read"
        )
    with atomic(target) as temporary:
        for name in files:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, temporary / name)
