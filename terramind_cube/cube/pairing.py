"""Time steps of a cube: items grouped into steps, and the steps of sensors paired."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd

from terramind_cube.stac.search import item_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from terramind_cube.stac.providers import ItemBands

__all__ = ["TimeStep", "group_steps", "pair_nearest", "pair_years", "parse_tolerance"]


@dataclass(frozen=True)
class TimeStep:
    """One step of one modality.

    Attributes
    ----------
    time : datetime
        Of its first item, in UTC.
    sources : tuple of ItemBands
        Items that make up its mosaic, in order of time and id.
    """

    time: datetime
    sources: tuple[ItemBands, ...]


def group_steps(sources: Iterable[ItemBands], *, longitude_deg: float) -> list[TimeStep]:
    """Group the items of one modality into steps, in order of time.

    Scenes are grouped by solar day, those of a radar also by the direction of the orbit (ascending
    and descending passes see another geometry); annual maps by year; static layers are one step.

    Parameters
    ----------
    sources : iterable of ItemBands
        Items of one modality.
    longitude_deg : float
        Longitude of the area, for the solar day.
    """

    def solar_day(source: ItemBands) -> Hashable:
        day = (_start(source) + timedelta(hours=longitude_deg / 15)).date()
        return day, source.item.properties.get("sat:orbit_state") if _is_radar(source) else None

    def year(source: ItemBands) -> Hashable:
        return _start(source).year if source.item.datetime is None else solar_day(source)

    keys: dict[str, Callable[[ItemBands], Hashable]] = {
        "instant": solar_day,
        "annual": year,
        "static": lambda _: None,
    }
    groups: dict[Hashable, list[ItemBands]] = {}
    for source in sorted(sources, key=lambda s: (_start(s), s.item.id)):
        groups.setdefault(keys[source.modality.temporal](source), []).append(source)
    return [TimeStep(_start(group[0]), tuple(group)) for group in groups.values()]


def pair_nearest(
    times: Sequence[datetime], steps: Sequence[TimeStep], within: timedelta
) -> list[int | None]:
    """Return for each time the place of the nearest step, None where none is within reach.

    Of two equally near steps the earlier one is taken.
    """
    places: list[int | None] = []
    for time in times:
        distances = [(abs(step.time - time), place) for place, step in enumerate(steps)]
        distance, place = min(distances, default=(within + timedelta(1), 0))
        places.append(place if distance <= within else None)
    return places


def pair_years(times: Sequence[datetime], steps: Sequence[TimeStep]) -> list[int | None]:
    """Return for each time the place of the nearest step of its year, None where there is none."""
    places: list[int | None] = []
    for time in times:
        same = [
            (abs(step.time - time), place)
            for place, step in enumerate(steps)
            if step.time.year == time.year
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
    try:
        tolerance = pd.Timedelta(within)
    except (ValueError, TypeError):
        tolerance = pd.NaT
    if not tolerance >= pd.Timedelta(0):  # NaT compares as false
        raise ValueError(f"pair_within must be a duration such as '7D' or '12h', got {within!r}.")
    return timedelta(seconds=tolerance.total_seconds())


def _start(source: ItemBands) -> datetime:
    return item_interval(source.item).start or datetime.min.replace(tzinfo=UTC)


def _is_radar(source: ItemBands) -> bool:
    return source.modality.units == "dB"
