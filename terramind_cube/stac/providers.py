"""Providers as data: which collection holds which modality, in which assets and in which unit.

Adding a provider is adding rows. Keys, units and terms were read from recorded responses of the
providers' STAC APIs (facts of issue 4); what a row does not say, the metadata of an item do.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from terramind_cube.modalities import MODALITIES, nearest_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pystac

__all__ = [
    "COLLECTIONS",
    "DERIVED",
    "LOADABLE",
    "NATIVE_RESOLUTION_M",
    "PROVIDERS",
    "CollectionRow",
    "Provider",
    "collections_of",
    "find_row",
    "provider_named",
    "providers_with",
    "rank",
]

LOADABLE = ("S2L2A", "S2L1C", "S1RTC", "S1GRD", "LULC", "DEM")
"""Modalities that are read from items, those that lead the time axis first."""
DERIVED = ("NDVI", "RGB")
"""Modalities that are computed from S2L2A."""

NATIVE_RESOLUTION_M: Mapping[str, int] = MappingProxyType(
    {
        "B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10,
        "B8A": 20, "B09": 60, "B10": 60, "B11": 20, "B12": 20, "SCL": 20,
    }
)  # fmt: skip
"""Ground sampling of Sentinel-2's bands in metres (Sentinel-2 User Handbook, table 1)."""

_SENTINEL = "Sentinel data legal notice (free, full and open)"
_MODIFIED = "Contains modified Copernicus Sentinel data"
_DEM_TERMS = "Copernicus DEM licence (free of charge, with attribution)"
_DEM_SOURCE = (
    "Produced using Copernicus WorldDEM-30 © DLR e.V. 2010-2014 and © Airbus Defence and Space "
    "GmbH 2014-2018 provided under COPERNICUS by the European Union and ESA; all rights reserved"
)
_LULC_SOURCE = "Impact Observatory, Microsoft, and Esri"


@dataclass(frozen=True)
class CollectionRow:
    """One collection of one provider.

    Attributes
    ----------
    collection : str
        Collection id. It also matches ids that contain its words, such as ``"my-cop-dem-glo-30"``.
    modality : str
        What the collection holds.
    assets : mapping of str to str
        Asset key of each band, and of the scene classification under ``"SCL"``. Empty where keys
        are to be found by the usual names of bands.
    dtype : str or None
        Data type of the files; None where it varies.
    nodata : float or None
        Fill value of files and items that declare none.
    unit : {"dB", "linear", "amplitude", "raw"} or None
        Backscatter unit of an item that declares none; raw digital numbers are refused. None for
        other modalities, and where it is not known.
    legend : str or None
        Name of the legend of land cover, see `terramind_cube.stac.legends`.
    resampling : {"nearest", "bilinear"}
        How pixels come onto another grid; backscatter is interpolated as linear power.
    license, attribution : str
        Terms of use, and the line that they ask for; empty where unknown.
    """

    collection: str
    modality: str
    assets: Mapping[str, str] = field(default_factory=dict)
    dtype: str | None = None
    nodata: float | None = None
    unit: str | None = None
    legend: str | None = None
    resampling: str = "nearest"
    license: str = ""
    attribution: str = ""


@dataclass(frozen=True)
class Provider:
    """A public STAC API.

    Attributes
    ----------
    name : str
        What `open_catalog` takes.
    title : str
        For people.
    url : str
        Landing page of the API; empty for the generic rows.
    collections : tuple of CollectionRow
        Preferred ones first.
    """

    name: str
    title: str
    url: str
    collections: tuple[CollectionRow, ...]

    def collections_of(self, modality: str) -> list[str]:
        """Return the ids of the collections that hold a modality, preferred first."""
        return [row.collection for row in self.collections if row.modality == modality]


_EARTH_SEARCH_KEYS = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1",
    "B06": "rededge2", "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09",
    "B11": "swir16", "B12": "swir22",
}  # fmt: skip
_L2A = MODALITIES["S2L2A"].bands
_L1C = MODALITIES["S2L1C"].bands
_RADAR_KEYS = {"VV": "vv", "VH": "vh"}


