"""What a radar item says of its numbers: polarisations by key, and the unit of backscatter.

The unit is told, in this order, by

1. ``unit`` of the raster fields, in the words that makers use ("natural" is linear power);
2. the key of the asset, such as ``vv-g-lin`` of normalised backscatter (s1ard), or the name of a
   product of ASF's HyP3 (``..._RTC30_G_gpuned_...``: g or s for gamma or sigma nought, then p, a or
   d for power, amplitude or decibels);
3. words such as "gamma0" in keys and roles: sigma and gamma nought are power;
4. the row of the provider.

Where nothing tells, nothing is assumed: the pixels are asked when a cube is built, or the user.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from terramind_cube.stac.calibration import raster_field

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pystac

    from terramind_cube.modalities import Modality
    from terramind_cube.stac.providers import CollectionRow

__all__ = ["RADAR_UNITS", "backscatter_unit", "is_detected", "polarisation", "uncalibrated"]

RADAR_UNITS = ("dB", "linear", "amplitude")
"""Decibels, linear power, and the root of linear power."""

# The first set that shares a word with a unit tells it: "gamma0 dB" is dB.
_UNITS = (
    ({"db", "decibel", "decibels"}, "dB"),
    ({"dn", "count", "counts", "digital", "raw"}, "raw"),
    ({"amplitude", "amplitudes"}, "amplitude"),
    ({"1", "linear", "power", "intensity", "natural", "gamma0", "sigma0", "gamma", "sigma", "m2"},
     "linear"),
)  # fmt: skip
_NO_UNITS = {"unitless", "dimensionless", "none", "unknown", "na", "n/a", "-", "null"}
_BY_KEY = {
    "lin": "linear", "linear": "linear", "natural": "linear", "power": "linear", "pwr": "linear",
    "intensity": "linear", "log": "dB", "db": "dB", "decibel": "dB", "amp": "amplitude",
    "amplitude": "amplitude",
}  # fmt: skip
_QUANTITIES = ("g", "gamma", "gamma0", "s", "sigma", "sigma0")
_OTHER_WORDS = ("0", "nought", "naught", "rtc", "nrb", "ard", "s1", "backscatter")
_POLARISATIONS = ("vv", "vh")
_HYP3_NAME = re.compile(r"_RTC\d+_[A-Z]_[gs]([pad])[a-z]{3,5}(?:_|$)")
_HYP3_UNITS = {"p": "linear", "a": "amplitude", "d": "dB"}


def polarisation(key: str) -> tuple[str, tuple[bool, bool, int]] | None:
    """Return the polarisation that the key of an asset names, and how far behind it stands.

    Parameters
    ----------
    key : str
        Such as ``"vv"``, ``"gamma0_VV"`` or ``"vh-g-lin"``.

    Returns
    -------
    tuple of str and tuple, or None
        ``"VV"`` or ``"VH"``; of several keys of one polarisation the least is the best: gamma
        before sigma nought, power before its logarithm. None for keys with other words, such as
        ``"noise-power-vv"`` and ``"angle"``.
    """
    words = _words(key)
    found = [word for word in words if word in _POLARISATIONS]
    known = {*_POLARISATIONS, *_BY_KEY, *_QUANTITIES, *_OTHER_WORDS}
    if len(found) != 1 or not known.issuperset(words):
        return None
    is_sigma = any(word.startswith("s") and word in _QUANTITIES for word in words)
    return found[0].upper(), (is_sigma, _key_unit(key) == "dB", len(words))


def backscatter_unit(
    item: pystac.Item,
    places: Sequence[tuple[str, int]],
    modality: Modality,
    row: CollectionRow | None,
    *,
    is_named: bool,
) -> tuple[str | None, str]:
    """Return the unit of a radar item, and who tells it.

    Parameters
    ----------
    item : pystac.Item
    places : sequence of (str, int)
        Asset key and band number, from 1, of each band.
    modality : Modality
        S1RTC or S1GRD.
    row : CollectionRow or None
        What is known of its collection.
    is_named : bool
        Whether the asset is named after the modality: then it is calibrated.

    Returns
    -------
    unit : {"dB", "linear", "amplitude"} or None
        None where it is not told, or in words that are not understood.
    told_by : str
        "item" or "provider"; of no unit the words that are not understood, else empty.

    Raises
    ------
    ValueError
        If the numbers are raw, or the bands differ.
    """
    told = [_told(item, asset, index) for asset, index in places]
    said = {_understood(text) or text: text for text in told if text is not None}
    if len(said) > 1:
        raise ValueError(
            f"The bands of item {item.id!r} differ in unit: {', '.join(sorted(said))}. Give them as "
            "items of their own."
        )
    if said:
        text = next(iter(said.values()))
        unit = _understood(text)
        is_calibrated = modality.name == "S1RTC" or _is_calibrated(item, places)
        if unit == "raw" or (unit == "amplitude" and not is_calibrated):
            raise ValueError(uncalibrated(item, row, text))
        return unit, ("item" if unit else text)
    if _is_calibrated(item, places):
        return "linear", "item"
    # Terrain-corrected products keep the type of what they were made of.
    if is_detected(item) and not is_named and (row is None or row.modality == "S1GRD"):
        raise ValueError(uncalibrated(item, row))
    # Words around a provider's name make it a user's own collection.
    unit = row.unit if row is not None and row.collection == item.collection_id else None
    if unit == "raw":
        raise ValueError(uncalibrated(item, row))
    return unit, "provider" if unit else ""


def uncalibrated(item: pystac.Item, row: CollectionRow | None, unit: str = "") -> str:
    """Say why an item's numbers are no backscatter, and what to give instead."""
    what = f"in the unit {unit!r}" if unit else "of the instrument"
    where = ""
    is_raw = row is not None and row.unit == "raw" and row.collection == item.collection_id
    if is_detected(item) or is_raw:
        where = " in the radar's own geometry (ground range or slant range), not georeferenced"
    return (
        f"Item {item.id!r} of collection {item.collection_id!r} holds uncalibrated numbers {what}"
        f"{where}: they are tens of dB away from backscatter. Give calibrated, terrain-corrected "
        'data with raster:bands unit "dB", "linear" or "amplitude", or ask for S1RTC.'
    )


