"""What every catalog offers: one search over modalities, whatever it is made of."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from terramind_cube.modalities import MODALITIES, find_modality
from terramind_cube.stac.finding import holds, search_modality
from terramind_cube.stac.providers import DERIVED, LOADABLE, find_row
from terramind_cube.stac.result import SearchResult
from terramind_cube.stac.search import Filters, area_geometry, parse_interval, plain_datetime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pystac

    from terramind_cube.stac.search import DatetimeQuery

__all__ = ["Catalog", "without_remarks"]


class Catalog(Protocol):
    """What a cube needs of a catalog.

    A catalog of one's own inherits from this and says how single collections are searched.

    Attributes
    ----------
    name : str
        Path, address or phrase that names the catalog in messages.
    """

    name: str

    @property
    def collection_ids(self) -> tuple[str, ...] | None:
        """Collections to choose from; None where items are at hand and speak for themselves."""

    def search_items(
        self,
        *,
        collections: Sequence[str] | None = None,
        area: Mapping[str, Any] | None = None,
        datetime: DatetimeQuery | None = None,
        filters: Filters | None = None,
    ) -> list[pystac.Item]:
        """Return the items of some collections that touch an area and a time and pass the filters.

        Parameters
        ----------
        collections : sequence of str, optional
            Collection ids; all by default.
        area : GeoJSON geometry, optional
            As `area_geometry` returns it; everywhere by default.
        datetime : str, datetime or pair, optional
            STAC datetime query; at any time by default.
        filters : Filters, optional
            All of them apply to all collections: see `Filters.for_modality`.
        """

    def describe(self, collections: Sequence[str] | None = None) -> str:
        """Say in one line what the catalog holds, for error messages."""

    def search(  # noqa: PLR0913  # the public surface
        self,
        *,
        modalities: Sequence[str] | None = None,
        collections: Sequence[str] | None = None,
        bbox: Sequence[float] | None = None,
        intersects: Any = None,
        datetime: DatetimeQuery | None = None,
        cloud_cover: float | None = None,
        orbit: str | int | None = None,
        query: Mapping[str, Mapping[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
        limit: int | None = None,
        max_items: int | None = None,
    ) -> SearchResult:
        """Search for the items of modalities, or of collections.

        Parameters
        ----------
        modalities : sequence of str, optional
            Of S2L2A, S2L1C, S1RTC, S1GRD, DEM, LULC, NDVI and RGB. Of the collections that hold
            one the most preferred that has any item is taken. A static layer is searched at any
            time, an annual one by overlap.
        collections : sequence of str, optional
            Exactly these, instead of `modalities`. Without either, all.
        bbox, intersects : optional
            Area as (west, south, east, north) in degrees, or as GeoJSON; everywhere by default.
        datetime : str, datetime or pair, optional
            STAC datetime query, such as ``"2024-05"`` or ``"2024-05-01/2024-06-30"``.
        cloud_cover : float, optional
            Largest ``eo:cloud_cover`` of optical items, in percent; an item without it stays.
        orbit : {"ascending", "descending"} or int, optional
            Direction or relative orbit of radar items.
        query : mapping, optional
            Of the STAC query extension, such as ``{"eo:cloud_cover": {"lt": 20}}``, for the
            optical modalities if there are any, else for all; or a mapping from modality to such.
        ids : sequence of str, optional
            Item ids.
        limit : int, optional
            Items of one page of an API; 100 by default.
        max_items : int, optional
            Most items of each collection.

        Returns
        -------
        SearchResult
            The items, by modality, and what is missing.

        Raises
        ------
        ValueError
            If something asked for cannot be meant.
        """
        if modalities is not None and collections is not None:
            raise ValueError("Give modalities or collections, not both.")
        area, datetime = area_geometry(bbox, intersects), plain_datetime(datetime)
        if datetime is not None:
            parse_interval(datetime)
        names = _check_names("collections", collections)
        asked = _check_modalities(modalities)
        rows = [find_row(name) for name in names]
        filters = Filters(
            cloud_cover, orbit, query, _as_given(ids), limit, max_items,
            modalities=asked or tuple(row.modality for row in rows if row is not None),
        )  # fmt: skip
        held: dict[str, list[pystac.Item]]
        if asked:
            held = _search_modalities(self, asked, area, datetime, filters)
            items = [item for found in held.values() for item in found]
        else:
            items = _search_collections(self, names, area, datetime, filters)
            held = _by_modality(items)
        return SearchResult(
            items=_once(items),
            by_modality={name: _once(found) for name, found in held.items()},
            modalities=asked,
            collections=names,
            area=area,
            datetime=datetime,
            source=self.name,
        )


@contextmanager
def without_remarks() -> Iterator[None]:
    """Read items without pystac's remarks on each about fields that no cube uses.

    It cannot bring the storage fields of Earth Search's items to the form of STAC 1.1, for one.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"pystac\.extensions")
        yield


