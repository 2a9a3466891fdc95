"""The native view becomes a cube: groups of a tree on one grid and one time axis, lazily."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
import odc.geo.xr  # noqa: F401  # registers the `odc` accessor
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from terramind_cube.cube.chunking import ChunkedGrid
from terramind_cube.cube.encodings import encode_times
from terramind_cube.cube.grids import (
    RESOLUTION_M,
    RESOLUTION_RANGE_M,
    GridRequest,
    covering_grid,
    crs_of,
    named_crs,
)
from terramind_cube.cube.pairing import TimeStep, parse_tolerance
from terramind_cube.cube.regrid import Regridding, regrid
from terramind_cube.cube.request import DEFAULT_CHUNKS_PX, CubeRequest, check_modalities
from terramind_cube.cube.series import pair_steps
from terramind_cube.cube.variables import band_labels, stamps
from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.catalogs import StaticCatalog
from terramind_cube.stac.providers import LOADABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

__all__ = ["tree_to_cube"]

da: Any = dask.array  # only partly typed

_OF_SENTINEL_2 = ("S2L2A", "NDVI", "RGB", "SCL", "cloud_mask")
_OPTICAL = ("S2L2A", "S2L1C")
_MASKS: Mapping[str, Regridding] = {
    "SCL": Regridding("nearest", 0),
    "cloud_mask": Regridding("nearest", 1),
}
_EMPTY: Mapping[str, Any] = {"f": np.nan, "M": np.datetime64("NaT"), "O": "", "T": "", "U": ""}
# What covers how much of the area serves to pair scenes, not to describe the pairs.
_PAIRING_ONLY = "_coverage"
_SQUARE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class _StoredStep(TimeStep):
    """A step whose items are not at hand, but what was noted of them."""

    orbit: int | None = None

    @property
    def relative_orbit(self) -> int | None:
        """Relative orbit, where it was noted."""
        return self.orbit


@dataclass(frozen=True)
class _Group:
    """A node of the tree that holds pixels."""

    path: str
    data: xr.Dataset
    geobox: GeoBox

    @property
    def pixel_m2(self) -> float:
        """Size of a pixel; a projected grid is taken to be finer than a geographic one."""
        if crs_of(self.geobox).geographic:
            return math.inf
        return float(abs(self.geobox.resolution.x * self.geobox.resolution.y))


def tree_to_cube(tree: xr.DataTree, pair_within: str | timedelta = "7D") -> xr.Dataset:
    """Return a tree of the native view as one cube.

    Parameters
    ----------
    tree : xarray.DataTree
        What ``load_cube(..., mode="native")`` gives, also read again from a store, or a part of it.
        Groups are known by the names of their variables; other variables are left out.
    pair_within : str or timedelta
        Largest time between an optical and a radar scene of one date.

    Returns
    -------
    xarray.Dataset
        Lazy, as `load_cube` gives it: on the finest optical grid, or else on that of the first
        modality, with pixels of 10 m. The cloud mask is the one of the tree.

    Raises
    ------
    ValueError
        If the tree holds no modality, a group has no CRS, the groups of a sensor have different
        dates, or none of a modality's pairs.

    Warns
    -----
    UserWarning
        If some dates stay without a modality.
    """
    sensors = _find_sensors(tree)
    request = CubeRequest(
        StaticCatalog("The tree", ()),
        check_modalities(list(sensors)),
        pair_within=parse_tolerance(pair_within),
    )
    order = [row.name for row in request.read]
    optical = [group for name in _OPTICAL for group in sensors.get(name, ())]
    leading = min(optical or sensors[order[0]], key=lambda group: group.pixel_m2)
    lengths = _chunk_lengths(leading.data)
    target = ChunkedGrid(_model_grid(leading.geobox), lengths)
    times = [step.time for step in _steps(order[0], sensors[order[0]])]
    coords: dict[Any, Any] = dict(xr_coords(target.geobox, dims=("y", "x")))
    variables: dict[str, xr.DataArray] = {}
    for name in order:
        groups, modality = sensors[name], MODALITIES[name]
        places: list[int | None] | None = list(range(len(times)))
        if modality.temporal == "static":
            places = None
        elif name != order[0]:
            steps = _steps(name, groups)
            places = pair_steps(request, modality, times, steps)
            if modality.temporal == "instant":
                found = [None if place is None else steps[place].time for place in places]
                coords[f"{name}_time"] = xr.DataArray(stamps(found), dims="time")
        if places is not None:
            coords |= _step_coords(groups, places, lengths["time"])
        for variable in _variables_of(name, groups):
            joined, labels = _joined(variable, groups, target, places)
            variables[variable] = joined if places is None else joined.chunk(time=lengths["time"])
            if variable in MODALITIES:
                coords |= band_labels(MODALITIES[variable], labels)
    if MODALITIES[order[0]].temporal != "static":
        coords["time"] = xr.DataArray(stamps(times), dims="time")
    return encode_times(xr.Dataset(variables, coords=coords, attrs=dict(tree.attrs)))


def _find_sensors(tree: xr.DataTree) -> dict[str, list[_Group]]:
    """Return the groups of each modality that is read from items, finest ones first."""
    sensors: dict[str, list[_Group]] = {}
    for node in tree.subtree:
        data = node.to_dataset()
        held = {sensor for name in data.data_vars if (sensor := _sensor_of(str(name)))}
        if not held:
            continue
        geobox = data.odc.geobox
        if geobox is None or geobox.crs is None:
            raise ValueError(
                f"Group {node.path} has no coordinate reference system: assign it to its Dataset "
                "with .odc.assign_crs('EPSG:326xx')."
            )
        for sensor in held:
            sensors.setdefault(sensor, []).append(_Group(node.path, data, geobox))
    if not sensors:
        raise ValueError(
            f"The tree has no modality: its groups are {', '.join(tree.groups)}, and none holds "
            f"a variable named {', '.join((*LOADABLE, 'NDVI', 'RGB'))}. load_cube with "
            'mode="native" makes such trees.'
        )
    for groups in sensors.values():
        groups.sort(key=lambda group: group.pixel_m2)
    return sensors


def _sensor_of(variable: str) -> str | None:
    if variable in _OF_SENTINEL_2:
        return "S2L2A"
    return variable if variable in LOADABLE else None


def _variables_of(sensor: str, groups: Sequence[_Group]) -> list[str]:
    names = _OF_SENTINEL_2 if sensor == "S2L2A" else (sensor,)
    return [name for name in names if any(name in group.data for group in groups)]


def _steps(sensor: str, groups: Sequence[_Group]) -> list[_StoredStep]:
    """Return the steps of a sensor, whose groups must agree on them."""
    if MODALITIES[sensor].temporal == "static":
        return []
    first, *others = groups
    for group in groups:
        if "time" not in group.data.coords or group.data["time"].dtype.kind != "M":
            raise ValueError(f"Group {group.path} has no coordinate time of dates (datetime64).")
    moments = first.data["time"].values
    for group in others:
        if not np.array_equal(group.data["time"].values, moments):
            raise ValueError(
                f"Groups {first.path} and {group.path} have different dates: select dates in all "
                "groups of a sensor alike."
            )
    orbits = _noted(first.data, f"{sensor}_relative_orbit")
    coverage = _noted(first.data, f"{sensor}_coverage")
    return [
        _StoredStep(
            _moment(moment),
            (),
            float(coverage[place]) if coverage is not None else 1.0,
            (int(orbits[place]) or None) if orbits is not None else None,
        )
        for place, moment in enumerate(moments)
    ]


def _noted(data: xr.Dataset, name: str) -> Any:
    return data[name].values if name in data.coords else None


def _moment(stamp: np.datetime64) -> datetime:
    moment: datetime = stamp.astype("datetime64[us]").item()
    return moment.replace(tzinfo=UTC)


def _step_coords(
    groups: Sequence[_Group], places: Sequence[int | None], time_chunk: int
) -> dict[str, xr.DataArray]:
    """Return what the groups note along time, at the places of the cube's time axis."""
    coords = {}
    for group in groups:
        for name, coord in group.data.coords.items():
            if coord.dims != ("time",) or name == "time" or str(name).endswith(_PAIRING_ONLY):
                continue
            values = coord.data
            if coord.dtype.kind in "TU":  # what a store makes of texts
                values = values.astype(object)
            if list(places) != list(range(len(values))):
                values = values[[place or 0 for place in places]]
            if None in places:
                fill = _EMPTY.get(coord.dtype.kind, 0)
                is_there = np.array([place is not None for place in places])
                where = np.where if isinstance(values, np.ndarray) else da.where
                values = where(is_there, values, np.asarray(fill, coord.dtype))
            if not isinstance(values, np.ndarray):
                values = values.rechunk(time_chunk)
            coords[str(name)] = xr.DataArray(values, dims="time", attrs=coord.attrs)
    return coords


