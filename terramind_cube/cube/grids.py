"""The one grid of a cube: from an area, from items, or as the caller gives it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from pyproj import Geod
from shapely.geometry import box, mapping, shape
from shapely.ops import unary_union

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "CELL_PX",
    "RESOLUTION_M",
    "RESOLUTION_RANGE_M",
    "GridRequest",
    "area_grid",
    "boundary",
    "check_grid_request",
    "covering_grid",
    "crs_of",
    "describe_pixel_size",
    "geographic_extent",
    "joined",
    "local_crs",
    "named_crs",
    "nearest_longitude",
    "pixel_of",
    "place_of",
    "to_geographic",
]

CELL_PX = 16
"""Areas are snapped outwards to cells of this many pixels, one patch of the released models."""

RESOLUTION_M = 10.0
"""Pixel size that TerraMind was trained at."""

RESOLUTION_RANGE_M = (8.0, 12.5)
"""Pixel sizes near enough to it."""

_SNAP_TOLERANCE_PX = 0.01
_SMALLEST_RESOLUTION_M = 0.1
_POINTS_PER_SIDE = 33
_LARGEST_PX = 1_000_000
_SQUARE_TOLERANCE = 1e-9
_EARTH = Geod(ellps="WGS84")
_METRES = {"metre", "meter", "m"}
# Limits of UTM; beyond them lie the two polar stereographic grids.
_NORTHERNMOST_DEG, _SOUTHERNMOST_DEG = 84.0, -80.0
_POLAR_NORTH, _POLAR_SOUTH = "EPSG:32661", "EPSG:32761"


@dataclass(frozen=True)
class GridRequest:
    """How the caller describes the grid, checked."""

    geobox: GeoBox | None
    crs: CRS | None
    resolution_m: float


def check_grid_request(
    geobox: GeoBox | None, crs: Any, resolution: Any, bbox: Any, intersects: Any
) -> GridRequest:
    """Check the arguments of `load_cube` that concern the grid.

    Raises
    ------
    ValueError
        If they contradict each other, the CRS is geographic, or the resolution is no length in
        metres.
    """
    if geobox is not None:
        if crs is not None or bbox is not None or intersects is not None:
            raise ValueError("Give geobox alone, or bbox/intersects with resolution and crs.")
        affine = geobox.affine
        is_square = math.isclose(affine.a, -affine.e, rel_tol=_SQUARE_TOLERANCE)
        if not (affine.b == affine.d == 0 and affine.a > 0 and is_square and all(geobox.shape)):
            raise ValueError(
                f"geobox must be north-up with square pixels, at least one, got {affine!r}."
            )
        resolution = affine.a
        crs = geobox.crs
        if crs is None:
            raise ValueError("geobox has no CRS: give one with a projected CRS.")
    projected = None if crs is None else _read_crs(crs)
    if projected is not None and projected.geographic:
        raise ValueError(
            f"{projected} is geographic: a cube needs a projected CRS in metres, such as the UTM "
            "zone of the area (the default)."
        )
    if projected is not None and (unit := projected.units[0]) not in _METRES:
        raise ValueError(f"{projected} counts in {unit}: a cube needs a CRS in metres.")
    if not isinstance(resolution, int | float | np.number) or not 0 < resolution < math.inf:
        raise ValueError(f"resolution must be positive metres, got {resolution!r}.")
    if resolution < _SMALLEST_RESOLUTION_M:
        raise ValueError(
            f"resolution is in metres, and {resolution:g} looks like degrees: give 10 for "
            "Sentinel-2's pixels."
        )
    return GridRequest(geobox, projected, float(resolution))


def describe_pixel_size(geobox: GeoBox) -> str:
    """Say whether pixels are far from the 10 m that TerraMind was trained at, measured on Earth.

    Numbers of a CRS are no lengths: 10 of EPSG:3857 are 6.8 m at 47 N, 10 of EPSG:2263 are feet.

    Parameters
    ----------
    geobox : GeoBox
        Projected grid; its middle pixel is measured along the ellipsoid (WGS 84).

    Returns
    -------
    str
        Empty where pixels are near 10 m.
    """
    height, width = geobox.shape.yx
    middle = np.array([-0.5, 0.5, 0.0, 0.0]), np.array([0.0, 0.0, -0.5, 0.5])
    x, y = place_of(geobox.affine, width / 2 + middle[0], height / 2 + middle[1])
    longitudes, latitudes = to_geographic(crs_of(geobox), x, y)
    if not np.isfinite([longitudes, latitudes]).all():
        return ""
    sides = _EARTH.inv(longitudes[::2], latitudes[::2], longitudes[1::2], latitudes[1::2])[2]
    size_m = math.sqrt(sides[0] * sides[1])
    low, high = RESOLUTION_RANGE_M
    if low <= size_m <= high:
        return ""
    text = f"The resolution is {size_m:.3g} m on the ground"
    if not math.isclose(size_m, geobox.affine.a, rel_tol=0.02):
        epsg = crs_of(geobox).epsg
        text += f" ({geobox.affine.a:g} in {f'EPSG:{epsg}' if epsg else 'its CRS'})"
    return (
        f"{text}; TerraMind was trained at {RESOLUTION_M:g} m, so results are of unknown quality. "
        "The UTM zone of the area has pixels of true size."
    )


def _read_crs(crs: Any) -> CRS:
    try:
        return CRS(crs)
    except Exception as error:
        raise ValueError(
            f"Cannot read crs {crs!r}: give a code such as 'EPSG:32632', or leave it out for the "
            "UTM zone of the area."
        ) from error


def local_crs(longitude_deg: float, latitude_deg: float) -> CRS:
    """Return the UTM zone of a place as Sentinel-2's tiles have it, polar stereographic beyond.

    Norway and Svalbard have zones of their own (Military Grid Reference System).
    """
    if latitude_deg > _NORTHERNMOST_DEG:
        return CRS(_POLAR_NORTH)
    if latitude_deg < _SOUTHERNMOST_DEG:
        return CRS(_POLAR_SOUTH)
    zone = int((longitude_deg + 180) % 360 // 6) + 1
    if 56 <= latitude_deg < 64 and 3 <= longitude_deg < 12:
        zone = 32
    elif latitude_deg >= 72 and 0 <= longitude_deg < 42:
        zone = 31 + 2 * sum(longitude_deg >= border for border in (9, 21, 33))
    return CRS(f"EPSG:{(32600 if latitude_deg >= 0 else 32700) + zone}")


def area_grid(request: GridRequest, area: dict[str, Any]) -> GeoBox:
    """Return the grid of whole cells that covers an area in longitude and latitude.

    Parameters
    ----------
    request : GridRequest
        Its CRS, or the local one of the area's centre.
    area : GeoJSON geometry
        Parts on both sides of the antimeridian are taken together.
    """
    whole = joined(shape(area))
    centre = whole.centroid
    crs = request.crs or local_crs(centre.x, centre.y)
    return _snapped([_projected_bounds(whole, crs)], crs, request.resolution_m)


def covering_grid(request: GridRequest, footprints: Sequence[GeoBox | dict[str, Any]]) -> GeoBox:
    """Return the grid that covers some items, in their own CRS where they share one.

    Parameters
    ----------
    request : GridRequest
    footprints : sequence of GeoBox or GeoJSON geometry
        Grid of each item's pixels, or its geometry in longitude and latitude.

    Raises
    ------
    ValueError
        If the items are in several projected CRSs and the request names none.
    """
    own = {footprint.crs for footprint in footprints if isinstance(footprint, GeoBox)}
    zones = sorted(str(crs) for crs in own if crs is not None and not crs.geographic)
    if request.crs is None and len(zones) > 1:
        # In a zone between them the cube would be all the land that lies there, mostly nodata.
        raise ValueError(
            f"The items lie in several zones ({', '.join(zones)}), so that no grid is theirs: give "
            "the area with bbox or intersects, one crs for all, or load each zone by itself."
        )
    has_shared = len(own) == 1 and all(isinstance(f, GeoBox) for f in footprints)
    shared = next(iter(own)) if has_shared else None
    geometries = [shape(geographic_extent(f) if isinstance(f, GeoBox) else f) for f in footprints]
    crs = request.crs or (shared if shared is not None and not shared.geographic else None)
    if crs is None:
        centre = joined(unary_union(geometries)).centroid
        crs = local_crs(centre.x, centre.y)
    bounds = [
        tuple(footprint.boundingbox.bbox)
        if isinstance(footprint, GeoBox) and footprint.crs == crs
        else _projected_bounds(joined(geometry), crs)
        for footprint, geometry in zip(footprints, geometries, strict=True)
    ]
    return _snapped(bounds, crs, request.resolution_m)


def geographic_extent(geobox: GeoBox) -> dict[str, Any]:
    """Return the area of a grid in longitude and latitude, as a search takes it.

    A grid over the antimeridian has a part on either side; one with a pole inside is a cap.

    Returns
    -------
    GeoJSON geometry

    Raises
    ------
    ValueError
        If a part of the grid is nowhere on Earth.
    """
    crs = crs_of(geobox)
    longitudes, latitudes = to_geographic(crs, *boundary(geobox))
    if not (np.isfinite(longitudes).all() and np.isfinite(latitudes).all()):
        raise ValueError(f"The grid {_rounded(geobox)} of {crs} reaches beyond the Earth.")
    if crs.geographic:
        longitudes = np.asarray(boundary(geobox)[0])
    else:
        longitudes = np.unwrap(longitudes, period=360)
    if abs(longitudes[0] - longitudes[-1]) > 180:  # once around a pole
        pole = 90.0 if latitudes.mean() > 0 else -90.0
        south, north = sorted((pole, float(np.min(np.abs(latitudes))) * np.sign(pole)))
        return dict(mapping(box(-180, south, 180, north)))
    ring = shapely.Polygon(np.stack([longitudes, latitudes], axis=1))
    parts = []
    for turn in range(-1, 2):
        turned = _turned(ring, turn)
        part = turned.intersection(box(-180, -90, 180, 90))
        if part.area > 0:
            parts.append(part)
    return dict(mapping(unary_union(parts)))


def _rounded(geobox: GeoBox) -> tuple[float, ...]:
    return tuple(round(float(value), 2) for value in geobox.boundingbox.bbox)


def crs_of(geobox: GeoBox) -> CRS:
    """Return the CRS of a grid that has one."""
    if geobox.crs is None:
        raise ValueError(f"The grid {geobox} has no coordinate reference system.")
    return geobox.crs


def boundary(geobox: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y of points around a grid, closed, in its own CRS."""
    height, width = geobox.shape.yx
    steps = np.linspace(0, 1, _POINTS_PER_SIDE)
    zeros, ones = np.zeros_like(steps), np.ones_like(steps)
    columns = np.concatenate([steps, ones, steps[::-1], zeros]) * width
    rows = np.concatenate([zeros, steps, ones, steps[::-1]]) * height
    return place_of(geobox.affine, columns, rows)


