"""One copy of a model per process and device, looked up by a small specification.

The specification travels in the graph; the model never does.
"""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from terramind_cube.model.loading import (
    Precision,
    choose_dtype,
    extend_model,
    load_model,
    load_tokenizer,
)
from terramind_cube.model.text import (
    CaptionVocabulary,
    CoordinateVocabulary,
    load_coordinate_vocabulary,
)
from terramind_cube.model.weights import file_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from terramind_cube.modalities import Statistics
    from terramind_cube.model.tokenizers import Tokenizer
    from terramind_cube.model.transformer import TerraMind

__all__ = [
    "Compute",
    "LoadedModel",
    "ModelSpec",
    "WeightsFile",
    "acquire",
    "load_vocabulary",
    "release_gpus",
]

# On CPUs batches beyond 2 gain nothing (measured: 304, 307, 308 ms per tile at 2, 4, 8), and a short
# batch wastes its padding. On a GPU a trial chooses, see `trial.largest_batch`.
COMPUTE_BATCH = {"cpu": 2, "cuda": 0}
_KERNELS_HINT = "kernels on GPUs need numba-cuda: pip install 'terramind-cube[cuda12]' (or cuda13)"


@dataclass(frozen=True)
class WeightsFile:
    """A weights file, known by its content.

    Attributes
    ----------
    path : str or None
        None for untrained weights.
    sha256 : str
        Of the file's bytes; "untrained" without one.
    """

    path: str | None = None
    sha256: str = "untrained"


@dataclass(frozen=True)
class Compute:
    """Where and how a model computes; part of what makes a run reproducible.

    Attributes
    ----------
    device : str
        Such as "cpu" or "cuda".
    precision : {"float32", "bfloat16"}
    batch : int
        Tiles per forward pass; short batches are padded to it. 0 until a trial has chosen it.
    threads : int
        Threads inside an operation on a CPU.
    """

    device: str
    precision: Literal["float32", "bfloat16"]
    batch: int
    threads: int

    @classmethod
    def choose(
        cls,
        device: str | None,
        precision: Precision,
        batch: int | None = None,
        threads: int | None = None,
    ) -> Compute:
        """Fill in what the user left open.

        Raises
        ------
        ValueError
            If the device is not there, or a number is not positive.
        """
        chosen = device or _best_device()
        kind = chosen.partition(":")[0]
        if kind not in COMPUTE_BATCH:
            raise ValueError(f"device {chosen!r}: give one of {', '.join(COMPUTE_BATCH)}.")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {chosen!r}: torch sees no CUDA device; use device='cpu'.")
        if kind == "cuda" and not find_spec("numba_cuda"):
            raise ValueError(f"device {chosen!r}: {_KERNELS_HINT}; or use device='cpu'.")
        # Resolved once: workers of other kinds must not choose for themselves, nor a resumed run.
        is_half = choose_dtype(precision, torch.device(chosen)) == torch.bfloat16
        resolved: Literal["float32", "bfloat16"] = "bfloat16" if is_half else "float32"
        threads = torch.get_num_threads() if threads is None else threads
        if threads < 1 or (batch is not None and batch < 1):
            raise ValueError(f"compute_batch={batch} and threads={threads} must be at least 1.")
        return cls(chosen, resolved, COMPUTE_BATCH[kind] if batch is None else batch, threads)


def _best_device() -> str:
    """Return the GPU where there is one that our kernels can use."""
    if not torch.cuda.is_available():
        return "cpu"
    if not find_spec("numba_cuda"):
        warnings.warn(f"There is a GPU, but {_KERNELS_HINT}: computing on the CPU.", stacklevel=4)
        return "cpu"
    return "cuda"


