"""From a plan and a cube to a lazy Dataset: one task per tile group, one more per output chunk.

A group's task depends on the input chunks that its window touches, whatever their size, and copies
out of them only what it needs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import numpy as np
import xarray as xr
from dask.array.core import normalize_chunks
from dask.base import tokenize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import DataNode, List, Task, TaskRef
from odc.geo.xr import xr_coords

from terramind_cube.cube.encodings import encode_times, fill_encoding
from terramind_cube.cube.inspection import blank_impossible, look_at, tell_once
from terramind_cube.cube.plausibility import list_scenes
from terramind_cube.grid import Region, regions
from terramind_cube.inference.collect import cell_region, tile_range
from terramind_cube.inference.execution import run_group
from terramind_cube.inference.plan import GROUP_PX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from terramind_cube.cube.layout import CubeLayout
    from terramind_cube.cube.plausibility import Scene
    from terramind_cube.inference.plan import TilePlan
    from terramind_cube.inference.variables import OutputVariable

    Tile = tuple[int, int]
    Moment = tuple[int, tuple[Scene, ...]]
    """Nanoseconds since 1970, and what is known of each input then."""

__all__ = ["generated_regions", "group_remarks", "map_plan", "read_fingerprint", "runs_model"]

RUN_ATTRIBUTE = "terramind_run"
PIXELS = "pixels"  # as the ledger calls them
# Dask's names follow from everything that computes an array, unless they are random.
_RANDOM_NAME = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
GROUP_PREFIX = "terramind-"
REMARKS = "remarks"
Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Window:
    """How a window is put together from chunks.

    Attributes
    ----------
    shape : tuple of int
        Bands, rows, columns.
    dtype : str
    parts : tuple of (source, target) slices
        One pair per chunk, in the order in which the chunks are passed.
    """

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[tuple[Slices, Slices], ...]

    def assemble(self, chunks: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        """Copy the parts of the chunks into one array; of a single chunk, view it."""
        if len(chunks) == 1:
            part = chunks[0][self.parts[0][0]]
            return part[0] if part.ndim > len(self.shape) else part
        # Like the chunks: those of CuPy stay on their device.
        window = np.empty_like(chunks[0], dtype=self.dtype, shape=self.shape)
        for chunk, (source, target) in zip(chunks, self.parts, strict=True):
            part = chunk[source]
            window[target] = part[0] if part.ndim > window.ndim else part
        return window


def map_plan(layout: CubeLayout, plan: TilePlan) -> xr.Dataset:
    """Return the variables of a plan as a lazy Dataset on the cube's grid.

    Parameters
    ----------
    layout : CubeLayout
    plan : TilePlan

    Returns
    -------
    xarray.Dataset
        ``plan.variables()``, without the dimension time where the cube has none; a single date stays
        its coordinate. Chunks are ``chunk_px``, counted from the corner; those on token cells cover
        the same pixels, those on tiles one tile each.
    """
    arrays = [_as_dask(layer.data) for layer in layout.layers]
    times = [0] if layout.times is None else layout.times.astype(np.int64).tolist()
    has_axis = layout.times is not None and layout.has_time_axis
    name = f"{GROUP_PREFIX}{tokenize(plan, times, has_axis, [array.name for array in arrays])}"
    scenes = [list_scenes(layer) for layer in layout.layers]
    tasks: dict[Any, Task] = {}
    for t, time in enumerate(times):
        seen = tuple(dates[t if len(dates) > 1 else 0] for dates in scenes)
        for group, region in enumerate(plan.groups()):
            tasks[(name, t, group)] = _group_task(
                (name, t, group), plan, region, (time, seen), _windows(plan, arrays, region, t)
            )
    # Dask declares collections as a protocol that its own arrays do not satisfy.
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=cast("Any", arrays))
    groups = _Groups(plan, name, graph, len(times), has_axis)
    variables = plan.variables()
    result = xr.Dataset(
        {row.name: (groups.dims(row), groups.cut(row)) for row in variables},
        coords={**xr_coords(layout.geobox), **_lattice_coords(plan, variables)},
    )
    if layout.times is not None:
        result = result.assign_coords(time=layout.times if has_axis else layout.times[0])
    result = _described(result, layout, plan)
    # Not an attribute: stores of the same pixels from other chunks have the same metadata.
    named = zip(layout.layers, arrays, strict=True)
    result.encoding[PIXELS] = {row.modality.name: _identify(array) for row, array in named}
    return result


def runs_model(key: object) -> bool:
    """Return whether a task's key is that of a tile group: of those alone, the model is run."""
    name = key[0] if isinstance(key, tuple) and key else None
    return isinstance(name, str) and name.startswith(GROUP_PREFIX)


