"""From the numbers in a file to the units of a cube."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from terramind_cube.modalities import IMPOSSIBLE_DN, LOWEST_DN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from terramind_cube.stac.bands import ItemBands
    from terramind_cube.stac.legends import Legend

__all__ = [
    "LOWEST_DB",
    "S2_OFFSETS",
    "ContradictionError",
    "Radiometry",
    "decode",
    "encode",
    "is_impossible",
    "is_invalid",
    "ndvi",
    "rgb",
]

S2_OFFSETS = ("remove", "keep", "add")
"""What may be asked for Sentinel-2's offset of 1000 DN: taken off, left as delivered, put on."""

LOWEST_DB = -100.0
"""No dB is as low: what is below is a fill value that nobody declares, such as -9999."""

_ADDED_DN = 1000
_BACKSCATTER = ("power", "amplitude", "decibel")
_NO_CLASS = 255
# The shore of the Dead Sea is at -440 m, Mount Everest at 8849 m (2020 survey of Nepal and China).
# What is beyond is a fill value that nobody declares: -32768, -32767, -9999.
_LOWEST_M, _HIGHEST_M = -500.0, 8849.0
_ENOUGH_PX, _SQUARE_KILOMETRE_PX = 100, 10_000
_RGB_WHITE_DN = 2000

Kind = Literal["reflectance", "power", "amplitude", "decibel", "classes", "plain", "unknown"]
_KINDS: dict[str | None, Kind] = {
    "linear": "power", "amplitude": "amplitude", "dB": "decibel", None: "unknown",
}  # fmt: skip


class ContradictionError(ValueError):
    """A file is not what its item says."""


@dataclass(frozen=True)
class Radiometry:
    """How the numbers of one item become those of a cube.

    Attributes
    ----------
    kind : str
        "reflectance" (digital numbers), "power" (linear backscatter), "amplitude" (its root),
        "decibel", "classes" (codes of a legend), "plain", or "unknown" (a file that could not be
        read when it should have told its unit).
    dtype : str
        Of the cube.
    fill_value : float
        Of invalid pixels in the cube.
    nodata : float or None
        Of invalid pixels in the file, besides the file's own.
    offset_dn : int
        Added to digital numbers.
    scale : tuple of float or None
        Scale and offset of elevation and backscatter; None leaves them to the file.
    legend : tuple of pairs
        TerraMind's class of each code.
    consistent_dn : tuple of int
        Offsets of reflectance that the tags of a file may name; empty where any may stand there.
    is_guess : bool
        Whether the unit of backscatter was decided by the pixels of some alike files.
    """

    kind: Kind
    dtype: str
    fill_value: float
    nodata: float | None = None
    offset_dn: int = 0
    scale: tuple[float, float] | None = None
    legend: Legend = ()
    consistent_dn: tuple[int, ...] = ()
    is_guess: bool = False

    @classmethod
    def of(cls, source: ItemBands, s2_offset: str = "remove") -> Radiometry:
        """Return the radiometry of an item's bands."""
        modality = source.modality
        kind: Kind = "plain"
        consistent: tuple[int, ...] = ()
        if modality.units == "1e-4":
            kind = "reflectance"
            # Where pixels stay as they were delivered, it does not matter what they mean.
            consistent = () if s2_offset == "keep" else source.offset.consistent_dn
        elif modality.units == "dB":
            kind = _KINDS[source.unit]
        elif modality.kind == "classes":
            kind = "classes"
        added = added_offset_dn(source.offset_dn, s2_offset)
        return cls(
            kind, modality.dtype, modality.fill_value, source.nodata, added, source.scale,
            source.legend or (), consistent, source.told_by == "pixels",
        )  # fmt: skip


def added_offset_dn(offset_dn: int, s2_offset: str) -> int:
    """Return what reading adds to an item's digital numbers, given its own offset."""
    return {"remove": offset_dn, "keep": 0, "add": offset_dn + _ADDED_DN}[s2_offset]