def _optical(collection: str, modality: str, assets: Mapping[str, str]) -> CollectionRow:
    return CollectionRow(
        collection, modality, assets, "uint16", 0, license=_SENTINEL, attribution=_MODIFIED
    )


def _radar(collection: str, modality: str, unit: str, terms: str, source: str) -> CollectionRow:
    dtype, nodata = ("float32", -32768.0) if unit == "linear" else ("uint16", 0.0)
    return CollectionRow(
        collection, modality, _RADAR_KEYS, dtype, nodata, unit, None, "bilinear", terms, source
    )


def _power(collection: str) -> CollectionRow:
    return CollectionRow(
        collection, "S1RTC", _RADAR_KEYS, "float32", unit="linear", resampling="bilinear",
        attribution=_MODIFIED,
    )  # fmt: skip


def _elevation(collection: str) -> CollectionRow:
    return CollectionRow(
        collection, "DEM", {"DEM": "data"}, "float32", resampling="bilinear",
        license=_DEM_TERMS, attribution=_DEM_SOURCE,
    )  # fmt: skip


def _land_cover(collection: str, key: str = "data") -> CollectionRow:
    return CollectionRow(
        collection, "LULC", {"LULC": key}, "uint8", 0, legend="impact-observatory",
        license="CC-BY-4.0", attribution=_LULC_SOURCE,
    )  # fmt: skip


def _at_native_resolution(bands: Iterable[str]) -> dict[str, str]:
    return {band: f"{band}_{NATIVE_RESOLUTION_M[band]}m" for band in bands}


_RTC_SOURCE = f"{_MODIFIED}, processed to gamma nought by Catalyst"
_EARTH_SEARCH_L2A = {**_EARTH_SEARCH_KEYS, "SCL": "scl"}

PROVIDERS: tuple[Provider, ...] = (
    Provider(
        "earth-search",
        "Earth Search by Element 84",
        "https://earth-search.aws.element84.com/v1",
        (
            # Collection 1 first: it is processed alike over all years, and its metadata tells the
            # truth about the offset.
            _optical("sentinel-2-c1-l2a", "S2L2A", _EARTH_SEARCH_L2A),
            _optical("sentinel-2-l2a", "S2L2A", _EARTH_SEARCH_L2A),
            _optical("sentinel-2-l1c", "S2L1C", {**_EARTH_SEARCH_KEYS, "B10": "cirrus"}),
            _radar("sentinel-1-grd", "S1GRD", "raw", _SENTINEL, _MODIFIED),
            _elevation("cop-dem-glo-30"),
            _elevation("cop-dem-glo-90"),
        ),
    ),
    Provider(
        "planetary-computer",
        "Microsoft Planetary Computer",
        "https://planetarycomputer.microsoft.com/api/stac/v1",
        (
            _optical("sentinel-2-l2a", "S2L2A", {band: band for band in (*_L2A, "SCL")}),
            _radar("sentinel-1-rtc", "S1RTC", "linear", "CC-BY-4.0", _RTC_SOURCE),
            _radar("sentinel-1-grd", "S1GRD", "raw", _SENTINEL, _MODIFIED),
            _elevation("cop-dem-glo-30"),
            _elevation("cop-dem-glo-90"),
            _land_cover("io-lulc-annual-v02"),
            _land_cover("io-lulc-9-class"),
            _land_cover("io-lulc"),
        ),
    ),
    Provider(
        "cdse",
        "Copernicus Data Space Ecosystem",
        "https://stac.dataspace.copernicus.eu/v1",
        (
            _optical("sentinel-2-l2a", "S2L2A", _at_native_resolution((*_L2A, "SCL"))),
            # Its level 1C has one resolution for each band: keys with and without it are found.
            _optical("sentinel-2-l1c", "S2L1C", {}),
            _radar("sentinel-1-grd", "S1GRD", "raw", _SENTINEL, _MODIFIED),
        ),
    ),
    Provider(
        "generic",
        "Catalogs of one's own",
        "",
        (
            _optical("sentinel-s2-l2a-cogs", "S2L2A", {}),  # Earth Search v0
            _radar("sentinel1-rtc-aws", "S1RTC", "linear", _SENTINEL, _MODIFIED),
            # Digital Earth Africa (odc product s1_rtc) and NASA's OPERA: gamma nought as power.
            _power("s1_rtc"),
            _power("OPERA_L2_RTC-S1_V1"),
            # Impact Observatory's own API, and what else the same map is called.
            _land_cover("io-10m-annual-lulc", "supercell"),
            _land_cover("esri-lulc"),
            # TerraMesh holds the classes that TerraMind was trained with.
            CollectionRow("terramesh-lulc", "LULC", legend="terramind"),
            CollectionRow("terramind-lulc", "LULC", legend="terramind"),
            *(
                CollectionRow(
                    name.lower(),
                    name,
                    resampling="bilinear" if MODALITIES[name].dtype == "float32" else "nearest",
                )
                for name in LOADABLE
            ),
        ),
    ),
)
"""Known providers; the last one is for catalogs of one's own."""

