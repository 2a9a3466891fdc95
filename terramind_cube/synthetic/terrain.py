"""Terrain of the procedural Earth: noise, drainage, relief, sea, lakes and rivers.

Rivers come first: a drainage tree is grown over a coarse lattice, each cell is lifted above the
cell it drains into by the slope that a river of its catchment holds (steady-state stream power),
and the fine relief follows. So valleys branch, rivers run downhill and lakes fill valleys.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage, sparse
from scipy.sparse import csgraph

__all__ = ["Field", "Mask", "Relief", "Terrain", "fractal", "make_terrain", "stream"]

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Another edition is another Earth: every place of every seed changes.
_EDITION = 2402
_CELL_PX = 8
_MARGIN_CELLS = 2
_PIXEL_M = 10.0


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return the random stream of one purpose, so that no draw shifts the draws of another."""
    keys = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in purpose]
    return np.random.default_rng([_EDITION, seed, *keys])


def fractal(
    rng: np.random.Generator, shape: tuple[int, int], scale_px: float, exponent: float = 3.4
) -> Field:
    """Draw a fractal field of unit variance over many places.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the noise.
    shape : tuple of int
        Height and width, in pixels.
    scale_px : float
        Size of the largest features, in pixels.
    exponent : float
        Slope of the power spectrum; larger is smoother.

    Returns
    -------
    numpy.ndarray, shape (height, width), float32
    """
    height, width = (fft.next_fast_len(length, real=True) for length in shape)
    noise = fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    corner = 1.0 / scale_px
    frequency2 = fft.fftfreq(height)[:, None] ** 2 + fft.rfftfreq(width)[None, :] ** 2
    amplitude = (frequency2 + corner**2) ** (-exponent / 4)
    variance = 2 * np.pi * corner ** (2 - exponent) / (exponent - 2)
    noise *= (amplitude / np.sqrt(variance)).astype(np.float32)
    field: Field = fft.irfft2(noise, s=(height, width))[: shape[0], : shape[1]]
    return np.ascontiguousarray(field, dtype=np.float32)


@dataclass(frozen=True)
class Relief:
    """How rough and how wet a place is.

    Attributes
    ----------
    height_m : float
        Height of the hills above the outlet of a place of 9 km.
    base_m : float
        Elevation of the outlet; ignored at a coast.
    sea : bool
        Whether the place lies at a coast.
    inflow_cells : int
        Catchment, in lattice cells, of the river that enters from outside.
    lakes : int
        Number of lakes.
    runoff : float
        Scale of the rivers' width, 0 for a dry land.
    """

    height_m: float
    base_m: float
    sea: bool
    inflow_cells: int
    lakes: int
    runoff: float


@dataclass(frozen=True)
class Terrain:
    """Elevation and water of a place; all fields have shape (height, width).

    Attributes
    ----------
    elevation_m : numpy.ndarray, float32
        Surface height; water surfaces are level.
    slope_east, slope_north : numpy.ndarray, float32
        Rise over run towards the east and the north.
    water, sea : numpy.ndarray, bool
        All water, and the sea alone.
    river_distance_px : numpy.ndarray, float32
        Distance to the nearest stream.
    above_river_m : numpy.ndarray, float32
        Height above the nearest stream.
    """

    elevation_m: Field
    slope_east: Field
    slope_north: Field
    water: Mask
    sea: Mask
    river_distance_px: Field
    above_river_m: Field

    @property
    def slope(self) -> Field:
        """Steepest rise over run."""
        return np.hypot(self.slope_east, self.slope_north)


@dataclass(frozen=True)
class _Drainage:
    """The tree of the coarse lattice, cells in row-major order; sea where `coast` is positive."""

    shape: tuple[int, int]
    downstream: npt.NDArray[np.int64]
    catchment: npt.NDArray[np.float64]
    elevation: npt.NDArray[np.float64]
    coast: Field


