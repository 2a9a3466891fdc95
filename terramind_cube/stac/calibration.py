"""What an item's metadata say about the numbers in its files: offset, unit, fill value.

The rule for Sentinel-2's offset. Products of processing baseline 04.00 and later, also reprocessed
ones of any date, hold digital numbers of reflectance x 10000 + 1000 (Sentinel-2 Products
Specification Document, from 2022-01-25). Whether a provider has taken the 1000 off again is told,
in this order, by

1. a flag that it has (``earthsearch:boa_offset_applied``), which beats what the raster fields say;
2. the raster fields of the asset: ``raster:offset``, or ``raster:bands`` with ``offset``;
3. scale and offset in the tags of the file, where the item says nothing about its numbers (they
   are looked up when a cube is built);
4. the processing baseline.

The date of acquisition tells nothing.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pystac

__all__ = [
    "FIRST_BASELINE_WITH_OFFSET",
    "OpticalOffset",
    "declared_nodata",
    "linear_scale",
    "offset_in_dn",
    "optical_offset",
    "processing_baseline",
    "raster_field",
]

OFFSET_DN = -1000
FIRST_BASELINE_WITH_OFFSET = 4.0
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
_REFLECTANCE_SCALE = 1e-4


class OpticalOffset(NamedTuple):
    """What must be added to an item's digital numbers for reflectance x 10000.

    Attributes
    ----------
    dn : int
        0 or, for products of baseline 04.00 and later as they were delivered, -1000.
    told_by : {"flag", "fields", "tags", "baseline", ""}
        What tells it: a provider's flag, the item's raster fields, the file, the processing
        baseline, or nothing.
    consistent_dn : tuple of int
        Offsets that the tags of the files may name without a contradiction.
    """

    dn: int = 0
    told_by: str = ""
    consistent_dn: tuple[int, ...] = (0,)


def optical_offset(item: pystac.Item, places: Iterable[tuple[str, int]]) -> OpticalOffset:
    """Return what must be added to an item's digital numbers, by its metadata alone.

    Parameters
    ----------
    item : pystac.Item
    places : iterable of (str, int)
        Asset key and band number, from 1, of each band.

    Returns
    -------
    OpticalOffset

    Raises
    ------
    ValueError
        If a band has another scale than 1e-4, or the bands differ in offset.
    """
    declared = [_declared_offset_dn(item, asset, index) for asset, index in places]
    # A band that says nothing is like the others.
    told = {offset for offset in declared if offset is not None}
    if any(item.properties.get(flag) in _TRUE for flag in _APPLIED_FLAGS):
        # Tags may repeat what the raster fields say and the flag beats.
        return OpticalOffset(0, "flag", tuple(sorted({0, *told})))
    if len(told) > 1:
        raise ValueError(f"The bands of item {item.id!r} differ in offset: {sorted(told)} DN.")
    if told:
        offset = told.pop()
        return OpticalOffset(offset, "fields", (offset,))
    baseline = processing_baseline(item)
    offset = 0 if baseline is None or baseline < FIRST_BASELINE_WITH_OFFSET else OFFSET_DN
    return OpticalOffset(offset, "" if baseline is None else "baseline", (offset,))


def _declared_offset_dn(item: pystac.Item, asset: str, index: int) -> int | None:
    """Return the offset that raster fields give, None where they say nothing of reflectance."""
    scale = raster_field(item, asset, index, "scale")
    offset = raster_field(item, asset, index, "offset")
    try:
        return offset_in_dn(scale, offset)
    except ValueError as error:
        raise ValueError(f"Asset {asset!r} of item {item.id!r} {error}") from error


def offset_in_dn(scale: Any, offset: Any) -> int | None:
    """Return an offset of reflectance in digital numbers, None where numbers say nothing of it.

    Parameters
    ----------
    scale, offset : float or None
        As raster fields or the tags of a file give them.

    Raises
    ------
    ValueError
        If the scale is not that of Sentinel-2.
    """
    factor = _REFLECTANCE_SCALE if scale is None else float(scale)
    if not (math.isclose(factor, _REFLECTANCE_SCALE, rel_tol=1e-6) or factor == 1.0):
        raise ValueError(
            f"has scale {factor:g}: optical bands are read as digital numbers of reflectance x "
            "10000 (scale 1e-4)."
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
