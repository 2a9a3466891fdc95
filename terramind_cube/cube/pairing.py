"""Time steps of a cube: items grouped into steps, and the steps of sensors paired."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd

from terramind_cube.stac.acquisitions import newest_processing
from terramind_cube.stac.providers import rank
from terramind_cube.stac.search import item_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from terramind_cube.stac.bands import ItemBands

__all__ = [
    "TimeStep",
    "group_steps",
    "pair_nearest",
    "pair_scenes",
    "pair_years",
    "parse_tolerance",
]


@dataclass(frozen=True)
class TimeStep:
    """One step of one modality.

    Attributes
    ----------
    time : datetime
        Of its first item, in UTC.
    sources : tuple of ItemBands
        Items that make up its mosaic, in order of time and id.
    coverage : float
        Share of the area that its items cover; 1 where it was not looked at.
    """

    time: datetime
    sources: tuple[ItemBands, ...]
    coverage: float = 1.0

    @property
    def relative_orbit(self) -> int | None:
        """Relative orbit of its first item, where it tells one."""
        orbit = self.sources[0].item.properties.get("sat:relative_orbit")
        return None if orbit is None else int(orbit)

    @property
    def track(self) -> str:
        """What tells geometries apart: the relative orbit, or at least its direction."""
        if (orbit := self.relative_orbit) is not None:
            return f"{orbit:05}"
        told = (source.item.properties.get("sat:orbit_state") for source in self.sources)
        return str(next(told, None) or "")


def group_steps(sources: Iterable[ItemBands], *, longitude_deg: float) -> list[TimeStep]:
    """Group the items of one modality into steps, in order of time.

    Scenes are grouped by solar day, those of a radar also by orbit (passes see another geometry);
    annual maps by year; static layers are one step. Of an acquisition that was processed several
    times the newest processing is taken.

    Parameters
    ----------
    sources : iterable of ItemBands
        Items of one modality.
    longitude_deg : float
        Longitude of the area, for the solar day.
    """

    def solar_day(source: ItemBands) -> Hashable:
        day = (_moment(source) + timedelta(hours=longitude_deg / 15)).date()
        if not _is_radar(source):
            return day
        properties = source.item.properties
        if (orbit := properties.get("sat:absolute_orbit")) is not None:
            return properties.get("platform"), orbit
        return day, properties.get("sat:orbit_state"), properties.get("sat:relative_orbit")

    def year(source: ItemBands) -> Hashable:
        interval = item_interval(source.item)
        is_instant = interval.end is None or interval.end == interval.start
        begins = interval.start or _moment(source)
        return solar_day(source) if is_instant else begins.year

    keys: dict[str, Callable[[ItemBands], Hashable]] = {
        "instant": solar_day,
        "annual": year,
        "static": lambda _: None,
    }
    groups: dict[Hashable, list[ItemBands]] = {}
    # Of a static layer the finest edition lies on top, whatever its date.
    ordered = sorted(
        newest_processing(sources),
        key=lambda s: (
            rank(s.item.collection_id) if s.modality.temporal == "static" else 0,
            _moment(s),
            s.item.id,
        ),
    )
    for source in ordered:
        groups.setdefault(keys[source.modality.temporal](source), []).append(source)
    return [TimeStep(_moment(group[0]), tuple(group)) for group in groups.values()]


def pair_scenes(
    times: Sequence[datetime], steps: Sequence[TimeStep], within: timedelta
) -> list[int | None]:
    """Return for each time the place of its radar step, None where none is within reach.

    One relative orbit serves as many dates as it can, for a change of geometry looks like a change
    of the land: that which covers most of the area over all dates (to a tenth), then the one that
    is nearest in time. Dates that it does not reach get the nearest step of any orbit.
    """
    orbits: dict[str, list[int]] = {}
    for place, step in enumerate(steps):
        orbits.setdefault(step.track, []).append(place)
    nearest = pair_nearest(times, steps, within)
    best, best_score = nearest, None
    for orbit in sorted(orbits):
        own = orbits[orbit]
        found = pair_nearest(times, [steps[place] for place in own], within)
        places = [None if place is None else own[place] for place in found]
        pairs = [(t, steps[p]) for t, p in zip(times, places, strict=True) if p is not None]
        covered = sum(round(step.coverage, 1) for _, step in pairs)
        distance = sum((abs(step.time - time) for time, step in pairs), timedelta(0))
        score = (covered, -distance)
        if pairs and (best_score is None or score > best_score):
            best, best_score = places, score
    return [other if place is None else place for place, other in zip(best, nearest, strict=True)]


def pair_nearest(
    times: Sequence[datetime], steps: Sequence[TimeStep], within: timedelta
) -> list[int | None]:
    """Return for each time the place of the nearest step, None where none is within reach.

    Of two equally near steps the earlier one is taken.
    """
    places: list[int | None] = []
    for time in times:
        distances = [(abs(step.time - time), step.time, n) for n, step in enumerate(steps)]
        distance, _, place = min(distances, default=(within + timedelta(1), time, 0))
        places.append(place if distance <= within else None)
    return places


def pair_years(
    times: Sequence[datetime], steps: Sequence[TimeStep], wanted: int | str | None = None
) -> list[int | None]:
    """Return for each time the place of the nearest step of its year, None where there is none.

    Parameters
    ----------
    times : sequence of datetime
    steps : sequence of TimeStep
    wanted : int or "nearest", optional
        A year that serves every time, or the year nearest to each that has a step, the earlier one
        of two; by default its own.
    """
    years = {step.time.year for step in steps}
    places: list[int | None] = []
    for time in times:
        year = time.year if wanted in (None, "nearest") else wanted
        if wanted == "nearest" and years:
            year = min(years, key=lambda found: (abs(found - time.year), found))
        same = [
            (abs(step.time - time), place)
            for place, step in enumerate(steps)
            if step.time.year == year
        ]
        places.append(min(same)[1] if same else None)
    return places


def parse_tolerance(within: str | timedelta) -> timedelta:
    """Read a pairing tolerance such as ``"7D"`` or ``"12h"``.

    Raises
    ------
    ValueError
        If it is not a duration, or negative.
    """
    # A bare number would count as nanoseconds.
    is_bare = str(within).strip().replace(".", "", 1).isdigit()
    try:
        tolerance = pd.NaT if is_bare else pd.Timedelta(within)
    except (ValueError, TypeError):
        tolerance = pd.NaT
    if not tolerance >= pd.Timedelta(0):  # NaT compares as false
        raise ValueError(f"pair_within must be a duration such as '7D' or '12h', got {within!r}.")
    return timedelta(seconds=tolerance.total_seconds())


def _moment(source: ItemBands) -> datetime:
    """Return the nominal time of an item, or else when it begins."""
    when = source.item.datetime or item_interval(source.item).start
    if when is None:
        return datetime.min.replace(tzinfo=UTC)
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def _is_radar(source: ItemBands) -> bool:
    return source.modality.units == "dB"
