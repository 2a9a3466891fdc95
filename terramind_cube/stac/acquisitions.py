"""One acquisition, several items: which of them to read.

A Sentinel-2 tile appears again when it is reprocessed, and twice where a datastrip ends within it.
A slice of a radar pass appears again when it is reprocessed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from terramind_cube.stac.calibration import processing_baseline

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pystac

    from terramind_cube.stac.bands import ItemBands

__all__ = ["Acquisition", "acquisition", "newest_processing", "radar_slice"]

_GENERATED = ("s2:generation_time", "processing:datetime", "created", "updated")
_PRODUCTS = ("s2:product_uri", "sentinel:product_id", "sentinel2:product_uri")
_DATATAKES = ("s2:datatake_id", "eopf:datatake_id", "sentinel2:datatake_id")
_DATASTRIPS = ("s2:datastrip_id", "eopf:datastrip_id", "sentinel2:datastrip_id")


class Acquisition(NamedTuple):
    """What an item shows, without the processing.

    Of Sentinel-2 tile, datatake and datastrip; of Sentinel-1 the place of a slice and its begin.
    """

    tile: str
    datatake: str
    datastrip: str


def acquisition(item: pystac.Item) -> Acquisition | None:
    """Return what an item shows, None where it does not tell tile and datatake."""
    texts = [item.id, *_fields(item, _PRODUCTS)]
    tile, datatake = _tile(item, texts), _datatake(item, texts)
    if not (tile and datatake):
        return None
    strips = (re.search(r"_S(\d{8}T\d{6})", text) for text in _fields(item, _DATASTRIPS))
    return Acquisition(tile, datatake, next((found[1] for found in strips if found), ""))


def radar_slice(item: pystac.Item) -> Acquisition | None:
    """Return which slice of a radar pass an item shows, None where it does not tell.

    Slices of one pass begin at times of their own; tiles that are cut out of one slice share it and
    lie in places of their own.
    """
    begin = re.search(r"(S1[A-D])_.*?(\d{8}T\d{6})_", item.id)
    platform = str(item.properties.get("platform") or (begin and begin[1]) or "")
    taken = begin[2] if begin else str(item.properties.get("start_datetime") or item.datetime or "")
    if not (platform and taken and item.bbox):
        return None
    place = " ".join(f"{value:.1f}" for value in item.bbox)
    return Acquisition(f"{item.collection_id} {place}", f"{platform} {taken}", "")


def newest_processing(sources: Iterable[ItemBands]) -> list[ItemBands]:
    """Return the sources without older processings of the same acquisition, in the same order.

    The newest baseline wins, and of one baseline the last generation. Two datastrips of a tile are
    both kept: each holds pixels that the other lacks.
    """
    sources = list(sources)
    rivals: dict[tuple[str, str], list[tuple[str, ItemBands]]] = {}
    kept = []
    for source in sources:
        shown = _shown(source)
        if shown is None:
            kept.append(source)
        else:
            strip = (shown.datastrip, source)
            rivals.setdefault((shown.tile, shown.datatake), []).append(strip)
    for group in rivals.values():
        ordered = sorted(group, key=lambda pair: processing_age(pair[1]))
        strips, newest = dict(ordered), ordered[-1][1]
        # Whatever does not tell its datastrip may be any: it stands against all of them.
        kept += [s for strip, s in strips.items() if s is newest or (strip and "" not in strips)]
    identities = {id(source) for source in kept}
    return [source for source in sources if id(source) in identities]


def _shown(source: ItemBands) -> Acquisition | None:
    readers = {"1e-4": acquisition, "dB": radar_slice}
    reader = readers.get(source.modality.units)
    return None if reader is None else reader(source.item)


def processing_age(source: ItemBands) -> tuple[float, str, str, int, str]:
    """Return what orders items by how new they are, first of all their processing."""
    item = source.item
    generated = next(iter(_fields(item, _GENERATED)), "")
    # Products' names end with the time of their processing.
    named = re.search(r"_(\d{8}T\d{6})(?:\.SAFE)?$", item.id)
    taken = "" if item.datetime is None else item.datetime.isoformat()
    processed = generated or (named[1] if named else "")
    # Only newer processing leaves an offset in the pixels.
    return _baseline(source), processed, taken, -source.offset_dn, item.id


def _baseline(source: ItemBands) -> float:
    return processing_baseline(source.item) or 0.0


def _tile(item: pystac.Item, texts: list[str]) -> str:
    properties = item.properties
    code = str(properties.get("grid:code", ""))
    if code.startswith("MGRS-"):
        return code.removeprefix("MGRS-").zfill(5)
    if named := properties.get("s2:mgrs_tile") or properties.get("sentinel2:mgrs_tile"):
        return str(named).removeprefix("T").zfill(5)
    for text in texts:
        if found := re.search(r"_T?(\d{1,2}[C-X][A-Z]{2})_", text):
            return found[1].zfill(5)
    return ""


def _datatake(item: pystac.Item, texts: list[str]) -> str:
    # Its id ends with the baseline, which must not make two of one datatake.
    for text in _fields(item, _DATATAKES):
        if found := re.search(r"S2([A-D])_(\d{8}T\d{6})", text):
            return f"{found[1]}{found[2]}"
    for text in texts:
        if found := re.search(r"S2([A-D])_MSIL\w\w_(\d{8}T\d{6})", text):
            return f"{found[1]}{found[2]}"
    return ""


def _fields(item: pystac.Item, names: tuple[str, ...]) -> list[str]:
    return [str(value) for name in names if (value := item.properties.get(name))]
