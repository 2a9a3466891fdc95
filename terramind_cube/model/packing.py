"""Weights laid out once for the kernels of CPUs, instead of at every call.

oneDNN multiplies blocked weights; PyTorch's own layers block them anew whenever they are called. A
packed network computes the same (up to rounding) a tenth faster, and can no longer be saved or
trained: it is for the pipeline's own copy. PyTorch's compiler uses the same operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from terramind_cube.model.layers import Linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["can_pack", "can_pack_bfloat16", "pack"]

# The layout is chosen for two tiles of 196 tokens and serves any number: one layout for all runs, so
# that a process gives the same bytes whatever it ran before.
_TILES = 2
_ROWS = _TILES * 196
_RELIEF_BYTES = 96 << 20
_OPERATORS = (
    "_linear_pointwise",
    "_reorder_linear_weight",
    "_convolution_pointwise",
    "_reorder_convolution_weight",
)


def can_pack() -> bool:
    """Whether this PyTorch has the operators."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in _OPERATORS
    )


def can_pack_bfloat16() -> bool:
    """Whether this processor has them in bfloat16, too: oneDNN asks for AVX-512 or its like."""
    has_it = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return can_pack() and has_it is not None and bool(has_it())


class _PackedLinear(nn.Module):
    """A linear map whose weights nothing but oneDNN can read."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.dtype = layer.weight.dtype
        self.bias = layer.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x, self.packed, self.bias, "none", [], ""
        )


class _PackedConvolution(nn.Module):
    """A convolution whose weights nothing but oneDNN can read, once it has seen an image."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.bias = layer.bias
        self.geometry = (list(layer.padding), list(layer.stride), list(layer.dilation))
        self.plain: Tensor | None = layer.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        if self.plain is not None:
            # The layout hangs on the size of the image, which is that of all tiles.
            shape = [_TILES, *x.shape[1:]]
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.plain, *self.geometry, 1, shape
            )
            self.plain = None
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, self.packed, self.bias, *self.geometry, 1, "none", [], ""
        )


def pack(network: nn.Module, relieve: Callable[[], object] = lambda: None) -> None:
    """Replace the layers of a network on a CPU by packed ones; elsewhere do nothing.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode. Convolutions are packed in bfloat16 only: in float32 it gains nothing.
        Logits heads are left in the file until they are used: most runs need one of many.
    relieve : callable
        Called now and then, to let go of memory that plain weights took.
    """
    if not can_pack():
        return
    packed_bytes = 0
    # Names, not layers: whatever holds a plain layer keeps its weights in memory.
    places = [
        (parent, name)
        for parent in network.modules()
        for name, layer in parent.named_children()
        if _is_packable(name, layer)
    ]
    for parent, name in places:
        layer = getattr(parent, name)
        packed_bytes += layer.weight.nbytes
        kind = _PackedLinear if isinstance(layer, Linear) else _PackedConvolution
        setattr(parent, name, kind(layer))
        del layer
        if packed_bytes > _RELIEF_BYTES:
            relieve()
            packed_bytes = 0


def _is_packable(name: str, layer: nn.Module) -> bool:
    if not isinstance(layer, Linear | nn.Conv2d) or layer.weight.device.type != "cpu":
        return False
    if layer.weight.dtype == torch.bfloat16:
        return name != "to_logits" and can_pack_bfloat16()
    return isinstance(layer, Linear) and name != "to_logits"
