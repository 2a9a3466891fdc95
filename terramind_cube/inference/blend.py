"""Overlapping tiles become one picture: a partition of unity over tiles in a fixed order.

A pixel's sum runs over its tiles row by row from the north-west, whatever region is computed, so
that its bytes do not depend on how an area is cut.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from terramind_cube import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.grid import Region

    Settle = Callable[[slice, Tensor], None]

__all__ = ["Blend", "tile_weights"]


def tile_weights(tile: int, overlap: int) -> NDArray[np.float32]:
    """Return the weight of every pixel (or cell) of a tile, (tile, tile) float32.

    The weight rises linearly over the overlap from every side, so that two neighbours sum to 1.
    """
    if overlap == 0:
        return np.ones((tile, tile), np.float32)
    distance = np.arange(tile, dtype=np.float32) + np.float32(0.5)
    rise = np.minimum(distance, distance[::-1]) / np.float32(overlap)
    profile = np.minimum(rise, np.float32(1))
    weights: NDArray[np.float32] = profile[:, None] * profile[None, :]
    return weights


class Blend:
    """Weighted means of overlapping tiles over a region, in pixels or in cells.

    Sums are kept only for the rows that tiles still to come can reach, in a ring; a row that is
    complete is handed on.

    Parameters
    ----------
    region : Region
        What is filled.
    weights : torch.Tensor, float32, shape (tile, tile)
        Of a tile, see `tile_weights`, on the device of the values.
    shape : tuple of int
        Leading axes of the values.
    settle : callable
        Called as ``settle(rows, mean)`` with rows of the region, as a slice from its top, and
        their means ``(*shape, rows, width)``, NaN where no tile was added.
    """

    def __init__(
        self, region: Region, weights: Tensor, shape: tuple[int, ...], settle: Settle
    ) -> None:
        self.region = region
        self.weights = weights
        self.tile = len(weights)
        self.shape = shape
        width = region.shape[1]
        self._settle = settle
        self._sum = weights.new_zeros((math.prod(shape), self.tile, width))
        self._weight = weights.new_zeros((self.tile, width))
        self._top = region.y0

    def add(self, tile: tuple[int, int], values: Tensor) -> None:
        """Add the values (*shape, tile, tile) of a tile at (y, x). Tiles come row by row."""
        y, x = tile
        self._advance(max(y, self.region.y0))
        y0, y1 = max(y, self._top), min(y + self.tile, self.region.y1)
        x0, x1 = max(x, self.region.x0), min(x + self.tile, self.region.x1)
        target = (y0 - self.region.y0, x0 - self.region.x0)
        if y0 < y1 and x0 < x1:
            kernels.blend_accumulate(
                values.reshape(-1, self.tile, self.tile).contiguous(),
                self.weights,
                (y0 - y, x0 - x, *target, y1 - y0, x1 - x0),
                self._sum,
                self._weight,
            )

    def finish(self) -> None:
        """Hand on the rows that are left."""
        self._advance(self.region.y1)

    def _advance(self, top: int) -> None:
        """Settle the rows above `top`, whose places in the ring become free."""
        while (rows := min(top - self._top, self.tile)) > 0:
            first = self._top - self.region.y0
            mean = self._sum.new_empty((len(self._sum), rows, self._sum.shape[-1]))
            kernels.blend_finish(self._sum, self._weight, first, mean)
            self._settle(slice(first, first + rows), mean.unflatten(0, self.shape))
            self._top += rows
