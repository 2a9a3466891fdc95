"""Pixels of one band of one file on a grid, in the unit of a cube.

Where the file's pixels lie on the grid, or nearest neighbours are asked for in the file's own CRS,
pixels are picked by integer arithmetic. Everything else is warped by GDAL, on blocks of the world's
pixel lattice: GDAL interpolates a warp between the edges of what it is asked for, and a pixel must
not depend on the chunk around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import Window

from terramind_cube.cube.grids import boundary, nearest_longitude, pixel_of, place_of
from terramind_cube.cube.radiometry import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from terramind_cube.cube.radiometry import Radiometry
    from terramind_cube.stac.bands import BandLocation

__all__ = ["BandSource", "ContradictionError", "DeclaredGrid", "file_geobox", "read_pixels"]

_WARP_BLOCK_PX = 256
_ALIGNED_TOLERANCE_PX = 0.01
_EDGE_TOLERANCE_PX = 1e-6
_CONTRADICTION_PX = 1.5
# From this many source pixels per target pixel on, interpolation would skip some: they are averaged.
_COARSER = 1.01


class ContradictionError(ValueError):
    """A file is not what its item says."""


@dataclass(frozen=True, slots=True)
class DeclaredGrid:
    """Grid of a file as its item declares it.

    Attributes
    ----------
    crs : str
        Code, WKT or PROJJSON.
    shape : tuple of int
        Rows and columns.
    transform : tuple of float
        Six coefficients, row by row.
    """

    crs: str
    shape: tuple[int, int]
    transform: tuple[float, ...]

    def geobox(self) -> GeoBox:
        """Return the grid."""
        return GeoBox(self.shape, Affine(*self.transform), self.crs)


@dataclass(frozen=True, slots=True)
class BandSource:
    """One band of one item, as a task that reads it needs it.

    Attributes
    ----------
    item_id : str
    band : BandLocation
    radiometry : Radiometry
    resampling : str
        Name of one of GDAL's methods.
    declared : DeclaredGrid or None
        Grid that the item declares, which the file must have.
    """

    item_id: str
    band: BandLocation
    radiometry: Radiometry
    resampling: str
    declared: DeclaredGrid | None = None


def read_pixels(
    dataset: rasterio.DatasetReader, source: BandSource, geobox: GeoBox
) -> NDArray[Any]:
    """Return the pixels of a band on a grid, invalid ones as the fill value.

    Parameters
    ----------
    dataset : rasterio.DatasetReader
        The opened file.
    source : BandSource
    geobox : GeoBox
        North-up grid.

    Returns
    -------
    numpy.ndarray, shape (y, x)

    Raises
    ------
    ContradictionError
        If the file is not what the item says.
    rasterio.errors.RasterioError
        If it cannot be read.
    """
    _check(dataset, source)
    native = file_geobox(dataset)
    factors = _pixels_per_pixel(native, geobox)
    level = _overview_level(dataset.overviews(source.band.index), min(factors))
    if level is None:
        return _read(dataset, native, source, geobox, factors)
    with rasterio.open(dataset.name, overview_level=level) as coarser:
        native = file_geobox(coarser)
        return _read(coarser, native, source, geobox, _pixels_per_pixel(native, geobox))


def file_geobox(dataset: rasterio.DatasetReader) -> GeoBox:
    """Return the grid of a file."""
    return GeoBox(dataset.shape, dataset.transform, CRS(dataset.crs.to_wkt()))


def _check(dataset: rasterio.DatasetReader, source: BandSource) -> None:
    if dataset.crs is None:
        has_points = bool(dataset.gcps[0])
        detail = " but ground control points: it is not terrain-corrected" if has_points else ""
        raise ContradictionError(f"it has no coordinate reference system{detail}")
    index, count = source.band.index, source.band.file_bands
    if index > dataset.count or count not in {None, dataset.count}:
        raise ContradictionError(
            f"it has {dataset.count} bands where its item needs {count or index}: list the bands "
            "of the file in eo:bands"
        )
    if source.declared is None:
        return
    declared, own = source.declared.geobox(), file_geobox(dataset)
    if declared.crs != own.crs:
        raise ContradictionError(
            f"it is in {_name(own.crs)}, but its item says {_name(declared.crs)}"
        )
    ours, theirs = own.boundingbox, declared.boundingbox
    sizes = [max(abs(g.resolution.x), abs(g.resolution.y)) for g in (own, declared)]
    if np.abs(np.subtract(ours.bbox, theirs.bbox)).max() > _CONTRADICTION_PX * max(sizes):
        raise ContradictionError(
            f"it covers {_rounded(ours.bbox)} of {_name(own.crs)}, but its item says "
            f"{_rounded(theirs.bbox)}"
        )


def _name(crs: CRS) -> str:
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs)[:40]


def _rounded(box: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in box)


def _read(
    dataset: rasterio.DatasetReader,
    native: GeoBox,
    source: BandSource,
    geobox: GeoBox,
    factors: tuple[float, float],
) -> NDArray[Any]:
    affine = native.affine
    is_upright = affine.b == affine.d == 0 and affine.a > 0 > affine.e
    if native.crs == geobox.crs and is_upright:
        offset = pixel_of(affine, geobox.affine.c, geobox.affine.f)
        is_aligned = all(abs(factor - 1) < 1e-6 for factor in factors) and all(
            abs(value - round(value)) < _ALIGNED_TOLERANCE_PX for value in offset
        )
        if source.resampling == "nearest" or is_aligned:
            return _pick(dataset, native, source, geobox)
    return _warp(dataset, native, source, geobox, factors)


def _pick(
    dataset: rasterio.DatasetReader, native: GeoBox, source: BandSource, geobox: GeoBox
) -> NDArray[Any]:
    """Return for each pixel of the grid the pixel of the file that holds its centre."""
    height, width = geobox.shape.yx
    x, _ = place_of(geobox.affine, np.arange(width) + 0.5, 0)
    _, y = place_of(geobox.affine, 0, np.arange(height) + 0.5)
    columns = np.floor((x - native.affine.c) / native.affine.a + _EDGE_TOLERANCE_PX).astype(int)
    rows = np.floor((y - native.affine.f) / native.affine.e + _EDGE_TOLERANCE_PX).astype(int)
    radiometry = source.radiometry
    out = np.full((height, width), radiometry.fill_value, radiometry.dtype)
    inside_y = np.flatnonzero((rows >= 0) & (rows < dataset.height))
    inside_x = np.flatnonzero((columns >= 0) & (columns < dataset.width))
    if not (len(inside_y) and len(inside_x)):
        return out
    rows, columns = rows[inside_y], columns[inside_x]
    window = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
    pixels = _decoded(dataset, source, window, interpolated=False)
    picked = pixels[np.ix_(rows - rows[0], columns - columns[0])]
    target = np.s_[inside_y[0] : inside_y[-1] + 1, inside_x[0] : inside_x[-1] + 1]
    out[target] = picked if radiometry.kind == "decibel" else encode(picked, radiometry)
    return out


def _warp(
    dataset: rasterio.DatasetReader,
    native: GeoBox,
    source: BandSource,
    geobox: GeoBox,
    factors: tuple[float, float],
) -> NDArray[Any]:
    """Warp whole blocks of the world's pixel lattice and cut out what was asked for."""
    radiometry, method = source.radiometry, source.resampling
    if method == "bilinear" and min(factors) > _COARSER:
        method = "average"
    out = np.full(geobox.shape.yx, radiometry.fill_value, radiometry.dtype)
    margin = 2 + math.ceil(max(factors))
    for block, target, cut in _world_blocks(geobox):
        window = _source_window(native, block, margin)
        if window is None:
            continue
        pixels = _decoded(dataset, source, window, interpolated=True)
        warped = np.full(block.shape.yx, radiometry.fill_value, pixels.dtype)
        reproject(
            pixels,
            warped,
            src_transform=_shifted(native.affine, window),
            src_crs=dataset.crs,
            src_nodata=radiometry.fill_value,
            dst_transform=block.affine,
            dst_crs=block.crs.to_wkt(),
            dst_nodata=radiometry.fill_value,
            resampling=Resampling[method],
            num_threads=1,
        )
        out[target] = encode(warped[cut], radiometry)
    return out


