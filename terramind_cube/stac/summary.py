"""What a search found, as text and as a small table with a picture for notebooks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from shapely.geometry import shape

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.areas import item_shape
from terramind_cube.stac.search import item_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pystac
    from numpy.typing import NDArray

    from terramind_cube.stac.result import SearchResult

__all__ = ["ItemCounts", "count_items", "describe_items", "draw_items"]

_DATES_SHOWN = 12
_SHAPES_SHOWN = 200
_PICTURE_PX = 180.0
_LEAST_EXTENT_DEG = 0.01
# How much of an ISO date tells when something is: a day, a year, nothing.
_DATE_LENGTH = {"instant": 10, "annual": 4, "static": 0}

_LINE = "padding:.15em .6em;border-bottom:1px solid rgba(128,128,128,.35)"
_LEFT = f'style="text-align:left;{_LINE}"'
_RIGHT = f'style="text-align:right;white-space:nowrap;{_LINE}"'
_ITEM_STYLE = 'fill="currentColor" fill-opacity=".08" stroke-width=".75"'
_AREA_STYLE = 'fill="none" stroke-dasharray="4 3" stroke-width="1.5"'


@dataclass(frozen=True)
class ItemCounts:
    """How many items there are of one modality.

    Attributes
    ----------
    name : str
        Modality, or collection of items of none.
    total : int
        Items in all.
    by_date : mapping of str to int
        By day in UTC, by year for an annual map, under ``""`` for a layer without time.
    """

    name: str
    total: int
    by_date: Mapping[str, int]

    @property
    def has_days(self) -> bool:
        """Whether the items are scenes of a day."""
        return any(len(date) == _DATE_LENGTH["instant"] for date in self.by_date)

    @property
    def when(self) -> str:
        """Days or years in a few words."""
        dates = [date for date in self.by_date if date]
        if not dates:
            return "at any time" if self.by_date else ""
        if len(dates) == 1:
            return dates[0]
        unit = "dates" if self.has_days else "years"
        return f"{dates[0]} to {dates[-1]}, {len(dates)} {unit}"


def count_items(result: SearchResult) -> list[ItemCounts]:
    """Count the items of a result by modality and date."""
    rows = []
    for name, items in result.groups().items():
        temporal = MODALITIES[name].temporal if name in MODALITIES else "instant"
        dates = Counter(_start(item)[: _DATE_LENGTH[temporal]] for item in items)
        rows.append(ItemCounts(name, len(items), dict(sorted(dates.items()))))
    return rows


def describe_items(result: SearchResult) -> str:
    """Describe a result as text: a line for each modality, and what is missing."""
    rows = count_items(result)
    width = max((len(row.name) for row in rows), default=0)
    lines = [f"<SearchResult: {_some(len(result))} of {result.source}>"]
    lines += [f"  {row.name:<{width}}  {row.total:>5}  {row.when}".rstrip() for row in rows]
    if result.missing:
        lines.append(f"  missing: {', '.join(result.missing)}")
    return "\n".join(lines)


def draw_items(result: SearchResult) -> str:
    """Describe a result as HTML: modalities by dates, footprints, and what is missing."""
    rows = count_items(result)
    days = sorted({day for row in rows if row.has_days for day in row.by_date})
    shown, hidden = days[:_DATES_SHOWN], len(days[_DATES_SHOWN:])
    heads = ["items", *shown, *([f"and {hidden} more"] if hidden else [])]
    head = "".join(f"<th {_RIGHT}>{escape(text)}</th>" for text in heads)
    body = "".join(_table_row(row, shown, len(heads) - 1) for row in rows)
    table = (
        f'<table style="border-collapse:collapse"><tr><th {_LEFT}></th>{head}</tr>{body}</table>'
    )
    missing = ""
    if result.missing:
        missing = f"<div><b>missing:</b> {escape(', '.join(result.missing))}</div>"
    return (
        f"<div><div><b>SearchResult</b>: {_some(len(result))} of {escape(result.source)}</div>"
        '<div style="display:flex;gap:1.5em;align-items:flex-start;margin:.5em 0">'
        f'{_picture(result)}<div style="overflow-x:auto">{table}</div></div>{missing}</div>'
    )


def _table_row(row: ItemCounts, days: Sequence[str], columns: int) -> str:
    begin = f"<tr><td {_LEFT}>{escape(row.name)}</td><td {_RIGHT}>{row.total}</td>"
    if not row.has_days:
        return f"{begin}<td {_LEFT} colspan={max(columns, 1)}>{escape(row.when)}</td></tr>"
    counts = [row.by_date.get(day, 0) for day in days]
    if columns > len(days):
        counts.append(row.total - sum(counts))
    cells = "".join(f"<td {_RIGHT}>{count or ''}</td>" for count in counts)
    return f"{begin}{cells}</tr>"


def _picture(result: SearchResult) -> str:
    """Draw footprints, and the searched area dashed, in the colour of the text around."""
    places = [place for item in result.items[:_SHAPES_SHOWN] if (place := item_shape(item))]
    region = None if result.area is None else shape(result.area)
    if region is None and not places:
        return ""
    frame = _Frame.around(region, places)
    # Repeated footprints, such as those of one tile, are drawn once.
    drawn = dict.fromkeys(f'd="{frame.outline(place)}" {_ITEM_STYLE}' for place in places)
    if region is not None:
        drawn[f'd="{frame.outline(region)}" {_AREA_STYLE}'] = None
    width, height = frame.size_px
    paths = "".join(f"<path {path}/>" for path in drawn if not path.startswith('d=""'))
    return (
        f'<svg width="{width:.1f}" height="{height:.1f}" stroke="currentColor" role="img" '
        f'style="flex:none"><title>Footprints</title>{paths}</svg>'
    )


@dataclass(frozen=True)
class _Frame:
    """From degrees to the pixels of a picture; across the antimeridian if that is narrower."""

    west: float
    south: float
    east: float
    north: float
    is_turned: bool

    @classmethod
    def around(cls, region: Any, places: Sequence[Any]) -> _Frame:
        """Frame a searched area with as much again around it, or else all places."""
        corners = shapely.get_coordinates(places if region is None else region)
        turned = _turned(corners)
        is_turned = bool(np.ptp(turned[:, 0]) < np.ptp(corners[:, 0]))
        used = turned if is_turned else corners
        extent = np.maximum(np.ptp(used, axis=0), _LEAST_EXTENT_DEG)
        margin = extent * (0.02 if region is None else 0.5)
        west, south = used.min(axis=0) - margin
        east, north = used.max(axis=0) + margin
        return cls(float(west), float(south), float(east), float(north), is_turned)

    @property
    def scale(self) -> NDArray[np.float64]:
        """Pixels per degree of longitude and latitude: the former is the shorter."""
        squeeze = max(math.cos(math.radians((self.south + self.north) / 2)), 0.05)
        extent = max((self.east - self.west) * squeeze, self.north - self.south)
        return np.array([squeeze, 1.0]) * (_PICTURE_PX / extent)

    @property
    def size_px(self) -> tuple[float, float]:
        """Width and height of the picture."""
        width, height = np.array([self.east - self.west, self.north - self.south]) * self.scale
        return float(width), float(height)

    def outline(self, place: Any) -> str:
        """Return what the frame shows of a shape, as an SVG path."""
        turned = shapely.transform(place, _turned) if self.is_turned else place
        seen = shapely.box(self.west, self.south, self.east, self.north)
        lines = []
        for line in shapely.get_parts(_lines(_valid(turned).intersection(seen))):
            pixels = (shapely.get_coordinates(line) - (self.west, self.north)) * self.scale
            lines.append("M" + "L".join(f"{x:.1f} {-y:.1f}" for x, y in pixels))
        return "".join(lines)


def _valid(place: Any) -> Any:
    return place if place.is_valid else shapely.make_valid(place)


def _lines(place: Any) -> Any:
    """Return the lines to draw of a shape; a point becomes a small square."""
    dimension = shapely.get_dimensions(place)
    if dimension == 0:
        return place.buffer(_LEAST_EXTENT_DEG / 2, cap_style="square").boundary
    return place.boundary if dimension == 2 else place


def _turned(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count longitudes from 0 to 360."""
    return np.column_stack([np.mod(corners[:, 0], 360.0), corners[:, 1]])


def _start(item: pystac.Item) -> str:
    start = item_interval(item).start
    return start.date().isoformat() if start else ""


def _some(count: int) -> str:
    return f"{count} item{'' if count == 1 else 's'}"
