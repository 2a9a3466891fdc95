"""Which assets of an item hold the bands of a modality."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from pystac.utils import make_absolute_href

from terramind_cube.modalities import MODALITIES, Modality
from terramind_cube.stac.backscatter import (
    backscatter_unit,
    is_detected,
    polarisation,
    uncalibrated,
)
from terramind_cube.stac.calibration import (
    OpticalOffset,
    declared_nodata,
    linear_scale,
    optical_offset,
)
from terramind_cube.stac.legends import LEGENDS, declared_legend
from terramind_cube.stac.providers import (
    LOADABLE,
    NATIVE_RESOLUTION_M,
    find_row,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import pystac

    from terramind_cube.stac.legends import Legend
    from terramind_cube.stac.providers import CollectionRow

__all__ = ["BandLocation", "ItemBands", "locate_bands"]

_BAND_NAMES: Mapping[str, tuple[str, ...]] = {
    "B01": ("b01", "b1", "coastal", "nbart_coastal_aerosol"),
    "B02": ("b02", "b2", "blue", "nbart_blue"),
    "B03": ("b03", "b3", "green", "nbart_green"),
    "B04": ("b04", "b4", "red", "nbart_red"),
    "B05": ("b05", "b5", "rededge1", "rededge071", "nbart_red_edge_1"),
    "B06": ("b06", "b6", "rededge2", "rededge075", "nbart_red_edge_2"),
    "B07": ("b07", "b7", "rededge3", "rededge078", "nbart_red_edge_3"),
    "B08": ("b08", "b8", "nir", "nbart_nir_1"),
    "B8A": ("b8a", "nir08", "nbart_nir_2"),
    "B09": ("b09", "b9", "nir09"),
    "B10": ("b10", "cirrus"),
    "B11": ("b11", "swir16", "nbart_swir_2"),
    "B12": ("b12", "swir22", "nbart_swir_3"),
    "SCL": ("scl",),
    "VV": ("vv", "gamma0_vv", "sigma0_vv"),  # and what `polarisation` reads
    "VH": ("vh", "gamma0_vh", "sigma0_vh"),
    "DEM": ("dem", "data", "elevation"),
    "LULC": (
        "lulc",
        "data",
        "map",
        "land_cover",
        "landcover",
        "classification",
        "label",
        "supercell",
    ),
}
# "rededge" is no name: four bands share it.
_PICTURES = {"visual", "thumbnail", "overview", "preview", "rendered_preview"}
_PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp")
_SCENE_CLASSES = "SCL"
_RED_EDGE = {"B05", "B06", "B07"}
_ENOUGH_RED_EDGE = 2


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
    alternate : str or None
        Address of the same file over https, where the item gives one.
    """

    asset: str
    href: str
    index: int
    file_bands: int | None = None
    alternate: str | None = None


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
        In the order of `labels`.
    labels : tuple of str
        Bands of the modality that are read, in its order.
    offset : OpticalOffset
        Digital numbers to add for reflectance x 10000, and what tells them.
    unit : {"dB", "linear", "amplitude"} or None
        Unit of backscatter; None where metadata do not tell it.
    legend : tuple of pairs, or None
        TerraMind's class of each code of land cover; None where metadata do not tell it.
    told_by : str
        "item" or "provider": what tells unit or legend.
    unknown : str
        What the item says of unit or legend in words that are not understood.
    nodata : float or None
        Fill value of the files, where metadata or the provider's row tell it.
    scale : tuple of float or None
        Scale and offset that turn numbers into the unit, for elevation and backscatter; None where
        no metadata tell them.
    scene_classes : BandLocation or None
        Sentinel-2's scene classification beside the bands.
    row : CollectionRow or None
        What is known of the collection.
    """

    item: pystac.Item
    modality: Modality
    bands: tuple[BandLocation, ...]
    labels: tuple[str, ...] = ()
    offset: OpticalOffset = OpticalOffset()  # noqa: RUF009  # immutable
    unit: str | None = None
    legend: Legend | None = None
    told_by: str = ""
    unknown: str = ""
    nodata: float | None = None
    scale: tuple[float, float] | None = None
    scene_classes: BandLocation | None = None
    row: CollectionRow | None = None

    @property
    def offset_dn(self) -> int:
        """Digital numbers to add for reflectance x 10000: 0 or -1000."""
        return self.offset.dn


def locate_bands(
    item: pystac.Item, modality: Modality, bands: Sequence[str] | None = None
) -> ItemBands | None:
    """Find the bands of a modality in an item.

    The provider's row tells the assets; else the collection's id or assets that are named after
    the modality, or at last the bands.

    Parameters
    ----------
    item : pystac.Item
    modality : Modality
        One of `LOADABLE`.
    bands : sequence of str, optional
        Labels of the bands to find; all by default.

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
    labels = modality.bands if bands is None else tuple(b for b in modality.bands if b in bands)
    try:
        return _located(item, modality, labels)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"Item {item.id!r} of collection {item.collection_id!r} is no valid STAC "
            f"({type(error).__name__}: {error})."
        ) from error


