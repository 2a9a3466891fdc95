"""From the numbers in a file to the units of a cube."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from terramind_cube.modalities import IMPOSSIBLE_DN, LOWEST_DN, LULC_CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from terramind_cube.stac.bands import ItemBands

__all__ = ["S2_OFFSETS", "Radiometry", "decode", "encode", "is_impossible", "is_invalid", "ndvi",
           "rgb"]  # fmt: skip

S2_OFFSETS = ("remove", "keep", "add")
"""What may be asked for Sentinel-2's offset of 1000 DN: taken off, left as delivered, put on."""

_ADDED_DN = 1000
# Grass (3) and scrub (6) of the map's first edition were merged into rangeland later.
_MERGED_CLASSES = {3: 9, 6: 9}
_RGB_WHITE_DN = 2000

Kind = Literal["reflectance", "power", "decibel", "provider classes", "plain"]


@dataclass(frozen=True)
class Radiometry:
    """How the numbers of one item become those of a cube.

    Attributes
    ----------
    kind : str
        "reflectance" (digital numbers), "power" (linear backscatter), "decibel",
        "provider classes" (the annual map's codes), or "plain".
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
    """

    kind: Kind
    dtype: str
    fill_value: float
    nodata: float | None = None
    offset_dn: int = 0
    scale: tuple[float, float] | None = None

    @classmethod
    def of(cls, source: ItemBands, s2_offset: str = "remove") -> Radiometry:
        """Return the radiometry of an item's bands."""
        modality = source.modality
        kind: Kind = "plain"
        if modality.units == "1e-4":
            kind = "reflectance"
        elif modality.units == "dB":
            kind = "power" if source.is_linear_power else "decibel"
        elif source.has_provider_classes:
            kind = "provider classes"
        added = added_offset_dn(source.offset_dn, s2_offset)
        return cls(kind, modality.dtype, modality.fill_value, source.nodata, added, source.scale)


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
        If optical bands or classes are floating point: they are digital numbers and codes.
    """
    if radiometry.kind == "reflectance" and raw.dtype == np.uint16:
        fills = {radiometry.nodata, file_nodata} - {None, 0}
        if not fills and radiometry.offset_dn <= 0:
            return _shift_down(raw, -radiometry.offset_dn)
    invalid = np.zeros(raw.shape, np.bool_)
    for value in (radiometry.nodata, file_nodata):
        if value is not None:
            invalid |= np.isnan(raw) if math.isnan(value) else raw == value
    if radiometry.kind in ("power", "decibel", "plain") and radiometry.dtype == "float32":
        pixels = raw.astype(np.float32)
        scale, offset = file_scale if radiometry.scale is None else radiometry.scale
        if (scale, offset) != (1.0, 0.0):
            pixels = (raw * scale + offset).astype(np.float32)
        invalid |= ~np.isfinite(pixels)
        if radiometry.kind == "decibel" and interpolated:
            pixels = np.power(np.float32(10), pixels / np.float32(10))
        if radiometry.kind == "power":
            invalid |= ~(pixels > 0)
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
    codes = _class_table()[np.clip(raw, 0, 255)] if radiometry.kind == "provider classes" else raw
    return np.where(invalid, radiometry.fill_value, codes).astype(radiometry.dtype)


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
    if radiometry.kind not in ("power", "decibel"):
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


def _class_table() -> NDArray[np.uint8]:
    """Return TerraMind's class of each of the annual map's codes, 0 for unknown ones."""
    table = np.zeros(256, np.uint8)
    codes: Mapping[int, int] = {row.provider_value: row.value for row in LULC_CLASSES}
    for code, value in (_MERGED_CLASSES | dict(codes)).items():
        table[code] = value
    return table
