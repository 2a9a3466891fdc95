"""Memory-bound passes over pixels, tokens, tiles and noise: one mathematics, several engines.

`reference` is the definition in NumPy, `cpu` and `cuda` are its twins. The functions here check their
arguments and go to the engine of the array that they are given; see `dispatch`.
"""

from __future__ import annotations

from terramind_cube.kernels.pixels import denormalize, normalize, valid_pixels
from terramind_cube.kernels.tiles import blend_accumulate, blend_finish, class_map
from terramind_cube.kernels.tokens import (
    fsq_dequantize,
    fsq_quantize,
    philox_normal,
    philox_uniform,
)

__all__ = [
    "blend_accumulate",
    "blend_finish",
    "class_map",
    "denormalize",
    "fsq_dequantize",
    "fsq_quantize",
    "normalize",
    "philox_normal",
    "philox_uniform",
    "valid_pixels",
]
