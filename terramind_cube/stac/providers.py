"""What the items of providers and of users hold: which modality, in which assets, in which unit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from pystac.utils import make_absolute_href

from terramind_cube.modalities import MODALITIES, Modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pystac

    from terramind_cube.stac.catalogs import Catalog
    from terramind_cube.stac.search import DatetimeQuery

__all__ = [
    "COLLECTIONS",
    "LOADABLE",
    "BandLocation",
    "CollectionRow",
    "ItemBands",
    "find_bands",
    "locate_bands",
]

LOADABLE = ("S2L2A", "S2L1C", "S1RTC", "S1GRD", "DEM", "LULC")
"""Modalities that are read from items; the others are computed from these."""


@dataclass(frozen=True)
class CollectionRow:
    """One row of the table of collections.

    Attributes
    ----------
    name : str
        Collection id. It also matches ids that contain its words, such as ``"my-cop-dem-glo-30"``.
    modality : str
        What the collection holds.
    unit : {"dB", "linear", "amplitude"} or None
        Backscatter unit of an item that declares none; None for other modalities.
    has_provider_classes : bool
        Whether land cover comes in the annual map's own codes.
    """

    name: str
    modality: str
    unit: str | None = None
    has_provider_classes: bool = False


COLLECTIONS: tuple[CollectionRow, ...] = (
    # Where a catalog has several collections of one modality, the first row wins: Collection 1 is
    # processed alike over all years, and its metadata tells the truth about the offset.
    CollectionRow("sentinel-2-c1-l2a", "S2L2A"),
    CollectionRow("sentinel-2-l2a", "S2L2A"),
    CollectionRow("sentinel-2-l1c", "S2L1C"),
    CollectionRow("sentinel-1-rtc", "S1RTC", unit="linear"),
    CollectionRow("sentinel-1-grd", "S1GRD", unit="amplitude"),
    CollectionRow("cop-dem-glo-30", "DEM"),
    CollectionRow("cop-dem-glo-90", "DEM"),
    CollectionRow("io-lulc-annual-v02", "LULC", has_provider_classes=True),
    CollectionRow("io-lulc-9-class", "LULC", has_provider_classes=True),
    CollectionRow("io-lulc", "LULC", has_provider_classes=True),
    *(CollectionRow(name.lower(), name) for name in LOADABLE),
)
"""Known collections, preferred ones first, then every modality's own name."""

_BAND_NAMES: Mapping[str, tuple[str, ...]] = {
    "B01": ("b01", "b1", "coastal"),
    "B02": ("b02", "b2", "blue"),
    "B03": ("b03", "b3", "green"),
    "B04": ("b04", "b4", "red"),
    "B05": ("b05", "b5", "rededge1", "rededge071"),
    "B06": ("b06", "b6", "rededge2", "rededge075"),
    "B07": ("b07", "b7", "rededge3", "rededge078"),
    "B08": ("b08", "b8", "nir"),
    "B8A": ("b8a", "nir08"),
    "B09": ("b09", "b9", "nir09"),
    "B10": ("b10", "cirrus"),
    "B11": ("b11", "swir16"),
    "B12": ("b12", "swir22"),
    "VV": ("vv",),
    "VH": ("vh",),
    "DEM": ("dem", "data", "elevation"),
    "LULC": ("lulc", "data", "map", "land_cover"),
}
# "rededge" is no name: four bands share it.
_PICTURES = {"visual", "thumbnail", "overview", "preview", "rendered_preview"}
_PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp")


@dataclass(frozen=True)
class BandLocation:
    """Where one band lies.

    Attributes
    ----------
    asset : str
        Key of the asset in the item.
    href : str
        Absolute address; a local one is a plain path.
    index : int
        Band in the file, from 1.
    file_bands : int or None
        Bands that the file must have for the index to be right; None where metadata name it.
    """

    asset: str
    href: str
    index: int
    file_bands: int | None = None


