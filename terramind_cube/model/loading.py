"""Build a model or tokenizer and fill it: from a file, from the hub, or untrained.

Every tensor that a network needs must be in the file, in the right shape: anything else is an
error that names the tensor (the reference implementation silently initialises it at random).
"""

from __future__ import annotations

import zlib
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from terramind_cube.model.embeddings import SequenceTarget, TokenTarget
from terramind_cube.model.packing import pack
from terramind_cube.model.tokenizers import PARTS_TENSORS, Part, Tokenizer
from terramind_cube.model.transformer import TerraMind
from terramind_cube.model.variants import (
    MODELS,
    ModelDescription,
    TokenizerDescription,
    describe_model,
    describe_tokenizer,
)
from terramind_cube.model.weights import (
    WeightsError,
    WeightsHeader,
    check_tensors,
    load_tensors,
    read_header,
    resolve_weights,
)

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

    from terramind_cube.modalities import Statistics

__all__ = [
    "Precision",
    "choose_dtype",
    "extend_model",
    "fill_untrained",
    "inspect_model_weights",
    "inspect_tokenizer_weights",
    "load_model",
    "load_tokenizer",
    "tensor_shapes",
]

Precision = Literal["float32", "bfloat16", "auto"]
Network = TypeVar("Network", bound=nn.Module)


def load_model(
    name: str,
    weights: str | PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    *,
    packed: bool = False,
) -> TerraMind:
    """Load a TerraMind model.

    Parameters
    ----------
    name : str
        ``"terramind_v1_tiny"``, ``"terramind_v1_small"``, ``"terramind_v1_base"``,
        ``"terramind_v1_large"`` or ``"terramind_nano"``.
    weights : path or "pretrained", optional
        A ``.pt`` or ``.safetensors`` file, or the released weights from the Hugging Face hub.
        None gives fixed, untrained weights: good for trying things out, not for maps.
    device : str or torch.device
        Where the model runs.
    precision : {"float32", "bfloat16", "auto"}
        "auto" takes bfloat16 where the device computes it natively.
    packed : bool
        Lay the weights out for a CPU's kernels: a tenth faster, and no longer to be saved or
        trained.

    Returns
    -------
    TerraMind
        In evaluation mode, with `encode` and `logits`.

    Raises
    ------
    ValueError
        If the name is unknown.
    FileNotFoundError, WeightsError
        If the weights are absent, damaged, of another file type, or of another model.
    """
    if name not in MODELS:
        describe_model(name)
    path = None
    if weights is None:
        model = TerraMind(describe_model(name))
        fill_untrained(model)
    else:
        path = resolve_weights(weights, pretrained=MODELS[name].pretrained, name=name)
        description = inspect_model_weights(name, path)
        with torch.device("meta"):
            model = TerraMind(description)
        _fill(model, path)
    place = _read_device(device)
    model.cast(choose_dtype(precision, place))
    return _finish(model, place, path, packed)


def extend_model(model: TerraMind, modality: str, statistics: Statistics) -> None:
    """Give a model a fresh patch embedding for pixels of a modality of your own.

    Its weights are fixed numbers of the size of trained ones; they wait for fine-tuning. The rest
    of the model is as it was.

    Parameters
    ----------
    model : TerraMind
    modality : str
        A new name, under which `TerraMind.encode` then takes pixels (B, C, H, W).
    statistics : Statistics
        Mean and standard deviation of the C bands.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    description = model.description.with_modality(modality, statistics)
    model.extend(description)
    key = description.raw_inputs[-1].key
    fill_untrained(model, (f"encoder_embeddings.{key}.",))
    _finish(model.encoder_embeddings[key], model.mask_token.device, None, packed=False)


def load_tokenizer(
    modality: str,
    weights: str | PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    *,
    family: str = "v1",
    packed: bool = False,
) -> Tokenizer:
    """Load the tokenizer of a modality.

    Parameters
    ----------
    modality : str
        Public name, such as ``"LULC"``.
    weights, device, precision, packed
        As in `load_model`.
    family : str
        Which models it belongs to: "v1" (the released ones) or "nano". Weights that carry a
        description in their metadata need none.

    Returns
    -------
    Tokenizer
        In evaluation mode, with `latent`, `tokenize` and `decode`. Encoder and decoder are read
        from the file when they are first used, and then stand on `device`: to move or to train
        them, call ``require("encoder", "decoder")`` first.

    Raises
    ------
    ValueError, FileNotFoundError, WeightsError
        As in `load_model`.
    """
    description = describe_tokenizer(modality, family)
    place = _read_device(device)
    dtype = choose_dtype(precision, place)
    path = None
    if weights is not None:
        name = f"the {modality} tokenizer"
        path = resolve_weights(weights, pretrained=description.pretrained, name=name)
        description = inspect_tokenizer_weights(modality, path, family=family)
    stamp = None if path is None else _stamp(path)
    provide = partial(_provide_part, path, stamp, (place, dtype, packed))
    return Tokenizer(description, parts=(), provide=provide).eval()


def _provide_part(
    path: Path | None,
    stamp: tuple[int, int] | None,
    how: tuple[torch.device, torch.dtype, bool],
    tokenizer: Tokenizer,
    part: Part,
) -> None:
    """Build one half of a tokenizer and fill it."""
    if path is not None and _stamp(path) != stamp:
        raise WeightsError(f"{path} was replaced since it was chosen. Load it anew.")
    place, dtype, packed = how
    with torch.device("cpu" if path is None else "meta"):
        tokenizer.build(part)
    if path is None:
        fill_untrained(tokenizer, PARTS_TENSORS[part])
    else:
        _fill(tokenizer, path)
    tokenizer.cast(part, dtype, place)
    _finish(tokenizer, place, path, packed)


def inspect_model_weights(name: str, path: Path) -> ModelDescription:
    """Return the description of a model's weights after comparing every tensor's name and shape.

    Reads the file's header only.

    Raises
    ------
    WeightsError
        If a tensor is missing, unexpected, or of another shape.
    """
    return _inspect(None, name, path, _stamp(path))  # type: ignore[return-value]


def inspect_tokenizer_weights(
    modality: str, path: Path, *, family: str = "v1"
) -> TokenizerDescription:
    """Return the description of a tokenizer's weights; see `inspect_model_weights`."""
    return _inspect(family, modality, path, _stamp(path))  # type: ignore[return-value]


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and time of modification, by which a file is known within a process."""
    if not path.is_file():
        read_header(path)  # says what is wrong
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _inspect(
    family: str | None, name: str, path: Path, stamp: tuple[int, int]
) -> ModelDescription | TokenizerDescription:
    """Check a file once per process: of a model, or of a tokenizer of a family."""
    del stamp
    header = read_header(path)
    network: nn.Module
    description: ModelDescription | TokenizerDescription
    with torch.device("meta"):
        if family is None:
            description = describe_model(name, header.metadata, str(path))
            network = TerraMind(description)
        else:
            description = describe_tokenizer(name, family, header.metadata, str(path))
            network = Tokenizer(description)
    _check(network, header)
    return description


def tensor_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a checkpoint of the network holds, by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _read_device(device: str | torch.device) -> torch.device:
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: torch sees no CUDA device; use device='cpu'.")
    return place


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype in which a device computes matrix products at a precision.

    Raises
    ------
    ValueError
        If the precision is unknown.
    """
    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    if precision != "auto":
        raise ValueError(f"Unknown precision {precision!r}: float32, bfloat16 or auto.")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _tied(network: nn.Module) -> set[str]:
    """Names of the token tables that a logits head overrules."""
    return {
        f"{name}.token_emb.weight"
        for name, module in network.named_modules()
        if isinstance(module, (TokenTarget, SequenceTarget))
    }


