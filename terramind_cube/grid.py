"""Tiles and token cells over an area, in integers.

World pixels count from the origin of the coordinate reference system, rows downwards; world cells
are patches of them. Tiles stand on a lattice that is anchored there, so that areas which share a
grid share tiles, cells and therefore random numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

__all__ = ["AxisTiles", "Region", "TileGrid", "regions"]

_LATTICE_TOLERANCE_PX = 1e-6


@dataclass(frozen=True)
class Region:
    """A window of an area, half-open: rows y0 to y1, columns x0 to x1, in pixels."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0


@dataclass(frozen=True)
class AxisTiles:
    """Tiles along one axis of an area.

    Attributes
    ----------
    length_px : int
        Extent of the area.
    world_px : int
        World pixel of its first pixel.
    tile_px, patch_px, overlap_px : int
        Size of a tile and of a patch, and how far neighbours overlap.
    is_aligned : bool
        Whether the area lies on the lattice of world cells; if not, the lattice of tiles starts at
        the area's corner.
    """

    length_px: int
    world_px: int
    tile_px: int
    patch_px: int
    overlap_px: int
    is_aligned: bool

    @property
    def padded_px(self) -> int:
        """Extent in whole patches, at least one tile; what exceeds the area is reflected."""
        return max(self.tile_px, -(-self.length_px // self.patch_px) * self.patch_px)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of every tile, relative to the area; edge tiles are moved inwards."""
        stride = self.tile_px - self.overlap_px
        first = -(self.world_px % stride) if self.is_aligned else 0
        last = self.padded_px - self.tile_px
        positions = range(first, self.length_px, stride)
        return tuple(sorted({min(max(position, 0), last) for position in positions}))

    def covering(self, begin: int, end: int) -> tuple[int, ...]:
        """Return the starts of the tiles that touch pixels `begin` to `end`."""
        return tuple(s for s in self.starts if s < end and s + self.tile_px > begin)

    def cells(self, start: int) -> NDArray[np.int64]:
        """Return the world cells of the tile that starts at a pixel."""
        first = self.world_px // self.patch_px + start // self.patch_px
        return np.arange(first, first + self.tile_px // self.patch_px, dtype=np.int64)


@dataclass(frozen=True)
class TileGrid:
    """Tiles of an area: rows and columns of `AxisTiles`."""

    y: AxisTiles
    x: AxisTiles

    @classmethod
    def over(cls, geobox: GeoBox, *, tile_px: int, patch_px: int, overlap_px: int) -> TileGrid:
        """Lay tiles over an area.

        Parameters
        ----------
        geobox : odc.geo.geobox.GeoBox
            North-up grid with square pixels.
        tile_px, patch_px : int
            Of the model.
        overlap_px : int
            Overlap of neighbouring tiles, a multiple of the patch below the tile.

        Raises
        ------
        ValueError
            If the overlap or the orientation of the grid does not fit.
        """
        if not 0 <= overlap_px < tile_px or overlap_px % patch_px:
            raise ValueError(
                f"overlap={overlap_px} px: give a multiple of the model's patch ({patch_px} px) "
                f"from 0 to {tile_px - patch_px}."
            )
        affine = geobox.affine
        if affine.b or affine.d or affine.a <= 0 or affine.e >= 0:
            raise ValueError(f"The grid must be north-up, x eastwards and y southwards: {affine!r}")
        exact = (affine.f / affine.e, affine.c / affine.a)
        world = [math.floor(position + 0.5) for position in exact]
        is_aligned = all(
            abs(position - pixel) < _LATTICE_TOLERANCE_PX and pixel % patch_px == 0
            for position, pixel in zip(exact, world, strict=True)
        )
        axes = (
            AxisTiles(length, pixel, tile_px, patch_px, overlap_px, is_aligned)
            for length, pixel in zip(geobox.shape, world, strict=True)
        )
        return cls(*axes)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the area, in pixels."""
        return self.y.length_px, self.x.length_px

    @property
    def tile_count(self) -> int:
        """Number of tiles over the whole area."""
        return len(self.y.starts) * len(self.x.starts)

    def tiles(self, region: Region) -> tuple[tuple[int, int], ...]:
        """Return the starts (y, x) of the tiles that touch a region, row by row."""
        columns = self.x.covering(region.x0, region.x1)
        return tuple((y, x) for y in self.y.covering(region.y0, region.y1) for x in columns)

    def window(self, region: Region) -> Region:
        """Return what must be read, within the area, to fill a region's tiles."""
        rows = self.y.covering(region.y0, region.y1)
        cols = self.x.covering(region.x0, region.x1)
        return Region(
            rows[0],
            min(rows[-1] + self.y.tile_px, self.y.length_px),
            cols[0],
            min(cols[-1] + self.x.tile_px, self.x.length_px),
        )

    def cells(self, tile: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the world cells (rows, columns) of a tile."""
        return self.y.cells(tile[0]), self.x.cells(tile[1])


def regions(shape: tuple[int, int], side_px: int) -> Iterator[Region]:
    """Cut an area of (rows, columns) pixels into squares from its corner, the last ones short."""
    height, width = shape
    for y in range(0, height, side_px):
        for x in range(0, width, side_px):
            yield Region(y, min(y + side_px, height), x, min(x + side_px, width))
