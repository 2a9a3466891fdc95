"""One copy of a model per process and device, looked up by a small specification.

The specification travels in the graph; the model never does.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from terramind_cube.model.loading import (
    Precision,
    inspect_model_weights,
    inspect_tokenizer_weights,
    load_model,
    load_tokenizer,
)
from terramind_cube.model.variants import (
    MODELS,
    ModelDescription,
    TokenizerDescription,
    describe_model,
    describe_tokenizer,
)
from terramind_cube.model.weights import file_sha256, resolve_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from terramind_cube.model.tokenizers import Tokenizer
    from terramind_cube.model.transformer import TerraMind

__all__ = ["Compute", "LoadedModel", "ModelSpec", "WeightsFile", "acquire", "choose_model"]

# On CPUs batches beyond 2 gain nothing (measured: 304, 307, 308 ms per tile at 2, 4, 8), and a short
# batch wastes its padding.
COMPUTE_BATCH = {"cpu": 2, "cuda": 64}


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
    precision : {"float32", "bfloat16", "auto"}
    batch : int
        Tiles per forward pass; short batches are padded to it.
    threads : int
        Threads inside an operation on a CPU.
    """

    device: str
    precision: Precision
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
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = chosen.partition(":")[0]
        if kind not in COMPUTE_BATCH:
            raise ValueError(f"device {chosen!r}: give one of {', '.join(COMPUTE_BATCH)}.")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {chosen!r}: torch sees no CUDA device; use device='cpu'.")
        if precision not in ("float32", "bfloat16", "auto"):
            raise ValueError(f"Unknown precision {precision!r}: float32, bfloat16 or auto.")
        batch = COMPUTE_BATCH[kind] if batch is None else batch
        threads = torch.get_num_threads() if threads is None else threads
        if batch < 1 or threads < 1:
            raise ValueError(f"compute_batch={batch} and threads={threads} must be at least 1.")
        return cls(chosen, precision, batch, threads)


@dataclass(frozen=True)
class ModelSpec:
    """A model with the tokenizers of its outputs, as a key.

    Attributes
    ----------
    name : str
    weights : WeightsFile
    tokenizers : tuple of (str, WeightsFile)
        By modality.
    family : str
        Family of the tokenizers.
    compute : Compute
    """

    name: str
    weights: WeightsFile
    tokenizers: tuple[tuple[str, WeightsFile], ...]
    family: str
    compute: Compute


@dataclass(frozen=True)
class LoadedModel:
    """A model and its tokenizers in memory, with the lock that guards their use."""

    model: TerraMind
    tokenizers: Mapping[str, Tokenizer]
    device: torch.device
    lock: threading.Lock


def choose_model(
    name: str,
    outputs: Sequence[str],
    *,
    weights: str | PathLike[str] | None,
    tokenizer_weights: Mapping[str, str | PathLike[str]] | None,
    compute: Compute,
) -> tuple[ModelSpec, ModelDescription]:
    """Check a user's choice of weights against the files' headers, without loading them.

    Parameters
    ----------
    name : str
        Of the model.
    outputs : sequence of str
        Modalities to generate: their tokenizers are needed.
    weights, tokenizer_weights
        Paths, or "pretrained"; None for untrained weights.
    compute : Compute

    Returns
    -------
    spec : ModelSpec
    description : ModelDescription

    Raises
    ------
    ValueError, FileNotFoundError, WeightsError
        If a name is unknown, a file is absent, damaged or of another model, an output cannot be
        generated, or a tokenizer speaks other tokens than the model.
    """
    description = describe_model(name)
    file = WeightsFile()
    if weights is not None:
        path = resolve_weights(weights, pretrained=MODELS[name].pretrained, name=name)
        description = inspect_model_weights(name, path)
        file = WeightsFile(str(path), file_sha256(path))
    given = dict(tokenizer_weights or {})
    unused = sorted(set(given) - set(outputs))
    if unused:
        raise ValueError(f"tokenizer_weights names {', '.join(unused)}, which is no output.")
    tokenizers = []
    for modality in outputs:
        row, tokenizer_file = _choose_tokenizer(modality, description, given.get(modality))
        _check_tokens(description, row)
        tokenizers.append((modality, tokenizer_file))
    return ModelSpec(name, file, tuple(tokenizers), description.tokenizers, compute), description


def _choose_tokenizer(
    modality: str, model: ModelDescription, weights: str | PathLike[str] | None
) -> tuple[TokenizerDescription, WeightsFile]:
    row = describe_tokenizer(modality, model.tokenizers)
    if weights is None:
        return row, WeightsFile()
    path = resolve_weights(weights, pretrained=row.pretrained, name=f"the {modality} tokenizer")
    row = inspect_tokenizer_weights(modality, path, family=model.tokenizers)
    return row, WeightsFile(str(path), file_sha256(path))


def _check_tokens(model: ModelDescription, tokenizer: TokenizerDescription) -> None:
    space = model.token_space(tokenizer.modality)
    theirs = (tokenizer.vocabulary, tokenizer.patch_px)
    ours = (space.vocabulary if space else None, model.patch_px)
    if theirs != ours:
        raise ValueError(
            f"{model.name} and the {tokenizer.modality} tokenizer speak different tokens: "
            f"vocabulary and patch are {ours} and {theirs}."
        )


_loaded: dict[ModelSpec, LoadedModel] = {}
_loading = threading.Lock()


@contextmanager
def acquire(spec: ModelSpec) -> Iterator[LoadedModel]:
    """Lend the process's copy of a model to one task at a time.

    A lock rather than a copy per thread: one operation already uses every thread it was given, and
    memory stays that of one batch.

    Raises
    ------
    WeightsError
        If a file is no longer the one that was chosen.
    """
    with _loading:
        if spec not in _loaded:
            _loaded[spec] = _load(spec)
        loaded = _loaded[spec]
    with loaded.lock:
        # Dask's workers set other thread counts; the same count everywhere keeps the bytes.
        torch.set_num_threads(spec.compute.threads)
        yield loaded


def _load(spec: ModelSpec) -> LoadedModel:
    compute = spec.compute
    for file in (spec.weights, *(file for _, file in spec.tokenizers)):
        if file.path is not None and file_sha256(Path(file.path)) != file.sha256:
            raise ValueError(
                f"{file.path} is not the file that was chosen: its SHA-256 was {file.sha256}."
            )
    model = load_model(spec.name, spec.weights.path, compute.device, compute.precision)
    tokenizers = {
        modality: load_tokenizer(
            modality, file.path, compute.device, compute.precision, family=spec.family
        )
        for modality, file in spec.tokenizers
    }
    return LoadedModel(model, tokenizers, torch.device(compute.device), threading.Lock())
