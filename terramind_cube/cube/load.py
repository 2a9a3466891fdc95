"""From items to a cube: search, one grid, one time axis, lazy arrays."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pystac
import pystac_client
import xarray as xr
from affine import Affine
from odc.geo import CRS, Geometry
from odc.geo.geobox import GeoBox
from odc.geo.geom import bbox_union
from odc.geo.xr import xr_coords

from terramind_cube.cube.pairing import (
    TimeStep,
    group_steps,
    pair_nearest,
    pair_years,
    parse_tolerance,
)
from terramind_cube.cube.reading import Headers, read_bands, take_steps
from terramind_cube.modalities import Modality, find_modality
from terramind_cube.stac.catalogs import StaticCatalog, open_catalog
from terramind_cube.stac.providers import LOADABLE, ItemBands, find_bands
from terramind_cube.stac.search import area_geometry, parse_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from odc.geo.geom import BoundingBox

    from terramind_cube.stac.catalogs import Catalog
    from terramind_cube.stac.search import DatetimeQuery

__all__ = ["CELL_PX", "DEFAULT_CHUNKS_PX", "load_cube"]

CELL_PX = 16
"""Areas are snapped outwards to cells of this many pixels, one patch of the released models."""
DEFAULT_CHUNKS_PX: Mapping[str, int] = {"y": 896, "x": 896}

_SNAP_TOLERANCE_PX = 0.01
_SAME_PASS = timedelta(hours=12)
_USUAL_RESOLUTION_M = (8.0, 12.5)


@dataclass(frozen=True)
class _Query:
    """What is asked of the catalog, checked."""

    catalog: Catalog
    modalities: tuple[Modality, ...]
    area: dict[str, Any] | None
    datetime: DatetimeQuery | None
    pair_within: timedelta

    def __post_init__(self) -> None:
        if self.datetime is not None:
            parse_interval(self.datetime)

    def find(
        self, modality: Modality, area: Any, window: DatetimeQuery | None = None
    ) -> list[ItemBands]:
        """Search for one modality; a static layer at any time."""
        when = None if modality.temporal == "static" else window or self.datetime
        return find_bands(self.catalog, modality, area=area, datetime=when)


@dataclass(frozen=True)
class _GridRequest:
    """How the caller describes the grid."""

    geobox: GeoBox | None
    crs: CRS | None
    resolution_m: float


def load_cube(  # noqa: PLR0913
    catalog_or_items: Catalog | str | Path | pystac_client.Client | Iterable[pystac.Item],
    *,
    bbox: Sequence[float] | None = None,
    intersects: Any = None,
    datetime: DatetimeQuery | None = None,
    modalities: Sequence[str],
    resolution: float = 10,
    crs: Any = None,
    geobox: GeoBox | None = None,
    chunks: Mapping[str, int] | None = None,
    pair_within: str | timedelta = "7D",
) -> xr.Dataset:
    """Load the items of a catalog as a lazy cube on one projected grid.

    Parameters
    ----------
    catalog_or_items : Catalog, path, URL, pystac_client.Client or iterable of pystac.Item
        What `open_catalog` returns or takes, or items at hand, which are never changed.
    bbox, intersects : optional
        Area as (west, south, east, north) in degrees, or as GeoJSON; without either, everything.
    datetime : str, datetime or pair, optional
        STAC datetime query of the scenes. Static layers are found at any time, radar scenes within
        `pair_within` of the optical ones, annual maps by year.
    modalities : sequence of str
        Of S2L2A, S2L1C, S1RTC, S1GRD, LULC and DEM. The first in this order gives the time axis.
    resolution, crs : optional
        Pixel size in metres, and projected CRS: UTM of the area, or without one the items' own.
    geobox : odc.geo.geobox.GeoBox, optional
        The exact grid, instead of `bbox`, `intersects`, `resolution` and `crs`.
    chunks : mapping, optional
        Chunk lengths of ``"time"``, ``"y"`` and ``"x"``; 1, 896 and 896 by default.
    pair_within : str or timedelta, default "7D"
        Largest time between an optical and a radar scene of one step.

    Returns
    -------
    xarray.Dataset
        A variable per modality, ``spatial_ref``, and along time ``S2L2A_offset`` (DN that reading
        added) and, where S1 is paired, ``S1RTC_time`` (NaT without one). Nothing is computed.

    Raises
    ------
    ValueError, AssetError
        If a modality is unknown, nothing is found, bands are missing or the grid is unfit; if a
        local file is missing or damaged (also while computing, for any file).
    """
    request = _check_grid_request(geobox, crs, resolution, bbox, intersects)
    area, rows = area_geometry(bbox, intersects), _check_modalities(modalities)
    within, chunks_px = parse_tolerance(pair_within), _check_chunks(chunks)
    query = _Query(_as_catalog(catalog_or_items), rows, area, datetime, within)
    headers = Headers()
    if geobox is not None or area is not None:
        grid = request.geobox or _area_grid(request, cast("dict[str, Any]", area))
        sources = query.find(rows[0], _extent(grid))
    else:
        sources = query.find(rows[0], None)
        grid = _items_grid(request, sources, headers)
    return _assemble(query, sources, grid, chunks_px, headers)


def _assemble(
    query: _Query,
    sources: list[ItemBands],
    grid: GeoBox,
    chunks_px: Mapping[str, int],
    headers: Headers,
) -> xr.Dataset:
    """Return the cube, given the items of the modality that leads the time axis."""
    leading = query.modalities[0]
    longitude_deg = grid.extent.centroid.to_crs("EPSG:4326").coords[0][0]
    axis = group_steps(sources, longitude_deg=longitude_deg)
    times = [step.time for step in axis]
    coords: dict[Any, xr.DataArray] = dict(xr_coords(grid, dims=("y", "x")))
    variables: dict[str, xr.DataArray] = {}
    for modality in query.modalities:
        steps, places = axis, list[int | None](range(len(axis)))
        if modality is not leading:
            window = _window(query, modality, times)
            found = query.find(modality, _extent(grid), window)
            steps = group_steps(found, longitude_deg=longitude_deg)
            places = _pair(query, modality, times, steps)
        used = sorted({place for place in places if place is not None})
        if not used:
            raise ValueError(_unpaired(modality, times, steps))
        pixels = read_bands([steps[place].sources for place in used], grid, chunks_px, headers)
        kept = [None if place is None else used.index(place) for place in places]
        chosen = [None if place is None else steps[place] for place in places]
        if modality.temporal == "static":
            pixels = pixels[0]
        else:
            pixels = take_steps(pixels, kept, modality.fill_value)
            pixels = pixels.rechunk({0: chunks_px["time"]})
            coords |= _step_coords(modality, chosen, is_paired=modality is not leading)
        variables[modality.name] = _variable(modality, pixels, [steps[place] for place in used])
        if modality.band_dim is not None:
            # Variable-length strings: Zarr has no stable layout for fixed-length ones.
            labels = np.array(modality.bands, object)
            coords[modality.band_dim] = xr.DataArray(labels, dims=modality.band_dim)
    if leading.temporal != "static":
        coords["time"] = xr.DataArray(_stamps(times), dims="time")
    return xr.Dataset(variables, coords=coords)


def _variable(modality: Modality, pixels: Any, steps: Sequence[TimeStep]) -> xr.DataArray:
    leading = ("time",) if modality.temporal != "static" else ()
    band = (modality.band_dim,) if modality.band_dim is not None else ()
    ids = [source.item.id for step in steps for source in step.sources]
    attrs: dict[str, Any] = {"units": modality.units, "stac_items": list(dict.fromkeys(ids))}
    if not math.isnan(modality.fill_value):
        attrs["nodata"] = int(modality.fill_value)
    # An attribute outlives arithmetic, which drops the encoding.
    attrs["grid_mapping"] = "spatial_ref"
    return xr.DataArray(pixels, dims=(*leading, *band, "y", "x"), attrs=attrs)


def _step_coords(
    modality: Modality, steps: Sequence[TimeStep | None], *, is_paired: bool
) -> dict[str, xr.DataArray]:
    """Return what is recorded along the time axis for one modality."""
    coords = {}
    if modality.units == "1e-4":
        offsets = [
            min((source.offset_dn for source in step.sources), default=0) if step else 0
            for step in steps
        ]
        coords[f"{modality.name}_offset"] = xr.DataArray(np.array(offsets, np.int16), dims="time")
    if is_paired and modality.temporal == "instant":
        stamps = _stamps([step.time if step else None for step in steps])
        coords[f"{modality.name}_time"] = xr.DataArray(stamps, dims="time")
    return coords


def _pair(
    query: _Query, modality: Modality, times: Sequence[datetime], steps: Sequence[TimeStep]
) -> list[int | None]:
    """Pair steps to the time axis, and warn of dates that stay without."""
    if modality.temporal == "static":
        return [0]
    if modality.temporal == "annual":
        places = pair_years(times, steps)
    else:
        places = pair_nearest(times, steps, _tolerance(query, modality))
    alone = [time for time, place in zip(times, places, strict=True) if place is None]
    if alone and len(alone) < len(times):
        warnings.warn(
            f"{modality.name} has no scene for {_dates(alone)}: its pixels are nodata there.",
            UserWarning,
            stacklevel=4,
        )
    return places


def _window(query: _Query, modality: Modality, times: Sequence[datetime]) -> DatetimeQuery | None:
    """Return when to search for what is paired to the time axis."""
    if modality.temporal == "annual":
        first, last = min(times).year, max(times).year
        return datetime(first, 1, 1, tzinfo=UTC), datetime(last, 12, 31, 23, 59, 59, tzinfo=UTC)
    reach = _tolerance(query, modality)
    return min(times) - reach, max(times) + reach


def _tolerance(query: _Query, modality: Modality) -> timedelta:
    # Both optical levels show one acquisition; another day's would be another scene.
    return query.pair_within if modality.units == "dB" else _SAME_PASS


def _unpaired(modality: Modality, times: Sequence[datetime], steps: Sequence[TimeStep]) -> str:
    found = _dates([step.time for step in steps])
    return (
        f"No {modality.name} item pairs with {_dates(times)}: there are items of {found}. Widen "
        "pair_within, or choose another datetime."
    )


def _check_modalities(names: Sequence[str]) -> tuple[Modality, ...]:
    """Return the rows of the modalities, the one that leads the time axis first."""
    rows = [find_modality(name) for name in ([names] if isinstance(names, str) else names)]
    if not rows:
        raise ValueError(f"modalities is empty: name some of {', '.join(LOADABLE)}.")
    for row in rows:
        if row.name not in LOADABLE:
            raise ValueError(
                f"{row.name} is not read from items: load_cube reads {', '.join(LOADABLE)}."
            )
    return tuple(sorted(dict.fromkeys(rows), key=_lead))


def _lead(modality: Modality) -> tuple[int, int]:
    order = ("instant", "annual", "static")
    return order.index(modality.temporal), _position(modality)


def _position(modality: Modality) -> int:
    return LOADABLE.index(modality.name)


def _as_catalog(source: Any) -> Catalog:
    if isinstance(source, str | Path | pystac_client.Client):
        return open_catalog(source)
    if isinstance(source, pystac.Catalog):
        return StaticCatalog(f"Catalog {source.id!r}", tuple(source.get_items(recursive=True)))
    if hasattr(source, "search") and hasattr(source, "describe"):
        return cast("Catalog", source)
    items = tuple(source) if isinstance(source, Iterable) else (source,)
    for item in items:
        if not isinstance(item, pystac.Item):
            raise ValueError(  # noqa: TRY004
                f"Expected a catalog, its path or URL, or pystac items, got {type(item).__name__}."
            )
    return StaticCatalog("The given list", items)


def _check_chunks(chunks: Mapping[str, int] | None) -> dict[str, int]:
    given = dict(chunks or {})
    known = {"time": 1, **DEFAULT_CHUNKS_PX}
    if not given.keys() <= known.keys() or not all(n == -1 or n > 0 for n in given.values()):
        raise ValueError(f"chunks maps time, y and x to lengths (-1 for all), got {chunks!r}.")
    return known | given


def _check_grid_request(
    geobox: GeoBox | None, crs: Any, resolution: float, bbox: Any, intersects: Any
) -> _GridRequest:
    if geobox is not None:
        if crs is not None or bbox is not None or intersects is not None:
            raise ValueError("Give geobox alone, or bbox/intersects with resolution and crs.")
        affine = geobox.affine
        if not (affine.b == affine.d == 0 and affine.a > 0 and affine.e == -affine.a):
            raise ValueError(f"geobox must be north-up with square pixels, got {affine!r}.")
        resolution = affine.a
        crs = geobox.crs
        if crs is None:
            raise ValueError("geobox has no CRS: give one with a projected CRS.")
    projected = None if crs is None else CRS(crs)
    if projected is not None and projected.geographic:
        raise ValueError(
            f"{projected} is geographic: a cube needs a projected CRS in metres, such as the UTM "
            "zone of the area (the default)."
        )
    if not resolution > 0:
        raise ValueError(f"resolution must be positive metres, got {resolution}.")
    low, high = _USUAL_RESOLUTION_M
    if not low <= resolution <= high:
        warnings.warn(
            f"The resolution is {resolution:g} m; TerraMind was trained at 10 m.",
            UserWarning,
            stacklevel=3,
        )
    return _GridRequest(geobox, projected, float(resolution))


def _area_grid(request: _GridRequest, area: Mapping[str, Any]) -> GeoBox:
    geometry = Geometry(area, "EPSG:4326")
    crs = request.crs or CRS.utm(geometry)
    return _snapped(geometry.to_crs(crs, resolution=0.01).boundingbox, crs, request.resolution_m)


def _items_grid(request: _GridRequest, sources: Sequence[ItemBands], headers: Headers) -> GeoBox:
    """Return the grid that covers all items, in their own CRS where they share one."""
    footprints = []
    for source in sources:
        geobox = headers.geobox(source)
        if geobox is not None:
            footprints.append(geobox.extent)
        elif source.item.geometry is not None:
            footprints.append(Geometry(source.item.geometry, "EPSG:4326"))
        else:
            raise ValueError(f"Item {source.item.id!r} has no geometry: give a bbox or a geobox.")
    own = {footprint.crs for footprint in footprints}
    shared = next(iter(own)) if len(own) == 1 else None
    if request.crs is not None:
        crs = request.crs
    elif shared is not None and not shared.geographic:
        crs = shared
    else:
        crs = CRS.utm(footprints[0].to_crs("EPSG:4326"))
    extents = bbox_union(footprint.to_crs(crs).boundingbox for footprint in footprints)
    return _snapped(extents, crs, request.resolution_m)


def _snapped(box: BoundingBox, crs: CRS, resolution_m: float) -> GeoBox:
    """Return the grid of whole cells that covers a box."""
    cell = CELL_PX * resolution_m
    # A box that misses a line of the lattice by rounding alone must not gain a cell.
    slack = _SNAP_TOLERANCE_PX * resolution_m
    left, bottom = (math.floor((v + slack) / cell) for v in (box.left, box.bottom))
    right, top = (math.ceil((v - slack) / cell) for v in (box.right, box.top))
    shape = (max(top - bottom, 1) * CELL_PX, max(right - left, 1) * CELL_PX)
    affine = Affine(resolution_m, 0, left * cell, 0, -resolution_m, max(top, bottom + 1) * cell)
    return GeoBox(shape, affine, crs)


def _extent(grid: GeoBox) -> dict[str, Any]:
    """Return the area of a grid as GeoJSON, for a search."""
    return dict(
        grid.extent.to_crs("EPSG:4326", resolution=max(grid.extent.boundingbox.span_x, 1) / 8).json
    )


def _stamps(times: Sequence[datetime | None]) -> np.ndarray[Any, np.dtype[np.datetime64]]:
    """Return times as datetime64[ns] in UTC, NaT for None."""
    naive = [None if t is None else t.astimezone(UTC).replace(tzinfo=None) for t in times]
    return np.array(naive, "datetime64[ns]")


def _dates(times: Sequence[datetime]) -> str:
    dates = list(dict.fromkeys(time.date().isoformat() for time in times))
    return ", ".join(dates[:6]) + (f" and {len(dates) - 6} more" if len(dates) > 6 else "")