def _search_modalities(
    catalog: Catalog,
    asked: Sequence[str],
    area: Mapping[str, Any] | None,
    datetime: DatetimeQuery | None,
    filters: Filters,
) -> dict[str, list[pystac.Item]]:
    found: dict[str, list[pystac.Item]] = {}
    for name in asked:
        source = _source(name)
        if source not in found:
            row = MODALITIES[source]
            when = None if row.temporal == "static" else datetime
            found[source] = search_modality(
                catalog, row, area=area, datetime=when, filters=filters.for_modality(row)
            )
    return {name: found[_source(name)] for name in asked}


def _search_collections(
    catalog: Catalog,
    names: Sequence[str],
    area: Mapping[str, Any] | None,
    datetime: DatetimeQuery | None,
    filters: Filters,
) -> list[pystac.Item]:
    if not names:
        return catalog.search_items(area=area, datetime=datetime, filters=filters)
    found = []
    for name in names:
        row = find_row(name)
        modality = None if row is None else MODALITIES[row.modality]
        is_static = modality is not None and modality.temporal == "static"
        found += catalog.search_items(
            collections=[name],
            area=area,
            datetime=None if is_static else datetime,
            filters=filters if modality is None else filters.for_modality(modality),
        )
    return found


def _by_modality(items: Iterable[pystac.Item]) -> dict[str, list[pystac.Item]]:
    found: dict[str, list[pystac.Item]] = {}
    for item in items:
        for name in LOADABLE:
            if holds(item, MODALITIES[name]):
                found.setdefault(name, []).append(item)
    return found


def _once(items: Iterable[pystac.Item]) -> tuple[pystac.Item, ...]:
    """Return each item once, whatever pages repeat; those with other files are others."""
    kept: dict[tuple[Any, ...], pystac.Item] = {}
    for item in items:
        # A signature behind the question mark differs from search to search.
        hrefs = frozenset((k, a.href.partition("?")[0]) for k, a in item.assets.items())
        kept.setdefault((item.collection_id, item.id, hrefs), item)
    return tuple(kept.values())


def _source(name: str) -> str:
    """Return what a modality is read from."""
    return "S2L2A" if name in DERIVED else name


def _check_names(what: str, names: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    if isinstance(names, str):
        names = [names]
    found = tuple(dict.fromkeys(names))
    if not found:
        raise ValueError(f"{what} is empty: leave it out to take all.")
    return found


def _check_modalities(names: Any) -> tuple[str, ...]:
    found = _check_names("modalities", names)
    for name in found:
        if find_modality(name).name not in (*LOADABLE, *DERIVED):
            raise ValueError(
                f"{name} is not found in catalogs: ask for {', '.join((*LOADABLE, *DERIVED))}."
            )
    return found


def _as_given(ids: Any) -> Any:
    return ids if ids is None or isinstance(ids, str) else tuple(ids)