def read_fingerprint(result: xr.Dataset) -> dict[str, Any]:
    """Return what `map_plan` wrote down about a run, and the names of its inputs' pixels.

    Raises
    ------
    ValueError
        If the Dataset was not generated by this package.
    """
    if RUN_ATTRIBUTE not in result.attrs:
        raise ValueError("This Dataset was not generated by terramind_cube: it carries no run.")
    run = dict(json.loads(result.attrs[RUN_ATTRIBUTE]))
    if PIXELS in result.encoding:
        run[PIXELS] = dict(result.encoding[PIXELS])
    return run


def generated_regions(result: xr.Dataset) -> list[dict[str, slice]]:
    """Return the tile groups of a generated Dataset: dimension name to slice, one group each.

    A slice may be empty where a group has no tile of its own.
    """
    run = read_fingerprint(result)
    areas = []
    for area in regions((result.sizes["y"], result.sizes["x"]), run["group_px"]):
        slices = {"y": slice(area.y0, area.y1), "x": slice(area.x0, area.x1)}
        if "token_y" in result.dims:
            cells = cell_region(area, run["patch_px"])
            slices["token_y"] = slice(cells.y0, cells.y1)
            slices["token_x"] = slice(cells.x0, cells.x1)
        if "tile_y" in result.dims:
            for axis, (begin, end) in {"y": (area.y0, area.y1), "x": (area.x0, area.x1)}.items():
                first, last = np.searchsorted(run[f"tile_{axis}_px"], (begin, end)).tolist()
                slices[f"tile_{axis}"] = slice(first, last)
        areas.append(slices)
    if "time" not in result.dims:
        return areas
    return [
        {"time": slice(t, t + 1), **area} for t in range(result.sizes["time"]) for area in areas
    ]


