"""What the sensors see of a place: reflectance, its top-of-atmosphere twin, backscatter."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from terramind_cube.synthetic.land import Place, Surface
from terramind_cube.synthetic.season import FIELD_KINDS
from terramind_cube.synthetic.terrain import Field, Mask, fractal, stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from terramind_cube.synthetic.season import Season

__all__ = [
    "BAND_RESOLUTION_M",
    "Backscatter",
    "Clouds",
    "make_clouds",
    "see_backscatter",
    "see_reflectance",
    "to_top_of_atmosphere",
]

BAND_RESOLUTION_M: Mapping[str, int] = MappingProxyType(
    {"B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10,
     "B8A": 20, "B09": 60, "B11": 20, "B12": 20}
)  # fmt: skip
"""Native resolution of the Sentinel-2 L2A bands, in the order of a cube."""

# Surface reflectance x 10000 of pure covers in the twelve L2A bands, then VV and VH in dB.
# Round numbers after the shapes of common spectral libraries; no library is copied.
_COVERS: dict[str, tuple[float, ...]] = {
    "clear_water": (300, 330, 270, 130, 130, 90, 80, 70, 60, 50, 30, 20, -21, -28),
    "algae": (300, 380, 800, 420, 700, 620, 640, 600, 500, 420, 90, 50, -20, -27),
    "mud_water": (460, 560, 740, 580, 500, 300, 270, 240, 200, 170, 70, 50, -20, -27),
    "broadleaf": (180, 220, 470, 240, 850, 2700, 3500, 3700, 3900, 3950, 1900, 850, -8.5, -13.5),
    "autumn": (280, 360, 720, 1000, 1500, 2300, 2700, 2850, 3000, 3050, 2300, 1200, -9, -14.5),
    "branches": (330, 390, 540, 640, 880, 1250, 1450, 1600, 1800, 1850, 2150, 1450, -10, -15.5),
    "conifer": (150, 170, 290, 190, 480, 1250, 1500, 1600, 1700, 1750, 800, 370, -8.5, -14),
    "crop": (200, 250, 620, 310, 980, 3300, 4300, 4600, 4700, 4650, 1950, 900, -9.5, -15.5),
    "bloom": (290, 370, 1250, 1080, 1700, 2900, 3300, 3500, 3550, 3550, 1900, 1000, -10, -15),
    "grass": (260, 320, 680, 470, 1120, 2500, 3000, 3200, 3400, 3400, 2300, 1250, -12, -18.5),
    "straw": (560, 720, 1120, 1500, 1850, 2150, 2350, 2550, 2750, 2800, 3350, 2450, -12.5, -20),
    "heath": (300, 380, 620, 620, 1050, 1650, 1900, 2050, 2200, 2250, 2300, 1500, -11, -16.5),
    "reed": (230, 290, 560, 430, 900, 1900, 2200, 2350, 2450, 2400, 1300, 700, -7, -14.5),
    "dark_soil": (420, 510, 700, 860, 1040, 1220, 1340, 1460, 1600, 1650, 2150, 1850, -11.5, -20.5),
    "red_soil": (580, 720, 1130, 1750, 2100, 2380, 2550, 2700, 2900, 2950, 3850, 3350, -12.5, -21.5),
    "red_roof": (560, 650, 820, 1020, 1180, 1600, 1720, 1850, 1950, 2000, 2050, 1850, -2.5, -10.5),
    "bright_roof": (1900, 2150, 2350, 2450, 2520, 2600, 2650, 2750, 2750, 2700, 2600, 2350, 0, -9),
    "asphalt": (900, 1060, 1240, 1340, 1400, 1170, 1220, 1290, 1340, 1370, 1480, 1380, -9, -17.5),
    "rock": (720, 820, 1020, 1170, 1270, 1350, 1430, 1500, 1570, 1600, 1850, 1700, -9.5, -17.5),
    "sand": (1300, 1600, 2200, 2800, 3100, 3250, 3400, 3550, 3700, 3750, 4500, 4100, -17, -26),
    "snow": (8300, 8500, 8400, 8200, 8000, 7800, 7700, 7600, 7300, 6000, 900, 700, -13, -20),
    "cloud": (6400, 6500, 6400, 6400, 6500, 6600, 6700, 6800, 6800, 5900, 4700, 3800, 0, 0),
}  # fmt: skip

# Covers of a surface when it is dormant, green and dry; "soil" is the place's own.
_LOOKS: dict[Surface, tuple[str, str, str]] = {
    Surface.WATER: ("clear_water", "algae", "mud_water"),
    Surface.BROADLEAF: ("branches", "broadleaf", "autumn"),
    Surface.CONIFER: ("conifer", "conifer", "conifer"),
    Surface.WETLAND: ("mud_water", "reed", "straw"),
    Surface.FIELD: ("soil", "crop", "straw"),
    Surface.GRASS: ("soil", "grass", "straw"),
    Surface.SHRUB: ("soil", "heath", "straw"),
    Surface.RED_ROOFS: ("red_roof", "red_roof", "red_roof"),
    Surface.BRIGHT_ROOFS: ("bright_roof", "bright_roof", "bright_roof"),
    Surface.STREET: ("asphalt", "asphalt", "asphalt"),
    Surface.GARDEN: ("branches", "broadleaf", "straw"),
    Surface.ROCK: ("rock", "grass", "rock"),
    Surface.SAND: ("sand", "sand", "sand"),
    Surface.ICE: ("snow", "snow", "snow"),
}

_CANOPY = {Surface.BROADLEAF: 0.11, Surface.CONIFER: 0.12, Surface.FIELD: 0.035}
_BUILT = (Surface.RED_ROOFS, Surface.BRIGHT_ROOFS, Surface.STREET, Surface.GARDEN)

# Rayleigh path radiance (reflectance x 10000 at a low sun) and two-way transmittance of L1C.
_PATH = (1150, 850, 480, 270, 210, 165, 130, 95, 85, 70, 15, 10)
_TRANSMITTANCE = (0.72, 0.78, 0.83, 0.88, 0.89, 0.9, 0.92, 0.93, 0.95, 0.42, 0.93, 0.9)


@dataclass(frozen=True)
class Clouds:
    """Clouds over a scene.

    Attributes
    ----------
    mask : numpy.ndarray, shape (height, width), bool
        Pixels under cloud.
    opacity : numpy.ndarray, shape (height, width), float32
        Share of the ground that the cloud hides; 0 outside of `mask`.
    shadow : numpy.ndarray, shape (height, width), float32
        Share of the sunlight that is left.
    """

    mask: Mask
    opacity: Field
    shadow: Field


@dataclass(frozen=True)
class Backscatter:
    """Backscatter in dB, bands VV and VH.

    Attributes
    ----------
    rtc : numpy.ndarray, shape (2, height, width), float32
        Gamma nought, terrain corrected.
    grd : numpy.ndarray, shape (2, height, width), float32
        Sigma nought of the ellipsoid: slopes that face the radar shine.
    """

    rtc: Field
    grd: Field


def make_clouds(place: Place, season: Season, fraction: float) -> Clouds:
    """Cover exactly `fraction` of the pixels, rounded to whole pixels, with cloud."""
    shape = place.surface.shape
    count = round(fraction * place.surface.size)
    clear = np.zeros(shape, dtype=np.float32)
    if count == 0:
        return Clouds(clear > 0, clear, clear + 1)
    rng = stream(place.seed, "clouds", season.date.toordinal())
    billows = fractal(rng, shape, 110, 3.2)
    mask = np.zeros(shape, dtype=bool)
    # By rank, so that the fraction holds exactly whatever the field.
    mask.ravel()[np.argsort(billows, axis=None, kind="stable")[::-1][:count]] = True
    edge = float(billows[mask].min())
    opacity = np.where(mask, np.clip(0.55 + 0.9 * (billows - edge), 0, 1), 0).astype(np.float32)
    throw_px = 120.0 * np.tan(season.sun.zenith)
    offset = (throw_px * np.cos(season.sun.azimuth), -throw_px * np.sin(season.sun.azimuth))
    shade = ndimage.shift(opacity, offset, order=1, mode="constant")
    return Clouds(mask, opacity, (1 - 0.6 * shade).astype(np.float32))


def see_reflectance(
    place: Place, season: Season, clouds: Clouds
) -> dict[str, npt.NDArray[np.uint16]]:
    """Observe a place with Sentinel-2's L2A bands, each on its native grid.

    Parameters
    ----------
    place, season, clouds
        What there is to see.

    Returns
    -------
    dict of str to numpy.ndarray, uint16
        Reflectance x 10000 without offset, at least 1. A band of 20 or 60 m starts at the scene's
        upper-left corner and is the block mean of 10 m; its size is rounded up.
    """
    rng = stream(place.seed, "optics", season.date.toordinal())
    haze = rng.uniform(0, 90)
    gain = stream(place.seed, "gain").normal(1, 0.025, len(BAND_RESOLUTION_M)).tolist()
    light = _shade(place, season) * _ground_texture(place) * clouds.shadow
    blends = _Blend.of(place, season)
    bands = {}
    for number, (name, resolution_m) in enumerate(BAND_RESOLUTION_M.items()):
        ground = blends.mix(number)
        ground += season.snow * (_COVERS["snow"][number] - ground)
        ground *= light * gain[number]
        ground += clouds.opacity * (_COVERS["cloud"][number] - ground)
        ground += haze * (1 - clouds.opacity) * 0.7**number
        if resolution_m == 10:
            ground = ndimage.gaussian_filter(ground, 0.45, truncate=3.0)
        else:
            ground = _block_mean(ground, resolution_m // 10)
        ground += rng.normal(0, 9) + 8 * rng.standard_normal(ground.shape, dtype=np.float32)
        bands[name] = np.clip(ground + 0.5, 1, 65535).astype(np.uint16)
    return bands


def to_top_of_atmosphere(
    reflectance: npt.NDArray[np.uint16], season: Season, clouds: Clouds
) -> npt.NDArray[np.uint16]:
    """Put the atmosphere over L2A: the 13 bands of L1C, the offset removed.

    Parameters
    ----------
    reflectance : numpy.ndarray, shape (12, height, width), uint16
        L2A bands in the order of a cube.
    season, clouds
        The sun and what flies under it; high cloud alone shows in B10.

    Returns
    -------
    numpy.ndarray, shape (13, height, width), uint16
    """
    path = np.array(_PATH, dtype=np.float32)[:, None, None] * (0.6 + 0.5 * season.sun.zenith)
    clearness = np.array(_TRANSMITTANCE, dtype=np.float32)[:, None, None]
    above = path + clearness * reflectance
    cirrus = 12 + 320 * clouds.opacity**3
    stacked = np.concatenate([above[:10], cirrus[None], above[10:]])
    return np.clip(stacked + 0.5, 1, 65535).astype(np.uint16)


def see_backscatter(place: Place, season: Season, *, ascending: bool) -> Backscatter:
    """Observe a place with Sentinel-1, looking to the right of its orbit.

    Parameters
    ----------
    place, season
        What there is to see; clouds do not matter.
    ascending : bool
        Whether the satellite flies north and looks east, or flies south and looks west.

    Returns
    -------
    Backscatter
    """
    rng = stream(place.seed, "radar", season.date.toordinal(), int(ascending))
    azimuth = np.deg2rad(78.0 if ascending else 282.0)
    incidence = np.deg2rad(38.0)
    towards = place.terrain.slope_east * np.sin(azimuth) + place.terrain.slope_north * np.cos(
        azimuth
    )
    tilt = np.clip(np.arctan(towards), -0.8, 0.5)
    facing = np.sin(incidence) / np.sin(np.clip(incidence - tilt, 0.12, None))
    water = place.surface == Surface.WATER
    facing[water] = 1.0
    blends = _Blend.of(place, season)
    rough_db = 2.4 * (place.parcels.trait(4) - 0.5) * (place.surface == Surface.FIELD)
    rough_db += 0.35 * place.patches + rng.normal(0, 1.6) * water
    layers: list[list[Field]] = [[], []]
    for column in (12, 13):
        decibel = blends.mix(column) + rough_db - 1.5 * season.snow
        power = ndimage.gaussian_filter(10 ** (decibel / 10), 0.6, truncate=3.0)
        looks = rng.standard_gamma(5.0, power.shape, dtype=np.float32) / 5.0
        power *= ndimage.gaussian_filter(looks, 0.35, truncate=3.0)
        floor = 10 ** (-3.1)
        layers[0].append(10 * np.log10(power * facing**0.12 + floor))
        layers[1].append(10 * np.log10(power * np.cos(incidence) * facing + floor))
    rtc, grd = (np.stack(layer).clip(-60, 35).astype(np.float32) for layer in layers)
    return Backscatter(rtc, grd)


@dataclass(frozen=True)
class _Blend:
    """Covers of each pixel, ready to be mixed band by band."""

    looks: npt.NDArray[np.float32]  # (state, surface, column)
    surface: npt.NDArray[np.uint8]
    green: Field
    dry: Field

    @classmethod
    def of(cls, place: Place, season: Season) -> _Blend:
        redness = stream(place.seed, "soil").beta(0.5 + 2 * place.climate.aridity, 2.0)
        covers = {name: np.array(values, dtype=np.float32) for name, values in _COVERS.items()}
        covers["soil"] = (1 - redness) * covers["dark_soil"] + redness * covers["red_soil"]
        looks = np.stack([[covers[_LOOKS[kind][state]] for kind in Surface] for state in range(3)])
        # In flower, the dry state of an oilseed field is its bloom: a surface of its own here.
        bloom = looks[:, Surface.FIELD].copy()
        bloom[2] = covers["bloom"]
        looks = np.concatenate([looks, bloom[:, None]], axis=1)
        kind = place.parcels.trait(0)
        oilseed = (
            (place.surface == Surface.FIELD) & (kind >= FIELD_KINDS[1]) & (kind < FIELD_KINDS[2])
        )
        surface = np.where(oilseed, np.uint8(len(Surface)), place.surface)
        return cls(looks.astype(np.float32), surface, season.green, season.dry)

    def mix(self, column: int) -> Field:
        """Return a band, or a polarisation in dB, mixed by the shares of the covers."""
        dormant, green, dry = self.looks[:, :, column]
        mixed = dormant[self.surface]
        mixed += self.green * (green - dormant)[self.surface]
        mixed += self.dry * (dry - dormant)[self.surface]
        return np.asarray(mixed)


def _shade(place: Place, season: Season) -> Field:
    """Return the light on each slope as a share of that on level ground."""
    sun, terrain = season.sun, place.terrain
    steep = terrain.slope
    towards = terrain.slope_east * np.sin(sun.azimuth) + terrain.slope_north * np.cos(sun.azimuth)
    # Slopes rise towards the sun when they face away from it.
    direct = (np.cos(sun.zenith) - np.sin(sun.zenith) * towards) / np.sqrt(1 + steep**2)
    light = (np.maximum(direct, 0) + 0.35) / (np.cos(sun.zenith) + 0.35)
    light[place.surface == Surface.WATER] = 1.0
    return np.asarray(light.clip(0.2, 1.8), dtype=np.float32)


def _ground_texture(place: Place) -> Field:
    """Return the brightness of each pixel relative to its cover's mean."""
    grain = np.full(len(Surface), 0.05, dtype=np.float32)
    for kind, share in _CANOPY.items():
        grain[kind] = share
    for kind in _BUILT:
        grain[kind] = 0.16
    grain[Surface.WATER] = 0.012
    land = place.surface != Surface.WATER
    texture = 1 + grain[place.surface] * place.texture + 0.03 * land * place.patches
    texture += (place.surface == Surface.FIELD) * 0.3 * (place.parcels.trait(2) - 0.5)
    return np.asarray(texture.clip(0.4, 1.8), dtype=np.float32)


def _block_mean(field: Field, step: int) -> Field:
    """Average whole blocks from the upper-left corner; a block that the border cuts repeats its edge."""
    height, width = field.shape
    padded = np.pad(field, ((0, -height % step), (0, -width % step)), mode="edge")
    rows, columns = padded.shape[0] // step, padded.shape[1] // step
    blocks = padded.reshape(rows, step, columns, step)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)
