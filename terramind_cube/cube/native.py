"""The native view: each sensor at its own resolution, bands and times, pixels as they are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from terramind_cube.cube.chunking import ChunkedGrid
from terramind_cube.cube.encodings import encode_times
from terramind_cube.cube.grids import (
    boundary,
    crs_of,
    geographic_extent,
    named_crs,
    pixel_of,
    place_of,
)
from terramind_cube.cube.series import Series, steps_of
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
from terramind_cube.stac.providers import DERIVED, NATIVE_RESOLUTION_M

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from terramind_cube.cube.headers import Headers
    from terramind_cube.cube.pairing import TimeStep
    from terramind_cube.cube.request import CubeRequest
    from terramind_cube.modalities import Modality
    from terramind_cube.stac.bands import BandLocation, ItemBands

__all__ = ["native_grid", "native_tree"]

_DEGREE_M = 111_320.0
_WHOLE_TOLERANCE_PX = 0.01
# Interpolation onto the area's own grid looks at the neighbours of its outermost pixels.
_NEIGHBOURS_PX = 2
_SCENE_CLASSES = "SCL"


def native_tree(
    request: CubeRequest,
    sources: list[ItemBands],
    grid: GeoBox,
    headers: Headers,
    lengths: Mapping[str, int],
) -> xr.DataTree:
    """Return the native view of what was asked for.

    Parameters
    ----------
    request : CubeRequest
    sources : list of ItemBands
        Items of the modality that leads: the others are searched for around its dates.
    grid : GeoBox
        Grid of the area in the analysis view.
    headers : Headers
    lengths : mapping of str to int
        Chunk lengths of ``"time"``, ``"y"`` and ``"x"``, in each group's own pixels.

    Returns
    -------
    xarray.DataTree
        Groups ``/S2L2A/r10m``, ``/S2L2A/r20m`` and ``/S2L2A/r60m``, which hold the bands whose
        files have that resolution, scene classes and what is computed from bands; likewise of
        S2L1C. Every other modality is a group. Each is a Dataset with a time axis of its own, of
        all dates that were found. Its grid covers the area with whole pixels of the items where
        those share a CRS, else with pixels of their size in the area's CRS. Elevation reaches two
        pixels further, for an interpolation onto the area. Nothing is computed.

    Raises
    ------
    ValueError, AssetError
        If a modality has no item; if a file whose grid must be known cannot be read.
    """
    groups: dict[str, xr.Dataset] = {}
    times: list[datetime] = []
    for modality in request.read:
        found = sources
        if times:
            window = request.window(modality, times)
            found = request.find(modality, geographic_extent(grid), window)
        steps = settle_units(steps_of(modality, found, grid), request, headers.reading)
        times = times or [step.time for step in steps]
        builder = _GroupBuilder(request, modality, steps, grid, headers, lengths)
        groups |= builder.optical() if modality.units == "1e-4" else builder.whole()
    return xr.DataTree.from_dict(groups)


def native_grid(
    grids: Sequence[GeoBox | None], area: GeoBox, resolution_m: float, margin_px: int = 0
) -> GeoBox:
    """Return the grid of whole native pixels that covers an area.

    Parameters
    ----------
    grids : sequence of GeoBox or None
        Of the files, None where unknown. The first of the finest ones gives the lattice, where
        they share one CRS.
    area : GeoBox
    resolution_m : float
        Size of pixels where no grid is known.
    margin_px : int
        Further pixels on each side, where the area's edge does not lie between pixels.
    """
    known = [grid for grid in grids if grid is not None]
    is_shared = len({crs_of(grid) for grid in known}) == 1 and all(
        grid.affine.b == grid.affine.d == 0 and grid.affine.a > 0 > grid.affine.e for grid in known
    )
    if is_shared:
        lattice = min(known, key=_pixel_size)
    else:
        step = min(map(_resolution_m, known), default=resolution_m)
        lattice = GeoBox((1, 1), Affine(step, 0, 0, 0, -step, 0), crs_of(area))
    return _cut(lattice, area, margin_px)


class _GroupBuilder:
    """Makes the groups of one modality."""

    def __init__(
        self,
        request: CubeRequest,
        modality: Modality,
        steps: list[TimeStep],
        grid: GeoBox,
        headers: Headers,
        lengths: Mapping[str, int],
    ) -> None:
        self.request, self.modality, self.steps = request, modality, steps
        self.area, self.headers, self.lengths = grid, headers, lengths
        self.sources = [source for step in steps for source in step.sources]
        self._chunked: dict[GeoBox, ChunkedGrid] = {}

    def whole(self) -> dict[str, xr.Dataset]:
        """Return the one group of a modality whose bands share a grid."""
        grids = [self.headers.grid(source, source.bands[0]) for source in self.sources]
        margin_px = _NEIGHBOURS_PX if self.modality.kind == "image" else 0
        grid = native_grid(grids, self.area, abs(self.area.resolution.x), margin_px)
        labels = self.request.labels(self.modality)
        return {f"/{self.modality.name}": self._group(grid, labels, {}, {})}

    def optical(self) -> dict[str, xr.Dataset]:
        """Return a group for each resolution of the bands."""
        name, request = self.modality.name, self.request
        grids = {
            label: [self.headers.grid(source, _band(source, label)) for source in self.sources]
            for label in request.labels(self.modality)
        }
        sizes = {label: _nominal_m(found, label) for label, found in grids.items()}
        derived = [row.name for row in request.asked if row.name in DERIVED]
        needed = self._restricted(derived, {}).labels(self.modality) if name == "S2L2A" else ()
        asked = request.bands.get(name, self.modality.bands) if request.has(name) else ()
        scene_classes = self._scene_class_grids()
        classes_m = _nominal_m(scene_classes, _SCENE_CLASSES) if scene_classes else None
        derived_m = min((sizes[label] for label in needed), default=None)

        groups = {}
        used = {sizes[label] for label in asked} | {classes_m, derived_m}
        for size in sorted(size for size in used if size is not None):
            labels = tuple(label for label in asked if sizes[label] == size)
            shown = labels or (needed if size == derived_m else ())
            found = [grid for label in shown for grid in grids[label]] or scene_classes
            grid = native_grid(found, self.area, size)
            variables: dict[str, xr.DataArray] = {}
            coords: dict[str, xr.DataArray] = {}
            if size == derived_m:
                variables |= self._derived(grid, derived, needed)
            if "RGB" in variables:
                coords |= band_labels(MODALITIES["RGB"], MODALITIES["RGB"].bands)
            if size == classes_m:
                masks, fractions = cloud_variables(*self._series(request, grid, self.steps))
                variables, coords = variables | masks, coords | fractions
            groups[f"/{name}/r{size:g}m"] = self._group(grid, labels, variables, coords)
        return groups

    def _group(
        self,
        grid: GeoBox,
        labels: Sequence[str],
        variables: Mapping[str, xr.DataArray],
        coords: Mapping[str, xr.DataArray],
    ) -> xr.Dataset:
        """Return a group: some bands of the modality, and what else lies on their grid."""
        name = self.modality.name
        _, series = self._series(self.request, grid, self.steps)
        own: dict[str, xr.DataArray] = {}
        every: dict[Any, xr.DataArray] = dict(xr_coords(grid, dims=("y", "x")))
        every |= {**coords, **step_coords(series, self.request.s2_offset)}
        if labels:
            bands = {name: tuple(labels)} if self.modality.band_dim else {}
            steps = [_with_bands(step, labels) for step in self.steps]
            restricted = self._restricted([name], bands)
            own[name] = modality_variable(*self._series(restricted, grid, steps), labels)
            every |= band_labels(self.modality, labels)
        if self.modality.units == "dB":
            every[f"{name}_coverage"] = xr.DataArray(
                np.array([step.coverage for step in self.steps], np.float32),
                dims="time",
                attrs={"long_name": "share of the area inside of the outlines", "units": "1"},
            )
        if self.modality.temporal != "static":
            every["time"] = xr.DataArray(stamps([step.time for step in self.steps]), dims="time")
        return encode_times(xr.Dataset({**own, **variables}, coords=every))

    def _derived(
        self, grid: GeoBox, names: Sequence[str], needed: Sequence[str]
    ) -> dict[str, xr.DataArray]:
        steps = [_with_bands(step, needed) for step in self.steps]
        return derived_variables(*self._series(self._restricted(names, {}), grid, steps))

    def _restricted(
        self, names: Sequence[str], bands: Mapping[str, tuple[str, ...]]
    ) -> CubeRequest:
        """Return the request for a part of it."""
        known = {*names, "S2L2A"}
        return replace(
            self.request,
            asked=tuple(MODALITIES[name] for name in names),
            bands=bands,
            resampling={k: v for k, v in self.request.resampling.items() if k in known},
        )

    def _series(
        self, request: CubeRequest, grid: GeoBox, steps: Sequence[TimeStep]
    ) -> tuple[Assembly, Series]:
        if grid not in self._chunked:
            self._chunked[grid] = ChunkedGrid(grid, self.lengths)
        assembly = Assembly(request, self._chunked[grid], self.lengths["time"], self.headers)
        return assembly, Series(self.modality, tuple(steps), tuple(range(len(steps))), leads=True)

    def _scene_class_grids(self) -> list[GeoBox | None]:
        if not self.request.clouds:
            return []
        places = [(source, source.scene_classes) for source in self.sources]
        return [self.headers.grid(source, place) for source, place in places if place is not None]


def _band(source: ItemBands, label: str) -> BandLocation:
    return source.bands[source.labels.index(label)]


def _with_bands(step: TimeStep, labels: Sequence[str]) -> TimeStep:
    """Return a step with some of its bands."""
    sources = [
        replace(source, bands=tuple(_band(source, label) for label in labels), labels=tuple(labels))
        for source in step.sources
    ]
    return replace(step, sources=tuple(sources))


def _resolution_m(grid: GeoBox) -> float:
    factor = _DEGREE_M if crs_of(grid).geographic else 1.0
    return min(abs(grid.resolution.x), abs(grid.resolution.y)) * factor


def _nominal_m(grids: Sequence[GeoBox | None], label: str) -> int:
    """Return the resolution of a band in whole metres: that of its finest file."""
    sizes = [_resolution_m(grid) for grid in grids if grid is not None]
    return max(round(min(sizes)), 1) if sizes else NATIVE_RESOLUTION_M[label]


def _pixel_size(grid: GeoBox) -> float:
    """Return the area of a pixel, rounded so that noise does not make a grid the finest one."""
    return float(f"{abs(grid.resolution.x * grid.resolution.y):.6e}")


def _cut(lattice: GeoBox, area: GeoBox, margin_px: int) -> GeoBox:
    """Return the whole pixels of a lattice that cover an area."""
    x, y = boundary(area)
    crs, own = crs_of(area), crs_of(lattice)
    if crs != own:
        x, y = (np.asarray(values) for values in crs.transformer_to_crs(own)(x, y))
        if own.geographic:
            x = np.unwrap(x, period=360)
            x = x + 360 * round(
                (lattice.boundingbox.span_x / 2 + lattice.affine.c - x.mean()) / 360
            )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(
            f"The area cannot be expressed in {own}, the CRS of its items: choose a smaller area, "
            'or mode="analysis".'
        )
    columns, rows = pixel_of(lattice.affine, x, y)
    edges = [rows.min(), rows.max(), columns.min(), columns.max()]
    is_whole = crs == own and all(abs(v - round(v)) < _WHOLE_TOLERANCE_PX for v in edges)
    margin = 0 if is_whole else margin_px
    y0, x0 = (math.floor(v + _WHOLE_TOLERANCE_PX) - margin for v in (edges[0], edges[2]))
    y1, x1 = (math.ceil(v - _WHOLE_TOLERANCE_PX) + margin for v in (edges[1], edges[3]))
    left, top = place_of(lattice.affine, x0, y0)
    step = lattice.affine
    return GeoBox((y1 - y0, x1 - x0), Affine(step.a, 0, left, 0, step.e, top), named_crs(own))