@dataclass(frozen=True)
class ItemBands:
    """One modality of one item, ready to be read.

    Attributes
    ----------
    item : pystac.Item
        The caller's item, never changed.
    modality : Modality
        Row of the table of modalities.
    bands : tuple of BandLocation
        In the order of the modality's bands.
    offset_dn : int
        Digital numbers to add for reflectance x 10000: 0 or -1000.
    is_linear_power : bool
        Whether backscatter is in linear power, to be turned into dB.
    has_provider_classes : bool
        Whether land cover has the annual map's codes, to be turned into TerraMind's.
    nodata : float or None
        Fill value of the files, where metadata tell it.
    """

    item: pystac.Item
    modality: Modality
    bands: tuple[BandLocation, ...]
    offset_dn: int = 0
    is_linear_power: bool = False
    has_provider_classes: bool = False
    nodata: float | None = None


def find_bands(
    catalog: Catalog, modality: Modality, *, area: Any, datetime: DatetimeQuery | None
) -> list[ItemBands]:
    """Search a catalog for the items of one modality.

    Parameters
    ----------
    catalog : Catalog
        Where to search.
    modality : Modality
        One of `LOADABLE`.
    area : GeoJSON geometry or None
        Area in longitude and latitude; None is everywhere.
    datetime : str, datetime, pair or None
        STAC datetime query.

    Returns
    -------
    list of ItemBands
        At least one, all of the most preferred collection that has any.

    Raises
    ------
    ValueError
        If nothing is found (the message says what the catalog holds), or an item lacks bands.
    """
    if (known := catalog.collection_ids) is None:
        groups: list[list[str] | None] = [None]
    else:
        named = sorted(
            (c for c in known if (row := _row(c)) and row.modality == modality.name), key=_rank
        )
        groups = [[name] for name in named]
    for collections in groups:
        items = catalog.search(collections=collections, intersects=area, datetime=datetime)
        found = [bands for item in items if (bands := locate_bands(item, modality)) is not None]
        if found:
            best = min(_rank(bands.item.collection_id) for bands in found)
            return [bands for bands in found if _rank(bands.item.collection_id) == best]
    searched = [name for group in groups for name in group or ()] or None
    where = "" if area is None else " in the area"
    when = "" if datetime is None else f" for datetime {datetime!r}"
    raise ValueError(f"No {modality.name} item{where}{when}: {catalog.describe(searched)}.")


def locate_bands(item: pystac.Item, modality: Modality) -> ItemBands | None:
    """Find the bands of a modality in an item.

    The collection's id tells, or assets that are named after the modality, or else the bands.

    Returns
    -------
    ItemBands or None
        None if the item does not hold the modality.

    Raises
    ------
    ValueError
        If the item claims the modality and lacks some of its bands, or is in a unit that is not
        understood.
    """
    rasters = {key: asset for key, asset in item.assets.items() if _is_raster(key, asset)}
    named = {key: asset for key, asset in rasters.items() if _names(key, modality.name)}
    row = _row(item.collection_id)
    claims = row.modality == modality.name if row else _looks_like(item, modality, rasters)
    if not (named or claims):
        return None
    bands = _locate(item, modality, rasters) if claims else {}
    if len(bands) < len(modality.bands) and named:
        bands = _locate(item, modality, named)
    if missing := [band for band in modality.bands if band not in bands]:
        raise ValueError(
            f"Item {item.id!r} of collection {item.collection_id!r} lacks {', '.join(missing)} of "
            f"{modality.name}: its assets are {', '.join(item.assets) or '(none)'}. Name the "
            "assets after the bands, or list the bands of a file in eo:bands."
        )
    return _with_radiometry(item, modality, tuple(bands[band] for band in modality.bands), row)


def _with_radiometry(
    item: pystac.Item,
    modality: Modality,
    bands: tuple[BandLocation, ...],
    row: CollectionRow | None,
) -> ItemBands:
    unit: str | None = None
    if modality.units == "dB":
        unit = _backscatter_unit(item, bands[0], row)
        if unit == "amplitude":
            raise ValueError(
                f"Item {item.id!r} of collection {item.collection_id!r} holds uncalibrated "
                "amplitudes: give calibrated, terrain-corrected backscatter with raster:bands "
                'unit "dB", or ask for S1RTC.'
            )
    return ItemBands(
        item=item,
        modality=modality,
        bands=bands,
        offset_dn=_offset_dn(item, modality, bands) if modality.units == "1e-4" else 0,
        is_linear_power=unit == "linear",
        has_provider_classes=row is not None and row.has_provider_classes,
        nodata=_nodata(item, bands[0]),
    )