def make_terrain(seed: int, shape: tuple[int, int], relief: Relief) -> Terrain:
    """Grow the drainage of a place and the relief that belongs to it.

    Parameters
    ----------
    seed : int
        Identity of the place.
    shape : tuple of int
        Height and width, in pixels of 10 m.
    relief : Relief
        Roughness and water.

    Returns
    -------
    Terrain
    """
    drainage = _grow_drainage(seed, shape, relief)
    coarse = drainage.elevation.reshape(drainage.shape).astype(np.float32)
    elevation = _refine(ndimage.gaussian_filter(coarse, 0.7), shape)
    east, north = _gradient(elevation)
    detail = fractal(stream(seed, "detail"), shape, 40, 3.3)
    elevation += detail * (0.15 + 12 * np.hypot(east, north))

    coast = _refine(drainage.coast, shape)
    sea_mask: Mask = coast + 0.02 * fractal(stream(seed, "shore"), shape, 40, 3.2) > 0
    width_px = _draw_rivers(seed, shape, drainage, relief.runoff)
    distance, nearest = ndimage.distance_transform_edt(width_px == 0, return_indices=True)
    river_m = elevation[nearest[0], nearest[1]]
    fall = np.exp(-((distance / 7.0) ** 2)).astype(np.float32)
    elevation -= (elevation - river_m) * fall
    wide = width_px[nearest[0], nearest[1]]
    water = (distance <= np.maximum(wide / 2 - 0.2, 0)) & (wide >= 0.9)
    lakes = _fill_lakes(seed, elevation, distance, relief)
    elevation[sea_mask] = 0.0
    if relief.sea:
        elevation[~sea_mask] = np.maximum(elevation[~sea_mask], 0.4)
    water |= lakes | sea_mask
    east, north = _gradient(elevation)
    return Terrain(
        elevation,
        east,
        north,
        water,
        sea_mask,
        distance.astype(np.float32),
        (elevation - river_m).astype(np.float32),
    )


def _gradient(elevation: Field) -> tuple[Field, Field]:
    """Return the rise towards the east and the north; rows run southwards."""
    if min(elevation.shape) < 2:
        return np.zeros_like(elevation), np.zeros_like(elevation)
    return np.asarray(np.gradient(elevation, _PIXEL_M, axis=1)), -np.asarray(
        np.gradient(elevation, _PIXEL_M, axis=0)
    )


def _refine(coarse: Field, shape: tuple[int, int]) -> Field:
    """Interpolate a lattice field to pixels, without its margin."""
    fine: Field = ndimage.zoom(coarse, _CELL_PX, order=3, mode="nearest", grid_mode=True)
    start = _MARGIN_CELLS * _CELL_PX
    return np.ascontiguousarray(fine[start : start + shape[0], start : start + shape[1]])


