"""Overlapping tiles become one picture: a partition of unity over tiles in a fixed order.

A pixel's sum runs over its tiles row by row from the north-west, whatever region is computed, so
that its bytes do not depend on how an area is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from terramind_cube.grid import Region

    Settle = Callable[[slice, NDArray[np.float32]], None]

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

    Sums are kept only for the rows that tiles still to come can reach; a row that is complete is
    handed on.

    Parameters
    ----------
    region : Region
        What is filled.
    weights : numpy.ndarray, float32, shape (tile, tile)
        Of a tile, see `tile_weights`.
    shape : tuple of int
        Leading axes of the values.
    settle : callable
        Called as ``settle(rows, mean)`` with rows of the region, as a slice from its top, and
        their means ``(*shape, rows, width)``, NaN where no tile was added.
    """

    def __init__(
        self, region: Region, weights: NDArray[np.float32], shape: tuple[int, ...], settle: Settle
    ) -> None:
        self.region = region
        self.weights = weights
        self.tile = len(weights)
        width = region.shape[1]
        self._settle = settle
        self._sum = np.zeros((*shape, self.tile, width), np.float32)
        self._weight = np.zeros((self.tile, width), np.float32)
        self._top = region.y0

    def add(self, tile: tuple[int, int], values: NDArray[np.float32]) -> None:
        """Add the values (*shape, tile, tile) of a tile at (y, x). Tiles come row by row."""
        y, x = tile
        self._advance(max(y, self.region.y0))
        y0, y1 = max(y, self._top), min(y + self.tile, self.region.y1)
        x0, x1 = max(x, self.region.x0), min(x + self.tile, self.region.x1)
        inside = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
        left = self.region.x0
        target = (slice(y0 - self._top, y1 - self._top), slice(x0 - left, x1 - left))
        weight = self.weights[inside]
        self._sum[(..., *target)] += values[(..., *inside)] * weight
        self._weight[target] += weight

    def finish(self) -> None:
        """Hand on the rows that are left."""
        self._advance(self.region.y1)

    def _advance(self, top: int) -> None:
        """Settle the rows above `top` and make room for as many below."""
        while (rows := min(top - self._top, self.tile)) > 0:
            first = self._top - self.region.y0
            with np.errstate(invalid="ignore"):
                mean = self._sum[..., :rows, :] / self._weight[:rows]
            self._settle(slice(first, first + rows), mean)
            rest = self.tile - rows
            for array in (self._sum, self._weight):
                array[..., :rest, :] = array[..., rows:, :].copy()
                array[..., rest:, :] = 0
            self._top += rows
