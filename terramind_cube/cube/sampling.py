"""Pixels of one raster at the places of another's: nearest neighbours and bilinear interpolation.

Places are computed exactly on a lattice of the world's pixels and interpolated between its nodes,
where that is exact to a fiftieth of a pixel; elsewhere each place is computed. What a pixel becomes
does not depend on the part of the grid around it. GDAL's own warp is exact to an eighth of a pixel.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from terramind_cube.cube.grids import crs_of, nearest_longitude, pixel_of
from terramind_cube.kernels import cpu
from terramind_cube.kernels.reference import LEAST_WEIGHT, NODE_PX

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from odc.geo import CRS
    from odc.geo.geobox import GeoBox

    Floats = NDArray[np.floating[Any]]
    Window = tuple[int, int, int, int]

__all__ = ["sample"]

_TOLERANCE_PX = 0.02
_EDGE_PX = 1e-6


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
    lattice = _lattice(native, geobox)
    window = _needed_window(native, geobox, lattice)
    if window is None:
        return None
    pixels = np.ascontiguousarray(read(window))
    if not pixels.dtype.isnative:  # as netCDF has them
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    out = np.full(geobox.shape.yx, fill_value, pixels.dtype)
    frame = (*lattice.first, window[0], window[2], *native.shape.yx)
    y, x, rows, columns = lattice.bent
    rows, columns = rows - window[0], columns - window[2]
    if method == "nearest":
        cpu.pick(pixels, lattice.nodes, lattice.is_bent, frame, out)
        out[y, x] = pixels[rows.astype(np.intp), columns.astype(np.intp)]
    else:
        cpu.blend(pixels, lattice.nodes, lattice.is_bent, frame, fill_value, out)
        out[y, x] = _bilinear(pixels, rows - 0.5, columns - 0.5, fill_value)
    return out


@dataclass(frozen=True)
class _Lattice:
    """Where a grid lies in a raster: nodes of the world's lattice, linear between them.

    Attributes
    ----------
    nodes : numpy.ndarray of float64, shape (2, n + 1, m + 1)
        Row and column in the raster.
    is_bent : numpy.ndarray of bool, shape (n, m)
        Cells whose pixels are placed one by one.
    first : tuple of int
        Row and column of the grid's first pixel in the lattice.
    bent : tuple of numpy.ndarray
        Row and column in the grid, and row and column in the raster, of the pixels of those cells.
    """

    nodes: Floats
    is_bent: NDArray[np.bool_]
    first: tuple[int, int]
    bent: tuple[NDArray[Any], NDArray[Any], Floats, Floats]


def _lattice(native: GeoBox, geobox: GeoBox) -> _Lattice:
    own, crs, affine = crs_of(native), crs_of(geobox), geobox.affine
    centre = native.affine.c + native.boundingbox.span_x / 2 if own.geographic else math.nan
    steps = (affine.a, -affine.e)
    height, width = geobox.shape.yx
    first_x, first_y = (
        math.floor(value / step + 0.5 + _EDGE_PX) % NODE_PX
        for value, step in zip((affine.c, -affine.f), steps, strict=True)
    )
    origin = (affine.c - first_x * steps[0], affine.f + first_y * steps[1])
    cells = tuple(-(-(n + size) // NODE_PX) for n, size in ((first_y, height), (first_x, width)))
    nodes_x, nodes_y, is_bent = _nodes(crs, own, origin, steps, cells, centre)
    nodes = np.stack(pixel_of(native.affine, nodes_x, nodes_y)[::-1])
    rows = columns = np.empty(0, np.intp)
    x: Floats = np.empty(0)
    y: Floats = np.empty(0)
    if is_bent.any():
        row, column = np.arange(height) + first_y, np.arange(width) + first_x
        rows, columns = np.nonzero(is_bent[np.ix_(row // NODE_PX, column // NODE_PX)])
        x = affine.c + (columns + 0.5) * steps[0]
        y = affine.f - (rows + 0.5) * steps[1]
        x, y = _project(crs, own, x, y, centre)
    bent_columns, bent_rows = pixel_of(native.affine, x, y)
    height_px, width_px = native.shape.yx
    is_in = (
        (bent_rows >= 0) & (bent_rows < height_px) & (bent_columns >= 0) & (bent_columns < width_px)
    )
    bent = (rows[is_in], columns[is_in], bent_rows[is_in], bent_columns[is_in])
    return _Lattice(nodes, is_bent, (first_y, first_x), bent)


def _needed_window(native: GeoBox, geobox: GeoBox, lattice: _Lattice) -> Window | None:
    """Return the rows and columns (y0, y1, x0, x1) that a grid needs, None if it lies outside."""
    # What is linear in cells has its extremes on the rim of the grid, or on nodes of bent cells.
    edges: list[int] = []
    for axis, size in enumerate(native.shape.yx):
        found = [lattice.bent[2 + axis], *_rim(lattice.nodes[axis], geobox, lattice)]
        values = np.concatenate(found)
        values = values[np.isfinite(values)]
        if not values.size or values.min() >= size or values.max() < 0:
            return None
        edges.append(max(math.floor(values.min() - 0.5), 0))
        edges.append(min(math.floor(values.max() + 0.5) + 1, size))
    return edges[0], edges[1], edges[2], edges[3]


def _rim(nodes: Floats, geobox: GeoBox, lattice: _Lattice) -> list[Floats]:
    """Return places in a raster along one axis: of the grid's outermost pixels."""
    if lattice.is_bent.any():
        corners = (nodes[:-1, :-1], nodes[:-1, 1:], nodes[1:, :-1], nodes[1:, 1:])
        return [corner[~lattice.is_bent] for corner in corners]
    found = []
    for rows, columns in (
        ([0, geobox.shape.y - 1], range(geobox.shape.x)),
        (range(geobox.shape.y), [0, geobox.shape.x - 1]),
    ):
        y, x = np.asarray(rows) + lattice.first[0], np.asarray(columns) + lattice.first[1]
        down, across = ((n % NODE_PX + 0.5)[:, None] / NODE_PX for n in (y, x))
        lines = nodes[y // NODE_PX] * (1 - down) + nodes[y // NODE_PX + 1] * down
        i = x // NODE_PX
        found.append((lines[:, i] * (1 - across.T) + lines[:, i + 1] * across.T).ravel())
    return found


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
    mean = total / np.maximum(divisor, LEAST_WEIGHT)
    known = np.rint(mean) if pixels.dtype.kind in "iu" else mean
    found = np.where(divisor > LEAST_WEIGHT, known, fill_value)
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
            origin[0] + across[None, :] * NODE_PX * steps[0],
            origin[1] - down[:, None] * NODE_PX * steps[1],
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
            ) / NODE_PX  # fmt: skip
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
