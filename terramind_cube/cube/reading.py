"""Pixels of one band of one file on a grid, in the unit of a cube.

Where the file's pixels lie on the grid, or nearest neighbours are asked for in the file's own CRS,
pixels are picked by integer arithmetic. Everything else is warped, see `regrid`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import MaskFlags
from rasterio.windows import Window
from shapely.geometry import shape

from terramind_cube.cube.agreement import fit_of
from terramind_cube.cube.grids import boundary, crs_of, pixel_of
from terramind_cube.cube.radiometry import ContradictionError, decode, encode, is_impossible
from terramind_cube.cube.regrid import (
    can_pick,
    nearest_pixels,
    pixels_per_pixel,
    shares_axes,
    warp_blocks,
)
from terramind_cube.modalities import IMPOSSIBLE_DN
from terramind_cube.stac.calibration import offset_in_dn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from terramind_cube.cube.radiometry import Radiometry
    from terramind_cube.stac.bands import BandLocation

__all__ = [
    "BandSource", "ContradictionError", "DeclaredGrid", "check_grid", "check_place", "file_geobox", "read_pixels",
]  # fmt: skip

_ALIGNED_TOLERANCE_PX = 0.01
_CONTRADICTION_PX = 1.5
_OWN_PIXELS = 4
_MANY_IMPOSSIBLE = 0.02


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
    outline : GeoJSON geometry or None
        Of an item that declares another grid than this: a file that lies here is read.
    """

    item_id: str
    band: BandLocation
    radiometry: Radiometry
    resampling: str
    declared: DeclaredGrid | None = None
    outline: dict[str, Any] | None = None


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
    check_place(native, source)
    factors = pixels_per_pixel(native, geobox)
    level = _overview_level(dataset, source, min(factors))
    if level is None:
        return _read(dataset, native, source, geobox, factors)
    with rasterio.open(dataset.name, overview_level=level) as coarser:
        native = file_geobox(coarser)
        return _read(coarser, native, source, geobox, pixels_per_pixel(native, geobox))


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
    _check_tags(dataset, source)


def _check_tags(dataset: rasterio.DatasetReader, source: BandSource) -> None:
    """Refuse a file whose tags name another scale or offset than the one that it is read with."""
    tags = tuple(t[source.band.index - 1] for t in (dataset.scales, dataset.offsets))
    told, expected = source.radiometry.scale, source.radiometry.consistent_dn
    if told is not None and tags != (1.0, 0.0) and not np.allclose(tags, told, rtol=1e-6, atol=0):
        raise ContradictionError(
            f"its tags say scale {tags[0]:g} and offset {tags[1]:g}, but its item says "
            f"{told[0]:g} and {told[1]:g}: mend one of them"
        )
    if not expected:
        return
    try:
        tagged = offset_in_dn(*tags)
    except ValueError as error:
        raise ContradictionError(f"it {error}") from error
    if tagged is not None and tagged not in expected:
        raise ContradictionError(
            f"its tags say that an offset of {tagged} DN belongs to it, but by its item, or the "
            f"other files of its collection, it is {expected[-1]} DN: mend one of them, or load it "
            'as it was delivered with s2_offset="keep"'
        )


def check_place(own: GeoBox, source: BandSource) -> None:
    """Refuse a file that lies elsewhere than its item says, in its grid and in its geometry.

    Raises
    ------
    ContradictionError
        If it does.

    Warns
    -----
    UserWarning
        If its geometry alone is right.
    """
    if source.declared is None:
        return
    try:
        check_grid(own, source.declared.geobox())
    except ContradictionError as error:
        if source.outline is None or not fit_of(own, shape(source.outline)).is_near:
            raise
        # The same words for all windows: Python says them once.
        warnings.warn(
            f"Item {source.item_id!r}, asset {source.band.asset!r}: {error}. The file lies where "
            "the geometry of the item does, and is read as it is.",
            UserWarning,
            stacklevel=2,
        )


