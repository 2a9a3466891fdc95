"""Legends of land cover: which of TerraMind's classes each code of a map is.

An item tells its legend by the words of its classes (``classification:classes``, or ``file:values``
of older ones), or its collection is a provider's. Codes without a legend mean nothing: 5 is crops
in one map, built-up area in another and shrubs in a third.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from terramind_cube.modalities import LULC_CLASSES, nearest_name
from terramind_cube.stac.calibration import raster_field

if TYPE_CHECKING:
    import pystac

__all__ = ["LEGENDS", "Legend", "check_legend", "declared_legend"]

Legend = tuple[tuple[int, int], ...]
"""Pairs of a map's code and TerraMind's class, in order of the codes."""

# Grass (3) and scrub (6) of the annual map's first edition were merged into rangeland later.
_ANNUAL_MAP = {3: 9, 6: 9} | {row.provider_value: row.value for row in LULC_CLASSES}
# ESA WorldCover Product User Manual, table 2. Mangroves and wetlands are flooded vegetation.
_WORLDCOVER = {0: 0, 10: 2, 20: 9, 30: 9, 40: 4, 50: 5, 60: 6, 70: 7, 80: 1, 90: 3, 95: 3, 100: 9}
# Brown et al. 2022, table 2: 0 is water.
_DYNAMIC_WORLD = {0: 1, 1: 2, 2: 9, 3: 3, 4: 4, 5: 9, 6: 5, 7: 6, 8: 7}

LEGENDS: Mapping[str, Legend] = MappingProxyType(
    {
        "terramind": tuple((row.value, row.value) for row in LULC_CLASSES),
        "impact-observatory": tuple(sorted(_ANNUAL_MAP.items())),
        "esa-worldcover": tuple(sorted(_WORLDCOVER.items())),
        "dynamic-world": tuple(sorted(_DYNAMIC_WORLD.items())),
    }
)
"""Known legends by name."""

_WORDS: Mapping[int, tuple[str, ...]] = {
    0: ("no data", "nodata", "unclassified", "unknown", "not mapped", "fill", "background"),
    1: ("water", "permanent water", "permanent water bodies", "water bodies", "open water"),
    2: ("trees", "tree", "tree cover", "tree covered areas", "forest", "forests"),
    3: ("flooded vegetation", "flooded veg", "herbaceous wetland", "wetland", "wetlands",
        "mangroves", "mangrove"),
    4: ("crops", "crop", "cropland", "croplands", "agriculture"),
    5: ("built", "built area", "built up", "built up area", "urban", "artificial surfaces"),
    6: ("bare", "bare ground", "bare soil", "bare land", "bare sparse vegetation", "barren"),
    7: ("snow ice", "snow and ice", "snow", "ice", "permanent snow and ice"),
    8: ("clouds", "cloud"),
    9: ("rangeland", "grass", "grassland", "scrub", "shrub", "shrubs", "shrubland", "scrub shrub",
        "shrub scrub", "shrub and scrub", "moss and lichen"),
}  # fmt: skip
_CLASS_OF = {word: value for value, words in _WORDS.items() for word in words}
_TEXTS = ("name", "title", "description", "summary")


def declared_legend(item: pystac.Item, asset: str, index: int) -> tuple[Legend | None, str]:
    """Return the legend that an item's own words for its classes give.

    Parameters
    ----------
    item : pystac.Item
    asset : str
    index : int
        Band in the file, from 1.

    Returns
    -------
    legend : tuple of pairs, or None
        None where the item lists no classes, or one that is not understood.
    unknown : str
        Code and words of what is not understood.
    """
    listed = raster_field(item, asset, index, "classification:classes") or raster_field(
        item, asset, index, "file:values"
    )
    legend: dict[int, int] = {}
    for entry in listed or ():
        texts = [str(entry[key]) for key in _TEXTS if entry.get(key)]
        known = (_CLASS_OF.get(_plain(text)) for text in texts)
        value = next((found for found in known if found is not None), None)
        codes = entry.get("values") or [entry.get("value")]
        if value is None:
            return None, f"{codes[0]}: {texts[0] if texts else '(no words)'}"
        legend |= {int(code): value for code in codes}
    return (tuple(sorted(legend.items())) if legend else None), ""


def check_legend(given: Any) -> Legend | None:
    """Return the legend that a user names, or gives as a mapping from codes to classes.

    Raises
    ------
    ValueError
        If there is none of that name, or a code or class is none.
    """
    if given is None:
        return None
    if isinstance(given, str):
        if given not in LEGENDS:
            raise ValueError(f"Unknown lulc_legend {given!r}: {nearest_name(given, LEGENDS)}.")
        return LEGENDS[given]
    classes = range(len(LULC_CLASSES))
    if not (
        isinstance(given, Mapping)
        and given
        and all(_is_whole(code) and _is_whole(value) and value in classes
                for code, value in given.items())
    ):  # fmt: skip
        named = ", ".join(f"{row.value} {row.name}" for row in LULC_CLASSES)
        raise ValueError(
            f"lulc_legend is one of {', '.join(map(repr, LEGENDS))}, or maps the codes of a map to "
            f"TerraMind's classes ({named}), got {given!r}."
        )
    return tuple(sorted((int(code), int(value)) for code, value in given.items()))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
