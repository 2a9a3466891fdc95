"""Lazy mosaics of items: one task for each step, band and chunk, and nothing that is not needed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
from dask._task_spec import Alias, Task
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from terramind_cube.cube.assets import Reading, fetch
from terramind_cube.cube.failures import AssetError, listen, report_failure
from terramind_cube.cube.radiometry import is_invalid
from terramind_cube.cube.reading import BandSource, DeclaredGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from terramind_cube.cube.chunking import ChunkedGrid
    from terramind_cube.cube.radiometry import Radiometry
    from terramind_cube.stac.bands import BandLocation

__all__ = ["ItemSource", "Mosaic", "lazy_mosaic"]

da: Any = dask.array  # only partly typed

_SIGNATURE = re.compile(r"&(x-(amz|goog)-)?(sig|signature|\w*token)=", re.IGNORECASE)


@dataclass(frozen=True)
class ItemSource:
    """The bands of one item as tasks read them.

    Attributes
    ----------
    item_id : str
    bands : tuple of BandLocation
    radiometry : Radiometry
    resampling : str
    declared : tuple of DeclaredGrid or None
        Grid of each band, where the item declares it.
    footprint : GeoBox, GeoJSON geometry or None
        Where its pixels lie; None is anywhere.
    outline : GeoJSON geometry or None
        Where they may lie as well, of an item whose declared grids do not fit its geometry.
    """

    item_id: str
    bands: tuple[BandLocation, ...]
    radiometry: Radiometry
    resampling: str
    declared: tuple[DeclaredGrid | None, ...]
    footprint: GeoBox | dict[str, Any] | None = None
    outline: dict[str, Any] | None = None

    def band(self, index: int) -> BandSource:
        """Return one band, for a task."""
        return BandSource(
            self.item_id,
            self.bands[index],
            self.radiometry,
            self.resampling,
            self.declared[index],
            self.outline,
        )


@dataclass(frozen=True)
class Mosaic:
    """What the tasks of one variable share.

    Attributes
    ----------
    name : str
        Of the variable.
    dtype : str
    fill_value : float
    reading : Reading
    band_axis : bool
        Whether the result has one.
    margin_px : int
        Pixels around a chunk that `finish` needs.
    finish : callable, optional
        Turns a mosaic of a chunk, with its margin, into the result's pixels, with the margin.
    result : str, optional
        Data type of what it returns.
    """

    name: str
    dtype: str
    fill_value: float
    reading: Reading
    band_axis: bool = True
    margin_px: int = 0
    finish: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    result: str | None = None


@dataclass(frozen=True, slots=True)
class _Layers:
    """Sources of one chunk, earlier ones above later ones.

    No bare tuple: dask would look for keys in it.
    """

    sources: tuple[ItemSource, ...]


def lazy_mosaic(
    steps: Sequence[Sequence[ItemSource]],
    places: Sequence[int | None],
    bands: int,
    grid: ChunkedGrid,
    mosaic: Mosaic,
) -> Any:
    """Return mosaics of some steps as a lazy array in the unit of a cube.

    Parameters
    ----------
    steps : sequence of sequences of ItemSource
        Sources of each step; earlier ones cover later ones.
    places : sequence of int or None
        Step at each place of the time axis, None for nodata.
    bands : int
        Number of bands.
    grid : ChunkedGrid
    mosaic : Mosaic

    Returns
    -------
    dask.array.Array, shape (time, band, y, x) or (time, y, x)
        One chunk per time, band and chunk of the grid; a task for each.
    """
    name = f"{mosaic.name}-{_token(steps, places, grid, mosaic)}"
    if mosaic.reading.failures:
        listen(mosaic.reading.failures, name)
        mosaic = replace(mosaic, reading=replace(mosaic.reading, failures=name))
    empty = _Layers(())
    graph: dict[Any, Any] = {}
    written: dict[int | None, int] = {}
    chunks = [
        (y, x, grid.geoboxes[y][x])
        for y in range(len(grid.chunks[0]))
        for x in range(len(grid.chunks[1]))
    ]
    for time, place in enumerate(places):
        if place in written:  # two dates share a scene: it is read once
            first = written[place]
            for y, x, _ in chunks:
                for band in range(bands):
                    key = _key(name, time, band, y, x, mosaic)
                    graph[key] = Alias(key, _key(name, first, band, y, x, mosaic))
            continue
        written[place] = time
        layers: dict[tuple[int, int], list[ItemSource]] = {}
        for source in () if place is None else steps[place]:
            touched = grid.touched(source.footprint, mosaic.margin_px)
            if source.outline is not None:
                touched = sorted({*touched, *grid.touched(source.outline, mosaic.margin_px)})
            for chunk in touched:
                layers.setdefault(chunk, []).append(source)
        for y, x, geobox in chunks:
            held = layers.get((y, x))
            shared = empty if held is None else _Layers(tuple(held))
            for band in range(bands):
                key = _key(name, time, band, y, x, mosaic)
                graph[key] = Task(key, _read_chunk, shared, band, geobox, mosaic)
    axes = ((1,) * len(places), (1,) * bands, *grid.chunks)
    if not mosaic.band_axis:
        axes = (axes[0], *axes[2:])
    return da.Array(
        HighLevelGraph.from_collections(name, graph, dependencies=()),
        name,
        axes,
        meta=np.empty((0,) * len(axes), mosaic.result or mosaic.dtype),
    )


def _key(name: str, time: int, band: int, y: int, x: int, mosaic: Mosaic) -> tuple[Any, ...]:
    return (name, time, band, y, x) if mosaic.band_axis else (name, time, y, x)


def _read_chunk(layers: _Layers, band: int, geobox: GeoBox, mosaic: Mosaic) -> NDArray[Any]:
    """Read one chunk of one band: sources from the top until no pixel is invalid."""
    margin = mosaic.margin_px
    area = geobox.pad(margin) if margin else geobox
    pixels: NDArray[Any] | None = None
    for source in layers.sources:
        try:
            read = fetch(source.band(band), area, mosaic.reading)
        except AssetError as error:
            if mosaic.reading.on_error == "raise":
                raise
            report_failure(mosaic.reading.failures, error)
            continue
        if pixels is None:
            pixels = read
        else:
            pixels = np.where(is_invalid(pixels, mosaic.fill_value), read, pixels)
        if not is_invalid(pixels, mosaic.fill_value).any():
            break
    if pixels is None:
        pixels = np.full(area.shape.yx, mosaic.fill_value, mosaic.dtype)
    if mosaic.finish is not None:
        pixels = mosaic.finish(pixels)
    inner = pixels[margin:-margin, margin:-margin] if margin else pixels
    inner = np.ascontiguousarray(inner, mosaic.result or mosaic.dtype)
    return inner[None, None] if mosaic.band_axis else inner[None]


def _token(
    steps: Sequence[Sequence[ItemSource]],
    places: Sequence[int | None],
    grid: ChunkedGrid,
    mosaic: Mosaic,
) -> str:
    """Return a name for the same pixels, in any process: equal inputs give equal names.

    Signatures of addresses, time-outs and attempts do not shape pixels, so that they have no part
    in it. Addresses are hashed as text: dask's own way would take longer than the rest of the graph.
    """
    digest = hashlib.blake2b(digest_size=16)
    for step in steps:
        for source in step:
            hrefs = "|".join(f"{_unsigned(band.href)}#{band.index}" for band in source.bands)
            digest.update(
                f"{source.item_id}|{hrefs}|{source.radiometry}{source.resampling}".encode()
            )
        digest.update(b"/")
    shared = (
        list(places), str(grid.geobox), grid.chunks, mosaic.name, mosaic.margin_px, mosaic.finish,
        mosaic.reading.on_error,
    )  # fmt: skip
    digest.update(tokenize(shared).encode())
    return digest.hexdigest()


def _unsigned(href: str) -> str:
    """Return an address without a query that is signed, which is another one each time."""
    path, _, query = href.partition("?")
    return path if _SIGNATURE.search(f"&{query}") else href
