"""Weights files: reading their headers and tensors, checking them, writing them.

Two kinds: ``.safetensors``, and PyTorch checkpoints, of which only plain tensors are ever
unpickled (``weights_only``). Nothing here knows a network; names and shapes are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from terramind_cube.model.hub import (
    SUFFIXES,
    PretrainedFile,
    WeightsError,
    file_sha256,
    resolve_weights,
    resolved_revision,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from os import PathLike

__all__ = [
    "PretrainedFile",
    "WeightsError",
    "WeightsHeader",
    "check_tensors",
    "file_sha256",
    "load_tensors",
    "read_header",
    "resolve_weights",
    "resolved_revision",
    "save_safetensors",
]

_NESTED_UNDER = ("state_dict", "model")
_LISTED = 8
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class WeightsHeader:
    """What a weights file holds, without the values.

    Attributes
    ----------
    path : pathlib.Path
    shapes : mapping of str to tuple of int
    dtypes : mapping of str to str
        Names as PyTorch spells them, such as ``"float32"``.
    metadata : mapping of str to str
        Of a ``.safetensors`` file; empty for a checkpoint.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]


def read_header(path: str | PathLike[str]) -> WeightsHeader:
    """Read names, shapes and dtypes of the tensors in a weights file, and none of their data.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file or a PyTorch checkpoint; tensors nested in a checkpoint under
        ``"state_dict"`` or ``"model"`` count as the checkpoint.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    WeightsError
        If it is empty, truncated, another file type, or holds more than tensors.
    """
    path = Path(path)
    with _naming_damage(path):
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                stored = {name: str(part.get_dtype()) for name, part in slices.items()}
                metadata = dict(file.metadata() or {})
            dtypes = {name: _DTYPES.get(dtype, dtype.lower()) for name, dtype in stored.items()}
        else:
            tensors = _load_checkpoint(path, "meta")
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            dtypes = {name: _dtype_name(tensor) for name, tensor in tensors.items()}
            metadata = {}
    return WeightsHeader(
        path, MappingProxyType(shapes), MappingProxyType(dtypes), MappingProxyType(metadata)
    )


def load_tensors(path: str | PathLike[str]) -> dict[str, torch.Tensor]:
    """Load the tensors of a weights file on the CPU, in the dtypes of the file.

    The file is mapped into memory where its format allows, so that values are read on first use:
    do not overwrite it in place while they are needed.

    Raises
    ------
    FileNotFoundError, WeightsError
        As in `read_header`.
    """
    path = Path(path)
    with _naming_damage(path):
        return load_file(path) if _is_safetensors(path) else _load_checkpoint(path, "cpu")


def check_tensors(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    optional: Collection[str] = (),
) -> None:
    """Compare the tensors of a file with those that a network needs.

    Parameters
    ----------
    expected, found : mapping of str to tuple of int
        Shapes by name.
    source : str
        The file, for the message.
    optional : collection of str
        Names that may be absent from either side.

    Raises
    ------
    WeightsError
        If a tensor is missing, unexpected or of another shape; every kind is listed, by name.
    """
    missing = sorted(expected.keys() - found.keys() - set(optional))
    unexpected = sorted(found.keys() - expected.keys() - set(optional))
    reshaped = [
        f"{name} is {tuple(found[name])} instead of {tuple(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name]) != tuple(expected[name])
    ]
    problems = [
        f"{len(names)} tensor{'s' * (len(names) > 1)} {kind}: {_abridge(names)}"
        for kind, names in (
            ("missing", missing), ("of another shape", reshaped), ("unexpected", unexpected)
        )
        if names
    ]  # fmt: skip
    if problems:
        raise WeightsError(
            f"{source} does not fit the network. {'. '.join(problems)}. "
            f"Check that these weights belong to this model."
        )


def save_safetensors(
    path: str | PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors as a ``.safetensors`` file, whole or not at all.

    Equal tensors and metadata give equal bytes. Tensors that share memory are written once each.
    An existing file is replaced.

    Parameters
    ----------
    path : path
        Ends in ``.safetensors``, in a folder that exists.
    tensors : mapping of str to torch.Tensor
        By name, on any device.
    metadata : mapping of str to str
        Goes into the header.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    WeightsError
        If the path has another suffix, or a tensor a dtype that the format lacks.
    """
    path = Path(path)
    if not _is_safetensors(path):
        raise WeightsError(f"{path} must end in .safetensors, the type that is written.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No folder {path.parent.absolute()} to write {path.name} to.")
    # safetensors' own writer shuffles the metadata, and so the SHA-256 of equal weights.
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    # Wide numbers first keeps every tensor aligned to its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _dtype_code(name, tensors[name]),
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # In the same folder, because a rename is atomic only within one file system.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                values = tensors[name].detach().cpu().contiguous().reshape(-1)
                file.write(values.view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _dtype_code(name: str, tensor: torch.Tensor) -> str:
    dtype = _dtype_name(tensor)
    for code, known in _DTYPES.items():
        if known == dtype:
            return code
    raise WeightsError(f"{name} is {dtype}: only {', '.join(_DTYPES.values())} are written.")


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"


def _load_checkpoint(path: Path, device: str) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    # Only the archives that torch.save writes since 1.6 can be mapped.
    content = torch.load(path, map_location=device, weights_only=True, mmap=is_archive)
    return _unwrap(content, path)


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the mapping of tensors that a checkpoint is or contains."""
    if isinstance(content, Mapping):
        for key in _NESTED_UNDER:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not tensors by name.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(
                f"{path} holds more than tensors by name: {name!r} is a {type(value).__name__}. "
                f"Save the network's state_dict() alone."
            )
    if not content:
        raise WeightsError(f"{path} holds no tensors.")
    return dict(content)


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turn what the two libraries raise for a bad file into errors that name it."""
    if not path.is_file():
        raise FileNotFoundError(f"No weights file at {path.absolute()}.")
    if path.suffix.lower() not in SUFFIXES:
        raise WeightsError(f"{path} is not of type {', '.join(SUFFIXES)}.")
    foreign = _foreign_content(path)
    if foreign:
        raise WeightsError(f"{path} holds no weights: {foreign}.")
    try:
        yield
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is no checkpoint of plain tensors: it holds code or other objects, which are "
            f"not loaded, or it is damaged. Save the network's state_dict() alone, best as "
            f".safetensors. ({_first_line(error)})"
        ) from error
    except Exception as error:  # foreign bytes make both libraries raise nearly anything
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is truncated, damaged or not what its name "
            f"says: get it again. ({_first_line(error)})"
        ) from error


def _foreign_content(path: Path) -> str:
    """Say what a file is that people mistake for weights, nothing if it may be weights."""
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if not path.stat().st_size:
        return "it is empty"
    if head.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, probably of an error or a login; get the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run `git lfs pull`"
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]


def _abridge(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