def decode(
    raw: NDArray[Any],
    radiometry: Radiometry,
    file_nodata: float | None = None,
    *,
    interpolated: bool = True,
    file_scale: tuple[float, float] = (1.0, 0.0),
) -> NDArray[Any]:
    """Return pixels that may be interpolated, invalid ones as the fill value.

    Backscatter comes out as linear power (float32, NaN): a mean of decibels is no mean. Saturated
    and wrapped digital numbers are invalid, see `terramind_cube.modalities.IMPOSSIBLE_DN`.

    Parameters
    ----------
    raw : numpy.ndarray
        As in the file.
    radiometry : Radiometry
    file_nodata : float, optional
        Fill value that the file declares.
    interpolated : bool
        Whether they will be; if not, decibels stay what they are.
    file_scale : tuple of float
        Scale and offset that the file declares.

    Raises
    ------
    ValueError
        If optical bands or classes are floating point: they are digital numbers and codes; if power
        is mostly below zero, or a code is not in the legend.
    """
    if radiometry.kind == "reflectance" and raw.dtype == np.uint16:
        fills = {radiometry.nodata, file_nodata} - {None, 0}
        if not fills and radiometry.offset_dn <= 0:
            return _shift_down(raw, -radiometry.offset_dn)
    invalid = np.zeros(raw.shape, np.bool_)
    for value in (radiometry.nodata, file_nodata):
        if value is not None:
            invalid |= np.isnan(raw) if math.isnan(value) else raw == value
    if radiometry.kind == "unknown":
        raise ContradictionError(
            "its item declares no unit of backscatter, and it could not be read when the cube was "
            "made: give radar_unit, or make the cube again"
        )
    if radiometry.dtype == "float32":
        pixels = raw.astype(np.float32)
        scale, offset = file_scale if radiometry.scale is None else radiometry.scale
        if (scale, offset) != (1.0, 0.0):
            pixels = (raw * scale + offset).astype(np.float32)
        invalid |= ~np.isfinite(pixels)
        if radiometry.kind == "plain":  # elevation
            invalid |= (pixels < _LOWEST_M) | (pixels > _HIGHEST_M)
        if radiometry.kind == "decibel":
            invalid |= pixels <= LOWEST_DB
            _check_decibels(pixels, invalid, is_guess=radiometry.is_guess)
        if radiometry.kind == "decibel" and interpolated:
            pixels = np.power(np.float32(10), pixels / np.float32(10))
        if radiometry.kind in ("power", "amplitude"):
            _check_positive(pixels, invalid)
            invalid |= ~(pixels > 0)
        if radiometry.kind == "amplitude":
            pixels = np.square(pixels)
        return np.where(invalid, np.float32(np.nan), pixels)
    if raw.dtype.kind not in "iu":
        raise ValueError(
            f"its pixels are {raw.dtype}, where integers are expected: reflectance is read as "
            "digital numbers (x 10000), classes as codes"
        )
    if radiometry.kind == "reflectance":
        invalid |= is_impossible(raw)
        # A valid pixel never becomes 0, which is nodata.
        shifted = np.clip(raw.astype(np.int32) + radiometry.offset_dn, 1, 65535)
        return np.where(invalid | (raw == 0), 0, shifted).astype(np.uint16)
    codes = _classes(raw, radiometry, invalid) if radiometry.kind == "classes" else raw
    return np.where(invalid, radiometry.fill_value, codes).astype(radiometry.dtype)


def _check_positive(pixels: NDArray[np.float32], invalid: NDArray[np.bool_]) -> None:
    """Refuse power that is mostly below zero: it is decibels."""
    below = np.count_nonzero((pixels < 0) & (pixels > LOWEST_DB) & ~invalid)
    above = np.count_nonzero((pixels > 0) & ~invalid)
    if below > above and below > _ENOUGH_PX:
        raise ContradictionError(
            "most of its pixels are below zero, which power and amplitude never are: they seem to "
            'be decibels. Declare raster:bands unit "dB" in its item'
        )


def _check_decibels(
    pixels: NDArray[np.float32], invalid: NDArray[np.bool_], *, is_guess: bool
) -> None:
    """Refuse decibels that are nowhere below zero: a square kilometre of land never is so bright."""
    if ((pixels < 0) & ~invalid).any():
        return
    if np.count_nonzero(~invalid) > (_ENOUGH_PX if is_guess else _SQUARE_KILOMETRE_PX):
        told = "alike files are in dB and its item declares no unit" if is_guess else "it is in dB"
        raise ContradictionError(
            f"it has no pixel below zero, but {told}: it seems to be power. Declare raster:bands "
            'unit "linear" in its item, or give radar_unit where none is declared'
        )


