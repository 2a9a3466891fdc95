"""Searching a catalog for the items of one modality, ready to be read."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from terramind_cube.stac.bands import locate_bands
from terramind_cube.stac.providers import collections_of, providers_with, rank
from terramind_cube.stac.search import Filters, swapped_area

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pystac

    from terramind_cube.modalities import Modality
    from terramind_cube.stac.bands import ItemBands
    from terramind_cube.stac.catalogs import Catalog
    from terramind_cube.stac.search import DatetimeQuery

__all__ = ["find_bands"]


def find_bands(
    catalog: Catalog,
    modality: Modality,
    *,
    area: Any,
    datetime: DatetimeQuery | None,
    filters: Filters | None = None,
    bands: Sequence[str] | None = None,
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

    Returns
    -------
    list of ItemBands
        At least one, all of the most preferred collection that has any, each item once.

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
    groups: list[list[str] | None] = [None]
    if known is not None:
        groups = [[name] for name in collections_of(modality.name, known)]
    if not groups:
        raise ValueError(
            f"No collection of the catalog holds {modality.name}: {catalog.describe(None)}. It is "
            f"in {providers_with(modality.name)}."
        )

    def search(where: Any) -> list[ItemBands]:
        for collections in groups:
            items = catalog.search_items(
                collections=collections, area=where, datetime=datetime, filters=filters
            )
            located = (locate_bands(item, modality, bands) for item in _once(items))
            found = [item for item in located if item is not None]
            if found:
                best = min(rank(item.item.collection_id) for item in found)
                return [item for item in found if rank(item.item.collection_id) == best]
        return []

    if found := search(area):
        return found
    searched = [name for group in groups for name in group or ()] or None
    where = "" if area is None else " in the area"
    when = "" if datetime is None else f" for datetime {datetime!r}"
    hint = ""
    if area is not None and (other := swapped_area(area)) is not None and search(other):
        hint = (
            " With longitude and latitude exchanged there are some: bbox is (west, south, east, "
            "north), GeoJSON is (longitude, latitude)."
        )
    told = filters.describe()
    raise ValueError(
        f"No {modality.name} item{where}{when}{told}: {catalog.describe(searched)}.{hint}"
    )


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
