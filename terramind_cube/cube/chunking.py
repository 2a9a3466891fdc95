"""A grid cut into chunks, and the chunks that pixels of an item may lie in."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from shapely.geometry import shape

from terramind_cube.cube.grids import boundary, crs_of, nearest_longitude

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["ChunkedGrid"]

_GEOMETRY_MARGIN_DEG = 0.05
_MARGIN_PX = 3
_DEG_PER_M = 1e-4  # generous: of longitude at 84 degrees


class ChunkedGrid:
    """A grid cut into chunks, and which chunks an item touches.

    Parameters
    ----------
    geobox : GeoBox
    chunks_px : mapping
        Chunk lengths of ``"y"`` and ``"x"``; -1 is all.
    """

    def __init__(self, geobox: GeoBox, chunks_px: Mapping[str, int]) -> None:
        self.geobox = geobox
        self.chunks = tuple(
            _lengths(size, chunks_px[dim]) for size, dim in zip(geobox.shape.yx, "yx", strict=True)
        )
        self._edges: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._touched: dict[Any, list[tuple[int, int]]] = {}

    @cached_property
    def geoboxes(self) -> list[list[GeoBox]]:
        """Grid of each chunk, row by row."""
        starts = [np.cumsum((0, *lengths)).tolist() for lengths in self.chunks]
        return [
            [self.geobox[y0:y1, x0:x1] for x0, x1 in zip(starts[1], starts[1][1:], strict=False)]
            for y0, y1 in zip(starts[0], starts[0][1:], strict=False)
        ]

    def touched(
        self, footprint: GeoBox | dict[str, Any] | None, margin_px: int = 0
    ) -> list[tuple[int, int]]:
        """Return row and column of the chunks that a footprint may have pixels in.

        Parameters
        ----------
        footprint : GeoBox, GeoJSON geometry or None
            None is anywhere.
        margin_px : int
            Pixels around a chunk that count as its own.
        """
        everywhere = [
            (y, x) for y in range(len(self.chunks[0])) for x in range(len(self.chunks[1]))
        ]
        if footprint is None:
            return everywhere
        key = (footprint if isinstance(footprint, GeoBox) else repr(footprint), margin_px)
        if key not in self._touched:
            tests = self._tests(footprint, margin_px)
            self._touched[key] = [
                place for place, is_touched in zip(everywhere, tests, strict=True) if is_touched
            ]
        return self._touched[key]

    def _tests(self, footprint: GeoBox | dict[str, Any], margin_px: int) -> NDArray[np.bool_]:
        if isinstance(footprint, GeoBox):
            crs, box = crs_of(footprint), footprint.boundingbox.bbox
            margin = _MARGIN_PX * max(abs(footprint.resolution.x), abs(footprint.resolution.y))
        else:
            crs, box, margin = CRS("EPSG:4326"), shape(footprint).bounds, _GEOMETRY_MARGIN_DEG
        margin += (
            margin_px
            * abs(self.geobox.resolution.x)
            * (_DEG_PER_M if crs.geographic and not crs_of(self.geobox).geographic else 1)
        )
        x, y = self._edges_in(crs)
        if crs.geographic:
            x = nearest_longitude(x, (box[0] + box[2]) / 2)
        # A chunk that cannot be expressed in the file's CRS is left to the task.
        is_unknown = ~(np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1))
        if crs.geographic:
            is_unknown |= self._holds_pole  # its edges tell nothing of the latitudes within
        is_outside = (
            (x.max(axis=1) < box[0] - margin)
            | (x.min(axis=1) > box[2] + margin)
            | (y.max(axis=1) < box[1] - margin)
            | (y.min(axis=1) > box[3] + margin)
        )
        tests: NDArray[np.bool_] = is_unknown | ~is_outside
        return tests

    @cached_property
    def _holds_pole(self) -> NDArray[np.bool_]:
        """Which chunks have a pole inside."""
        own = crs_of(self.geobox)
        longitudes, latitudes = np.zeros(2), np.array([90.0, -90.0])
        x, y = CRS("EPSG:4326").transformer_to_crs(own)(longitudes, latitudes)
        boxes = np.array([g.boundingbox.bbox for row in self.geoboxes for g in row])
        held = np.zeros(len(boxes), np.bool_)
        for pole_x, pole_y in zip(np.asarray(x), np.asarray(y), strict=True):
            held |= (
                (boxes[:, 0] <= pole_x) & (pole_x <= boxes[:, 2])
                & (boxes[:, 1] <= pole_y) & (pole_y <= boxes[:, 3])
            )  # fmt: skip
        return held

    def _edges_in(self, crs: CRS) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return x and y, in a CRS, of points around each chunk: arrays (chunk, point)."""
        key = str(crs)
        if key not in self._edges:
            rings = [boundary(geobox) for row in self.geoboxes for geobox in row]
            x, y = (np.stack(values) for values in zip(*rings, strict=True))
            if crs != (own := crs_of(self.geobox)):
                x, y = own.transformer_to_crs(crs)(x, y)
            self._edges[key] = np.asarray(x), np.asarray(y)
        return self._edges[key]


def _lengths(size: int, chunk: int) -> tuple[int, ...]:
    if chunk in (-1, 0) or chunk >= size:
        return (size,)
    rest = size % chunk
    return (*(chunk,) * (size // chunk), *((rest,) if rest else ()))
