"""Searching a catalog for the items of one modality, ready to be read."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import shapely
import shapely.geometry

from terramind_cube.stac.acquisitions import acquisition
from terramind_cube.stac.areas import item_shape
from terramind_cube.stac.bands import locate_bands
from terramind_cube.stac.providers import collections_of, find_row, providers_with, rank
from terramind_cube.stac.search import Filters, limit_items, swapped_area

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pystac

    from terramind_cube.modalities import Modality
    from terramind_cube.stac.bands import ItemBands
    from terramind_cube.stac.catalogs import Catalog
    from terramind_cube.stac.search import DatetimeQuery

__all__ = ["collection_groups", "find_bands", "holds", "search_modality"]

_FEW_COLLECTIONS = 20
# Grids of degrees and outlines in few digits leave slivers.
_EDGE_SHARE = 1e-3


def find_bands(
    catalog: Catalog,
    modality: Modality,
    *,
    area: Any,
    datetime: DatetimeQuery | None,
    filters: Filters | None = None,
    bands: Sequence[str] | None = None,
    skips_bad_items: bool = False,
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
    filters : Filters, optional
        What else an item must fulfil.
    bands : sequence of str, optional
        Labels of the bands to find; all by default.
    skips_bad_items : bool
        Whether an item that lacks bands, or is not understood, is left out with a warning as long
        as there are others. Radar items without a polarisation always are.

    Returns
    -------
    list of ItemBands
        At least one, of the most preferred collection that has any; of optical items at hand also
        those of acquisitions that it lacks. Each item once.

    Raises
    ------
    ValueError
        If nothing is found (the message says what the catalog holds, or who has the modality), or
        an item lacks bands.

    Warns
    -----
    UserWarning
        If two items of one id and collection point to different files: the first one is taken.
    """
    filters = (filters or Filters()).for_modality(modality)
    known = catalog.collection_ids
    if known is not None and not collection_groups(catalog, modality):
        raise ValueError(
            f"No collection of the catalog holds {modality.name}: {catalog.describe(None)}. It is "
            f"in {providers_with(modality.name)}."
        )

    def search(where: Any) -> list[ItemBands]:
        found = search_modality(catalog, modality, area=where, datetime=datetime, filters=filters)
        is_lenient = skips_bad_items or modality.units == "dB"
        return _locate_all(_once(found), modality, bands, is_lenient=is_lenient)

    if found := search(area):
        return found
    searched = [name for group in collection_groups(catalog, modality) for name in group or ()]
    where = "" if area is None else " in the area"
    when = "" if datetime is None else f" for datetime {_shown(datetime)}"
    hint = ""
    if area is not None and (other := swapped_area(area)) is not None and search(other):
        hint = (
            " With longitude and latitude exchanged there are some: bbox is (west, south, east, "
            "north), GeoJSON is (longitude, latitude)."
        )
    raise ValueError(
        f"No {modality.name} item{where}{when}{filters.describe()}: "
        f"{catalog.describe(searched or None)}.{hint}"
    )


def search_modality(
    catalog: Catalog,
    modality: Modality,
    *,
    area: Any,
    datetime: DatetimeQuery | None,
    filters: Filters,
) -> list[pystac.Item]:
    """Return the items of the most preferred collection that has any which hold a modality.

    A static layer is completed where these leave a part of the area, by coarser editions of it.
    """
    kept: list[pystac.Item] = []
    for collections in collection_groups(catalog, modality):
        items = catalog.search_items(
            collections=collections,
            area=area,
            datetime=datetime,
            # The first items of a mixed collection may hold something else.
            filters=filters if collections else replace(filters, max_items=None),
        )
        holding = [item for item in items if holds(item, modality)]
        if modality.temporal == "static":
            kept = _completed(kept, holding, area)
        elif holding:
            kept = _preferred(holding, modality)
        if kept and (modality.temporal != "static" or _covers(kept, area)):
            break
    return limit_items(kept, filters.max_items)


def _completed(kept: list[pystac.Item], found: list[pystac.Item], area: Any) -> list[pystac.Item]:
    """Return items of a static layer, and of its coarser editions those that show more land."""
    kept = list(kept)
    ranked = sorted(found, key=lambda item: rank(item.collection_id))
    for _, edition in groupby(ranked, key=lambda item: rank(item.collection_id)):
        items = list(edition)
        if not kept:
            kept = items
        elif _edition_of(items[0]) == _edition_of(kept[0]):
            # Measured before any is added: tiles of one edition overlap each other by a pixel.
            before = list(kept)
            kept += [item for item in items if not _covers(before, item_shape(item), area)]
    return kept


