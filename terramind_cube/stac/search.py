"""Which items answer a search: the semantics of a STAC API, applied to items at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from pystac_client.item_search import ItemSearch
from shapely.geometry import shape

from terramind_cube.modalities import MODALITIES, find_modality, nearest_name
from terramind_cube.stac.areas import area_geometry, item_shape, swapped_area
from terramind_cube.stac.providers import DERIVED, find_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pystac

    from terramind_cube.modalities import Modality

__all__ = [
    "DatetimeQuery",
    "Filters",
    "Interval",
    "area_geometry",
    "item_interval",
    "limit_items",
    "parse_interval",
    "plain_datetime",
    "select_items",
    "swapped_area",
]

DatetimeQuery = str | datetime | tuple[datetime | str | None, datetime | str | None]
"""What a search takes as time: one string or datetime, or a pair with None for an open end."""

_LARGEST_PAGE = 10_000
_RADAR_ASSETS = {"vv", "vh", "hh", "hv"}
_DIRECTIONS = ("ascending", "descending")
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda value, wanted: value == wanted,
    "neq": lambda value, wanted: value != wanted,
    "lt": lambda value, wanted: value < wanted,
    "lte": lambda value, wanted: value <= wanted,
    "gt": lambda value, wanted: value > wanted,
    "gte": lambda value, wanted: value >= wanted,
    "in": lambda value, wanted: value in wanted,
    "startsWith": lambda value, wanted: value.startswith(wanted),
    "endsWith": lambda value, wanted: value.endswith(wanted),
    "contains": lambda value, wanted: wanted in value,
}


@dataclass(frozen=True)
class Interval:
    """Closed interval of time; None is an open end.

    Attributes
    ----------
    start, end : datetime or None
        In UTC, timezone-aware.
    """

    start: datetime | None
    end: datetime | None

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals share an instant."""
        begins = self.start is None or other.end is None or self.start <= other.end
        ends = self.end is None or other.start is None or other.start <= self.end
        return begins and ends


@dataclass(frozen=True)
class Filters:
    """What an item must fulfil besides collection, area and time.

    Attributes
    ----------
    cloud_cover : float or None
        Largest ``eo:cloud_cover`` in percent; an item without it stays.
    orbit : {"ascending", "descending"}, int or None
        Direction or relative orbit of radar items; other items stay.
    query : mapping or None
        Of the STAC query extension: from properties to operators and values, such as
        ``{"eo:cloud_cover": {"lt": 20}}``; or from modalities to such mappings. An item without
        the property does not fulfil it, whatever the operator.
    ids : tuple of str or None
        Item ids.
    limit : int or None
        Items of one page of an API.
    max_items : int or None
        Most items of a collection.
    modalities : tuple of str
        All modalities that are asked for: a plain query is for the optical ones, where there are
        any, else for all.
    """

    cloud_cover: float | None = None
    orbit: str | int | None = None
    query: Mapping[str, Mapping[str, Any]] | None = None
    ids: tuple[str, ...] | None = None
    limit: int | None = None
    max_items: int | None = None
    modalities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        cover: Any = self.cloud_cover
        if cover is not None and not (_is_number(cover) and 0 <= cover <= 100):
            raise ValueError(f"cloud_cover is a percentage from 0 to 100, got {cover!r}.")
        object.__setattr__(self, "modalities", tuple(self.modalities))
        object.__setattr__(self, "orbit", _check_orbit(self.orbit))
        object.__setattr__(self, "query", _check_query(self.query, self.modalities))
        object.__setattr__(self, "ids", _check_ids(self.ids))
        _check_count("limit", self.limit, _LARGEST_PAGE)
        _check_count("max_items", self.max_items)

    def for_modality(self, modality: Modality) -> Filters:
        """Return the part of the filters that concerns one modality."""
        is_optical, query = _is_optical(modality.name), self.query
        if query and set(query) <= set(MODALITIES):
            query = query.get(modality.name)
        elif not is_optical and any(map(_is_optical, self.modalities)):
            query = None
        return replace(
            self,
            cloud_cover=self.cloud_cover if is_optical else None,
            orbit=self.orbit if modality.units == "dB" else None,
            query=query,
            modalities=(modality.name,),
        )

    def accepts(self, item: pystac.Item) -> bool:
        """Whether an item fulfils all of them; the two counts are not looked at."""
        if self.ids is not None and item.id not in self.ids:
            return False
        cover: Any = item.properties.get("eo:cloud_cover")
        if self.cloud_cover is not None and _is_number(cover) and cover > self.cloud_cover:
            return False
        if self.orbit is not None and _is_radar(item) and not _is_on(item, self.orbit):
            return False
        return all(
            _fulfils(_property(item, name), operator, wanted)
            for name, tests in (self.query or {}).items()
            for operator, wanted in tests.items()
        )

    def describe(self) -> str:
        """Say what is filtered, for the end of a phrase in a message; empty for nothing."""
        said = []
        if self.cloud_cover is not None:
            said.append(f"cloud cover up to {self.cloud_cover:g} %")
        if self.orbit is not None:
            said.append(f"orbit {self.orbit!r}")
        if self.query:
            said.append(f"query {dict(self.query)}")
        if self.ids is not None:
            said.append(f"ids {list(self.ids)}")
        return f" with {', '.join(said)}" if said else ""