COLLECTIONS: tuple[CollectionRow, ...] = tuple(
    row for provider in PROVIDERS for row in provider.collections
)
"""The rows of all providers, preferred ones first."""

_GENERIC = PROVIDERS[-1]
_BY_ID: Mapping[str, tuple[CollectionRow, ...]] = MappingProxyType(
    {
        row.collection: tuple(r for r in COLLECTIONS if r.collection == row.collection)
        for row in COLLECTIONS
    }
)


def find_row(collection: str | None, item: pystac.Item | None = None) -> CollectionRow | None:
    """Return the row of a collection, by its id or the words in it.

    Parameters
    ----------
    collection : str or None
        Collection id.
    item : pystac.Item, optional
        Several providers have collections of one id: the row whose assets the item has is taken.
    """
    rows = _rows(collection)
    if item is not None:
        for row in rows:
            keys = [key for band, key in row.assets.items() if band != "SCL"]
            if keys and all(key in item.assets for key in keys):
                return row
    return rows[0] if rows else None


def rank(collection: str | None) -> int:
    """Return how far behind a collection stands in the order of preference."""
    rows = _rows(collection)
    return COLLECTIONS.index(rows[0]) if rows else len(COLLECTIONS)


def collections_of(modality: str, known: Iterable[str]) -> list[str]:
    """Return the ids of a catalog's collections that hold a modality, preferred first."""
    rows = ((find_row(name), name) for name in known)
    return sorted((name for row, name in rows if row and row.modality == modality), key=rank)


def provider_named(name: str) -> Provider:
    """Return a provider by its name.

    Raises
    ------
    ValueError
        If there is none: the message lists them.
    """
    known = {provider.name: provider for provider in PROVIDERS if provider.url}
    if (found := known.get(name.lower())) is None:
        raise ValueError(f"Unknown provider {name!r}: {nearest_name(name, known)}.")
    return found


def providers_with(modality: str) -> str:
    """Say which providers have a modality that a cube can use, for error messages."""
    found = []
    for provider in PROVIDERS:
        usable = [
            row.collection
            for row in provider.collections
            if provider.url and row.modality == modality and row.unit != "raw"
        ]
        if usable:
            found.append(f"{provider.name} ({', '.join(usable)})")
    return ", ".join(found) or "no provider that is known here"


@functools.cache
def _rows(collection: str | None) -> tuple[CollectionRow, ...]:
    """Return the rows that fit an id, exact ones first."""
    if collection is None:
        return ()
    # Words around a provider's name make it a collection of one's own.
    words = _words(collection)
    others = (
        row
        for row in COLLECTIONS
        if row.collection != collection and _contains(words, _words(row.collection))
    )
    return (*_BY_ID.get(collection, ()), *others)


def _words(name: str) -> list[str]:
    # Letters and digits apart: "sentinel2-l2a" is "sentinel-2-l2a".
    return re.findall(r"[a-z]+|[0-9]+", name.lower())


def _contains(words: list[str], wanted: list[str]) -> bool:
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))