@dataclass(frozen=True)
class ModelSpec:
    """A model with the tokenizers and vocabularies that a run needs, as a key.

    Attributes
    ----------
    name : str
    weights : WeightsFile or None
        None where only tokenizers are needed.
    tokenizers : tuple of (str, WeightsFile)
        By modality.
    vocabularies : tuple of (str, WeightsFile)
        Of sequences, by modality; without a path the bundled one.
    family : str
        Family of the tokenizers.
    compute : Compute
    extensions : tuple of (str, Statistics)
        Modalities with fresh patch embeddings, see `model.extend_model`.
    """

    name: str
    weights: WeightsFile | None
    tokenizers: tuple[tuple[str, WeightsFile], ...]
    vocabularies: tuple[tuple[str, WeightsFile], ...]
    family: str
    compute: Compute
    extensions: tuple[tuple[str, Statistics], ...] = ()


@dataclass(frozen=True)
class LoadedModel:
    """A model, its tokenizers and vocabularies in memory."""

    network: TerraMind | None
    tokenizers: Mapping[str, Tokenizer]
    vocabularies: Mapping[str, CoordinateVocabulary | CaptionVocabulary]
    device: torch.device

    @property
    def model(self) -> TerraMind:
        """The transformer, which the specification asked for."""
        assert self.network is not None
        return self.network


# Parts in memory, by what they are: runs with the same model or tokenizer share them.
_parts: dict[tuple[object, ...], Any] = {}
_loading = threading.Lock()
_devices: dict[str, threading.Lock] = {}


@contextmanager
def acquire(spec: ModelSpec, *, loads: bool = True) -> Iterator[LoadedModel]:
    """Lend the process's copy of a model to one task at a time; of nothing, unless it `loads`.

    A lock rather than a copy per thread: one operation already uses every thread it was given, and
    memory stays that of one batch.

    Raises
    ------
    ValueError
        If a file is no longer the one that was chosen.
    """
    with _loading:
        nothing = LoadedModel(None, {}, {}, torch.device(spec.compute.device))
        loaded = _assemble(spec) if loads else nothing
        lock = _devices.setdefault(spec.compute.device, threading.Lock())
    with lock:
        # Dask's workers set other thread counts; the same count everywhere keeps the bytes.
        torch.set_num_threads(spec.compute.threads)
        yield loaded


def release_gpus() -> None:
    """Give back the memory of GPUs that this process holds; what was there is loaded again."""
    with _loading:
        for key in [key for key in _parts if str(key[4]).startswith("cuda")]:
            del _parts[key]
    torch.cuda.empty_cache()


def load_vocabulary(name: str, file: WeightsFile) -> CoordinateVocabulary | CaptionVocabulary:
    """Load the vocabulary of a sequence; without a path the bundled one.

    Raises
    ------
    ValueError, FileNotFoundError
        If the file is absent or no vocabulary.
    """
    if name == "Captions":
        return CaptionVocabulary.from_file(file.path or "")
    return load_coordinate_vocabulary(file.path)


def _load_extended(spec: ModelSpec, file: WeightsFile) -> TerraMind:
    compute = spec.compute
    model = load_model(spec.name, file.path, compute.device, compute.precision, packed=True)
    for modality, statistics in spec.extensions:
        extend_model(model, modality, statistics)
    return model


def _assemble(spec: ModelSpec) -> LoadedModel:
    device, precision = spec.compute.device, spec.compute.precision

    def part(kind: str, name: str, file: WeightsFile, load: Callable[[], Any]) -> Any:
        extensions = spec.extensions if kind == "model" else ()
        key = (kind, name, file, spec.family, device, precision, extensions)
        if key not in _parts:
            if file.path is not None and file_sha256(Path(file.path)) != file.sha256:
                raise ValueError(
                    f"{file.path} is not the file that was chosen: its SHA-256 was {file.sha256}."
                )
            _parts[key] = load()
        return _parts[key]

    network = None
    if spec.weights is not None:
        file = spec.weights
        network = part(
            "model",
            spec.name,
            file,
            partial(_load_extended, spec, file),
        )
    tokenizers = {
        name: part(
            "tokenizer",
            name,
            file,
            partial(
                load_tokenizer, name, file.path, device, precision, family=spec.family, packed=True
            ),
        )
        for name, file in spec.tokenizers
    }
    vocabularies = {
        name: part("vocabulary", name, file, partial(load_vocabulary, name, file))
        for name, file in spec.vocabularies
    }
    return LoadedModel(network, tokenizers, vocabularies, torch.device(device))
