"""From one grid to another: pixels are picked where they lie on it, sampled, or warped by GDAL.

GDAL does what is neither nearest nor bilinear, on blocks of the world's pixel lattice: it
interpolates places between the edges of what it is asked for, and a pixel must not depend on the
chunk around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import reproject

from terramind_cube.cube.grids import boundary, crs_of, nearest_longitude, pixel_of, place_of
from terramind_cube.cube.sampling import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from odc.geo import CRS

    from terramind_cube.cube.chunking import ChunkedGrid

    Window = tuple[int, int, int, int]

__all__ = [
    "Regridding",
    "can_pick",
    "nearest_pixels",
    "pixels_per_pixel",
    "regrid",
    "shares_axes",
    "warp_blocks",
    "warp_window",
]

da: Any = dask.array  # only partly typed

_WARP_BLOCK_PX = 256
_ALIGNED_TOLERANCE_PX = 0.01
_EDGE_TOLERANCE_PX = 1e-6
# From this many source pixels per target pixel on, interpolation would skip some: they are averaged.
_COARSER = 1.01
# GDAL would estimate for each block how much coarser it is, and blur those that are turned.
_KERNEL = {"XSCALE": 1, "YSCALE": 1}
_BY_AREA = ("nearest", "average", "mode", "min", "max", "med", "q1", "q3", "sum", "rms")


@dataclass(frozen=True)
class Regridding:
    """How pixels of a cube come onto another grid.

    Attributes
    ----------
    method : str
        Name of one of GDAL's methods.
    fill_value : float
        Of invalid pixels.
    is_decibel : bool
        Whether they are interpolated as linear power.
    """

    method: str
    fill_value: float
    is_decibel: bool = False


def regrid(pixels: Any, native: GeoBox, target: ChunkedGrid, how: Regridding) -> Any:
    """Bring a lazy array onto another grid.

    Parameters
    ----------
    pixels : dask.array.Array, shape (..., y, x)
    native : GeoBox
        Its grid.
    target : ChunkedGrid
        North-up grid.
    how : Regridding

    Returns
    -------
    dask.array.Array, shape (..., y, x)
        In the chunks of the target along y and x. A pixel does not depend on any chunks.
    """
    if native == target.geobox:
        return pixels
    return da.block([[_piece(pixels, native, box, how) for box in row] for row in target.geoboxes])


def shares_axes(native: GeoBox, geobox: GeoBox) -> bool:
    """Whether the rows and columns of an upright grid run as those of a north-up one do."""
    affine = native.affine
    return native.crs == geobox.crs and affine.b == affine.d == 0 and affine.a > 0 > affine.e


def can_pick(native: GeoBox, geobox: GeoBox, method: str) -> bool:
    """Whether pixels can be taken as they are, without a warp.

    Parameters
    ----------
    native, geobox : GeoBox
        Grid of the pixels, and north-up grid that is asked for.
    method : str
        Name of one of GDAL's methods: all come to the same where the pixels lie on the grid.
    """
    if not shares_axes(native, geobox):
        return False
    if method == "nearest":
        return True
    offset = pixel_of(native.affine, geobox.affine.c, geobox.affine.f)
    return all(abs(factor - 1) < 1e-6 for factor in pixels_per_pixel(native, geobox)) and all(
        abs(value - round(value)) < _ALIGNED_TOLERANCE_PX for value in offset
    )


def nearest_pixels(native: GeoBox, geobox: GeoBox) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return where the pixels lie that hold the centres of a grid's rows and columns.

    Parameters
    ----------
    native, geobox : GeoBox
        Upright grids of one CRS.

    Returns
    -------
    rows, columns : numpy.ndarray of int
        Negative or too large outside of the native grid.
    """
    height, width = geobox.shape.yx
    x, _ = place_of(geobox.affine, np.arange(width) + 0.5, 0)
    _, y = place_of(geobox.affine, 0, np.arange(height) + 0.5)
    if crs_of(native).geographic:  # a grid over the antimeridian runs on beyond 180 degrees
        x = nearest_longitude(x, native.boundingbox.span_x / 2 + native.affine.c)
    columns = np.floor((x - native.affine.c) / native.affine.a + _EDGE_TOLERANCE_PX).astype(int)
    rows = np.floor((y - native.affine.f) / native.affine.e + _EDGE_TOLERANCE_PX).astype(int)
    return rows, columns