def place_of(affine: Affine, columns: Any, rows: Any) -> tuple[Any, Any]:
    """Return x and y of places in a raster, counted in pixels from its corner."""
    # Spelt out: affine 3 deprecates `*` with vectors, older versions have no `@`.
    x = affine.c + affine.a * columns + affine.b * rows
    return x, affine.f + affine.d * columns + affine.e * rows


def pixel_of(affine: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """Return columns and rows, in pixels from a raster's corner, of some places."""
    return place_of(~affine, x, y)


def named_crs(crs: CRS) -> CRS:
    """Return a CRS by its EPSG code where it has one: its text is short, and the same everywhere."""
    short = CRS(f"EPSG:{crs.epsg}") if crs.epsg else crs
    return short if short == crs else crs


def to_geographic(crs: CRS, x: Any, y: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return longitude and latitude in degrees of points of a CRS."""
    longitudes, latitudes = crs.transformer_to_crs(CRS("EPSG:4326"))(x, y)
    return np.asarray(longitudes), np.asarray(latitudes)


def nearest_longitude(longitudes: NDArray[Any], centre: float) -> NDArray[Any]:
    """Return longitudes turned by whole circles so that they lie within 180 degrees of a centre."""
    return (longitudes - centre + 180) % 360 - 180 + centre


def joined(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return a geometry whose parts west of the antimeridian's other side lie beyond 180 degrees.

    Two parts that end at 180 and begin at -180 are one area; its centre is not at longitude 0.
    """
    parts = list(getattr(geometry, "geoms", [geometry]))
    west, east = geometry.bounds[0], geometry.bounds[2]
    if not (west <= -180 and east >= 180) or len(parts) < 2:
        return geometry
    return unary_union([_turned(part, 1) if part.bounds[0] < 0 else part for part in parts])


def _turned(geometry: shapely.Geometry, turns: int) -> shapely.Geometry:
    """Return a geometry moved by whole circles of longitude."""
    return shapely.transform(geometry, lambda xy: np.add(xy, (360.0 * turns, 0.0)))


def _projected_bounds(geometry: shapely.Geometry, crs: CRS) -> tuple[float, ...]:
    """Return the bounding box in a CRS of an area in longitude and latitude."""
    dense = shapely.segmentize(geometry, 0.01)
    points = shapely.get_coordinates(dense)
    x, y = CRS("EPSG:4326").transformer_to_crs(crs)(points[:, 0], points[:, 1])
    bounds = (np.min(x), np.min(y), np.max(x), np.max(y))
    if not np.isfinite(bounds).all():
        raise ValueError(
            f"The area {tuple(round(v, 4) for v in geometry.bounds)} (west, south, east, north) "
            f"cannot be expressed in {crs}: choose another crs, or a smaller area."
        )
    return tuple(float(value) for value in bounds)


def _snapped(boxes: Iterable[tuple[float, ...]], crs: CRS, resolution_m: float) -> GeoBox:
    """Return the grid of whole cells that covers some boxes (left, bottom, right, top)."""
    lefts, bottoms, rights, tops = itertools.zip_longest(*boxes)
    cell = CELL_PX * resolution_m
    # A box that misses a line of the lattice by rounding alone must not gain a cell.
    slack = _SNAP_TOLERANCE_PX * resolution_m
    left, bottom = (math.floor((v + slack) / cell) for v in (min(lefts), min(bottoms)))
    right, top = (math.ceil((v - slack) / cell) for v in (max(rights), max(tops)))
    size = (max(top - bottom, 1) * CELL_PX, max(right - left, 1) * CELL_PX)
    if max(size) > _LARGEST_PX:
        raise ValueError(
            f"The area has {size[0]} x {size[1]} pixels of {resolution_m:g} m in "
            f"{crs.epsg or crs}: give a smaller one, a coarser resolution, or a crs that is made "
            "for it (across the antimeridian that of a UTM zone)."
        )
    affine = Affine(resolution_m, 0, left * cell, 0, -resolution_m, max(top, bottom + 1) * cell)
    return GeoBox(size, affine, crs)
