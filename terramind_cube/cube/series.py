"""Time steps of every modality of a request, on one time axis."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import shapely
from shapely.geometry import shape

from terramind_cube.cube.grids import crs_of, geographic_extent, place_of, to_geographic
from terramind_cube.cube.pairing import (
    TimeStep,
    group_steps,
    pair_nearest,
    pair_scenes,
    pair_years,
)
from terramind_cube.stac.areas import item_shape

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from odc.geo.geobox import GeoBox

    from terramind_cube.cube.request import CubeRequest
    from terramind_cube.modalities import Modality
    from terramind_cube.stac.bands import ItemBands

__all__ = ["Series", "find_series", "middle_longitude", "pair_steps", "steps_of", "tell_gaps"]

_WHOLE = 0.99


@dataclass(frozen=True)
class Series:
    """The scenes of one modality along the time axis of a cube.

    Attributes
    ----------
    modality : Modality
    steps : tuple of TimeStep
        Those that are used, in order of time.
    places : tuple of int or None
        Step at each place of the time axis, None where there is none.
    leads : bool
        Whether it gives the time axis.
    """

    modality: Modality
    steps: tuple[TimeStep, ...]
    places: tuple[int | None, ...]
    leads: bool

    @property
    def chosen(self) -> list[TimeStep | None]:
        """Step at each place of the time axis."""
        return [None if place is None else self.steps[place] for place in self.places]


def find_series(
    request: CubeRequest, leading: list[ItemBands], grid: GeoBox
) -> tuple[list[datetime], list[Series]]:
    """Search for the modalities that follow the leading one, and pair all on its time axis.

    Parameters
    ----------
    request : CubeRequest
    leading : list of ItemBands
        Items of the modality that leads.
    grid : GeoBox

    Returns
    -------
    times : list of datetime
    series : list of Series
        In the order of `CubeRequest.read`.

    Raises
    ------
    ValueError
        If a modality has no item, or none that pairs with any date.

    Warns
    -----
    UserWarning
        If some dates stay without a modality.
    """
    first, *others = request.read
    axis = steps_of(first, leading, grid)
    extent = geographic_extent(grid)
    area = shape(request.area or extent)
    if first.temporal == "static" and request.area is not None:
        tell_gaps(first, axis, area)
    times = [step.time for step in axis]
    series = [Series(first, tuple(axis), tuple(range(len(axis))), leads=True)]
    for modality in others:
        found = request.find(modality, extent, request.window(modality, times))
        steps = steps_of(modality, found, grid)
        if modality.temporal == "static":
            tell_gaps(modality, steps, area, beside=axis)
        places = pair_steps(request, modality, times, steps)
        used = sorted({place for place in places if place is not None})
        kept = tuple(None if place is None else used.index(place) for place in places)
        chosen = tuple(steps[place] for place in used)
        series.append(Series(modality, chosen, kept, leads=False))
    return times, series


def tell_gaps(
    modality: Modality,
    steps: Sequence[TimeStep],
    area: Any,
    beside: Sequence[TimeStep] = (),
) -> None:
    """Warn where the items of a static layer leave a part of an area empty.

    Of the extent of some scenes, whose rim they leave empty, what they cover counts.
    """
    share = _coverage(steps[0], area)
    if share >= _WHOLE:
        return
    if share < _WHOLE * max((_coverage(step, area) for step in beside), default=1.0):
        warnings.warn(
            f"{modality.name} covers {share:.0%} of the area: no item lies over the rest, which is "
            "nodata.",
            UserWarning,
            stacklevel=5,
        )


def steps_of(modality: Modality, found: Sequence[ItemBands], grid: GeoBox) -> list[TimeStep]:
    """Return the steps of some items, radar ones with the share of the grid that they cover."""
    steps = group_steps(found, longitude_deg=middle_longitude(grid))
    if modality.units != "dB":
        return steps
    area = shape(geographic_extent(grid))
    return [replace(step, coverage=_coverage(step, area)) for step in steps]


def middle_longitude(grid: GeoBox) -> float:
    """Return the longitude of a grid's middle, in degrees."""
    height, width = grid.shape.yx
    x, y = place_of(grid.affine, width / 2, height / 2)
    return float(to_geographic(crs_of(grid), x, y)[0])


def _coverage(step: TimeStep, area: Any) -> float:
    geometries = [item_shape(source.item) for source in step.sources]
    if None in geometries or area.area == 0:
        return 1.0
    try:
        shared = shapely.union_all(geometries).intersection(area)
    except shapely.errors.GEOSException:  # some providers' outlines cross themselves
        return 1.0
    # Rounded, so that outlines which differ by noise do not decide between orbits.
    return round(float(shared.area / area.area), 3)


def pair_steps(
    request: CubeRequest, modality: Modality, times: Sequence[datetime], steps: Sequence[TimeStep]
) -> list[int | None]:
    """Pair the steps of a modality to a time axis.

    Returns
    -------
    list of int or None
        Place of the step at each time.

    Raises
    ------
    ValueError
        If no time has one.

    Warns
    -----
    UserWarning
        If some times have none.
    """
    if modality.temporal == "static":
        return [0]
    if modality.temporal == "annual":
        places = pair_years(times, steps, request.lulc_year)
    elif modality.units == "dB":
        places = pair_scenes(times, steps, request.tolerance(modality))
    else:
        places = pair_nearest(times, steps, request.tolerance(modality))
    alone = [time for time, place in zip(times, places, strict=True) if place is None]
    if len(alone) == len(times):
        raise ValueError(_unpaired(modality, times, steps))
    if modality.temporal == "annual":
        _tell_other_years(modality, times, steps, places)
    if alone:
        warnings.warn(
            f"{modality.name} has no scene for {_dates(alone)}: its pixels are nodata there.",
            UserWarning,
            stacklevel=5,
        )
    return places


def _tell_other_years(
    modality: Modality,
    times: Sequence[datetime],
    steps: Sequence[TimeStep],
    places: Sequence[int | None],
) -> None:
    pairs = {
        f"{time.year} from {steps[place].time.year}"
        for time, place in zip(times, places, strict=True)
        if place is not None and steps[place].time.year != time.year
    }
    if pairs:
        warnings.warn(
            f"{modality.name} is a map of another year: {', '.join(sorted(pairs))}.",
            UserWarning,
            stacklevel=6,
        )


def _unpaired(modality: Modality, times: Sequence[datetime], steps: Sequence[TimeStep]) -> str:
    found = _dates([step.time for step in steps])
    way = "Widen pair_within, or choose another datetime."
    if modality.temporal == "annual":
        way = 'Give lulc_year="nearest" or a year, or choose another datetime.'
    return (
        f"No {modality.name} item pairs with {_dates(times)}: there are items of "
        f"{found or 'no other year'}. {way}"
    )


def _dates(times: Sequence[datetime]) -> str:
    dates = list(dict.fromkeys(time.date().isoformat() for time in times))
    return ", ".join(dates[:6]) + (f" and {len(dates) - 6} more" if len(dates) > 6 else "")