def _joined(
    name: str, groups: Sequence[_Group], target: ChunkedGrid, places: Sequence[int | None] | None
) -> tuple[xr.DataArray, list[str]]:
    """Return a variable on the grid and time axis of the cube, and the labels of its bands."""
    holding = [group for group in groups if name in group.data]
    band_dim = MODALITIES[name].band_dim if name in MODALITIES else None
    bands = MODALITIES[name].bands if band_dim else ("",)
    found: dict[str, Any] = {}
    for group in holding:
        data = group.data[name]
        dims = (*(("time",) if places is not None else ()), *((band_dim,) if band_dim else ()))
        if set(data.dims) != {*dims, "y", "x"}:
            raise ValueError(
                f"{name} of group {group.path} has dims {data.dims}; expected {(*dims, 'y', 'x')}."
            )
        pixels = _as_dask(data.transpose(*dims, "y", "x"))
        labels = [str(label) for label in data[band_dim].values] if band_dim else [""]
        on_grid = _on_axis(pixels, group.geobox, target, _how(name), places)
        for place, label in enumerate(labels):
            one = on_grid[:, place : place + 1] if band_dim else on_grid
            found.setdefault(label, one)
    used = [band for band in bands if band in found]
    if not used:
        raise ValueError(f"{name} has the bands {', '.join(found)}; expected {', '.join(bands)}.")
    pixels = da.concatenate([found[band] for band in used], axis=1) if band_dim else found[""]
    items = [str(i) for group in holding for i in group.data[name].attrs.get("stac_items", ())]
    attrs = dict(holding[0].data[name].attrs)
    if items:
        attrs["stac_items"] = list(dict.fromkeys(items))
    return xr.DataArray(pixels, dims=(*dims, "y", "x"), attrs=attrs), used