def check_grid(own: GeoBox, declared: GeoBox) -> None:
    """Refuse a file that lies elsewhere than its item says.

    A coarser or finer raster of the same area, or of a part of it, is no contradiction.

    Raises
    ------
    ContradictionError
        If the CRS or the area is another one.
    """
    if declared.crs != own.crs and not _are_alike(own, declared):
        raise ContradictionError(
            f"it is in {_name(crs_of(own))}, but its item says {_name(crs_of(declared))}"
        )
    ours, theirs = own.boundingbox, declared.boundingbox
    sizes = [max(abs(g.resolution.x), abs(g.resolution.y)) for g in (own, declared)]
    beyond = np.subtract(ours.bbox, theirs.bbox) * (-1, -1, 1, 1)
    if beyond.max() > _CONTRADICTION_PX * max(sizes):
        raise ContradictionError(
            f"it covers {_rounded(ours.bbox)} of {_name(crs_of(own))}, but its item says "
            f"{_rounded(theirs.bbox)}: mend proj:shape and proj:transform, or remove them"
        )


def _are_alike(own: GeoBox, declared: GeoBox) -> bool:
    """Whether two CRSs that are spelt otherwise give a file's corners the same coordinates."""
    x, y = boundary(own)
    other_x, other_y = crs_of(own).transformer_to_crs(crs_of(declared))(x, y)
    error = np.hypot(np.subtract(other_x, x), np.subtract(other_y, y)).max()
    return bool(error < min(abs(own.resolution.x), abs(own.resolution.y)))


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
    if can_pick(native, geobox, source.resampling):
        return _pick(dataset, native, source, geobox)
    if source.resampling == "bilinear" and shares_axes(native, geobox):
        offset = pixel_of(native.affine, geobox.affine.c, geobox.affine.f)
        if step := _whole_step(factors, offset):
            return _mean(dataset, source, geobox, offset, step)
    return _warp(dataset, native, source, geobox)


def _pick(
    dataset: rasterio.DatasetReader, native: GeoBox, source: BandSource, geobox: GeoBox
) -> NDArray[Any]:
    """Return for each pixel of the grid the pixel of the file that holds its centre."""
    rows, columns = nearest_pixels(native, geobox)
    radiometry = source.radiometry
    out = np.full(geobox.shape.yx, radiometry.fill_value, radiometry.dtype)
    inside_y = np.flatnonzero((rows >= 0) & (rows < dataset.height))
    inside_x = np.flatnonzero((columns >= 0) & (columns < dataset.width))
    if not (len(inside_y) and len(inside_x)):
        return out
    rows, columns = rows[inside_y], columns[inside_x]
    window = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
    pixels = _decoded(dataset, source, window, interpolated=False)
    picked = pixels
    if pixels.shape != (len(rows), len(columns)):
        picked = pixels[np.ix_(rows - rows[0], columns - columns[0])]
    target = np.s_[inside_y[0] : inside_y[-1] + 1, inside_x[0] : inside_x[-1] + 1]
    out[target] = picked if radiometry.kind == "decibel" else encode(picked, radiometry)
    return out


def _whole_step(factors: tuple[float, float], offset: tuple[float, float]) -> int:
    """Return how many pixels of a file make a side of a coarser one, 0 if they do not fit."""
    step = round(factors[0])
    fits = all(abs(factor - step) < 1e-6 for factor in factors) and all(
        abs(value - round(value)) < _ALIGNED_TOLERANCE_PX for value in offset
    )
    return step if fits and step > 1 else 0


