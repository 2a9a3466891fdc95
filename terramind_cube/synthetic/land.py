"""What covers a place whatever the date: climate, parcels, settlements, surfaces."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from terramind_cube.synthetic.terrain import (
    Field,
    Mask,
    Relief,
    Terrain,
    fractal,
    make_terrain,
    stream,
)

__all__ = ["SURFACE_CLASS", "Climate", "Parcels", "Place", "Surface", "make_place"]


class Surface(IntEnum):
    """Kinds of ground that look different."""

    WATER = 0
    BROADLEAF = 1
    CONIFER = 2
    WETLAND = 3
    FIELD = 4
    GRASS = 5
    SHRUB = 6
    RED_ROOFS = 7
    BRIGHT_ROOFS = 8
    STREET = 9
    GARDEN = 10
    ROCK = 11
    SAND = 12
    ICE = 13


SURFACE_CLASS: npt.NDArray[np.uint8] = np.array(
    [1, 2, 2, 3, 4, 9, 9, 5, 5, 5, 5, 6, 6, 7], dtype=np.uint8
)
"""TerraMind's land cover class of each surface."""


@dataclass(frozen=True)
class Climate:
    """Climate of a place.

    Attributes
    ----------
    latitude : float
        Degrees north.
    aridity : float
        0 (humid) to 1 (desert).
    calendar_days : float
        Days by which the growing season comes later than at 48 degrees north.
    wettest_day : float
        Day of the year in the middle of the wet season.
    """

    latitude: float
    aridity: float
    calendar_days: float
    wettest_day: float

    @property
    def mean_c(self) -> float:
        """Annual mean temperature at sea level."""
        return 28.0 - 0.0075 * self.latitude**2

    @property
    def amplitude_c(self) -> float:
        """Half the difference between the warmest and the coldest day."""
        return 0.24 * abs(self.latitude)

    def temperature_c(self, day: float) -> float:
        """Return the usual temperature at sea level on a day of the year."""
        coldest = 20.0 if self.latitude >= 0 else 202.5
        return self.mean_c - self.amplitude_c * float(np.cos(2 * np.pi * (day - coldest) / 365))


@dataclass(frozen=True)
class Parcels:
    """Fields of a place.

    Attributes
    ----------
    index : numpy.ndarray, shape (height, width), int64
        Parcel of each pixel, counted from 0.
    traits : numpy.ndarray, shape (parcel, 6), float32
        Uniform random numbers of each parcel: crop, calendar, soil, vigour, roughness, use.
    edge : numpy.ndarray, shape (height, width), bool
        Pixels at the border of a parcel.
    hedged : numpy.ndarray, shape (height, width), bool
        Where borders carry trees.
    """

    index: npt.NDArray[np.int64]
    traits: Field
    edge: Mask
    hedged: Mask

    def trait(self, number: int) -> Field:
        """Return one trait for each pixel."""
        return np.asarray(self.traits[:, number][self.index])

    def mean(self, field: Field) -> Field:
        """Return the mean of a field over the parcel of each pixel."""
        flat = self.index.ravel()
        total = np.bincount(flat, field.ravel()) / np.bincount(flat)
        return total.astype(np.float32)[self.index]


@dataclass(frozen=True)
class Place:
    """A place on the procedural Earth, the same in every season; fields are (height, width).

    Attributes
    ----------
    seed : int
        Identity of the place.
    climate : Climate
        Its climate.
    terrain : Terrain
        Its relief and water.
    parcels : Parcels
        Its fields.
    surface : numpy.ndarray, uint8
        Codes of `Surface`.
    texture : numpy.ndarray, float32
        Fine variation of the ground, unit variance.
    patches : numpy.ndarray, float32
        Variation over some 200 m, unit variance.
    """

    seed: int
    climate: Climate
    terrain: Terrain
    parcels: Parcels
    surface: npt.NDArray[np.uint8]
    texture: Field
    patches: Field


def make_place(seed: int, shape: tuple[int, int], latitude: float) -> Place:
    """Make the unchanging part of a scene.

    Parameters
    ----------
    seed : int
        Identity of the place.
    shape : tuple of int
        Height and width, in pixels of 10 m.
    latitude : float
        Degrees north; decides the climate.

    Returns
    -------
    Place
    """
    climate = _draw_climate(seed, latitude)
    terrain = make_terrain(seed, shape, _draw_relief(seed, climate))
    parcels = _draw_parcels(seed, shape)
    patches = fractal(stream(seed, "patches"), shape, 22, 3.0)
    surface = _natural_surface(seed, climate, terrain, parcels, patches)
    texture = fractal(stream(seed, "texture"), shape, 3, 2.4)
    _settle(seed, climate, terrain, surface)
    return Place(seed, climate, terrain, parcels, surface, texture, patches)


