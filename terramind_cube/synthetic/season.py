"""What a date does to a place: sun, temperature, growth, harvest, snow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from terramind_cube.synthetic.land import SURFACE_CLASS, Climate, Place, Surface
from terramind_cube.synthetic.terrain import Field, stream

if TYPE_CHECKING:
    import datetime as dt

    import numpy.typing as npt

__all__ = ["FIELD_KINDS", "Season", "Sun", "make_season", "position_sun"]

FIELD_KINDS = (0.36, 0.66, 0.82)
"""Upper bounds of the crop trait: winter cereal, summer crop, oilseed, then fodder."""

_LUSH = {Surface.WETLAND: 0.8, Surface.SHRUB: 0.55, Surface.GARDEN: 0.95, Surface.ROCK: 0.06}
"""Share of green at the height of the season, of surfaces that are not all leaf."""

_SNOW_HOLD = {
    Surface.WATER: 0.0,
    Surface.CONIFER: 0.4,
    Surface.BROADLEAF: 0.55,
    Surface.RED_ROOFS: 0.6,
    Surface.STREET: 0.3,
    Surface.BRIGHT_ROOFS: 0.6,
    Surface.GARDEN: 0.8,
}
"""Share of a surface that fresh snow hides."""


@dataclass(frozen=True)
class Sun:
    """Position of the sun in radians: angle from the zenith, azimuth clockwise from north."""

    zenith: float
    azimuth: float


@dataclass(frozen=True)
class Season:
    """State of a place on a date; fields are (height, width), float32, from 0 to 1.

    Attributes
    ----------
    date : datetime.date
        The date.
    sun : Sun
        The sun at 10:30 local time.
    green : numpy.ndarray
        Share of living leaf (of algae, on water).
    dry : numpy.ndarray
        Share of ripe, withered or flowering plants (of mud, on water).
    snow : numpy.ndarray
        Share hidden by snow.
    """

    date: dt.date
    sun: Sun
    green: Field
    dry: Field
    snow: Field


def make_season(place: Place, date: dt.date) -> Season:
    """Let a date pass over a place.

    Parameters
    ----------
    place : Place
        The place.
    date : datetime.date
        The date.

    Returns
    -------
    Season
    """
    climate, day = place.climate, float(date.timetuple().tm_yday)
    # Weeks differ in weather, days of one week hardly do.
    weather = stream(place.seed, "weather", date.toordinal() // 7).normal(0, 2.0)
    warmth = climate.temperature_c(day) + weather - 0.0065 * place.terrain.elevation_m
    green, dry = _grow_plants(place, day, warmth)
    snow = _sigmoid((-0.7 - warmth + 0.5 * place.patches) / 0.6)
    hold = np.ones(len(Surface), dtype=np.float32)
    for kind, share in _SNOW_HOLD.items():
        hold[kind] = share
    snow *= hold[place.surface]
    return Season(date, position_sun(climate.latitude, day), green, dry, snow)


def position_sun(latitude: float, day: float) -> Sun:
    """Return the sun's position at 10:30 local solar time, at least 8 degrees above the horizon.

    The declination follows Cooper (1969).
    """
    declination = np.deg2rad(23.44) * np.sin(2 * np.pi * (284 + day) / 365)
    hour, phi = np.deg2rad(-22.5), np.deg2rad(latitude)
    up = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour)
    east = -np.cos(declination) * np.sin(hour)
    north = np.cos(phi) * np.sin(declination) - np.sin(phi) * np.cos(declination) * np.cos(hour)
    zenith = min(float(np.arccos(up)), np.deg2rad(82))
    return Sun(zenith, float(np.arctan2(east, north)) % (2 * np.pi))


def _sigmoid(x: npt.NDArray[np.floating]) -> Field:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))), dtype=np.float32)


def _rainfall(climate: Climate, day: float) -> float:
    """Return how wet the season is, 0 to 1, where the rain is seasonal at all."""
    return 0.5 + 0.5 * float(np.cos(2 * np.pi * (day - climate.wettest_day) / 365))


def _grow_plants(place: Place, day: float, warmth: Field) -> tuple[Field, Field]:
    """Return the green and the dry share of each pixel."""
    climate, surface = place.climate, place.surface
    thirst = climate.aridity * (1 - 0.9 * _rainfall(climate, day))
    drought = np.clip(1.9 * thirst + 0.06 * place.patches, 0, 1)
    leaf = _sigmoid((warmth - 8.5) / 1.2)
    grass = _sigmoid((warmth - 4.0) / 2.0) * (1 - drought)
    green = np.where(surface == Surface.BROADLEAF, leaf * (1 - 0.5 * drought), grass)
    lush = np.ones(len(Surface), dtype=np.float32)
    for kind, share in _LUSH.items():
        lush[kind] = share
    green *= lush[surface]
    green[surface == Surface.CONIFER] = 1.0
    dry = 0.75 * (1 - green) * (SURFACE_CLASS[surface] == 9)
    # Leaves turn before they fall; the spring has no such colours.
    autumn = np.sin(2 * np.pi * (day - (200 if climate.latitude >= 0 else 17)) / 365) > 0
    dry = np.where(surface == Surface.BROADLEAF, autumn * leaf * (1 - leaf) * 2, dry)
    crop_green, crop_dry = _grow_crops(place, day)
    cold = _sigmoid((warmth - 2.0) / 2.0)
    field = surface == Surface.FIELD
    green = np.where(field, crop_green * np.maximum(cold, 0.25), green)
    dry = np.where(field, crop_dry, dry)
    water = surface == Surface.WATER
    mud = np.exp(-place.terrain.river_distance_px / 5.0) * 0.5 + 0.05 * place.patches
    green[water] = 0.04
    dry[water] = np.clip(mud + 0.06, 0.0, 0.7)[water]
    return green.astype(np.float32), np.clip(dry, 0, 1 - green).astype(np.float32)


def _grow_crops(place: Place, day: float) -> tuple[Field, Field]:
    """Return green and dry share of the fields: computed per parcel, spread to pixels."""
    kind, shift, _, vigour, _, _ = place.parcels.traits.T
    today = (day - place.climate.calendar_days - 24 * (shift - 0.5)) % 365
    winter, summer, oilseed = (kind < bound for bound in FIELD_KINDS)

    def season(start: float, end: float, pace: float = 7.0) -> Field:
        return _sigmoid((today - start) / pace) * _sigmoid((end - today) / pace)

    cereal = np.maximum(season(80, 180), 0.3 * season(310, 420))
    cereal_dry = season(183, 228, 3.0)
    maize = season(165, 262)
    rape = np.maximum(season(72, 186), 0.4 * season(270, 420))
    # Flowers cover what is green; `dry` is their share of the parcel.
    bloom = season(112, 139, 3.0)
    fodder = 0.45 + 0.5 * np.abs(np.sin(2 * np.pi * (today / 55 + shift)))
    kinds = [winter, summer, oilseed]
    green = np.select(kinds, [cereal, maize, rape * (1 - 0.8 * bloom)], fodder)
    dry = np.select(kinds, [cereal_dry, 0.7 * season(262, 290, 4.0), bloom * 0.8], 0.15)
    green = green * (0.7 + 0.3 * vigour)
    within = 1 + 0.06 * place.patches
    index = place.parcels.index
    return np.clip(green[index] * within, 0, 1), np.clip(dry[index], 0, 1)