def _grow_drainage(seed: int, shape: tuple[int, int], relief: Relief) -> _Drainage:
    """Let every cell of the lattice drain into the sea or an outlet along the softest ground."""
    rows, columns = (-(-length // _CELL_PX) + 2 * _MARGIN_CELLS for length in shape)
    rng = stream(seed, "drainage")
    ground = fractal(rng, (rows, columns), 30, 3.2)
    uplift = np.exp(0.9 * np.tanh(fractal(rng, (rows, columns), 60, 4.0))).ravel()
    heading = rng.uniform(0, 2 * np.pi)
    south, east = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    ramp = np.cos(heading) * east + np.sin(heading) * south
    border = np.ones((rows, columns), dtype=bool)
    border[1:-1, 1:-1] = False
    border_cells = np.flatnonzero(border)
    coast = np.full((rows, columns), -1.0)
    outlet = border_cells[
        np.argmax(ramp.ravel()[border_cells] - 0.1 * ground.ravel()[border_cells])
    ]
    if relief.sea:
        coast = ramp + 0.3 * fractal(rng, (rows, columns), 40, 4.0) - rng.uniform(0.35, 0.75)
        coast.ravel()[outlet] = max(coast.ravel()[outlet], 0.1)
    roots = np.flatnonzero(coast > 0) if relief.sea else np.array([outlet])
    distance, downstream = _shortest_paths(np.exp(1.1 * np.tanh(ground)) + 0.1, roots)

    catchment = np.ones(rows * columns)
    inlet = border_cells[np.argmin(ramp.ravel()[border_cells] + 0.2 * ground.ravel()[border_cells])]
    catchment[inlet] += relief.inflow_cells
    elevation = np.zeros(rows * columns)
    order = np.argsort(distance, kind="stable")
    for cell in order[::-1]:
        if downstream[cell] >= 0:
            catchment[downstream[cell]] += catchment[cell]
    rise = uplift / np.sqrt(catchment)
    for cell in order:
        if downstream[cell] >= 0:
            elevation[cell] = elevation[downstream[cell]] + rise[cell]
    size_share = min(1.0, np.sqrt(rows * columns) * _CELL_PX / 896)
    elevation *= relief.height_m * np.sqrt(size_share) / max(np.quantile(elevation, 0.99), 1e-6)
    elevation += 0.0 if relief.sea else relief.base_m
    return _Drainage((rows, columns), downstream, catchment, elevation, coast.astype(np.float32))


def _shortest_paths(
    cost: npt.NDArray[np.float64], roots: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the distance of every cell to the roots and the next cell on the way, or -1."""
    index = np.arange(cost.size).reshape(cost.shape)
    pairs = [
        (index[:, :-1], index[:, 1:], 1.0),
        (index[:-1], index[1:], 1.0),
        (index[:-1, :-1], index[1:, 1:], np.sqrt(2)),
        (index[:-1, 1:], index[1:, :-1], np.sqrt(2)),
    ]
    start = np.concatenate([a.ravel() for a, _, _ in pairs])
    end = np.concatenate([b.ravel() for _, b, _ in pairs])
    length = np.concatenate([np.full(a.size, step) for a, _, step in pairs])
    flat = cost.ravel()
    weights = length * (flat[start] + flat[end]) / 2
    graph = sparse.csr_matrix((weights, (start, end)), shape=(cost.size, cost.size))
    distance, downstream, _ = csgraph.dijkstra(
        graph, directed=False, indices=roots, return_predecessors=True, min_only=True
    )
    return distance, downstream.astype(np.int64).clip(-1)


def _draw_rivers(seed: int, shape: tuple[int, int], drainage: _Drainage, runoff: float) -> Field:
    """Draw the streams as smooth curves; each pixel holds the stream's width in pixels, or 0."""
    rng = stream(seed, "rivers")
    rows, columns = drainage.shape
    cells = np.indices((rows, columns)).reshape(2, -1).T - _MARGIN_CELLS + 0.5
    points = (cells + rng.uniform(-0.35, 0.35, cells.shape)) * _CELL_PX
    down = drainage.downstream
    child = np.flatnonzero((drainage.catchment >= 150) & (down >= 0))
    child = child[down[down[child]] >= 0]
    parent = down[child]
    a = (points[child] + points[parent])[:, None] / 2
    c = (points[parent] + points[down[parent]])[:, None] / 2
    t = np.linspace(0, 1, 24)[None, :, None]
    curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * points[parent][:, None] + t**2 * c
    bend = np.stack([fractal(rng, shape, 40, 4.6) for _ in range(2)], axis=-1)
    limit = np.array(shape) - 1
    at = curve.round().astype(np.int64).clip(0, limit)
    # A drainage lattice knows no meanders: the curves are bent by smooth noise.
    pixel = np.floor(curve + 4.0 * bend[at[..., 0], at[..., 1]]).astype(np.int64)
    width = np.maximum(runoff * 0.036 * np.sqrt(drainage.catchment[parent]), 0.1)
    inside = ((pixel >= 0) & (pixel <= limit)).all(axis=-1)
    drawn = np.zeros(shape, dtype=np.float32)
    widths = np.broadcast_to(width[:, None], inside.shape)[inside].astype(np.float32)
    np.maximum.at(drawn, (pixel[..., 0][inside], pixel[..., 1][inside]), widths)
    return drawn


def _fill_lakes(
    seed: int, elevation: Field, river_distance_px: npt.NDArray[np.float64], relief: Relief
) -> Mask:
    """Flood valleys and hollows; levels the lakes in `elevation` and returns where they are."""
    rng = stream(seed, "lakes")
    height, width = elevation.shape
    lakes = np.zeros(elevation.shape, dtype=bool)
    if not relief.lakes:
        return lakes
    ragged = fractal(rng, elevation.shape, 50, 3.4)
    south, east = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(relief.lakes):
        row, column = rng.integers(height), rng.integers(width)
        radius_px = float(np.exp(rng.normal(3.1, 0.55)))
        near = np.hypot(south - row, east - column) / radius_px
        bottom = elevation[row, column]
        depth = max(3.0, 0.06 * relief.height_m)
        lake = ((elevation - bottom) / depth).clip(-0.3) + near**2 + 0.6 * ragged < 1
        labels, _count = ndimage.label(lake & (near < 2))
        if labels[row, column]:
            lake = labels == labels[row, column]
            elevation[lake] = np.quantile(elevation[lake], 0.3)
            lakes |= lake
    return lakes
