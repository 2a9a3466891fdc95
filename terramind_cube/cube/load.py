"""From items to a cube: search, one grid, one time axis, lazy arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import xarray as xr
from odc.geo.xr import xr_coords

from terramind_cube.cube.assets import Reading, ReadOptions
from terramind_cube.cube.chunking import ChunkedGrid
from terramind_cube.cube.encodings import encode_times
from terramind_cube.cube.failures import ReadFailures
from terramind_cube.cube.grids import (
    GridRequest,
    area_grid,
    check_grid_request,
    covering_grid,
    describe_pixel_size,
    geographic_extent,
)
from terramind_cube.cube.headers import Headers
from terramind_cube.cube.pairing import parse_tolerance
from terramind_cube.cube.request import CubeRequest, as_catalog, check_chunks, check_modalities
from terramind_cube.cube.series import find_series
from terramind_cube.cube.units import settle_units
from terramind_cube.cube.variables import (
    Assembly,
    band_labels,
    cloud_variables,
    derived_variables,
    modality_variable,
    stamps,
    step_coords,
)
from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.legends import check_legend
from terramind_cube.stac.search import Filters, area_geometry, plain_datetime

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import timedelta
    from pathlib import Path

    import pystac
    import pystac_client
    from odc.geo.geobox import GeoBox

    from terramind_cube.cube.assets import OnError
    from terramind_cube.stac.access import Signer
    from terramind_cube.stac.bands import ItemBands
    from terramind_cube.stac.catalogs import Catalog
    from terramind_cube.stac.search import DatetimeQuery

    Source = Catalog | str | Path | pystac_client.Client | Iterable[pystac.Item]

__all__ = ["load_cube"]

_BESIDE = ("SCL", "cloud_mask")
_MODES = ("analysis", "native")
_ON_ERROR = ("raise", "nodata")


def load_cube(  # noqa: PLR0913
    catalog_or_items: Source,
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
    cloud_cover: float | None = None,
    orbit: str | int | None = None,
    query: Mapping[str, Mapping[str, Any]] | None = None,
    ids: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    s2_offset: Literal["remove", "keep", "add"] = "remove",
    radar_unit: Literal["dB", "linear", "amplitude"] | None = None,
    lulc_legend: str | Mapping[int, int] | None = None,
    lulc_year: int | Literal["nearest"] | None = None,
    resampling: Mapping[str, str] | None = None,
    clouds: bool = True,
    mode: Literal["analysis", "native"] = "analysis",
    on_error: OnError = "raise",
    sign: Signer | None = None,
    reading: ReadOptions | None = None,
) -> Any:
    """Load the items of a catalog as a lazy cube on one projected grid.

    Parameters
    ----------
    catalog_or_items : Catalog, name, path, URL, pystac_client.Client or iterable of pystac.Item
        What `open_catalog` returns or takes, a search result (also its area), or items at hand, of
        any providers, which are never changed.
    bbox, intersects : optional
        Area as (west, south, east, north) in degrees, or as GeoJSON, whose bounding box is loaded;
        without either, the extent of the items, which must then share a zone. The grid grows
        outwards to whole cells of 16 pixels that are counted from the origin of the CRS, so that
        overlapping areas share their pixels.
    datetime : str, datetime, date, numpy.datetime64 or pair, optional
        STAC datetime query of the scenes, in UTC. Static layers are found at any time, radar scenes
        within `pair_within` of the optical ones, annual maps by year.
    modalities : sequence of str
        Of S2L2A, S2L1C, S1RTC, S1GRD, LULC and DEM, of which the first in this order gives the time
        axis, and of NDVI and RGB, which are computed from S2L2A.
    resolution, crs : optional
        Pixel size in metres, and projected CRS. By default the UTM zone of the area's middle, as
        Sentinel-2's tiles have it (polar stereographic beyond 84 N and 80 S); without an area the
        CRS of the items, if they share one.
    geobox : odc.geo.geobox.GeoBox, optional
        The exact grid, instead of `bbox`, `intersects`, `resolution` and `crs`.
    chunks : mapping, optional
        Chunk lengths of ``"time"``, ``"y"`` and ``"x"`` in pixels, -1 for all; 1, 896 and 896 by
        default. Bands are chunks of their own, so that one is read without the others.
    pair_within : str or timedelta, default "7D"
        Largest time between an optical and a radar scene of one date.
    cloud_cover, orbit, query, ids : optional
        Filters of the search, see `Catalog.search`: percent for optical items, direction or
        relative orbit for radar. `ids` that name no item of a further modality do not narrow it.
    bands : mapping of str to sequence of str, optional
        Bands to load by modality, by label ("B04") or common name ("red"); they come in the
        modality's order. All by default.
    s2_offset : {"remove", "keep", "add"}
        Whether Sentinel-2's offset of 1000 DN is taken off where a product has it, left as it was
        delivered, or put on where a product lacks it. A provider's flag tells whether it has it,
        else raster fields, the tags of the file, or the processing baseline.
    radar_unit : {"dB", "linear", "amplitude"}, optional
        Unit of backscatter in the files of items that do not tell it, in raster fields, by their
        names or as a provider's: decibels, linear power, or its root. By default their pixels
        decide: a few files are looked at, power is never negative, and dB of land mostly is.
    lulc_legend : str or mapping of int to int, optional
        Legend of land cover whose items do not tell it: ``"terramind"`` (codes 0 to 9),
        ``"impact-observatory"`` (the annual map of Impact Observatory and ESRI),
        ``"esa-worldcover"``, ``"dynamic-world"``, or TerraMind's class of each code.
    resampling : mapping of str to str, optional
        GDAL's method by modality; by default nearest for Sentinel-2 and classes, bilinear (average
        onto coarser pixels) for elevation and, as linear power, for backscatter.
    lulc_year : int or "nearest", optional
        Year of the land-cover map that serves every date, or the year nearest to each date that
        the catalog holds, which is told; by default each date's own year.
    clouds : bool
        Whether variables ``SCL`` and ``cloud_mask`` and the coordinate ``clear_fraction`` are made,
        where items have a scene classification.
    mode : {"analysis", "native"}
        One Dataset on one grid and time axis, or a tree of each sensor's own resolutions, bands and
        times, on which `resolution` has no bearing: ``/S2L2A/r10m``, ``/S2L2A/r20m``,
        ``/S2L2A/r60m``, ``/S1RTC``, ``/DEM``, ``/LULC``.
    on_error : {"raise", "nodata"}
        Whether a file that cannot be read stops a computation, or its pixels are nodata and
        ``attrs["read_failures"]`` lists it: in the computed cube and in a store that
        ``cube.terramind.write`` made. ``to_zarr`` writes attributes before it computes.
    sign : callable, optional
        Turns an address into one that may be read now; called where a file is read, for every
        attempt, so that it should keep its tokens. If it has a method ``renew``, that is called
        with an address that was refused. Planetary Computer's files are signed without it.
    reading : ReadOptions, optional
        Time-out, attempts, and options of GDAL.

    Returns
    -------
    xarray.Dataset or xarray.DataTree
        Lazy. A variable per modality: ``S2L2A`` and ``S2L1C`` (time, X_band, y, x) uint16,
        reflectance x 10000 without offset, 0 where invalid; ``S1RTC``, ``S1GRD`` (time, X_band, y,
        x) float32 in dB, NaN; ``DEM`` (y, x) float32 in m, NaN; ``LULC`` (time, y, x) uint8,
        TerraMind's classes 0 to 9; ``NDVI`` (time, y, x) float32, NaN; ``RGB`` (time, RGB_band, y,
        x) uint8, reflectance 0 to 0.2 as 0 to 255. Beside S2L2A ``SCL`` (time, y, x) uint8 and
        ``cloud_mask`` (time, y, x) bool, True where cloud, shadow, cirrus, defective or no data.

        Along ``time`` (UTC, of the first item of a solar day): ``X_items`` (ids), ``S2L2A_offset``
        (int16, DN that reading added; of a mixed date the newest item's), ``S2L2A_baseline``
        (processing baseline, NaN where unknown), ``S2L2A_offset_left`` (DN that are still in, where
        it was kept or added), ``clear_fraction`` (lazy, of the whole area), and of paired radar ``S1RTC_time`` (NaT without one) and ``S1RTC_relative_orbit``.

    Raises
    ------
    ValueError, AssetError
        If a modality is unknown, nothing is found, bands are missing or the grid is unfit; if
        the items lie in several zones and neither an area nor `crs` is given; if
        neither metadata nor pixels tell the unit of backscatter or the legend of land cover; if a
        local file is missing or damaged (also while computing, for any file), or a file contradicts
        its item.

    Warns
    -----
    UserWarning
        If some dates have no scene of a modality, an item is left out, backscatter is converted
        because its pixels look like power, or pixels, measured on the ground, are far from the 10 m
        that TerraMind was trained at.

    Notes
    -----
    Items of a date are mosaicked after each has got its own offset and unit: those in the grid's
    CRS first, then by time and id. Of an acquisition that was processed again the newest processing
    is taken (facts of issue 4; Sentinel-2 Products Specification Document for the offset).
    """
    wanted = check_grid_request(geobox, crs, resolution, bbox, intersects)
    for name, value, known in (("mode", mode, _MODES), ("on_error", on_error, _ON_ERROR)):
        if value not in known:
            raise ValueError(f"{name} is one of {', '.join(map(repr, known))}, got {value!r}.")
    if sign is not None and not callable(sign):
        raise ValueError(f"sign is a function of an address, got {sign!r}.")
    for name, mapping in (("bands", bands), ("resampling", resampling)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise ValueError(f"{name} maps modalities to what is asked of each, got {mapping!r}.")
    if reading is not None and not isinstance(reading, ReadOptions):
        raise ValueError(f"reading is terramind_cube.ReadOptions(...), got {reading!r}.")
    asked = check_modalities(modalities)
    names = tuple(row.name for row in asked)
    filters = Filters(cloud_cover, orbit, query, cast("Any", ids), modalities=names)
    area = area_geometry(bbox, intersects)
    if area is None and geobox is None:
        area = getattr(catalog_or_items, "area", None)  # where a search looked
    datetime = plain_datetime(datetime)
    within, lengths = parse_tolerance(pair_within), check_chunks(chunks)
    request = CubeRequest(
        as_catalog(catalog_or_items), asked, area, datetime, within, filters, cast("Any", dict(bands or {})),
        s2_offset, dict(resampling or {}), clouds, skips_bad_items=on_error == "nodata",
        radar_unit=radar_unit, lulc_legend=check_legend(lulc_legend),
        lulc_year=lulc_year,
    )  # fmt: skip
    failures = ReadFailures() if on_error == "nodata" else None
    token = "" if failures is None else failures.token
    headers = Headers(Reading(reading or ReadOptions(), sign, on_error, token))
    sources, grid = _find_leading(request, wanted, headers)
    if mode == "analysis" and (remark := describe_pixel_size(grid)):
        warnings.warn(remark, UserWarning, stacklevel=2)
    cube: xr.Dataset | xr.DataTree
    if mode == "native":
        from terramind_cube.cube.native import native_tree

        cube = native_tree(request, sources, grid, headers, lengths)
    else:
        cube = _assemble(request, sources, grid, headers, lengths)
    if failures is not None:
        cube.attrs["read_failures"] = failures
    return cube


def _find_leading(
    request: CubeRequest, wanted: GridRequest, headers: Headers
) -> tuple[list[ItemBands], GeoBox]:
    """Return the items of the modality that leads the time axis, and the grid."""
    leading = request.read[0]
    if wanted.geobox is not None or request.area is not None:
        grid = wanted.geobox or area_grid(wanted, request.area or {})
        return request.find(leading, geographic_extent(grid)), grid
    sources = request.find(leading, None)
    return sources, covering_grid(wanted, [headers.footprint(source) for source in sources])


def _assemble(
    request: CubeRequest,
    leading: list[ItemBands],
    grid: GeoBox,
    headers: Headers,
    lengths: Mapping[str, int],
) -> xr.Dataset:
    """Return the cube, given the items of the modality that leads the time axis."""
    times, series = find_series(request, leading, grid)
    series = [
        replace(one, steps=tuple(settle_units(one.steps, request, headers.reading)))
        for one in series
    ]
    assembly = Assembly(request, ChunkedGrid(grid, lengths), lengths["time"], headers)
    coords: dict[Any, xr.DataArray] = dict(xr_coords(grid, dims=("y", "x")))
    variables: dict[str, xr.DataArray] = {}
    for one in series:
        modality = one.modality
        if modality.name == "S2L2A":
            variables |= derived_variables(assembly, one)
            masks, fractions = cloud_variables(assembly, one)
            variables |= masks
            coords |= fractions
        coords |= step_coords(one, request.s2_offset)
        if request.has(modality.name):
            labels = request.bands.get(modality.name, modality.bands)
            variables[modality.name] = modality_variable(assembly, one, labels)
            coords |= band_labels(modality, labels)
    if "RGB" in variables:
        coords |= band_labels(MODALITIES["RGB"], MODALITIES["RGB"].bands)
    if series[0].modality.temporal != "static":
        coords["time"] = xr.DataArray(stamps(times), dims="time")
    length = len(times) if lengths["time"] == -1 else min(lengths["time"], len(times))
    for coord in coords.values():
        if coord.dims == ("time",):
            # As those of the variables: xarray wants one chunking for each dimension of a store.
            coord.encoding["chunks"] = (length,)
    ordered = [row.name for row in request.asked]
    names = sorted(variables, key=[*ordered, *_BESIDE].index)
    return encode_times(xr.Dataset({name: variables[name] for name in names}, coords=coords))