def _mean(
    dataset: rasterio.DatasetReader,
    source: BandSource,
    geobox: GeoBox,
    offset: tuple[float, float],
    step: int,
) -> NDArray[Any]:
    """Return the means of the valid pixels of a file in each pixel of a coarser grid."""
    height, width = geobox.shape.yx
    left, top = (round(value) for value in offset)
    # Coarse rows and columns that the file reaches, and what they need of it.
    y0, y1 = max(-top // step, 0), min(-((top - dataset.height) // step), height)
    x0, x1 = max(-left // step, 0), min(-((left - dataset.width) // step), width)
    out = np.full((height, width), source.radiometry.fill_value, source.radiometry.dtype)
    if y0 >= y1 or x0 >= x1:
        return out
    first_row, first_column = top + y0 * step, left + x0 * step
    fine = np.full(((y1 - y0) * step, (x1 - x0) * step), np.nan, np.float64)
    window = (
        max(first_row, 0), min(first_row + fine.shape[0], dataset.height),
        max(first_column, 0), min(first_column + fine.shape[1], dataset.width),
    )  # fmt: skip
    rows = slice(window[0] - first_row, window[1] - first_row)
    columns = slice(window[2] - first_column, window[3] - first_column)
    fine[rows, columns] = _decoded(dataset, source, window, interpolated=True)
    blocks = fine.reshape(y1 - y0, step, x1 - x0, step)
    valid = np.isfinite(blocks)
    count = valid.sum(axis=(1, 3))
    total = np.where(valid, blocks, 0).sum(axis=(1, 3))
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
    out[y0:y1, x0:x1] = encode(mean, source.radiometry)
    return out


def _warp(
    dataset: rasterio.DatasetReader, native: GeoBox, source: BandSource, geobox: GeoBox
) -> NDArray[Any]:
    """Return pixels that are warped onto the grid, backscatter as linear power."""
    radiometry = source.radiometry

    def read(window: tuple[int, int, int, int]) -> NDArray[Any]:
        return _decoded(dataset, source, window, interpolated=True)

    out = np.full(geobox.shape.yx, radiometry.fill_value, radiometry.dtype)
    for target, warped in warp_blocks(
        native, geobox, source.resampling, radiometry.fill_value, read
    ):
        out[target] = encode(warped, radiometry)
    return out


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
    part = Window(x0, y0, x1 - x0, y1 - y0)
    raw = dataset.read(index, window=part)
    if source.radiometry.kind == "reflectance":
        _tell_impossible(raw, source, dataset.nodatavals[index - 1])
    pixels = decode(
        raw,
        source.radiometry,
        dataset.nodatavals[index - 1],
        interpolated=interpolated,
        file_scale=(dataset.scales[index - 1], dataset.offsets[index - 1]),
    )
    if MaskFlags.per_dataset in dataset.mask_flag_enums[index - 1]:
        is_masked = dataset.read_masks(index, window=part) == 0
        pixels = np.where(is_masked, np.asarray(source.radiometry.fill_value, pixels.dtype), pixels)
    return pixels


def _tell_impossible(raw: NDArray[Any], source: BandSource, file_nodata: float | None) -> None:
    """Say it once where many digital numbers of a file are no reflectance."""
    if raw.size == 0 or raw.max() < IMPOSSIBLE_DN:
        return
    is_held = (raw != 0) & (raw != source.radiometry.nodata) & (raw != file_nodata)
    if np.count_nonzero(is_impossible(raw) & is_held) > _MANY_IMPOSSIBLE * is_held.sum():
        # The same words for all windows: Python says them once.
        warnings.warn(
            f"Item {source.item_id!r}, asset {source.band.asset!r}: in a part of it more than "
            f"{_MANY_IMPOSSIBLE:.0%} of the digital numbers are {IMPOSSIBLE_DN} or more, which no "
            "reflectance is. 65535 is saturated; dark pixels wrap around where a provider took "
            "the offset of 1000 off below zero. They are nodata: take the scene from another "
            "collection if that is too many.",
            UserWarning,
            stacklevel=2,
        )


def _overview_level(
    dataset: rasterio.DatasetReader, source: BandSource, factor: float
) -> int | None:
    """Return the coarsest overview that may stand for the full file, None for that.

    Nobody tells how overviews were made. Classes may have been averaged; backscatter may have been
    picked, or averaged in dB: of what is averaged here, enough pixels are to be the file's own.
    """
    kind = source.radiometry.kind
    if source.radiometry.dtype == "uint8":
        return None
    is_averaged = kind in ("power", "amplitude", "decibel")
    limit = factor / _OWN_PIXELS if is_averaged else factor
    steps = dataset.overviews(source.band.index)
    return max((n for n, step in enumerate(steps) if step <= limit * (1 + 1e-6)), default=None)