def _draw_climate(seed: int, latitude: float) -> Climate:
    rng = stream(seed, "climate")
    distance = abs(latitude)
    # The subtropical highs make the deserts.
    dry_belt = float(np.exp(-(((distance - 24) / 9) ** 2)))
    aridity = float(np.clip(rng.beta(1.6, 4.0) + 0.65 * dry_belt * rng.random(), 0, 1))
    calendar = float(np.clip(2.0 * (distance - 48), -45, 30))
    if distance < 25:
        calendar = float(rng.uniform(0, 365))
    elif latitude < 0:
        calendar += 182.5
    # Winter rain around the Mediterranean's latitude, summer rain nearer the equator.
    wettest = 20.0 if distance > 28 else 210.0
    return Climate(latitude, aridity, calendar, wettest if latitude >= 0 else wettest - 182.5)


def _draw_relief(seed: int, climate: Climate) -> Relief:
    rng = stream(seed, "relief")
    height_m = float(np.clip(np.exp(rng.normal(4.9, 0.95)), 12, 1500))
    base_m = float(np.exp(rng.normal(4.9, 1.1)))
    sea = bool(rng.random() < 0.22)
    inflow = int(rng.random() < 0.6) * int(np.exp(rng.normal(10.2, 0.6)))
    lakes = int(rng.poisson(1.2 + 3.0 * (abs(climate.latitude) > 55)))
    runoff = float(np.clip(1.25 - 1.1 * climate.aridity, 0.1, 1.1))
    return Relief(height_m, base_m, sea, inflow, round(lakes * min(1.0, runoff)), runoff)