def warp_blocks(
    native: GeoBox,
    geobox: GeoBox,
    method: str,
    fill_value: float,
    read: Callable[[Window], NDArray[Any]],
) -> Iterator[tuple[tuple[slice, slice], NDArray[Any]]]:
    """Bring pixels onto a grid, in parts that are whole blocks of the world's lattice or all of it.

    Parameters
    ----------
    native, geobox : GeoBox
        Grid of the pixels, and north-up grid that is asked for.
    method : str
        Name of one of GDAL's methods.
    fill_value : float
        Of invalid pixels.
    read : callable
        Returns rows and columns (y0, y1, x0, x1) of the pixels.

    Yields
    ------
    target : tuple of slice
        Place in the grid; what has no pixels is left out.
    warped : numpy.ndarray
    """
    factors = pixels_per_pixel(native, geobox)
    if method == "bilinear" and min(factors) > _COARSER:
        method = "average"
    if method in ("nearest", "bilinear"):
        sampled = sample(native, geobox, method, fill_value, read)
        if sampled is not None:
            yield (slice(0, geobox.shape.y), slice(0, geobox.shape.x)), sampled
        return
    for block, target, cut in _world_blocks(geobox):
        window = _source_window(native, block, _margin_px(factors))
        if window is None:
            continue
        pixels = read(window)
        warped = np.full(block.shape.yx, fill_value, pixels.dtype)
        reproject(
            pixels,
            warped,
            src_transform=_shifted(native.affine, window),
            src_crs=crs_of(native).to_wkt(),
            src_nodata=fill_value,
            dst_transform=block.affine,
            dst_crs=crs_of(block).to_wkt(),
            dst_nodata=fill_value,
            resampling=Resampling[method],
            num_threads=1,
            **({} if method in _BY_AREA else _KERNEL),
        )
        yield target, warped[cut]


def warp_window(native: GeoBox, geobox: GeoBox) -> Window | None:
    """Return the rows and columns (y0, y1, x0, x1) that `warp_blocks` reads, None for none."""
    margin_px = _margin_px(pixels_per_pixel(native, geobox))
    found = [_source_window(native, block, margin_px) for block, _, _ in _world_blocks(geobox)]
    windows = [window for window in found if window is not None]
    if not windows:
        return None
    y0, y1, x0, x1 = zip(*windows, strict=True)
    return min(y0), max(y1), min(x0), max(x1)


def pixels_per_pixel(native: GeoBox, geobox: GeoBox) -> tuple[float, float]:
    """Return how many native rows and columns lie in a pixel of a grid.

    It is measured at the middle of the native pixels, so that what follows from it does not depend
    on the part of the grid that is asked for.
    """
    height, width = native.shape.yx
    x, y = place_of(native.affine, width / 2, height / 2)
    if native.crs != geobox.crs:
        x, y = crs_of(native).transformer_to_crs(crs_of(geobox))(x, y)
    if not (math.isfinite(x) and math.isfinite(y)):  # half a world away
        x, y = place_of(geobox.affine, geobox.shape.x / 2, geobox.shape.y / 2)
    across = x + np.array([0, geobox.resolution.x, 0])
    down = y + np.array([0, 0, geobox.resolution.y])
    columns, rows = _to_pixels(native, crs_of(geobox), across, down)
    steps = np.hypot(
        [columns[1] - columns[0], rows[1] - rows[0]], [columns[2] - columns[0], rows[2] - rows[0]]
    )
    per_column, per_row = (float(step) if math.isfinite(step) else 1.0 for step in steps)
    return per_row, per_column


def _margin_px(factors: tuple[float, float]) -> int:
    return 2 + math.ceil(max(factors))


def _world_blocks(
    geobox: GeoBox,
) -> Iterator[tuple[GeoBox, tuple[slice, slice], tuple[slice, slice]]]:
    """Yield the blocks of the world that a grid touches: grid, place in the grid, part of it."""
    size, origin = _WARP_BLOCK_PX, geobox.affine
    across, down = geobox.resolution.x, -geobox.resolution.y
    x0 = math.floor(origin.c / across + 0.5 + _EDGE_TOLERANCE_PX)
    y0 = math.floor(-origin.f / down + 0.5 + _EDGE_TOLERANCE_PX)
    # Rounded, so that a block has the same corner whichever chunk it is seen from.
    digits = 12 if crs_of(geobox).geographic else 6
    height, width = geobox.shape.yx
    for y in range(y0 - y0 % size, y0 + height, size):
        for x in range(x0 - x0 % size, x0 + width, size):
            left = round(origin.c + (x - x0) * across, digits)
            top = round(origin.f - (y - y0) * down, digits)
            affine = Affine(across, 0, left, 0, -down, top)
            block = GeoBox((size, size), affine, geobox.crs)
            rows = slice(max(y - y0, 0), min(y - y0 + size, height))
            columns = slice(max(x - x0, 0), min(x - x0 + size, width))
            cut = (
                slice(rows.start - (y - y0), rows.stop - (y - y0)),
                slice(columns.start - (x - x0), columns.stop - (x - x0)),
            )
            yield block, (rows, columns), cut


