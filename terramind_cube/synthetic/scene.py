"""A synthetic scene as a cube: every modality, one date, in memory."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.geom import point
from odc.geo.xr import xr_coords

from terramind_cube.modalities import LULC_CLASSES, MODALITIES
from terramind_cube.synthetic.land import SURFACE_CLASS, Place, make_place
from terramind_cube.synthetic.season import Season, make_season
from terramind_cube.synthetic.sensors import (
    BAND_RESOLUTION_M,
    Backscatter,
    Clouds,
    make_clouds,
    see_backscatter,
    see_reflectance,
    to_top_of_atmosphere,
)
from terramind_cube.synthetic.terrain import stream

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import numpy.typing as npt

__all__ = [
    "Observation",
    "classify",
    "draw_latitude",
    "locate",
    "make_scene",
    "observe",
    "parse_date",
    "require_seed",
    "require_shape",
]

_RESOLUTION_M = 10
_CELL_M = 160
_SNOW_SHARE = 0.5
_LATITUDES = (-79.0, 83.0)


@dataclass(frozen=True)
class Observation:
    """What the satellites saw of a place around a date.

    Attributes
    ----------
    season : Season
        The date and what it did to the place.
    clouds : Clouds
        The clouds over it.
    reflectance : mapping of str to numpy.ndarray, uint16
        L2A bands on their native grids.
    backscatter : Backscatter
        Both kinds of Sentinel-1, in dB.
    ascending : bool
        Sentinel-1's orbit.
    optical_time, radar_time : numpy.datetime64
        When Sentinel-2 and Sentinel-1 passed, UTC.
    """

    season: Season
    clouds: Clouds
    reflectance: Mapping[str, npt.NDArray[np.uint16]]
    backscatter: Backscatter
    ascending: bool
    optical_time: np.datetime64
    radar_time: np.datetime64


def make_scene(
    seed: int,
    shape: tuple[int, int],
    *,
    latitude: float | None = None,
    date: str | dt.date | np.datetime64 | None = None,
    clouds: float = 0.0,
    orbit: str | None = None,
) -> xr.Dataset:
    """Make a cube of a place on a procedural Earth, with every modality, on one date.

    The same arguments give the same bytes in any process. Another date with the same seed, shape
    and latitude is the same place in another season: terrain, water and settlement stay, while
    crops, leaves, snow and the sun change.

    Parameters
    ----------
    seed : int
        Identity of the place, not negative. Seeds of 900 000 and more are never trained on.
    shape : tuple of int
        Height and width, in pixels of 10 m.
    latitude : float, optional
        Degrees north, -79 to 83; decides the climate. Drawn from the seed by default.
    date : str, datetime.date or numpy.datetime64, optional
        Day of the year and year, as in ``"2024-05-14"``. Drawn from the seed by default.
    clouds : float
        Fraction of cloud-covered pixels in the optical bands, 0 to 1. They are class 8 in LULC.
    orbit : {"ascending", "descending"}, optional
        Sentinel-1's orbit, which turns its look direction. Drawn from the seed by default.

    Returns
    -------
    xarray.Dataset
        A cube on a 10 m UTM grid whose origin is a multiple of 160 m, with one time step:
        S2L2A and S2L1C (time, band, y, x) uint16 reflectance x 10000, offset removed; RGB (time,
        band, y, x) uint8; S1RTC and S1GRD (time, band, y, x) float32 dB; DEM (y, x) float32 m;
        LULC (time, y, x) uint8 class 0..9; NDVI (time, y, x) float32 from S2L2A. Bands of 20 and
        60 m are block means, repeated to 10 m.

    Raises
    ------
    ValueError
        If the seed is negative, the shape is not positive, the latitude lies outside of UTM, the
        date cannot be read, `clouds` lies outside of 0..1 or `orbit` is unknown.
    """
    height, width = require_shape(shape)
    require_seed(seed)
    if not 0 <= clouds <= 1:
        raise ValueError(f"clouds is a fraction of the pixels, 0 to 1, got {clouds}.")
    if orbit not in (None, "ascending", "descending"):
        raise ValueError(f"orbit is 'ascending', 'descending' or None, got {orbit!r}.")
    latitude = draw_latitude(seed) if latitude is None else float(latitude)
    if not _LATITUDES[0] <= latitude <= _LATITUDES[1]:
        raise ValueError(
            f"latitude must lie in {_LATITUDES}, where UTM is defined; got {latitude}."
        )
    day = _draw_date(seed) if date is None else parse_date(date)
    place = make_place(seed, (height, width), latitude)
    seen = observe(place, day, clouds=clouds, orbit=orbit)
    return _assemble(place, seen, locate(seed, (height, width), latitude))


def observe(
    place: Place, date: dt.date, *, clouds: float = 0.0, orbit: str | None = None
) -> Observation:
    """Let both satellites pass over a place; see `make_scene` for the arguments."""
    season = make_season(place, date)
    cover = make_clouds(place, season, clouds)
    rng = stream(place.seed, "passes", date.toordinal())
    ascending = bool(rng.random() < 0.5) if orbit is None else orbit == "ascending"
    optical_time = np.datetime64(date, "ns") + np.timedelta64(10 * 60 + 30, "m")
    # Sentinel-1 passes at about six in the morning (descending) and in the evening (ascending).
    days = int(rng.choice([-2, -1, 1, 2]))
    minutes = int(rng.integers(-20, 20)) + (17 * 60 + 50 if ascending else 5 * 60 + 50)
    radar_time = np.datetime64(date, "ns") + np.timedelta64(days, "D")
    return Observation(
        season,
        cover,
        see_reflectance(place, season, cover),
        see_backscatter(place, season, ascending=ascending),
        ascending,
        optical_time,
        radar_time + np.timedelta64(minutes, "m"),
    )


def classify(
    place: Place, season: Season | None = None, clouds: Clouds | None = None
) -> npt.NDArray[np.uint8]:
    """Return TerraMind's land cover classes of a place, with a date's snow and clouds if given.

    Returns
    -------
    numpy.ndarray, shape (height, width), uint8
    """
    classes: npt.NDArray[np.uint8] = SURFACE_CLASS[place.surface]
    if season is not None:
        classes = np.where(season.snow > _SNOW_SHARE, np.uint8(7), classes)
    if clouds is not None:
        classes = np.where(clouds.mask, np.uint8(8), classes)
    return classes


def locate(seed: int, shape: tuple[int, int], latitude: float) -> GeoBox:
    """Return the 10 m UTM grid of a place; its origin is a multiple of 160 m."""
    rng = stream(seed, "position")
    zone = int(rng.integers(1, 61))
    longitude = -183.0 + 6 * zone + rng.uniform(-1.5, 1.5)
    crs = f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"
    [(east_m, north_m)] = point(longitude, latitude, "EPSG:4326").to_crs(crs).coords
    left, top = (round(metres / _CELL_M) * _CELL_M for metres in (east_m, north_m))
    height_m, width_m = (length * _RESOLUTION_M for length in shape)
    bounds = (left, top - height_m, left + width_m, top)
    return GeoBox.from_bbox(bounds, crs, shape=shape, tight=True)


def draw_latitude(seed: int) -> float:
    """Return the latitude of a place that was not given one: where land is, mostly."""
    rng = stream(seed, "latitude")
    north = rng.random() < 0.72
    return float(rng.beta(2.2, 2.0) * 70 if north else -rng.beta(1.6, 2.0) * 52)


def _draw_date(seed: int) -> dt.date:
    return dt.date(2017, 1, 1) + dt.timedelta(days=int(stream(seed, "date").integers(8 * 365)))


def parse_date(date: str | dt.date | np.datetime64) -> dt.date:
    """Read a day.

    Raises
    ------
    ValueError
        If it is no date.
    """
    try:
        text = str(date.astype("datetime64[D]") if isinstance(date, np.datetime64) else date)
        # A datetime counts as its day; a year or a month alone is no day.
        return dt.date.fromisoformat(text[:10] if isinstance(date, dt.datetime) else text)
    except ValueError:
        raise ValueError(f"date must be a day such as '2024-05-14', got {date!r}.") from None


def require_seed(seed: int) -> None:
    """Refuse a negative seed with a ValueError."""
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")


def require_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return height and width as integers.

    Raises
    ------
    ValueError
        If they are not two positive integers.
    """
    lengths = tuple(shape)
    if len(lengths) != 2 or any(int(n) != n or n < 1 for n in lengths):
        raise ValueError(f"shape must be a positive height and width in pixels, got {shape}.")
    return int(lengths[0]), int(lengths[1])


