"""Which items answer a search: the semantics of a STAC API, applied to items at hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import shapely
from pystac_client.item_search import ItemSearch
from shapely.geometry import box, mapping, shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pystac

__all__ = [
    "DatetimeQuery",
    "Interval",
    "area_geometry",
    "item_interval",
    "parse_interval",
    "select_items",
]

DatetimeQuery = str | datetime | tuple[datetime | str | None, datetime | str | None]
"""What a search takes as time: one string or datetime, or a pair with None for an open end."""


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


def area_geometry(
    bbox: Sequence[float] | None = None, intersects: Any = None
) -> dict[str, Any] | None:
    """Return the area of a search as a GeoJSON geometry in longitude and latitude.

    Parameters
    ----------
    bbox : sequence of 4 or 6 floats, optional
        West, south, east, north in degrees; west > east crosses the antimeridian.
    intersects : mapping or object with ``__geo_interface__``, optional
        GeoJSON geometry or Feature in longitude and latitude.

    Raises
    ------
    ValueError
        If both are given, or one cannot be read.
    """
    if bbox is not None and intersects is not None:
        raise ValueError("Give bbox or intersects, not both.")
    if bbox is not None:
        return _bbox_geometry(bbox)
    if intersects is None:
        return None
    document = getattr(intersects, "__geo_interface__", intersects)
    try:
        geometry = shape(document.get("geometry", document))
        empty = geometry.is_empty
    except Exception as error:
        raise ValueError(
            f"Cannot read intersects ({error}): give a GeoJSON geometry in lon, lat."
        ) from error
    if empty:
        raise ValueError("intersects is an empty geometry.")
    return dict(mapping(geometry))


def select_items(
    items: Iterable[pystac.Item],
    *,
    collections: Sequence[str] | None = None,
    bbox: Sequence[float] | None = None,
    intersects: Any = None,
    datetime: DatetimeQuery | None = None,
) -> list[pystac.Item]:
    """Return the items that a STAC API would return for the same search, in the given order.

    An item without a geometry is everywhere, as its pixels may be.
    """
    area = area_geometry(bbox, intersects)
    region = None if area is None else shape(area)
    interval = None if datetime is None else parse_interval(datetime)
    return [
        item
        for item in items
        if (collections is None or item.collection_id in collections)
        and (region is None or _touches(item, region))
        and (interval is None or interval.overlaps(item_interval(item)))
    ]


def _touches(item: pystac.Item, region: shapely.Geometry) -> bool:
    document = item.geometry or (_bbox_geometry(item.bbox) if item.bbox else None)
    return document is None or bool(shape(document).intersects(region))


def _bbox_geometry(bbox: Sequence[float]) -> dict[str, Any]:
    values = [float(value) for value in bbox]
    if len(values) == 6:  # with heights
        values = [values[i] for i in (0, 1, 3, 4)]
    valid = (
        len(values) == 4
        and all(-180 <= lon <= 180 for lon in values[0::2])
        and -90 <= values[1] < values[3] <= 90
        and values[0] != values[2]
    )
    if not valid:
        raise ValueError(
            f"bbox must be (west, south, east, north) in degrees of longitude and latitude, "
            f"got {tuple(bbox)}."
        )
    west, south, east, north = values
    if west < east:
        return dict(mapping(box(west, south, east, north)))
    halves = [box(west, south, 180, north), box(-180, south, east, north)]
    return dict(mapping(shapely.MultiPolygon(halves)))


def _as_utc(text: str) -> datetime:
    return _utc(datetime.fromisoformat(text))


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