def _source_window(native: GeoBox, block: GeoBox, margin_px: int) -> Window | None:
    """Return the native rows and columns that a block needs, None where it has none."""
    columns, rows = _to_pixels(native, crs_of(block), *boundary(block))
    finite = np.isfinite(columns) & np.isfinite(rows)
    if not finite.any():
        return None
    height, width = native.shape.yx
    y0 = max(math.floor(rows[finite].min()) - margin_px, 0)
    y1 = min(math.ceil(rows[finite].max()) + margin_px, height)
    x0 = max(math.floor(columns[finite].min()) - margin_px, 0)
    x1 = min(math.ceil(columns[finite].max()) + margin_px, width)
    return (y0, y1, x0, x1) if y0 < y1 and x0 < x1 else None


def _shifted(affine: Affine, window: Window) -> Affine:
    """Return the transform of a window."""
    left, top = place_of(affine, window[2], window[0])
    return Affine(affine.a, affine.b, left, affine.d, affine.e, top)


def _to_pixels(
    native: GeoBox, crs: CRS, x: NDArray[Any], y: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return column and row in a raster of points of another CRS."""
    own = crs_of(native)
    if own != crs:
        x, y = crs.transformer_to_crs(own)(x, y)
        if own.geographic:
            x = nearest_longitude(np.asarray(x), native.boundingbox.span_x / 2 + native.affine.c)
    columns, rows = pixel_of(native.affine, np.asarray(x), np.asarray(y))
    return columns, rows


def _piece(pixels: Any, native: GeoBox, geobox: GeoBox, how: Regridding) -> Any:
    """Return one chunk of a grid, made of those native pixels alone that it needs."""
    height, width = geobox.shape.yx
    edges: Window | None
    if can_pick(native, geobox, how.method):
        rows, columns = (
            places[(places >= 0) & (places < size)]
            for places, size in zip(nearest_pixels(native, geobox), native.shape.yx, strict=True)
        )
        is_empty = not (len(rows) and len(columns))
        edges = None if is_empty else (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
    else:
        edges = warp_window(native, geobox)
    if edges is None:
        return da.full(
            (*pixels.shape[:-2], height, width),
            how.fill_value,
            dtype=pixels.dtype,
            chunks=(*pixels.chunks[:-2], (height,), (width,)),
        )
    y0, y1, x0, x1 = (int(edge) for edge in edges)
    part = pixels[..., y0:y1, x0:x1].rechunk({pixels.ndim - 2: -1, pixels.ndim - 1: -1})
    return part.map_blocks(
        _regrid_block,
        native=native[y0:y1, x0:x1],
        geobox=geobox,
        how=how,
        dtype=pixels.dtype,
        chunks=(*part.chunks[:-2], (height,), (width,)),
        meta=np.empty((0,) * pixels.ndim, pixels.dtype),
    )


def _regrid_block(
    block: NDArray[Any], native: GeoBox, geobox: GeoBox, how: Regridding
) -> NDArray[Any]:
    """Bring planes of pixels (..., y, x) onto a grid."""
    planes = block.reshape(-1, *block.shape[-2:])
    out = np.full((len(planes), *geobox.shape.yx), how.fill_value, block.dtype)
    if can_pick(native, geobox, how.method):
        rows, columns = nearest_pixels(native, geobox)
        inside_y = np.flatnonzero((rows >= 0) & (rows < planes.shape[1]))
        inside_x = np.flatnonzero((columns >= 0) & (columns < planes.shape[2]))
        picked = planes[:, rows[inside_y][:, None], columns[inside_x]]
        out[:, inside_y[:, None], inside_x] = picked
    else:
        for plane, warped in zip(planes, out, strict=True):
            _warp_plane(plane, warped, native, geobox, how)
    return out.reshape(*block.shape[:-2], *geobox.shape.yx)


def _warp_plane(
    plane: NDArray[Any], out: NDArray[Any], native: GeoBox, geobox: GeoBox, how: Regridding
) -> None:
    """Warp one plane of pixels into another."""
    values = plane.astype(np.uint8) if plane.dtype == np.bool_ else plane
    if how.is_decibel:
        values = np.power(np.float32(10), values / np.float32(10))

    def read(window: Window) -> NDArray[Any]:
        y0, y1, x0, x1 = window
        return np.ascontiguousarray(values[y0:y1, x0:x1])

    for place, warped in warp_blocks(native, geobox, how.method, how.fill_value, read):
        out[place] = 10 * np.log10(warped) if how.is_decibel else warped