def _world_blocks(
    geobox: GeoBox,
) -> Iterator[tuple[GeoBox, tuple[slice, slice], tuple[slice, slice]]]:
    """Yield the blocks of the world that a grid touches: grid, place in the grid, part of it."""
    size, step, origin = _WARP_BLOCK_PX, geobox.resolution.x, geobox.affine
    x0, y0 = (math.floor(v / step + 0.5) for v in (origin.c, -origin.f))
    height, width = geobox.shape.yx
    for y in range(y0 - y0 % size, y0 + height, size):
        for x in range(x0 - x0 % size, x0 + width, size):
            # Rounded, so that a block has the same corner whichever chunk it is seen from.
            corner = (origin.c + (x - x0) * step, origin.f - (y - y0) * step)
            left, top = (round(v, 6) for v in corner)
            block = GeoBox((size, size), Affine(step, 0, left, 0, -step, top), geobox.crs)
            rows = slice(max(y - y0, 0), min(y - y0 + size, height))
            columns = slice(max(x - x0, 0), min(x - x0 + size, width))
            cut = (
                slice(rows.start - (y - y0), rows.stop - (y - y0)),
                slice(columns.start - (x - x0), columns.stop - (x - x0)),
            )
            yield block, (rows, columns), cut


def _decoded(
    dataset: rasterio.DatasetReader,
    source: BandSource,
    window: tuple[int, int, int, int],
    *,
    interpolated: bool,
) -> NDArray[Any]:
    """Read rows and columns (y0, y1, x0, x1) of a file."""
    y0, y1, x0, x1 = (int(value) for value in window)
    index = source.band.index
    raw = dataset.read(index, window=Window(x0, y0, x1 - x0, y1 - y0))
    nodata = dataset.nodatavals[index - 1]
    return decode(raw, source.radiometry, nodata, interpolated=interpolated)