def _located(item: pystac.Item, modality: Modality, labels: tuple[str, ...]) -> ItemBands | None:
    row = find_row(item.collection_id, item)
    is_own = row is not None and row.modality == modality.name
    zarr = {key: asset for key, asset in item.assets.items() if _is_zarr(asset)}
    held = item.assets.keys() - zarr.keys()
    if row is not None and is_own and all(row.assets.get(b) in held for b in labels):
        places = {band: _place(item, row.assets[band]) for band in labels}
        return _with_radiometry(item, modality, places, row)
    rasters = {
        key: asset
        for key, asset in item.assets.items()
        if key in held and _is_raster(key, asset) and key.lower() not in _BAND_NAMES[_SCENE_CLASSES]
    }
    named = {key: asset for key, asset in rasters.items() if _names(key, modality.name)}
    claims = is_own if row else _looks_like(item, modality, {**zarr, **rasters})
    if not (named or claims):
        return None
    found = _locate(item, modality, rasters) if claims else {}
    if any(band not in found for band in labels) and named:
        found = _locate(item, modality, named)
    if missing := [band for band in labels if band not in found]:
        if modality.name == "S1GRD" and not named and is_detected(item):
            raise ValueError(uncalibrated(item, row))  # whatever its polarisations
        raise ValueError(_lacking(item, modality, found, missing, zarr))
    return _with_radiometry(item, modality, {band: found[band] for band in labels}, row)


def _lacking(
    item: pystac.Item,
    modality: Modality,
    found: Collection[str],
    missing: Sequence[str],
    zarr: Collection[str],
) -> str:
    """Say which bands an item lacks, and what would help."""
    text = (
        f"Item {item.id!r} of collection {item.collection_id!r} lacks {', '.join(missing)} of "
        f"{modality.name}: its assets are {', '.join(item.assets) or '(none)'}."
    )
    if zarr:
        return (
            f"{text} {', '.join(zarr)} are Zarr, as those of EOPF products: only rasters such as "
            "Cloud-Optimized GeoTIFF and JPEG 2000 are read. Use a collection of those."
        )
    if found:
        rest = [band for band in modality.bands if band in found]
        return f"{text} Load those that it has with bands={{{modality.name!r}: {rest}}}."
    return f"{text} Name the assets after the bands, or list the bands of a file in eo:bands."


def _with_radiometry(
    item: pystac.Item,
    modality: Modality,
    found: Mapping[str, BandLocation],
    row: CollectionRow | None,
) -> ItemBands:
    bands = tuple(found.values())
    for band in bands:
        if not band.href:
            raise ValueError(f"Asset {band.asset!r} of item {item.id!r} has no href.")
    places = [(band.asset, band.index) for band in bands]
    told: dict[str, Any] = {}
    if modality.units == "dB":
        is_named = _names(bands[0].asset, modality.name)
        unit, by = backscatter_unit(item, places, modality, row, is_named=is_named)
        told = {"unit": unit, "told_by" if unit else "unknown": by}
    elif modality.units == "1e-4":
        told = {"offset": optical_offset(item, places)}
    elif modality.kind == "classes":
        legend, unknown = declared_legend(item, *places[0])
        by = "item" if legend else ""
        if legend is None and row is not None and row.legend:
            legend, by = LEGENDS[row.legend], "provider"
        told = {"legend": legend, "told_by": by, "unknown": unknown}
    nodata = _common(item, "nodata", {declared_nodata(item, *place) for place in places})
    scale = None
    if modality.dtype == "float32":
        scale = _common(item, "scale", {linear_scale(item, *place) for place in places})
    if nodata is None and row is not None and row.collection == item.collection_id:
        nodata = row.nodata
    return ItemBands(
        item=item,
        modality=modality,
        bands=bands,
        labels=tuple(found),
        nodata=nodata,
        scale=scale,
        scene_classes=_scene_classes(item, row) if modality.name == "S2L2A" else None,
        row=row,
        **told,
    )


def _common(item: pystac.Item, name: str, told: set[Any]) -> Any:
    """Return what the bands of an item say of themselves, those that say nothing aside."""
    said = told - {None}
    if len(said) > 1:
        raise ValueError(
            f"The bands of item {item.id!r} differ in {name}: {sorted(said)}. Give them as items "
            "of their own."
        )
    return next(iter(said), None)