def is_detected(item: pystac.Item) -> bool:
    """Whether an item is a radar product in its own geometry, whose numbers are raw."""
    types = (str(item.properties.get(name) or "") for name in ("sar:product_type", "product:type"))
    # Terrain-corrected products keep the type of what they were made of.
    is_corrected = re.search(r"(?i)rtc", item.id) is not None
    return not is_corrected and any(re.search(r"GRD|SLC", name.upper()) for name in types)


def _told(item: pystac.Item, asset: str, index: int) -> str | None:
    """Return the unit of a band in the item's words, or as its names tell."""
    declared = raster_field(item, asset, index, "unit")
    text = "" if declared is None else str(declared).strip()
    if text and text.lower() not in _NO_UNITS:
        return text
    if unit := _key_unit(asset):
        return unit
    for text in (item.id, item.assets[asset].href):
        if found := _HYP3_NAME.search(text):
            return _HYP3_UNITS[found[1]]
    return None


def _understood(text: str) -> str | None:
    words = set(re.findall(r"[a-z0-9]+", re.sub(r"[\^*]", "", text.lower())))
    return next((unit for known, unit in _UNITS if words & known), None)


def _words(key: str) -> list[str]:
    return [word for word in re.split(r"[-_. ]+", key.lower()) if word]


def _key_unit(key: str) -> str | None:
    return next((_BY_KEY[word] for word in _words(key) if word in _BY_KEY), None)


def _is_calibrated(item: pystac.Item, places: Sequence[tuple[str, int]]) -> bool:
    """Whether the assets say that they are sigma or gamma nought, which is linear power."""
    for asset, _ in places:
        words = [asset, *(item.assets[asset].roles or ())]
        if not any(
            re.search(r"(sigma|gamma)[-_ ]?(0|nought|naught)", word.lower()) for word in words
        ):
            return False
    return True