def _edition_of(item: pystac.Item) -> str:
    """Return the name of a collection without its resolution: cop-dem-glo of cop-dem-glo-30."""
    row = find_row(item.collection_id, item)
    name = (item.collection_id or "") if row is None else row.collection
    return re.sub(r"[-_]?\d+m?$", "", name.lower())


def _covers(items: Sequence[pystac.Item], place: Any, area: Any = None) -> bool:
    """Whether items lie over all of a place, as far as they tell, but for a rounded edge."""
    shapes = [item_shape(item) for item in items]
    if place is None or None in shapes:
        return True
    try:
        wanted = place if isinstance(place, shapely.Geometry) else shapely.geometry.shape(place)
        if area is not None:
            wanted = wanted.intersection(shapely.geometry.shape(area))
        missing = wanted.difference(shapely.union_all(shapes))
    except shapely.errors.GEOSException:  # some providers' outlines cross themselves
        return True
    return bool(missing.area <= _EDGE_SHARE * wanted.area)


def _preferred(items: list[pystac.Item], modality: Modality) -> list[pystac.Item]:
    """Return the items of the preferred collection, and of optical ones what it lacks."""
    ranks = {id(item): rank(item.collection_id) for item in items}
    best = min(ranks.values())
    kept = [item for item in items if ranks[id(item)] == best]
    if len(kept) == len(items) or modality.units != "1e-4":
        return kept
    shown = {acquisition(item) for item in items}
    if None in shown:  # nobody can tell which are the same
        return kept
    owners: dict[tuple[str, str], int] = {}
    for item in items:
        key = _scene(item)
        owners[key] = min(owners.get(key, len(ranks) + best), ranks[id(item)])
    return [item for item in items if ranks[id(item)] == owners[_scene(item)]]


def _scene(item: pystac.Item) -> tuple[str, str]:
    shown = acquisition(item)
    return ("", item.id) if shown is None else (shown.tile, shown.datatake)


def _locate_all(
    items: Iterable[pystac.Item],
    modality: Modality,
    bands: Sequence[str] | None,
    *,
    is_lenient: bool,
) -> list[ItemBands]:
    found, refused = [], []
    for item in items:
        try:
            located = locate_bands(item, modality, bands)
        except ValueError as error:
            refused.append(error)
        else:
            found += [] if located is None else [located]
    if refused and not (is_lenient and found):
        raise refused[0]
    for reason in refused:
        warnings.warn(f"An item is left out. {reason}", UserWarning, stacklevel=2)
    return found


def collection_groups(catalog: Catalog, modality: Modality) -> list[list[str] | None]:
    """Return the collections to search for a modality, one after the other; None is all of them.

    Where no name of a small catalog says anything, its items are looked at.
    """
    known = catalog.collection_ids
    if known is None:
        return [None]
    named = collections_of(modality.name, known)
    is_unnamed = not any(find_row(name) for name in known) and len(known) <= _FEW_COLLECTIONS
    return [None] if is_unnamed and known else [[name] for name in named]


def holds(item: pystac.Item, modality: Modality) -> bool:
    """Whether an item claims a modality."""
    try:
        return locate_bands(item, modality) is not None
    except ValueError:  # what is wrong with it is said when it is read
        return True


def _shown(datetime: Any) -> str:
    if isinstance(datetime, tuple):
        return " to ".join(".." if end is None else str(end)[:10] for end in datetime)
    return repr(datetime)


def _once(items: Iterable[pystac.Item]) -> list[pystac.Item]:
    """Return each item once, whatever pages or overlapping searches repeat."""
    kept: dict[tuple[str | None, str], pystac.Item] = {}
    for item in items:
        first = kept.setdefault((item.collection_id, item.id), item)
        if first is not item and _hrefs(first) != _hrefs(item):
            warnings.warn(
                f"There are two items {item.id!r} of collection {item.collection_id!r} with "
                "different files: the first one is taken.",
                UserWarning,
                stacklevel=2,
            )
    return list(kept.values())


def _hrefs(item: pystac.Item) -> dict[str, str]:
    # A signature behind the question mark differs from search to search.
    return {key: asset.href.partition("?")[0] for key, asset in item.assets.items()}