def _scene_classes(item: pystac.Item, row: CollectionRow | None) -> BandLocation | None:
    rasters = {key: asset for key, asset in item.assets.items() if not _is_zarr(asset)}
    key = row.assets.get(_SCENE_CLASSES) if row is not None else None
    if key in rasters:
        return _place(item, str(key))
    found = _by_key(_SCENE_CLASSES, None, rasters)
    return None if found is None else _place(item, found[0])


def _place(item: pystac.Item, key: str, index: int = 1, count: int | None = None) -> BandLocation:
    asset = item.assets[key]
    alternate = asset.extra_fields.get("alternate") or {}
    other = (alternate.get("https") or {}).get("href")
    return BandLocation(key, _absolute_href(item, asset.href), index, count, other)


def _locate(
    item: pystac.Item, modality: Modality, assets: Mapping[str, pystac.Asset]
) -> dict[str, BandLocation]:
    """Return the bands of a modality that some assets hold, by band label."""
    found: dict[str, BandLocation] = {}
    for band in modality.bands:
        place = _by_key(band, modality, assets) or _by_metadata(band, assets)
        if place is not None:
            found[band] = _place(item, *place)
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
            band: _place(item, key, index, count)
            for index, band in enumerate(modality.bands, start=1)
        }
    return found


def _by_key(
    band: str, modality: Modality | None, assets: Mapping[str, pystac.Asset]
) -> tuple[str, int] | None:
    """Find a band by the key of its asset; of several resolutions the one it was taken at."""
    matches: list[tuple[int, int, tuple[int, ...], str]] = []
    native = NATIVE_RESOLUTION_M.get(band, 10)
    for key in assets:
        stem, _, suffix = key.lower().rpartition("_")
        resolution = int(suffix[:-1]) if re.fullmatch(r"\d+m", suffix) else 0
        name = stem if resolution else key.lower()
        if modality is not None:
            name = name.removeprefix(f"{modality.name.lower()}_")
        named = polarisation(name)
        if name in _BAND_NAMES[band] or (named is not None and named[0] == band):
            preference = (0,) if named is None else named[1]
            matches.append((abs((resolution or native) - native), resolution, preference, key))
    return (min(matches)[3], 1) if matches else None


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
    if 2 * len(held) < len(modality.bands) or _is_of_another_mission(item, modality):
        return False
    if modality.units == "dB":
        return modality.name == ("S1GRD" if is_detected(item) else "S1RTC")
    # Landsat's bands have Sentinel-2's other names.
    if "B8A" not in held or len(held & _RED_EDGE) < _ENOUGH_RED_EDGE:
        return False
    # Only level 1C has the cirrus band.
    level_1c = MODALITIES["S2L1C"]
    has_cirrus = _by_key("B10", level_1c, assets) or _by_metadata("B10", assets)
    return modality.name == ("S2L1C" if has_cirrus else "S2L2A")


def _is_of_another_mission(item: pystac.Item, modality: Modality) -> bool:
    """Whether an item names a mission that does not make a modality."""
    told = [str(item.properties.get(name) or "") for name in ("constellation", "platform")]
    number = "1" if modality.units == "dB" else "2"
    names = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in told if name]
    is_own = any(re.match(rf"s(entinel)?{number}", name) for name in names)
    # Harmonised Landsat and Sentinel data are adjusted to each other.
    is_harmonised = (item.collection_id or "").upper().startswith("HLS")
    return is_harmonised or bool(names and not is_own)


def _is_raster(key: str, asset: pystac.Asset) -> bool:
    if key.lower() in _PICTURES or _PICTURES & set(asset.roles or ()):
        return False
    kind = (asset.media_type or "").lower()
    if kind:
        return kind.startswith("image/") and not kind.startswith(_PICTURE_TYPES)
    return Path(urlparse(asset.href).path).suffix.lower() in {".tif", ".tiff", ".jp2", ".vrt"}


def _is_zarr(asset: pystac.Asset) -> bool:
    kind = (asset.media_type or "").lower()
    if kind:
        return "zarr" in kind
    parts = Path(urlparse(asset.href).path).parts
    return any(part.lower().endswith(".zarr") for part in parts)


def _names(text: str | None, name: str) -> bool:
    """Whether the words of a name stand in a text, one after the other."""
    words, wanted = (re.findall(r"[a-z0-9]+", (t or "").lower()) for t in (text, name))
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))


def _absolute_href(item: pystac.Item, href: str) -> str:
    """Resolve an address against the item's own; an absolute local path stays what it is."""
    if href.startswith(("https://", "http://", "s3://", "/")):
        return href
    parts = urlparse(href)
    if parts.scheme == "file":
        return unquote(parts.path)
    if not href or parts.scheme or Path(href).is_absolute():
        return href
    if own := item.get_self_href():
        return _absolute_href(item, make_absolute_href(href, own))
    return str(Path(href).resolve())