def _classes(
    raw: NDArray[Any], radiometry: Radiometry, invalid: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Return TerraMind's classes of a map's codes; 0 is nodata where the legend has no other."""
    legend = {0: 0} | dict(radiometry.legend)
    length = max(legend) + 1
    table = np.full(length + 1, _NO_CLASS, np.uint8)
    table[list(legend)] = list(legend.values())
    known = (raw >= 0) & (raw < length)
    codes: NDArray[np.uint8] = table[np.where(known, raw, length)]
    if (foreign := (codes == _NO_CLASS) & ~invalid).any():
        found = ", ".join(map(str, np.unique(raw[foreign])[:6]))
        raise ContradictionError(
            f"it holds the codes {found}, which are not in its legend "
            f"({', '.join(map(str, sorted(legend)))}): declare its classes in "
            "classification:classes of its item, or its nodata, or give lulc_legend"
        )
    return codes


def _shift_down(raw: NDArray[np.uint16], amount: int) -> NDArray[np.uint16]:
    """Subtract from digital numbers, with few copies; a valid pixel never becomes 0."""
    has_impossible = raw.size > 0 and raw.max() >= IMPOSSIBLE_DN
    if amount == 0:
        return np.where(is_impossible(raw), np.uint16(0), raw) if has_impossible else raw
    shifted = np.maximum(raw, np.uint16(amount + 1))
    shifted -= np.uint16(amount)
    shifted[raw == 0] = 0
    if has_impossible:
        shifted[is_impossible(raw)] = 0
    return shifted


def is_impossible(raw: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where digital numbers can be no reflectance: saturated, wrapped, or fill values."""
    too_high = raw >= IMPOSSIBLE_DN
    return np.asarray(too_high | (raw < LOWEST_DN) if raw.dtype.kind == "i" else too_high)


def encode(pixels: NDArray[Any], radiometry: Radiometry) -> NDArray[Any]:
    """Return decoded pixels in the unit of a cube: linear power becomes dB."""
    if radiometry.kind not in _BACKSCATTER:
        return pixels
    with np.errstate(divide="ignore", invalid="ignore"):
        decibel = 10 * np.log10(np.where(pixels > 0, pixels, np.nan))
    return decibel.astype(np.float32)


def is_invalid(pixels: NDArray[Any], fill_value: float) -> NDArray[np.bool_]:
    """Return where pixels are the fill value."""
    return np.asarray(np.isnan(pixels) if math.isnan(fill_value) else pixels == fill_value)


def ndvi(red: NDArray[Any], near_infrared: NDArray[Any]) -> NDArray[np.float32]:
    """Return the normalised difference vegetation index (Rouse et al. 1974).

    Parameters
    ----------
    red, near_infrared : numpy.ndarray of uint16
        B04 and B08 as reflectance x 10000 without offset, which would bias a ratio; 0 is nodata.

    Returns
    -------
    numpy.ndarray of float32
        -1 to 1, NaN where a band is invalid.
    """
    low, high = red.astype(np.float32), near_infrared.astype(np.float32)
    valid = (red != 0) & (near_infrared != 0)
    total = np.where(valid, low + high, np.float32(1))
    return np.where(valid, (high - low) / total, np.float32(np.nan)).astype(np.float32)


def rgb(band: NDArray[Any]) -> NDArray[np.uint8]:
    """Return one visible band as TerraMind saw it: reflectance 0 to 0.2 as 0 to 255.

    Parameters
    ----------
    band : numpy.ndarray of uint16
        B04, B03 or B02 as reflectance x 10000 without offset; 0 is nodata.

    Returns
    -------
    numpy.ndarray of uint8
        A valid pixel is at least 1: 0 is nodata.
    """
    scaled = np.minimum(band.astype(np.float32), _RGB_WHITE_DN) / _RGB_WHITE_DN * 255
    return np.where(band == 0, 0, np.maximum(scaled.astype(np.uint8), 1)).astype(np.uint8)