def _offset_dn(item: pystac.Item, modality: Modality, bands: tuple[BandLocation, ...]) -> int:
    """Return the offset of an optical item in digital numbers, one for all its bands."""
    applied = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
    is_applied = any(item.properties.get(key) is True for key in applied)
    offsets = set()
    for location in bands:
        scale = float(_field(item, location, "scale") or 1e-4)
        offset = float(_field(item, location, "offset") or 0.0)
        if not (math.isclose(scale, 1e-4) or scale == 1.0):
            raise ValueError(
                f"Asset {location.asset!r} of item {item.id!r} has scale {scale}: {modality.name} "
                "is read as digital numbers of reflectance x 10000 (scale 1e-4)."
            )
        offsets.add(0 if is_applied else round(offset / scale))
    if len(offsets) > 1:
        raise ValueError(f"The bands of item {item.id!r} differ in offset: {sorted(offsets)} DN.")
    return offsets.pop()


def _backscatter_unit(
    item: pystac.Item, location: BandLocation, row: CollectionRow | None
) -> str | None:
    declared = _field(item, location, "unit")
    if declared is not None:
        return "dB" if str(declared).lower() in {"db", "decibel", "decibels"} else "linear"
    if row is None and not _names(location.asset, "S1GRD") and _is_detected(item):
        return "amplitude"
    # Words around a provider's name make it a user's own collection, taken as dB.
    return row.unit if row is not None and row.unit and row.name == item.collection_id else "dB"


def _nodata(item: pystac.Item, location: BandLocation) -> float | None:
    declared = _field(item, location, "nodata")
    value = math.nan if declared is None else float(declared)
    return None if math.isnan(value) else value


def _field(item: pystac.Item, location: BandLocation, name: str) -> Any:
    """Return a raster field of one band, in the spelling of STAC 1.0 or 1.1."""
    fields = item.assets[location.asset].extra_fields
    for key in ("raster:bands", "bands"):
        listed = fields.get(key) or []
        position = location.index - 1 if location.index <= len(listed) else 0
        band = listed[position] if listed else {}
        for spelling in (name, f"raster:{name}"):
            if band.get(spelling) is not None:
                return band[spelling]
    return next((v for k in (f"raster:{name}", name) if (v := fields.get(k)) is not None), None)


def _locate(
    item: pystac.Item, modality: Modality, assets: Mapping[str, pystac.Asset]
) -> dict[str, BandLocation]:
    """Return the bands of a modality that some assets hold, by band label."""
    hrefs = {key: _absolute_href(item, asset.href) for key, asset in assets.items()}
    found: dict[str, BandLocation] = {}
    for band in modality.bands:
        place = _by_key(band, modality, assets) or _by_metadata(band, assets)
        if place is not None:
            found[band] = BandLocation(place[0], hrefs[place[0]], place[1])
    if len(found) == len(modality.bands):
        return found
    # A file with all bands in the model's order, which says nothing about them.
    expected = {len(modality.bands)} if len(assets) > 1 else {None, len(modality.bands)}
    plain = [
        key
        for key, asset in assets.items()
        if not any(_listed_names(asset)) and _listed_count(asset) in expected
    ]
    if len(plain) == 1 and not found:
        key, count = plain[0], len(modality.bands)
        return {
            band: BandLocation(key, hrefs[key], index, count)
            for index, band in enumerate(modality.bands, start=1)
        }
    return found


def _by_key(
    band: str, modality: Modality, assets: Mapping[str, pystac.Asset]
) -> tuple[str, int] | None:
    """Find a band by the key of its asset; of several resolutions the finest."""
    matches = []
    for key in assets:
        stem, _, suffix = key.lower().rpartition("_")
        resolution = int(suffix[:-1]) if re.fullmatch(r"\d+m", suffix) else 0
        name = stem if resolution else key.lower()
        name = name.removeprefix(f"{modality.name.lower()}_")
        if name in _BAND_NAMES[band]:
            matches.append((resolution, key))
    return (min(matches)[1], 1) if matches else None