def _assemble(place: Place, seen: Observation, geobox: GeoBox) -> xr.Dataset:
    """Put the layers of a place and an observation into one cube."""
    shape = place.surface.shape
    l2a = np.stack(
        [
            _repeat(band, BAND_RESOLUTION_M[name] // 10, shape)
            for name, band in seen.reflectance.items()
        ]
    )
    red, infrared = l2a[3].astype(np.float32), l2a[7].astype(np.float32)
    layers = {
        "S2L2A": l2a,
        "S2L1C": to_top_of_atmosphere(l2a, seen.season, seen.clouds),
        "RGB": _stretch(l2a[[3, 2, 1]]),
        "S1RTC": seen.backscatter.rtc,
        "S1GRD": seen.backscatter.grd,
        "DEM": place.terrain.elevation_m,
        "LULC": classify(place, seen.season, seen.clouds),
        "NDVI": (infrared - red) / (infrared + red),
    }
    coords: dict[Hashable, Any] = dict(xr_coords(geobox))
    coords["time"] = ("time", np.array([seen.optical_time], dtype="datetime64[ns]"))
    coords["S2L2A_offset"] = ("time", np.zeros(1, dtype=np.int16))
    coords["S1RTC_time"] = ("time", np.array([seen.radar_time], dtype="datetime64[ns]"))
    coords["clear_fraction"] = ("time", np.array([1 - seen.clouds.mask.mean()], dtype=np.float32))
    variables = {}
    for name, layer in layers.items():
        row = MODALITIES[name]
        dims: tuple[str, ...] = ("y", "x")
        if row.band_dim is not None:
            dims = (row.band_dim, *dims)
            coords[row.band_dim] = (row.band_dim, list(row.bands))
        if row.temporal != "static":
            dims = ("time", *dims)
        attrs: dict[str, object] = {"units": row.units}
        if np.issubdtype(layer.dtype, np.integer):
            attrs["nodata"] = int(row.fill_value)
        if row.kind == "classes":
            attrs["flag_values"] = [cover.value for cover in LULC_CLASSES]
            attrs["flag_meanings"] = " ".join(cover.name for cover in LULC_CLASSES)
        encoding = {"grid_mapping": "spatial_ref"}
        values = layer.astype(row.dtype, copy=False).reshape(
            (1,) * (len(dims) - layer.ndim) + layer.shape
        )
        variables[name] = xr.Variable(dims, values, attrs, encoding)
    title = f"Synthetic scene {place.seed}"
    return xr.Dataset(variables, coords, {"title": title, "source": "procedural, no measurement"})


def _repeat(
    band: npt.NDArray[np.uint16], step: int, shape: tuple[int, ...]
) -> npt.NDArray[np.uint16]:
    """Bring a coarse band to 10 m by repeating its pixels."""
    return band.repeat(step, axis=0).repeat(step, axis=1)[: shape[0], : shape[1]]


def _stretch(visible: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Return red, green and blue as bytes; 0 is nodata, so that black is 1."""
    # Reflectance 0.2 is white, unless the scene is brighter than that.
    white = max(2000.0, float(np.quantile(visible, 0.98)))
    stretched = np.clip(visible * (255 / white), 1, 255)
    return np.asarray(stretched, dtype=np.uint8)