def _draw_parcels(seed: int, shape: tuple[int, int]) -> Parcels:
    """Lay out strips of fields, turned another way in each neighbourhood."""
    rng = stream(seed, "parcels")
    width_px = float(np.exp(rng.normal(2.25, 0.35)))
    spacing = 7.0 * width_px
    rows, columns = (int(-(-length // spacing)) + 2 for length in shape)
    centre = np.indices((rows, columns)).reshape(2, -1).T - 0.5
    centre = ((centre + rng.uniform(-0.45, 0.45, centre.shape)) * spacing).astype(np.float32)
    south, east = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    south += 0.05 * spacing * fractal(rng, shape, 2 * spacing, 5.0)
    east += 0.05 * spacing * fractal(rng, shape, 2 * spacing, 5.0)
    _, region = cKDTree(centre).query(np.stack([south, east], axis=-1))
    count = len(centre)
    main = rng.uniform(0, np.pi)
    angle = (main + rng.choice([0, np.pi / 2], count) + rng.normal(0, 0.22, count))[region]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    south -= centre[region, 0]
    east -= centre[region, 1]
    along, across = cos * south + sin * east, cos * east - sin * south
    length_px = (width_px * rng.uniform(1.6, 4.0, count).astype(np.float32))[region]
    row = np.floor(along / length_px).astype(np.int64)
    strip_px = (width_px * rng.uniform(0.7, 1.4, (count, 16)).astype(np.float32))[region, row % 16]
    # The sine makes neighbours of unequal width without a table of widths.
    place = across / strip_px + (row % 7) * 0.37
    column = np.floor(place + 0.3 * np.sin(2.1 * place + row)).astype(np.int64)
    key = (region * 2048 + row + 1024) * 2048 + column + 1024
    values, index = np.unique(key, return_inverse=True)
    index = index.reshape(shape)
    traits = rng.random((len(values), 6), dtype=np.float32)
    edge = np.zeros(shape, dtype=bool)
    edge[:, 1:] |= index[:, 1:] != index[:, :-1]
    edge[1:] |= index[1:] != index[:-1]
    hedged = rng.random(count) < rng.choice([0.05, 0.5])
    return Parcels(index, traits, edge, hedged[region])


def _natural_surface(
    seed: int, climate: Climate, terrain: Terrain, parcels: Parcels, patches: Field
) -> npt.NDArray[np.uint8]:
    """Choose forest, fields, grass, wetland and bare ground from climate and terrain."""
    rng = stream(seed, "surface")
    shape = patches.shape
    aridity, slope = climate.aridity, ndimage.gaussian_filter(terrain.slope, 2.0)
    warmest = climate.mean_c + climate.amplitude_c - 0.0065 * terrain.elevation_m
    warmest += 0.5 * patches
    woods = fractal(rng, shape, 130, 3.0)
    tilled = fractal(rng, shape, 200, 3.2)
    kinds = fractal(rng, shape, 90, 3.2)
    use, damp = parcels.trait(5), np.exp(-terrain.above_river_m / 6.0)

    surface = np.full(shape, Surface.GRASS, dtype=np.uint8)
    dry = aridity + 0.12 * kinds - 0.25 * damp
    surface[(kinds + 2.0 * slope > 0.7) | (dry > 0.42)] = Surface.SHRUB
    ploughed = tilled - 5.0 * slope + 0.5 * damp + rng.normal(0.85, 0.5) - 1.3 * (aridity - 0.2)
    field = (parcels.mean(ploughed + 0.4 * (warmest - 15).clip(-9, 0)) > 0) & (use > 0.2)
    surface[field] = Surface.FIELD
    forest = 1.2 * woods + 3.0 * slope - 0.7 * ploughed.clip(-1, 1) + rng.normal(-0.25, 0.45)
    forest += 1.2 * (use > 0.965) - 3.0 * max(aridity - 0.2, -0.08)
    forest += 1.2 * np.exp(-((terrain.river_distance_px / 2.0) ** 2)) * (1 - aridity)
    trees = (forest + 0.3 * (warmest - 12).clip(-9, 0) > 0.45) & (warmest > 8)
    # Clear-cuts and glades follow the parcels.
    trees &= (parcels.trait(4) > 0.05) | field
    trees |= parcels.edge & parcels.hedged & field & (aridity < 0.4)
    conifer = kinds + 0.12 * (abs(climate.latitude) - 47) + 0.004 * (terrain.elevation_m - 500) > 0
    surface[trees] = np.where(conifer & (abs(climate.latitude) > 22), *_LEAVES)[trees]
    sandy = rng.normal(0, 1) > -0.2
    barren = dry + 0.08 * patches > 0.68
    surface[barren & ~field] = Surface.SAND if sandy else Surface.ROCK
    surface[(slope > 0.85) | (warmest < 5.5)] = Surface.ROCK
    surface[warmest + 0.8 * woods < 0.5] = Surface.ICE
    near_water = ndimage.distance_transform_edt(~terrain.water) if terrain.water.any() else 99.0
    swamp = (near_water < 14) & (terrain.above_river_m < 4) & (slope < 0.03) & (patches > 0.55)
    surface[swamp & (warmest > 9) & (kinds > -0.2)] = Surface.WETLAND
    beach = ndimage.distance_transform_edt(~terrain.sea) if terrain.sea.any() else 99.0
    surface[(beach < 3.5 + 1.5 * woods) & (slope < 0.3)] = Surface.SAND
    surface[terrain.water] = Surface.WATER
    return surface


_LEAVES = (np.uint8(Surface.CONIFER), np.uint8(Surface.BROADLEAF))


def _settle(seed: int, climate: Climate, terrain: Terrain, surface: npt.NDArray[np.uint8]) -> None:
    """Build towns with streets and the roads between them into `surface`."""
    rng = stream(seed, "settlement")
    towns = _choose_sites(rng, climate, terrain)
    if not len(towns):
        return
    shape = surface.shape
    ragged = fractal(rng, shape, 25, 3.0)
    bend = [2.0 * fractal(rng, shape, 60, 4.5) for _ in range(2)]
    south, east = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    pixels = np.stack([south, east], axis=-1)
    _draw_roads(rng, towns[:, :2], surface)
    near, town = cKDTree(towns[:, :2]).query(pixels)
    reach = near / towns[town, 2].astype(np.float32)
    density = np.exp(-1.2 * reach**2) + 0.16 * ragged * (reach < 2.5)
    land = ~terrain.water & (terrain.slope < 0.5)
    built = (density > 0.33) & land
    angle = rng.uniform(0, np.pi, len(towns))[town]
    south, east = south + bend[0] - towns[town, 0], east + bend[1] - towns[town, 1]
    along = np.cos(angle) * south + np.sin(angle) * east
    across = np.cos(angle) * east - np.sin(angle) * south
    pitch = rng.uniform((8, 12), (11, 17), (len(towns), 2))[town]
    u, v = along / pitch[..., 0], across / pitch[..., 1]
    street = (u % 1 < 1 / pitch[..., 0]) | (v % 1 < 1 / pitch[..., 1])
    block = (np.floor(u) * 131 + np.floor(v) * 71 + town * 17).astype(np.int64) % 509
    roofs = rng.random(509).astype(np.float32)[block]
    speckle = rng.random(shape, dtype=np.float32)
    kind = np.full(shape, Surface.GARDEN, dtype=np.uint8)
    kind[speckle < 0.2 + 0.55 * density] = Surface.RED_ROOFS
    kind[speckle > 0.985 - 0.02 * density] = Surface.BRIGHT_ROOFS
    kind[(roofs > 0.9) & (density < 0.75)] = Surface.BRIGHT_ROOFS
    kind[street] = Surface.STREET
    park = (roofs < 0.05) & ~street
    surface[built & park] = Surface.GRASS
    surface[built & park & (speckle > 0.55)] = Surface.BROADLEAF
    surface[built & ~park] = kind[built & ~park]


def _choose_sites(
    rng: np.random.Generator, climate: Climate, terrain: Terrain
) -> npt.NDArray[np.float64]:
    """Return row, column and radius (px) of the towns: on flat, mild ground near water."""
    height, width = terrain.water.shape
    warmth = np.clip((climate.mean_c + climate.amplitude_c - 9) / 8, 0, 1) * (1 - climate.aridity)
    area = height * width
    radii = np.exp(rng.normal(2.5, 0.4, rng.poisson(warmth * area / 110_000)))
    large = np.exp(rng.normal(3.9, 0.3, rng.poisson(warmth * area / 500_000)))
    radii = np.sort(np.concatenate([radii, large]))[::-1]
    sites: list[tuple[float, float, float]] = []
    for radius in radii:
        row, column = rng.integers(0, (height, width), (60, 2)).T
        score = -6.0 * terrain.slope[row, column] + rng.normal(0, 0.3, 60)
        score -= 0.01 * terrain.river_distance_px[row, column].clip(0, 100)
        score -= 9.0 * terrain.water[row, column] + 0.001 * terrain.elevation_m[row, column]
        for other in sites:
            gap = np.hypot(row - other[0], column - other[1])
            score -= 5.0 * (gap < 1.6 * (radius + other[2]) + 25)
        best = int(np.argmax(score))
        if score[best] > -3:
            sites.append((float(row[best]), float(column[best]), float(radius)))
    return np.array(sites).reshape(-1, 3)


def _draw_roads(
    rng: np.random.Generator, towns: npt.NDArray[np.float64], surface: npt.NDArray[np.uint8]
) -> None:
    """Join each town to its nearest larger neighbour, the largest to two edges of the scene."""
    height, width = surface.shape
    ends = [
        (towns[0], [-9.0, rng.uniform(0, width)]),
        (towns[0], [height + 9, rng.uniform(0, width)]),
    ]
    for number in range(1, len(towns)):
        gaps = np.hypot(*(towns[:number] - towns[number]).T)
        ends.append((towns[number], towns[int(np.argmin(gaps))]))
    bend = np.stack([fractal(rng, surface.shape, 120, 4.6) for _ in range(2)], axis=-1)
    road = np.zeros(surface.shape, dtype=bool)
    limit = np.array(surface.shape) - 1
    for number, (start, end) in enumerate(ends):
        a, b = np.asarray(start), np.asarray(end)
        t = np.linspace(0, 1, int(4 * np.hypot(*(b - a))) + 2)[:, None]
        path = a + t * (b - a)
        at = path.round().astype(np.int64).clip(0, limit)
        path = path + 9.0 * np.sin(np.pi * t) * bend[at[:, 0], at[:, 1]]
        pixel = np.floor(path).astype(np.int64)
        pixel = pixel[((pixel >= 0) & (pixel <= limit)).all(axis=1)]
        road[pixel[:, 0], pixel[:, 1]] = True
        if number < 2:
            road[pixel[:, 0], (pixel[:, 1] + 1).clip(0, limit[1])] = True
    surface[road] = Surface.STREET