def group_remarks(result: xr.Dataset) -> Callable[[Mapping[str, tuple[int, int]]], Any] | None:
    """Return a function of bounds, (start, stop) by dimension, that tells what looked wrong there.

    Returns
    -------
    callable or None
        It gives a Delayed list of sentences about the inputs, computed with the tile groups that
        meet the bounds. None of a Dataset that is not what `map_plan` made.
    """
    array = next(iter(result.data_vars.values()), None)
    if RUN_ATTRIBUTE not in result.attrs or array is None or array.chunks is None:
        return None
    graph, side = array.data.dask, read_fingerprint(result)["group_px"]
    run = array.data.name.removeprefix(f"{array.name}-")
    if run not in graph.layers:
        return None
    shape = result.sizes["y"], result.sizes["x"]
    columns = -(-shape[1] // side)

    def within(bounds: Mapping[str, tuple[int, int]]) -> Any:
        spans = [bounds.get(dim, (0, size)) for dim, size in zip("yx", shape, strict=True)]
        rows, cols = (range(start // side, -(-stop // side)) for start, stop in spans)
        times = range(*bounds.get("time", (0, result.sizes.get("time", 1))))
        keys = [(run, t, row * columns + col) for t in times for row in rows for col in cols]
        groups = [Delayed(key, graph, layer=run) for key in keys]
        return delayed(_join_remarks, pure=False)(groups)

    return within


def _join_remarks(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(text for group in groups for text in group[REMARKS]))


def _lattice_coords(plan: TilePlan, variables: Sequence[OutputVariable]) -> dict[str, xr.Variable]:
    """Return the centres of cells and tiles that the variables lie on, and the axes' labels."""
    coords: dict[str, xr.Variable] = {}
    grid, (width, left, height, top) = plan.grid, plan.cut.transform
    lattices = {row.lattice for row in variables}
    for axis, tiles, origin, step in (("y", grid.y, top, height), ("x", grid.x, left, width)):
        attrs = {"standard_name": f"projection_{axis}_coordinate", "units": "m"}
        if "cells" in lattices:
            cells = np.arange(-(-tiles.length_px // tiles.patch_px)) + 0.5
            places = origin + step * tiles.patch_px * cells
            coords[f"token_{axis}"] = xr.Variable(f"token_{axis}", places, attrs)
        if "tiles" in lattices:
            places = origin + step * (np.array(tiles.starts) + tiles.tile_px / 2)
            coords[f"tile_{axis}"] = xr.Variable(f"tile_{axis}", places, attrs)
    for row in variables:
        for label in row.axes:
            if label.labels:
                # Zarr 3 has a specification for texts of variable length only.
                kind = object if isinstance(label.labels[0], str) else None
                coords[label.name] = xr.Variable(label.name, np.array(label.labels, kind))
    return coords


def _as_dask(data: xr.DataArray) -> da.Array:
    """Return the data's Dask array; of data in memory one whose chunks are views of it.

    `dask.array.from_array` would copy them; one chunk would go to a worker with every group.
    """
    if isinstance(data.data, da.Array):
        return data.data
    values = data.data
    name = f"cube-{tokenize(values)}"
    sides = (*(1 for _ in values.shape[:-3]), -1, GROUP_PX, GROUP_PX)
    chunks = normalize_chunks(sides, values.shape)
    edges = [np.cumsum((0, *sizes)).tolist() for sizes in chunks]
    tasks = {}
    for index in np.ndindex(*map(len, chunks)):
        place = tuple(slice(edge[i], edge[i + 1]) for edge, i in zip(edges, index, strict=True))
        key = (name, *index)
        tasks[key] = DataNode(key, values[place])
    return da.Array(tasks, name, chunks, dtype=values.dtype)


def _identify(array: da.Array) -> dict[str, str]:
    """Return the name, which follows from what computes the pixels, and a layer that has none."""
    random = [str(layer) for layer in array.dask.layers if _RANDOM_NAME.search(str(layer))]
    return {"name": array.name, **({"random": min(random)} if random else {})}


class _GroupTask(Task):
    """A task that no optimisation fuses with others, which would hide its key and hold its device.

    Of a single variable with one chunk per group, reading, computing and cutting would become one.
    """

    __slots__ = ()

    @property
    def block_fusion(self) -> bool:
        return True


def _group_task(
    key: tuple[object, ...],
    plan: TilePlan,
    region: Region,
    moment: Moment,
    windows: Sequence[tuple[Window, list[TaskRef]]],
) -> Task:
    chunks = List(*(List(*references) for _, references in windows))
    recipes = tuple(window for window, _ in windows)
    return _GroupTask(key, _compute_group, key[0], plan, region, moment, recipes, chunks)


def _compute_group(
    run: str,
    plan: TilePlan,
    region: Region,
    moment: Moment,
    recipes: Sequence[Window],
    chunks: Sequence[Sequence[NDArray[np.generic]]],
) -> dict[str, Any]:
    """Return a group's arrays by variable and, as `REMARKS`, what looked wrong in its inputs."""
    time, scenes = moment
    windows = [recipe.assemble(parts) for recipe, parts in zip(recipes, chunks, strict=True)]
    findings = look_at(scenes, windows)
    tell_once(run, findings)
    windows = [
        blank_impossible(scene.modality, pixels)
        for scene, pixels in zip(scenes, windows, strict=True)
    ]
    return {**run_group(plan, region, time, windows), REMARKS: [row.text for row in findings]}


def _windows(
    plan: TilePlan, arrays: Sequence[da.Array], region: Region, t: int
) -> list[tuple[Window, list[TaskRef]]]:
    """Return, per input, how the window of a region comes from its chunks, and their keys."""
    read = plan.grid.window(region)
    windows = []
    for array in arrays:
        bounds = [(0, array.shape[-3]), (read.y0, read.y1), (read.x0, read.x1)]
        if array.ndim == 4:
            bounds.insert(0, (t, t + 1))
        parts, references = [], []
        for index, source, target in _touched(array.chunks, bounds):
            parts.append((source, target[-3:]))
            references.append(TaskRef((array.name, *index)))
        shape = tuple(end - begin for begin, end in bounds[-3:])
        windows.append((Window(shape, array.dtype.str, tuple(parts)), references))
    return windows


def _touched(
    chunks: tuple[tuple[int, ...], ...], bounds: Sequence[tuple[int, int]]
) -> list[tuple[tuple[int, ...], Slices, Slices]]:
    """Return index, source slices and target slices of every chunk that meets the bounds."""
    found: list[tuple[tuple[int, ...], Slices, Slices]] = [((), (), ())]
    for sizes, (begin, end) in zip(chunks, bounds, strict=True):
        ends = np.cumsum(sizes)
        axis = []
        for i, (stop, size) in enumerate(zip(ends.tolist(), sizes, strict=True)):
            start = stop - size
            low, high = max(start, begin), min(stop, end)
            if low < high:
                axis.append((i, slice(low - start, high - start), slice(low - begin, high - begin)))
        found = [
            ((*index, i), (*source, inner), (*target, outer))
            for index, source, target in found
            for i, inner, outer in axis
        ]
    return found


@dataclass(frozen=True)
class _Groups:
    """The tasks of all tile groups, from which the chunks of the variables are cut."""

    plan: TilePlan
    name: str
    graph: HighLevelGraph
    steps: int
    has_time: bool

    def dims(self, row: OutputVariable) -> tuple[str, ...]:
        return tuple(dim for dim in row.dims if dim != "time" or self.has_time)

    def cut(self, row: OutputVariable) -> da.Array:
        """Cut one variable's chunks out of the groups' results."""
        name = f"{row.name}-{self.name}"
        dims = self.dims(row)
        computed = [axis.name for axis in row.axes] + list(row.lattice_dims)
        if self.has_time:
            computed = ["time", *computed]
        order = tuple(computed.index(dim) for dim in dims)
        tasks: dict[Any, Task] = {}
        for group, region in enumerate(self.plan.groups()):
            for index, part in self._parts(row, region):
                place = dict(zip(row.lattice_dims, index, strict=True))
                for t in range(self.steps):
                    key = (name, *(t if dim == "time" else place.get(dim, 0) for dim in dims))
                    tasks[key] = Task(
                        key, _cut, TaskRef((self.name, t, group)), row.name, part, order
                    )
        sizes: dict[str, tuple[int, ...]] = {axis.name: (axis.size,) for axis in row.axes}
        sizes |= {"time": (1,) * self.steps, **self._lattice_chunks(row)}
        layers: dict[str, Any] = {**self.graph.layers, name: tasks}
        dependencies = {**self.graph.dependencies, name: {self.name}}
        graph = HighLevelGraph(layers, dependencies)
        return da.Array(graph, name, tuple(sizes[dim] for dim in dims), dtype=row.dtype)

    def _parts(self, row: OutputVariable, region: Region) -> Iterator[tuple[Tile, Region]]:
        """Yield the index of every chunk in a group, and where it lies in the group's arrays."""
        side, patch = self.plan.cut.chunk_px, self.plan.grid.y.patch_px
        if row.lattice == "tiles":
            tiles = tile_range(self.plan.grid, region)
            for y, x in np.ndindex(*tiles.shape):
                yield (tiles.y0 + y, tiles.x0 + x), Region(y, y + 1, x, x + 1)
            return
        for part in regions(region.shape, side):
            index = ((region.y0 + part.y0) // side, (region.x0 + part.x0) // side)
            yield index, part if row.lattice == "pixels" else cell_region(part, patch)

    def _lattice_chunks(self, row: OutputVariable) -> dict[str, tuple[int, ...]]:
        side, patch = self.plan.cut.chunk_px, self.plan.grid.y.patch_px
        chunks = {}
        for dim, tiles in zip(row.lattice_dims, (self.plan.grid.y, self.plan.grid.x), strict=True):
            if row.lattice == "tiles":
                chunks[dim] = (1,) * len(tiles.starts)
                continue
            unit = 1 if row.lattice == "pixels" else patch
            length = -(-tiles.length_px // unit)
            chunks[dim] = tuple(
                min(side // unit, length - start) for start in range(0, length, side // unit)
            )
        return chunks


def _cut(
    results: dict[str, NDArray[np.generic]], variable: str, part: Region, order: tuple[int, ...]
) -> NDArray[np.generic]:
    chunk = results[variable][..., part.y0 : part.y1, part.x0 : part.x1]
    if len(order) > chunk.ndim:
        chunk = chunk[None]  # time, which a group has none of
    return np.ascontiguousarray(chunk.transpose(order))


def _described(result: xr.Dataset, layout: CubeLayout, plan: TilePlan) -> xr.Dataset:
    """Give the variables their CF attributes and their provenance."""
    items = sorted({item for layer in layout.layers for item in layer.items})
    provenance = {**plan.provenance(), "terramind_stac_items": items}
    run = {**plan.fingerprint(), "terramind_stac_items": items, "patch_px": plan.grid.y.patch_px}
    for axis, tiles in (("y", plan.grid.y), ("x", plan.grid.x)):
        if f"tile_{axis}" in result.dims:
            run[f"tile_{axis}_px"] = list(tiles.starts)
    result.attrs = {
        RUN_ATTRIBUTE: json.dumps(run, sort_keys=True),
        # Makes the CRS a coordinate again when xarray opens what `to_zarr` wrote.
        "coordinates": "spatial_ref",
    }
    if layout.read_failures is not None:
        result.attrs["read_failures"] = layout.read_failures
    for row in plan.variables():
        result[row.name].attrs = {**row.attrs, **provenance}
        encoding = result[row.name].encoding
        encoding.update(fill_encoding(np.dtype(row.dtype), row.attrs.get("nodata")))
        if row.lattice == "pixels":
            encoding["grid_mapping"] = "spatial_ref"
    return encode_times(result)
