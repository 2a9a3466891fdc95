"""Pixels of one raster at the places of another's: nearest neighbours and bilinear interpolation.

Places are computed exactly on a lattice of the world's pixels and interpolated between its nodes,
where that is exact to a fiftieth of a pixel; elsewhere each place is computed. What a pixel becomes
does not depend on the part of the grid around it. GDAL's own warp is exact to an eighth of a pixel.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from terramind_cube.cube.grids import crs_of, nearest_longitude, pixel_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from odc.geo import CRS
    from odc.geo.geobox import GeoBox

    Floats = NDArray[np.floating[Any]]
    Window = tuple[int, int, int, int]

__all__ = ["native_places", "needed_window", "sample"]

_NODE_PX = 32
_TOLERANCE_PX = 0.02
_LEAST_WEIGHT = 1e-5
_EDGE_PX = 1e-6


def native_places(native: GeoBox, geobox: GeoBox) -> tuple[Floats, Floats]:
    """Return where the pixels of a grid lie in another raster.

    Parameters
    ----------
    native : GeoBox
        Grid of the raster.
    geobox : GeoBox
        North-up grid.

    Returns
    -------
    rows, columns : numpy.ndarray of float64, shape (y, x)
        Of the pixels' centres, counted from the raster's corner; not finite where there is none.
    """
    own, crs, affine = crs_of(native), crs_of(geobox), geobox.affine
    centre = native.affine.c + native.boundingbox.span_x / 2 if own.geographic else math.nan
    steps = (affine.a, -affine.e)
    height, width = geobox.shape.yx
    first_x, first_y = (
        math.floor(value / step + 0.5 + _EDGE_PX)
        for value, step in zip((affine.c, -affine.f), steps, strict=True)
    )
    origin = (
        affine.c - first_x % _NODE_PX * steps[0],
        affine.f + first_y % _NODE_PX * steps[1],
    )
    cells = tuple(
        -(-(first % _NODE_PX + size) // _NODE_PX)
        for first, size in ((first_y, height), (first_x, width))
    )
    nodes_x, nodes_y, is_bent = _nodes(crs, own, origin, steps, cells, centre)
    row, t_row = np.divmod(np.arange(height) + first_y % _NODE_PX + 0.5, _NODE_PX)
    column, t_column = np.divmod(np.arange(width) + first_x % _NODE_PX + 0.5, _NODE_PX)
    row, column = row.astype(int), column.astype(int)
    weights = (t_row[:, None] / _NODE_PX, t_column[None, :] / _NODE_PX)
    with np.errstate(invalid="ignore"):
        x, y = (_between(nodes, row, column, weights) for nodes in (nodes_x, nodes_y))
    if is_bent.any():
        rows, columns = np.nonzero(is_bent[np.ix_(row, column)])
        x[rows, columns], y[rows, columns] = _project(
            crs, own, affine.c + (columns + 0.5) * steps[0],
            affine.f - (rows + 0.5) * steps[1], centre,
        )  # fmt: skip
    columns_px, rows_px = pixel_of(native.affine, x, y)
    return rows_px, columns_px


def needed_window(native: GeoBox, places: tuple[Floats, Floats]) -> Window | None:
    """Return the rows and columns (y0, y1, x0, x1) around some places, None if all lie outside."""
    rows, columns = places
    height, width = native.shape.yx
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    if not inside.any():
        return None
    y, x = rows[inside], columns[inside]
    return (
        max(int(y.min() - 0.5), 0),
        min(int(y.max() + 0.5) + 1, height),
        max(int(x.min() - 0.5), 0),
        min(int(x.max() + 0.5) + 1, width),
    )


def sample(
    native: GeoBox,
    geobox: GeoBox,
    method: str,
    fill_value: float,
    read: Callable[[Window], NDArray[Any]],
) -> NDArray[Any] | None:
    """Return the pixels of a raster on a grid.

    Parameters
    ----------
    native, geobox : GeoBox
        Grid of the raster, and north-up grid that is asked for.
    method : {"nearest", "bilinear"}
    fill_value : float
        Of invalid pixels; they have no weight.
    read : callable
        Returns rows and columns (y0, y1, x0, x1) of the raster.

    Returns
    -------
    numpy.ndarray, shape (y, x), or None
        None where the raster has no pixel.
    """
    rows, columns = native_places(native, geobox)
    window = needed_window(native, (rows, columns))
    if window is None:
        return None
    pixels = read(window)
    height, width = native.shape.yx
    with np.errstate(invalid="ignore"):
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows = np.where(inside, rows, window[0] + 0.5) - window[0]
    columns = np.where(inside, columns, window[2] + 0.5) - window[2]
    if method == "nearest":
        picked = pixels[rows.astype(np.int32), columns.astype(np.int32)]
    else:
        picked = _bilinear(pixels, rows - 0.5, columns - 0.5, fill_value)
    return np.where(inside, picked, np.asarray(fill_value, pixels.dtype))


def _bilinear(
    pixels: NDArray[Any], rows: Floats, columns: Floats, fill_value: float
) -> NDArray[Any]:
    """Interpolate between the centres of pixels, those that are invalid or outside left out."""
    valid = ~np.isnan(pixels) if math.isnan(fill_value) else pixels != fill_value
    # A ring of invalid pixels, so that every place has four neighbours.
    ringed = np.pad(np.where(valid, pixels, 0).astype(np.float64), 1).ravel()
    mask = np.pad(valid.astype(np.float64), 1).ravel()
    width = pixels.shape[1] + 2
    row, column = np.floor(rows), np.floor(columns)
    down, across = rows - row, columns - column
    first = ((row + 1) * width + column + 1).astype(np.intp)
    total, divisor = np.zeros(rows.shape), np.zeros(rows.shape)
    for step, weight in (
        (0, (1 - down) * (1 - across)),
        (1, (1 - down) * across),
        (width, down * (1 - across)),
        (width + 1, down * across),
    ):
        place = first + step
        total += weight * ringed.take(place)
        divisor += weight * mask.take(place)
    mean = total / np.maximum(divisor, _LEAST_WEIGHT)
    known = np.rint(mean) if pixels.dtype.kind in "iu" else mean
    found = np.where(divisor > _LEAST_WEIGHT, known, fill_value)
    return found.astype(pixels.dtype)


@functools.lru_cache(maxsize=256)
def _nodes(
    crs: CRS,
    own: CRS,
    origin: tuple[float, float],
    steps: tuple[float, float],
    cells: tuple[int, int],
    centre: float,
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return x and y of nodes in another CRS, and the cells in which they may not be interpolated."""

    def project(down: Floats, across: Floats) -> tuple[Floats, Floats]:
        x, y = np.broadcast_arrays(
            origin[0] + across[None, :] * _NODE_PX * steps[0],
            origin[1] - down[:, None] * _NODE_PX * steps[1],
        )
        return _project(crs, own, x, y, centre)

    rows, columns = (np.arange(count + 1, dtype=np.float64) for count in cells)
    x, y = project(rows, columns)
    middle_x, middle_y = project(rows[:-1] + 0.5, columns[:-1] + 0.5)
    bent = np.zeros(cells, np.bool_)
    # A pixel's width and height in the other CRS, as long as the longer of the two.
    with np.errstate(invalid="ignore"):
        for nodes, middle in ((x, middle_x), (y, middle_y)):
            mean = (nodes[:-1, :-1] + nodes[1:, :-1] + nodes[:-1, 1:] + nodes[1:, 1:]) / 4
            pixel = np.maximum(
                np.abs(nodes[:-1, 1:] - nodes[:-1, :-1]), np.abs(nodes[1:, :-1] - nodes[:-1, :-1])
            ) / _NODE_PX  # fmt: skip
            bent |= ~(np.abs(middle - mean) <= _TOLERANCE_PX * pixel)
    return x, y, bent


def _project(crs: CRS, own: CRS, x: Floats, y: Floats, centre: float) -> tuple[Floats, Floats]:
    # Rounded, so that a place has the same numbers whichever chunk it is seen from.
    digits = 12 if crs.geographic else 6
    x, y = np.round(x, digits), np.round(y, digits)
    if crs != own:
        x, y = crs.transformer_to_crs(own)(x, y)
    x, y = np.array(x, np.float64), np.array(y, np.float64)
    x[~np.isfinite(x)] = np.nan
    y[~np.isfinite(y)] = np.nan
    return (x if math.isnan(centre) else nearest_longitude(x, centre)), y


def _between(
    nodes: Floats, row: NDArray[Any], column: NDArray[Any], weights: tuple[Floats, Floats]
) -> Floats:
    down, across = weights
    lines = nodes[row] * (1 - down) + nodes[row + 1] * down
    found: Floats = lines[:, column] * (1 - across) + lines[:, column + 1] * across
    return found