def _by_metadata(band: str, assets: Mapping[str, pystac.Asset]) -> tuple[str, int] | None:
    """Find a band by the names that assets list; a file of its own before a stack."""
    matches = []
    for key, asset in assets.items():
        names = _listed_names(asset)
        for position, alternatives in enumerate(names, start=1):
            if alternatives & set(_BAND_NAMES[band]):
                matches.append((len(names), key, position))
    return min(matches)[1:] if matches else None


def _listed_names(asset: pystac.Asset) -> list[set[str]]:
    """Return the lower-case names of each band that an asset lists, empty sets for nameless ones."""
    listed = asset.extra_fields.get("eo:bands") or asset.extra_fields.get("bands") or []
    keys = ("name", "common_name", "eo:common_name")
    return [{str(band[key]).lower() for key in keys if band.get(key)} for band in listed]


def _listed_count(asset: pystac.Asset) -> int | None:
    fields = asset.extra_fields
    lists = (fields.get(key) for key in ("eo:bands", "bands", "raster:bands"))
    return next((len(listed) for listed in lists if listed), None)


def _looks_like(item: pystac.Item, modality: Modality, assets: Mapping[str, pystac.Asset]) -> bool:
    """Guess from its bands whether an item, whose names say nothing, holds a modality."""
    if modality.temporal != "instant" or any(_names(k, name) for k in assets for name in LOADABLE):
        return False
    held = {b for b in modality.bands if _by_key(b, modality, assets) or _by_metadata(b, assets)}
    if 2 * len(held) < len(modality.bands):
        return False
    if modality.units == "dB":
        return modality.name == ("S1GRD" if _is_detected(item) else "S1RTC")
    if "B8A" not in held:  # Landsat's bands have Sentinel-2's other names
        return False
    # Only level 1C has the cirrus band.
    level_1c = MODALITIES["S2L1C"]
    has_cirrus = _by_key("B10", level_1c, assets) or _by_metadata("B10", assets)
    return modality.name == ("S2L1C" if has_cirrus else "S2L2A")


def _is_detected(item: pystac.Item) -> bool:
    return bool(item.properties.get("sar:product_type") == "GRD")


def _is_raster(key: str, asset: pystac.Asset) -> bool:
    if key.lower() in _PICTURES or _PICTURES & set(asset.roles or ()):
        return False
    kind = (asset.media_type or "").lower()
    if kind:
        return kind.startswith("image/") and not kind.startswith(_PICTURE_TYPES)
    return Path(urlparse(asset.href).path).suffix.lower() in {".tif", ".tiff", ".jp2", ".vrt"}


def _words(name: str | None) -> list[str]:
    return re.findall(r"[a-z0-9]+", (name or "").lower())


def _names(text: str | None, name: str) -> bool:
    """Whether the words of a name stand in a text, one after the other."""
    words, wanted = _words(text), _words(name)
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))


def _rows(collection: str | None) -> Iterator[tuple[int, CollectionRow]]:
    yield from ((i, row) for i, row in enumerate(COLLECTIONS) if row.name == collection)
    yield from ((i, row) for i, row in enumerate(COLLECTIONS) if _names(collection, row.name))


def _row(collection: str | None) -> CollectionRow | None:
    return next((row for _, row in _rows(collection)), None)


def _rank(collection: str | None) -> int:
    return next((rank for rank, _ in _rows(collection)), len(COLLECTIONS))


def _absolute_href(item: pystac.Item, href: str) -> str:
    """Resolve an address against the item's own; an absolute local path stays what it is."""
    parts = urlparse(href)
    if parts.scheme == "file":
        return unquote(parts.path)
    if parts.scheme or href.startswith("/vsi") or Path(href).is_absolute():
        return href
    if own := item.get_self_href():
        return _absolute_href(item, make_absolute_href(href, own))
    return str(Path(href).resolve())