def _on_axis(
    pixels: Any,
    native: GeoBox,
    target: ChunkedGrid,
    how: Regridding,
    places: Sequence[int | None] | None,
) -> Any:
    """Return pixels on the target's grid, and along time at the places where they are wanted."""
    if places is None:
        return regrid(pixels, native, target, how)
    if list(places) == list(range(len(pixels))):
        return regrid(pixels, native, target, how)
    used = sorted({place for place in places if place is not None})
    on_grid = regrid(pixels[used], native, target, how)
    empty = da.full(
        (1, *on_grid.shape[1:]),
        how.fill_value,
        dtype=on_grid.dtype,
        chunks=((1,), *on_grid.chunks[1:]),
    )
    steps = [
        empty if place is None else on_grid[(n := used.index(place)) : n + 1] for place in places
    ]
    return da.concatenate(steps, axis=0)


def _how(name: str) -> Regridding:
    if name in _MASKS:
        return _MASKS[name]
    modality = MODALITIES[name]
    is_decibel = modality.units == "dB"
    method = "bilinear" if is_decibel or name == "DEM" else "nearest"
    return Regridding(method, modality.fill_value, is_decibel)


def _as_dask(data: xr.DataArray) -> Any:
    """Return the lazy pixels; of a store that was opened without chunks, in its own ones."""
    if data.chunks is None:
        data = data.chunk(data.encoding.get("preferred_chunks", {}))
    return data.data


def _chunk_lengths(data: xr.Dataset) -> dict[str, int]:
    """Return the chunk lengths of a group along time, y and x."""
    lengths = {"time": 1, **DEFAULT_CHUNKS_PX}
    for array in data.data_vars.values():
        # Coordinates of a store may be chunked in another way: they must not be looked at.
        variable = array.variable
        preferred = variable.encoding.get("preferred_chunks", {})
        for dim in lengths:
            if variable.chunks is not None and dim in variable.dims:
                lengths[dim] = max(variable.chunksizes[dim])
            elif dim in preferred:
                lengths[dim] = int(preferred[dim])
        return lengths
    return lengths


def _model_grid(geobox: GeoBox) -> GeoBox:
    """Return the grid of about 10 m, as the model needs it, over a native one."""
    if crs_of(geobox).geographic:
        return covering_grid(GridRequest(None, None, RESOLUTION_M), [geobox])
    affine, crs = geobox.affine, named_crs(crs_of(geobox))
    low, high = RESOLUTION_RANGE_M
    is_square = abs(affine.a + affine.e) <= _SQUARE_TOLERANCE * abs(affine.a)
    if is_square and affine.a > 0 and affine.b == affine.d == 0 and low <= affine.a <= high:
        return GeoBox(geobox.shape, affine, crs)
    step, box = RESOLUTION_M, geobox.boundingbox
    size = (max(round(box.span_y / step), 1), max(round(box.span_x / step), 1))
    return GeoBox(size, Affine(step, 0, box.left, 0, -step, box.top), crs)