def _check(network: nn.Module, header: WeightsHeader) -> None:
    # A table that the logits head overrules need not be in the file.
    optional = _tied(network)
    check_tensors(tensor_shapes(network), header.shapes, source=str(header.path), optional=optional)


def _fill(network: nn.Module, path: Path) -> None:
    """Move the file's tensors into what a network holds on the meta device."""
    tied = _tied(network)
    wanted = {
        name for name, tensor in nn.Module.state_dict(network).items() if tensor.is_meta
    } - tied
    tensors = {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        for name, tensor in load_tensors(path).items()
        if name in wanted
    }
    missing = sorted(wanted - tensors.keys())
    if missing:
        raise WeightsError(
            f"{path} no longer holds {missing[0]} ({len(missing)} tensors are missing): it was "
            "replaced since it was chosen. Load it anew."
        )
    network.load_state_dict(tensors, strict=False, assign=True)
    for module in network.modules():
        if isinstance(module, (TokenTarget, SequenceTarget)):
            module.token_emb.weight = module.to_logits.weight


def fill_untrained(network: nn.Module, prefixes: tuple[str, ...] = ("",)) -> None:
    """Fill a network with values that depend on each tensor's name alone, on any machine.

    Only tensors whose names begin with one of the prefixes are filled.
    """
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if not name.startswith(prefixes):
                continue
            if name.endswith("bias"):
                tensor.zero_()
            elif tensor.ndim > 1:
                generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
                values = generator.standard_normal(tuple(tensor.shape), dtype=np.float32)
                is_vector = name.endswith(("mod_emb", "mask_token"))
                scale = 0.02 if is_vector else float(np.prod(tensor.shape[1:])) ** -0.5
                tensor.copy_(torch.from_numpy(values * np.float32(scale)))


def _finish(network: Network, place: torch.device, path: Path | None, packed: bool) -> Network:
    network = network.to(place).eval().requires_grad_(False)
    if packed and path is not None:
        # Casting has read every page that it cast.
        _map_anew(network, path)
        pack(network, partial(_map_anew, network, path))
        _map_anew(network, path)
    elif packed:
        pack(network)
    return network


def _map_anew(network: nn.Module, path: Path) -> None:
    """Map the file once more for the tensors that were neither cast nor packed.

    The old mapping, whose pages take memory once they were read, is then let go. Of the new one
    only what is used is read: not the table of a modality that nobody asks for.
    """
    tensors = load_tensors(path)
    tied = _tied(network)
    for owner, module in network.named_modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                key = f"{owner}.{name}" if owner else name
                if key in tied:
                    key = key.replace("token_emb", "to_logits")
                fresh = tensors.get(key)
                if fresh is None or tensor is None or tensor.device.type != "cpu":
                    continue
                if tensor.dtype == fresh.dtype:
                    is_parameter = held is module._parameters
                    held[name] = nn.Parameter(fresh, requires_grad=False) if is_parameter else fresh