def plain_datetime(query: Any) -> Any:
    """Return a datetime query in the types that pystac-client takes.

    A day (`datetime.date`), a `numpy.datetime64` and a `pandas.Timestamp` become what they mean, in
    UTC; also as ends of a pair.
    """
    if isinstance(query, tuple | list):
        return tuple(plain_datetime(end) for end in query)
    if isinstance(query, np.datetime64):
        # numpy's dates are days, its other units instants.
        is_day = np.datetime_data(query)[0] in {"Y", "M", "D"}
        return str(query) if is_day else _utc(query.astype("datetime64[us]").item())
    if isinstance(query, date) and not isinstance(query, datetime):
        return query.isoformat()
    return query


def parse_interval(query: DatetimeQuery) -> Interval:
    """Read a STAC datetime query, expanded exactly as pystac-client expands it.

    Parameters
    ----------
    query : str, datetime or pair
        Such as ``"2024"``, ``"2024-05"``, ``"2024-05-01/2024-06-30"``, ``"../2024-05-01"``.

    Returns
    -------
    Interval
        An instant has equal ends; ``"2024"`` ends at 2024-12-31T23:59:59Z.

    Raises
    ------
    ValueError
        If the query is not a STAC datetime, or its end lies before its start.
    """
    try:
        # pystac-client's own expansion, so that local and remote catalogs cannot disagree.
        text = ItemSearch("http://localhost/search", datetime=query).get_parameters()["datetime"]
        ends = [None if end == ".." else _as_utc(end) for end in str(text).split("/")]
    except Exception as error:
        raise ValueError(
            f"Cannot read datetime {query!r} ({error}): give a date such as '2024-05-17', a month "
            "'2024-05', or an interval '2024-05-01/2024-06-30' ('..' for an open end)."
        ) from error
    interval = Interval(ends[0], ends[-1])
    if interval.start and interval.end and interval.start > interval.end:
        raise ValueError(f"datetime {query!r} ends before it starts.")
    return interval


def item_interval(item: pystac.Item) -> Interval:
    """Return the time of an item: its interval where it has one, else its instant."""
    common = item.common_metadata
    start, end = common.start_datetime or item.datetime, common.end_datetime or item.datetime
    if start is None:
        raise ValueError(
            f"Item {item.id!r} has neither datetime nor start_datetime: give it one of them."
        )
    return Interval(_utc(start), None if end is None else _utc(end))


def select_items(
    items: Iterable[pystac.Item],
    *,
    collections: Sequence[str] | None = None,
    bbox: Sequence[float] | None = None,
    intersects: Any = None,
    datetime: DatetimeQuery | None = None,
    filters: Filters | None = None,
) -> list[pystac.Item]:
    """Return the items that a STAC API would return for the same search, in the given order.

    An item without a geometry is everywhere, as its pixels may be.
    """
    area = area_geometry(bbox, intersects)
    region = None if area is None else shape(area)
    shapely.prepare(region)
    interval = None if datetime is None else parse_interval(datetime)
    wanted = filters or Filters()
    found = (
        item
        for item in items
        if (collections is None or item.collection_id in collections)
        and wanted.accepts(item)
        and (interval is None or interval.overlaps(item_interval(item)))
        and (region is None or _touches(item, region))
    )
    return limit_items(found, wanted.max_items)


def limit_items(items: Iterable[pystac.Item], max_items: int | None) -> list[pystac.Item]:
    """Return the first items of every collection."""
    counts: Counter[str | None] = Counter()
    kept = []
    for item in items:
        counts[item.collection_id] += 1
        if max_items is None or counts[item.collection_id] <= max_items:
            kept.append(item)
    return kept


