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

from terramind_cube.modalities import MODALITIES, V1_STATISTICS
from terramind_cube.model.loading import (
    Precision,
    choose_dtype,
    extend_model,
    inspect_model_weights,
    inspect_tokenizer_weights,
    load_model,
    load_tokenizer,
)
from terramind_cube.model.text import (
    CaptionVocabulary,
    CoordinateVocabulary,
    load_coordinate_vocabulary,
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
    from collections.abc import Callable, Iterator, Mapping
    from os import PathLike

    from terramind_cube.modalities import Statistics
    from terramind_cube.model.tokenizers import Tokenizer
    from terramind_cube.model.transformer import TerraMind

__all__ = [
    "Compute",
    "LoadedModel",
    "ModelSpec",
    "Needs",
    "WeightsChoice",
    "WeightsFile",
    "acquire",
    "choose_model",
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


@dataclass(frozen=True)
class Needs:
    """What a run needs besides the transformer.

    Attributes
    ----------
    decoded, encoded : tuple of str
        Modalities whose tokenizers decode and encode.
    sequences : tuple of str
        Sequences that are read or generated.
    transformer : bool
        Whether the transformer itself is needed.
    """

    decoded: tuple[str, ...] = ()
    encoded: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    transformer: bool = True


@dataclass(frozen=True)
class WeightsChoice:
    """A user's weights: paths or "pretrained", None for untrained ones."""

    name: str
    weights: str | PathLike[str] | None = None
    tokenizers: Mapping[str, str | PathLike[str]] | None = None
    vocabularies: Mapping[str, str | PathLike[str]] | None = None
    extensions: tuple[tuple[str, Statistics], ...] = ()


def choose_model(
    choice: WeightsChoice, needs: Needs, compute: Compute
) -> tuple[ModelSpec, ModelDescription]:
    """Check a user's choice of weights against the files' headers, without loading them.

    Parameters
    ----------
    choice : WeightsChoice
    needs : Needs
    compute : Compute

    Returns
    -------
    spec : ModelSpec
    description : ModelDescription

    Raises
    ------
    ValueError, FileNotFoundError, WeightsError
        If a name is unknown, a file is absent, damaged or of another model, an output cannot be
        generated, a tokenizer speaks other tokens than the model, or a vocabulary is missing.
    """
    name = choice.name
    description = describe_model(name)
    file = WeightsFile()
    if choice.weights is not None:
        path = resolve_weights(choice.weights, pretrained=MODELS[name].pretrained, name=name)
        description = inspect_model_weights(name, path)
        file = WeightsFile(str(path), file_sha256(path))
    for modality, statistics in choice.extensions:
        description = description.with_modality(modality, statistics)
    wanted = tuple(dict.fromkeys((*needs.decoded, *needs.encoded)))
    given = dict(choice.tokenizers or {})
    unused = sorted(set(given) - set(wanted))
    if unused:
        raise ValueError(
            f"tokenizer_weights names {', '.join(unused)}, which is no output and no input that is "
            "read as tokens."
        )
    tokenizers = []
    for modality in wanted:
        row, tokenizer_file = _choose_tokenizer(modality, description, given.get(modality))
        _check_tokens(description, row)
        tokenizers.append((modality, tokenizer_file))
    vocabularies = _choose_vocabularies(choice, needs, description)
    weights = file if needs.transformer else None
    family = description.tokenizers
    spec = ModelSpec(
        name, weights, tuple(tokenizers), vocabularies, family, compute, choice.extensions
    )
    return spec, description


def _choose_tokenizer(
    modality: str, model: ModelDescription, weights: str | PathLike[str] | None
) -> tuple[TokenizerDescription, WeightsFile]:
    row = describe_tokenizer(modality, model.tokenizers)
    if weights is None:
        return row, WeightsFile()
    path = resolve_weights(weights, pretrained=row.pretrained, name=f"the {modality} tokenizer")
    row = inspect_tokenizer_weights(modality, path, family=model.tokenizers)
    return row, WeightsFile(str(path), file_sha256(path))


def _choose_vocabularies(
    choice: WeightsChoice, needs: Needs, description: ModelDescription
) -> tuple[tuple[str, WeightsFile], ...]:
    given = dict(choice.vocabularies or {})
    unused = sorted(set(given) - set(needs.sequences))
    if unused:
        raise ValueError(f"vocabularies names {', '.join(unused)}, which is no input or output.")
    chosen = []
    for name in needs.sequences:
        space = description.token_space(name)
        if space is None:
            raise ValueError(
                f"{description.name} knows no {name}: it has no tokens of them. "
                "Captions belong to the unreleased v0.1 model."
            )
        file = WeightsFile(None, "bundled")
        if name in given:
            path = Path(given[name]).expanduser().absolute()
            if not path.is_file():
                raise FileNotFoundError(f"No vocabulary of {name} at {path}.")
            file = WeightsFile(str(path), file_sha256(path))
        elif name == "Captions":
            raise ValueError(
                "Captions need a vocabulary: give vocabularies={'Captions': path} with the "
                "WordPiece file of the model."
            )
        elif choice.weights == "pretrained":
            warnings.warn(
                f"{name}: the bundled vocabulary need not be that of the released weights; give "
                f"vocabularies={{{name!r}: path}} with the file that was released with them.",
                stacklevel=2,
            )
        _load_vocabulary(name, file).check_fits(space.vocabulary)
        chosen.append((name, file))
    return tuple(chosen)


def _load_vocabulary(name: str, file: WeightsFile) -> CoordinateVocabulary | CaptionVocabulary:
    if name == "Captions":
        return CaptionVocabulary.from_file(file.path or "")
    return load_coordinate_vocabulary(file.path)


def _check_tokens(model: ModelDescription, tokenizer: TokenizerDescription) -> None:
    space = model.token_space(tokenizer.modality)
    if space is None:
        known = ", ".join(row.modality for row in model.token_spaces)
        raise ValueError(
            f"{model.name} knows no tokens of {tokenizer.modality}; it knows those of {known}."
        )
    theirs = (tokenizer.vocabulary, tokenizer.patch_px)
    ours = (space.vocabulary, model.patch_px)
    if theirs == ours and MODALITIES[tokenizer.modality].kind == "image":
        name = tokenizer.modality
        if (tokenizer.statistics or V1_STATISTICS[name]) != model.statistics[name]:
            raise ValueError(
                f"{model.name} and the {name} tokenizer were trained with different means and "
                "standard deviations: give weights that belong together."
            )
    if theirs != ours:
        raise ValueError(
            f"{model.name} and the {tokenizer.modality} tokenizer speak different tokens: "
            f"vocabulary and patch are {ours} and {theirs}."
        )


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
        name: part("vocabulary", name, file, partial(_load_vocabulary, name, file))
        for name, file in spec.vocabularies
    }
    return LoadedModel(network, tokenizers, vocabularies, torch.device(device))