def _source_window(
    native: GeoBox, block: GeoBox, margin_px: int
) -> tuple[int, int, int, int] | None:
    """Return the rows and columns of a file that a block needs, None where it has none."""
    columns, rows = _to_pixels(native, block.crs, *boundary(block))
    finite = np.isfinite(columns) & np.isfinite(rows)
    if not finite.any():
        return None
    height, width = native.shape.yx
    y0 = max(math.floor(rows[finite].min()) - margin_px, 0)
    y1 = min(math.ceil(rows[finite].max()) + margin_px, height)
    x0 = max(math.floor(columns[finite].min()) - margin_px, 0)
    x1 = min(math.ceil(columns[finite].max()) + margin_px, width)
    return (y0, y1, x0, x1) if y0 < y1 and x0 < x1 else None


def _shifted(affine: Affine, window: tuple[int, int, int, int]) -> Affine:
    """Return the transform of a window (y0, y1, x0, x1)."""
    left, top = place_of(affine, window[2], window[0])
    return Affine(affine.a, affine.b, left, affine.d, affine.e, top)


def _to_pixels(
    native: GeoBox, crs: CRS, x: NDArray[Any], y: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return column and row in a file of points of another CRS."""
    if native.crs != crs:
        x, y = crs.transformer_to_crs(native.crs)(x, y)
        if native.crs.geographic:
            x = nearest_longitude(np.asarray(x), native.boundingbox.span_x / 2 + native.affine.c)
    columns, rows = pixel_of(native.affine, np.asarray(x), np.asarray(y))
    return columns, rows


def _pixels_per_pixel(native: GeoBox, geobox: GeoBox) -> tuple[float, float]:
    """Return how many rows and columns of a file lie in a pixel at the middle of a grid."""
    height, width = geobox.shape.yx
    across, down = np.array([0, 1, 0]) + width / 2, np.array([0, 0, 1]) + height / 2
    columns, rows = _to_pixels(native, geobox.crs, *place_of(geobox.affine, across, down))
    steps = np.hypot(
        [columns[1] - columns[0], rows[1] - rows[0]], [columns[2] - columns[0], rows[2] - rows[0]]
    )
    per_column, per_row = (float(step) if math.isfinite(step) else 1.0 for step in steps)
    return per_row, per_column


def _overview_level(overviews: list[int], factor: float) -> int | None:
    """Return the coarsest overview that is not coarser than the grid, None for the full file."""
    fitting = [level for level, step in enumerate(overviews) if step <= factor * (1 + 1e-6)]
    return max(fitting, default=None)
