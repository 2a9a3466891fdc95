"""Finite scalar quantization: between latents, codes and token ids.

Source: arXiv 2309.15505, with a sigmoid in place of the tanh as in the released tokenizers, so that
codes lie in [0, 1].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from terramind_cube import kernels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FiniteScalarQuantizer"]


class FiniteScalarQuantizer:
    """Mixed-radix numbers of rounded latents; it has no parameters.

    Parameters
    ----------
    levels : tuple of int
        Levels per latent, least significant first.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        self.levels = levels
        self.size = math.prod(levels)

    def quantize(self, latent: Tensor) -> Tensor:
        """Map latents (B, L, h, w) to token ids (B, h, w), int64; halves round to even.

        Raises
        ------
        ValueError
            If a latent is NaN, or there are not as many as levels.
        """
        ids: Tensor = kernels.fsq_quantize(latent.float().contiguous(), self.levels)
        return ids

    def dequantize(self, ids: Tensor) -> Tensor:
        """Map token ids (B, h, w) to codes (B, L, h, w) in [0, 1], float32.

        Raises
        ------
        ValueError
            If an id is outside of the codebook.
        """
        codes: Tensor = kernels.fsq_dequantize(ids.long().contiguous(), self.levels)
        return codes

    def expected_codes(self, probability: Tensor) -> Tensor:
        """Map probabilities of the ids (..., V) to their expected codes (..., L), float32."""
        ids = torch.arange(self.size, device=probability.device)
        table = self.dequantize(ids[None, :, None])[0, :, :, 0]  # (L, V)
        return probability @ table.T
