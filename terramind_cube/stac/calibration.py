"""What an item's metadata say about the numbers in its files: offset, unit, fill value.

The rule for Sentinel-2's offset. Products of processing baseline 04.00 and later, also reprocessed
ones of any date, hold digital numbers of reflectance x 10000 + 1000 (Sentinel-2 Products
Specification Document, from 2022-01-25). Whether a provider has taken the 1000 off again is told,
in this order, by

1. a flag that it has (``earthsearch:boa_offset_applied``), which beats what the raster fields say;
2. the raster fields of the asset: ``raster:offset``, or ``raster:bands`` with ``offset``;
3. the processing baseline, where the item says nothing about its numbers.

The date of acquisition tells nothing.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pystac

    from terramind_cube.stac.providers import CollectionRow

__all__ = [
    "backscatter_unit",
    "declared_nodata",
    "is_detected",
    "linear_scale",
    "optical_offset_dn",
    "processing_baseline",
    "raster_field",
]

OFFSET_DN = -1000
_FIRST_BASELINE_WITH_OFFSET = 4.0
_APPLIED_FLAGS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_BASELINE_FIELDS = (
    "s2:processing_baseline",
    "processing:version",
    "sentinel2:processing_baseline",
    "sentinel:processing_baseline",
)
_PRODUCT_FIELDS = (
    "s2:product_uri", "s2:product_id", "sentinel:product_id", "sentinel2:product_uri", "title",
)  # fmt: skip
_TRUE = {True, "true", "True", "1"}
_DECIBEL = {"db", "decibel", "decibels"}
_POWER = {
    "1", "linear", "linear power", "power", "intensity", "gamma0", "sigma0", "gamma nought",
    "sigma nought", "m2/m2", "m^2/m^2", "m2 m-2",
}  # fmt: skip
_REFLECTANCE_SCALE = 1e-4


def optical_offset_dn(item: pystac.Item, places: Iterable[tuple[str, int]]) -> int:
    """Return what must be added to an item's digital numbers for reflectance x 10000.

    Parameters
    ----------
    item : pystac.Item
    places : iterable of (str, int)
        Asset key and band number, from 1, of each band.

    Returns
    -------
    int
        0 or, for products of baseline 04.00 and later as they were delivered, -1000.

    Raises
    ------
    ValueError
        If a band has another scale than 1e-4, or the bands differ in offset.
    """
    declared = [_declared_offset_dn(item, asset, index) for asset, index in places]
    if any(item.properties.get(flag) in _TRUE for flag in _APPLIED_FLAGS):
        return 0
    # A band that says nothing is like the others.
    told = {offset for offset in declared if offset is not None}
    if len(told) > 1:
        raise ValueError(f"The bands of item {item.id!r} differ in offset: {sorted(told)} DN.")
    if told:
        return told.pop()
    baseline = processing_baseline(item)
    is_shifted = baseline is not None and baseline >= _FIRST_BASELINE_WITH_OFFSET
    return OFFSET_DN if is_shifted else 0


def _declared_offset_dn(item: pystac.Item, asset: str, index: int) -> int | None:
    """Return the offset that raster fields give, None where they say nothing of reflectance."""
    scale = raster_field(item, asset, index, "scale")
    offset = raster_field(item, asset, index, "offset")
    factor = _REFLECTANCE_SCALE if scale is None else float(scale)
    if not (math.isclose(factor, _REFLECTANCE_SCALE) or factor == 1.0):
        raise ValueError(
            f"Asset {asset!r} of item {item.id!r} has scale {factor}: optical bands are read as "
            "digital numbers of reflectance x 10000 (scale 1e-4)."
        )
    if factor == 1.0 and not offset:
        return None  # what a tool writes that knows the file alone
    if offset is None:
        return None if scale is None else 0
    if scale is None and abs(float(offset)) >= 1:
        return round(float(offset))  # in digital numbers
    return round(float(offset) / factor)


def processing_baseline(item: pystac.Item) -> float | None:
    """Return the processing baseline of a Sentinel-2 item, such as 5.11; None if it tells none."""
    for name in _BASELINE_FIELDS:
        value = str(item.properties.get(name, ""))
        # 05.11, 5.11, N05.11, 0511, N0511
        if found := re.fullmatch(r"N?(\d{1,2})\.(\d{1,2})|N?(\d\d)(\d\d)", value):
            major, minor = found[1] or found[3], found[2] or found[4]
            return float(f"{major}.{minor}")
    texts = [item.id, *(str(item.properties.get(name, "")) for name in _PRODUCT_FIELDS)]
    for text in texts:
        if found := re.search(r"_N(\d\d)(\d\d)_", text):
            return float(f"{found[1]}.{found[2]}")
    return None


def backscatter_unit(
    item: pystac.Item, asset: str, row: CollectionRow | None, *, is_named: bool
) -> str:
    """Return the unit of a radar item: ``"dB"``, ``"linear"`` power, or raw ``"amplitude"``.

    Parameters
    ----------
    item : pystac.Item
    asset : str
        Key of one of its bands.
    row : CollectionRow or None
        What is known of its collection.
    is_named : bool
        Whether the asset is named after the modality: then it is calibrated.
    """
    declared = raster_field(item, asset, 1, "unit")
    if declared is not None:
        unit = str(declared).strip().lower()
        return "dB" if unit in _DECIBEL else "linear" if unit in _POWER else "amplitude"
    if _is_calibrated(item, asset):
        return "linear"
    # Terrain-corrected products keep the type of what they were made of.
    if is_detected(item) and not is_named and (row is None or row.modality == "S1GRD"):
        return "amplitude"
    # Words around a provider's name make it a user's own collection, taken as dB.
    return (
        row.unit
        if row is not None and row.unit and row.collection == item.collection_id
        else ("dB")
    )


def _is_calibrated(item: pystac.Item, asset: str) -> bool:
    """Whether an asset says that it is sigma or gamma nought, which is linear power."""
    words = [asset, *(item.assets[asset].roles or ())]
    return any(re.search(r"(sigma|gamma)[-_ ]?(0|nought|naught)", word.lower()) for word in words)


def is_detected(item: pystac.Item) -> bool:
    """Whether an item is a radar product in its own geometry, whose numbers are raw."""
    types = (str(item.properties.get(name) or "") for name in ("sar:product_type", "product:type"))
    # Terrain-corrected products keep the type of what they were made of.
    is_corrected = re.search(r"(?i)rtc", item.id) is not None
    return not is_corrected and any(re.search(r"GRD|SLC", name.upper()) for name in types)


def declared_nodata(item: pystac.Item, asset: str, index: int) -> float | None:
    """Return the fill value that an item declares for a band; None if it declares none, or NaN."""
    declared = raster_field(item, asset, index, "nodata")
    try:
        value = math.nan if declared is None else float(declared)
    except (TypeError, ValueError):  # "none", for one
        return None
    return None if math.isnan(value) else value


def linear_scale(item: pystac.Item, asset: str, index: int) -> tuple[float, float] | None:
    """Return scale and offset that turn a band's numbers into its unit, None if it declares none.

    Raises
    ------
    ValueError
        If they are no numbers.
    """
    scale, offset = (raster_field(item, asset, index, name) for name in ("scale", "offset"))
    if scale is None and offset is None:
        return None
    try:
        return float(1 if scale is None else scale), float(offset or 0)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Asset {asset!r} of item {item.id!r} has scale {scale!r} and offset {offset!r}, which "
            "are no numbers."
        ) from error


def raster_field(item: pystac.Item, asset: str, index: int, name: str) -> Any:
    """Return a raster field of one band, in the spelling of STAC 1.0 or 1.1; None without it."""
    fields = item.assets[asset].extra_fields
    spellings = (name, f"raster:{name}")
    for key in ("raster:bands", "bands"):
        if listed := fields.get(key):
            band = listed[index - 1] if index <= len(listed) else listed[0]
            for spelling in spellings:
                if band.get(spelling) is not None:
                    return band[spelling]
    return next((fields[key] for key in reversed(spellings) if fields.get(key) is not None), None)
