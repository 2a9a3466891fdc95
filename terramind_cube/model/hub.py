"""Where weights are: a path of the caller, or a released file on the Hugging Face hub.

Downloads go through `huggingface_hub` and land in its cache. On top of the client's own check of
the length, a file that the hub names by its SHA-256 is verified to be that file.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

__all__ = [
    "SUFFIXES",
    "PretrainedFile",
    "WeightsError",
    "file_sha256",
    "resolve_weights",
    "resolved_revision",
]

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
"""File types that hold weights; all but the last are PyTorch checkpoints."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_hashing = threading.Lock()


class WeightsError(ValueError):
    """Weights that cannot be had or cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class PretrainedFile:
    """A released file on the Hugging Face hub.

    Attributes
    ----------
    repository : str
        Owner and name, such as ``"ibm-esa-geospatial/TerraMind-1.0-tiny"``.
    filename : str
        Path inside the repository.
    revision : str
        Commit (40 hexadecimal digits), tag or branch.
    """

    repository: str
    filename: str
    revision: str


def resolve_weights(
    weights: str | PathLike[str], *, pretrained: PretrainedFile | None, name: str
) -> Path:
    """Return the local file of some weights, downloading a released one if need be.

    Parameters
    ----------
    weights : path or "pretrained"
        A ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file, or the word "pretrained" for the
        released file. A file in the folder that is itself called so is ``"./pretrained"``.
    pretrained : PretrainedFile or None
        The released file; None if there is none.
    name : str
        What the weights are for, for messages.

    Returns
    -------
    pathlib.Path
        Absolute path of an existing file.

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    WeightsError
        If the path is no file of a known type, if nothing is released under `name`, or if the
        download fails; the client's error is the cause.
    """
    if weights == "pretrained":
        if pretrained is None:
            raise WeightsError(
                f"No weights are released for {name}: pass weights=PATH of your own "
                f"({', '.join(SUFFIXES)}), or weights=None."
            )
        return _download(pretrained, name)
    path = Path(weights).expanduser().absolute()
    if not path.exists():
        released = ', or weights="pretrained" for the released ones' if pretrained else ""
        raise FileNotFoundError(
            f"No weights for {name} at {path}: pass the path of a file of type "
            f"{', '.join(SUFFIXES)}{released}."
        )
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        kind = "a folder" if path.is_dir() else f"of type {path.suffix or 'unknown'!r}"
        raise WeightsError(
            f"{path} is {kind}, not a weights file for {name}: pass one of type "
            f"{', '.join(SUFFIXES)}."
        )
    return path


def resolved_revision(path: str | PathLike[str]) -> str | None:
    """Return the commit of a file in the hub's cache, None for a file anywhere else.

    The cache keeps a file as ``snapshots/COMMIT/FILE``.
    """
    for folder, above in itertools.pairwise(Path(path).absolute().parents):
        if above.name == "snapshots" and _COMMIT.fullmatch(folder.name):
            return folder.name
    return None


def file_sha256(path: str | PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    A file is read once per process, also by many threads, as long as its size and its time of
    modification stay the same.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    real = Path(path).resolve(strict=True)
    status = real.stat()
    with _hashing:
        return _hash_once(real, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(file: PretrainedFile, name: str) -> Path:
    # Imported here because the client reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE on import.
    from huggingface_hub import hf_hub_download

    def fetch(*, force: bool = False) -> Path:
        return Path(
            hf_hub_download(
                file.repository, file.filename, revision=file.revision, force_download=force
            )
        ).absolute()

    damage = ""
    # The client's errors come from its own classes, the system's and, by version, one of three
    # HTTP libraries: whatever goes wrong here is a failed download.
    try:
        path = fetch()
        if not _is_intact(path):
            damage = f"{path} is damaged and cannot be replaced: "
            path = fetch(force=True)
    except Exception as error:
        raise WeightsError(_explain(file, name, damage + _reason(error))) from error
    if not _is_intact(path):
        raise WeightsError(_explain(file, name, f"{path} has not the SHA-256 that the hub names"))
    return path


def _is_intact(path: Path) -> bool:
    """Whether a cached file is what its blob is called; true where that is no SHA-256."""
    blob = path.readlink().name if path.is_symlink() else ""
    return not _SHA256.fullmatch(blob) or file_sha256(path) == blob


def _explain(file: PretrainedFile, name: str, problem: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=file.repository, repo_type="model")
    cached = Path(constants.HF_HUB_CACHE).absolute() / folder
    if _COMMIT.fullmatch(file.revision):
        place = f"put it at {cached / 'snapshots' / file.revision / file.filename}"
    else:
        place = f"copy the folder {cached} from the cache of a machine that has downloaded it"
    return (
        f"Cannot download the weights of {name}: file {file.filename} of "
        f"{constants.ENDPOINT}/{file.repository} at revision {file.revision}. {problem}. "
        f"Without a connection, get the file elsewhere and pass weights=PATH, or {place} "
        f"(set HF_HOME or HF_HUB_CACHE for another cache)."
    )


def _reason(error: Exception) -> str:
    """Say in one line why the client failed, without its advice, which is for its own callers."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text.partition(" Please ")[0].rstrip(".")