def _touches(item: pystac.Item, region: Any) -> bool:
    place = item_shape(item)
    return place is None or bool(region.intersects(place))


def _is_optical(name: str) -> bool:
    return name in DERIVED or (name in MODALITIES and MODALITIES[name].units == "1e-4")


def _is_radar(item: pystac.Item) -> bool:
    if (row := find_row(item.collection_id)) is not None:
        return MODALITIES[row.modality].units == "dB"
    names = {key.lower().rpartition("_")[2] for key in item.assets}
    return bool(names & _RADAR_ASSETS) or any(key.startswith("sar:") for key in item.properties)


def _is_on(item: pystac.Item, orbit: str | int) -> bool:
    if isinstance(orbit, int):
        return bool(item.properties.get("sat:relative_orbit") == orbit)
    return str(item.properties.get("sat:orbit_state")).lower() == orbit


def _property(item: pystac.Item, name: str) -> Any:
    if name in {"id", "collection"}:
        return item.id if name == "id" else item.collection_id
    if name == "proj:epsg" and name not in item.properties:
        # pystac rewrites it to proj:code, whatever the server sent.
        _, _, code = str(item.properties.get("proj:code", "")).partition("EPSG:")
        return int(code) if code.isdigit() else None
    return item.properties.get(name)


def _fulfils(value: Any, operator: str, wanted: Any) -> bool:
    try:
        return value is not None and bool(_OPERATORS[operator](value, wanted))
    except (TypeError, AttributeError):  # of another type than what is asked for
        return False


def _check_orbit(orbit: Any) -> str | int | None:
    if orbit is None:
        return None
    if _is_whole(orbit) and orbit > 0:
        return int(orbit)
    if isinstance(orbit, str) and orbit.lower() in _DIRECTIONS:
        return orbit.lower()
    raise ValueError(
        f"orbit is 'ascending', 'descending' or the number of a relative orbit, got {orbit!r}."
    )


def _check_query(query: Any, asked: tuple[str, ...]) -> Mapping[str, Mapping[str, Any]] | None:
    """Check a query, for all or by modality; what is derived from a modality is filtered as it."""
    if query is None:
        return None
    if not isinstance(query, Mapping) or not all(isinstance(v, Mapping) for v in query.values()):
        raise ValueError(
            f"query maps properties to operators, such as {{'eo:cloud_cover': {{'lt': 20}}}}, got "
            f"{query!r}."
        )
    nested = any(isinstance(v, Mapping) for tests in query.values() for v in tests.values())
    if not nested and not set(query) & set(MODALITIES):
        for name, tests in query.items():
            for operator, wanted in tests.items():
                _check_test(name, operator, wanted)
        return query
    found: dict[str, Any] = {}
    allowed = {_source(name) for name in asked}
    for name, part in query.items():
        source = _source(find_modality(name).name)
        if source not in allowed:
            raise ValueError(f"query is for {name}, which is not asked for: {list(asked)}.")
        found[source] = {**found.get(source, {}), **(_check_query(part, ()) or {})}
    return found


def _check_test(name: str, operator: str, wanted: Any) -> None:
    if operator not in _OPERATORS:
        raise ValueError(
            f"Unknown operator {operator!r} for {name!r} in query: "
            f"{nearest_name(str(operator), _OPERATORS)}."
        )
    if operator == "in" and (isinstance(wanted, str) or not isinstance(wanted, Collection)):
        raise ValueError(f"The operator 'in' for {name!r} takes a list, got {wanted!r}.")


def _source(name: str) -> str:
    return "S2L2A" if name in DERIVED else name


def _check_ids(ids: Any) -> tuple[str, ...] | None:
    if ids is None:
        return None
    if isinstance(ids, str):
        raise ValueError(f"ids is a list of item ids, got the string {ids!r}: give [{ids!r}].")  # noqa: TRY004
    found = tuple(ids)
    if not found or not all(isinstance(name, str) for name in found):
        raise ValueError(f"ids is a list of item ids, at least one, got {ids!r}.")
    return found


def _check_count(name: str, count: Any, most: int | None = None) -> None:
    if count is None:
        return
    if not _is_whole(count) or count < 1 or (most is not None and count > most):
        span = "at least 1" if most is None else f"from 1 to {most}"
        raise ValueError(f"{name} is a number of items, {span}, got {count!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _as_utc(text: str) -> datetime:
    return _utc(datetime.fromisoformat(text))


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
