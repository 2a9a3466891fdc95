"""Overlapping tiles become one picture: a partition of unity over tiles in a fixed order.

A pixel's sum runs over its tiles row by row from the north-west, whatever region is computed, so
that its bytes do not depend on how an area is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from terramind_cube.grid import Region

__all__ = ["BlendedClasses", "tile_weights"]


def tile_weights(tile_px: int, overlap_px: int) -> NDArray[np.float32]:
    """Return the weight of every pixel of a tile, (tile_px, tile_px) float32.

    The weight rises linearly over the overlap from every side, so that two neighbours sum to 1.
    """
    if overlap_px == 0:
        return np.ones((tile_px, tile_px), np.float32)
    distance = np.arange(tile_px, dtype=np.float32) + np.float32(0.5)
    rise = np.minimum(distance, distance[::-1]) / np.float32(overlap_px)
    profile = np.minimum(rise, np.float32(1))
    weights: NDArray[np.float32] = profile[:, None] * profile[None, :]
    return weights


class BlendedClasses:
    """Class map and confidence of a region from the class probabilities of its tiles.

    Sums are kept only for the rows that tiles still to come can reach.

    Parameters
    ----------
    region : Region
        What is filled.
    classes : int
        Number of classes.
    tile_px, overlap_px : int
        Size and overlap of tiles.
    """

    def __init__(self, region: Region, classes: int, tile_px: int, overlap_px: int) -> None:
        self.region = region
        self.weights = tile_weights(tile_px, overlap_px)
        self.tile_px = tile_px
        height, width = region.shape
        self.class_map = np.zeros((height, width), np.uint8)
        self.confidence = np.full((height, width), np.nan, np.float32)
        self._sum = np.zeros((classes, tile_px, width), np.float32)
        self._weight = np.zeros((tile_px, width), np.float32)
        self._top = region.y0

    def add(self, tile: tuple[int, int], probability: NDArray[np.float32]) -> None:
        """Add the class probabilities (classes, tile_px, tile_px) of a tile at (y, x).

        Tiles come row by row.
        """
        y, x = tile
        self._advance(max(y, self.region.y0))
        y0, y1 = max(y, self._top), min(y + self.tile_px, self.region.y1)
        x0, x1 = max(x, self.region.x0), min(x + self.tile_px, self.region.x1)
        inside = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
        left = self.region.x0
        target = (slice(y0 - self._top, y1 - self._top), slice(x0 - left, x1 - left))
        weight = self.weights[inside]
        self._sum[(slice(None), *target)] += probability[(slice(None), *inside)] * weight
        self._weight[target] += weight

    def finish(self, is_valid: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return class codes and confidence, 0 and NaN where `is_valid` (the region's) is not."""
        self._advance(self.region.y1)
        self.class_map[~is_valid] = 0
        self.confidence[~is_valid] = np.nan
        return self.class_map, self.confidence

    def _advance(self, top: int) -> None:
        """Settle the rows above `top` and make room for as many below."""
        rows = top - self._top
        if rows <= 0:
            return
        done = slice(self._top - self.region.y0, top - self.region.y0)
        count = min(rows, self.tile_px)
        sums, weights = self._sum[:, :count], self._weight[:count]
        best = sums.argmax(axis=0)
        with np.errstate(invalid="ignore"):
            confidence = np.take_along_axis(sums, best[None], axis=0)[0] / weights
        settled = slice(done.start, done.start + count)
        self.class_map[settled] = best
        self.confidence[settled] = confidence
        self._sum[:, : self.tile_px - count] = self._sum[:, count:].copy()
        self._weight[: self.tile_px - count] = self._weight[count:].copy()
        self._sum[:, self.tile_px - count :] = 0
        self._weight[self.tile_px - count :] = 0
        self._top = top
