"""Areas in longitude and latitude: those of a search and of items, also across the antimeridian."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from shapely.geometry import box, mapping, shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pystac
    from numpy.typing import NDArray

__all__ = ["area_geometry", "item_shape", "swapped_area"]

_BESIDE_ANTIMERIDIAN_DEG = 45.0
_NARROWEST_GAP_DEG = 180.0
_TURNS_DEG = (-360.0, 0.0, 360.0)


def area_geometry(
    bbox: Sequence[float] | None = None, intersects: Any = None
) -> dict[str, Any] | None:
    """Return the area of a search as a GeoJSON geometry in longitude and latitude.

    Parameters
    ----------
    bbox : sequence of 4 or 6 floats, optional
        West, south, east, north in degrees; west > east crosses the antimeridian.
    intersects : mapping or object with ``__geo_interface__``, optional
        GeoJSON geometry, Feature or FeatureCollection in longitude and latitude. What lies beyond
        180 degrees is cut there and continued on the other side.

    Raises
    ------
    ValueError
        If both are given, or one cannot be read or is in another order or unit.
    """
    if bbox is not None and intersects is not None:
        raise ValueError("Give bbox or intersects, not both.")
    if bbox is not None:
        west, south, east, north = _read_bbox(bbox)
        return dict(mapping(_lenient_box(west, south, east, north)))
    if intersects is None:
        return None
    geometry = _read_geometry(intersects)
    _check_degrees(geometry)
    return dict(mapping(_wrapped(_valid(geometry))))


def swapped_area(area: Any) -> dict[str, Any] | None:
    """Return an area with longitude and latitude exchanged, to find out whether that was meant.

    Parameters
    ----------
    area : GeoJSON geometry or None
        As `area_geometry` returns it.

    Returns
    -------
    GeoJSON geometry or None
        None where the exchange gives no valid latitude, or there is no area.
    """
    if area is None:
        return None
    exchanged = shapely.transform(shape(area), lambda places: places[:, ::-1])
    _, south, _, north = exchanged.bounds
    return dict(mapping(exchanged)) if south >= -90 and north <= 90 else None


def item_shape(item: pystac.Item) -> Any:
    """Return where an item lies, as a shapely geometry within 180 degrees of longitude.

    A polygon that spans more than half the globe between vertices that all lie beside the
    antimeridian crosses it.

    Returns
    -------
    shapely.Geometry or None
        None for an item with neither geometry nor bbox.

    Raises
    ------
    ValueError
        If the geometry cannot be read: the message names the item.
    """
    try:
        if item.geometry is not None:
            parts = shapely.get_parts(shape(item.geometry))
            return _wrapped(shapely.union_all([_valid(_unwound(part)) for part in parts]))
        if item.bbox:
            return _wrapped(_valid(_lenient_box(*_flat_box([float(v) for v in item.bbox]))))
    except Exception as error:
        raise ValueError(f"Cannot read the geometry of item {item.id!r} ({error}).") from error
    return None


def _read_bbox(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    try:
        values = [float(value) for value in bbox]
    except (TypeError, ValueError):
        values = []
    problem = "Give four numbers."
    if len(values) in {4, 6} and np.isfinite(values).all():
        west, south, east, north = _flat_box(values)
        problem = _bbox_problem(west, south, east, north)
        if not problem:
            return west, south, east, north
    shown = tuple(bbox) if isinstance(bbox, list | np.ndarray) else bbox
    raise ValueError(
        "bbox must be (west, south, east, north) in degrees of longitude and latitude, got "
        f"{shown}. {problem}"
    )


def _flat_box(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return west, south, east, north of a box, which may have heights."""
    half = len(values) // 2
    return values[0], values[1], values[half], values[half + 1]


def _bbox_problem(west: float, south: float, east: float, north: float) -> str:
    """Say what is wrong with a box, nothing where all is well."""
    if max(map(abs, (west, south, east, north))) > 360:
        return "These look like metres of a projection."
    if max(abs(south), abs(north)) > 90:
        if max(abs(west), abs(east)) <= 90:
            return f"This looks like lat/lon order: give lon, lat, {(south, west, north, east)}."
        return "Latitudes run from -90 to 90."
    if west > east and west - east < _NARROWEST_GAP_DEG:
        return "Its west lies east of its east; only across the antimeridian that has a meaning."
    if max(abs(west), abs(east)) > 180:
        return "Longitudes run from -180 to 180; west > east crosses the antimeridian."
    if south > north:
        return "Its south lies north of its north."
    if south == north or west == east:
        return "It has no width or no height: give a point or a line as intersects."
    return ""


def _lenient_box(west: float, south: float, east: float, north: float) -> Any:
    if west <= east:
        return box(west, south, east, north)
    return shapely.MultiPolygon([box(west, south, 180, north), box(-180, south, east, north)])


def _read_geometry(intersects: Any) -> Any:
    document = getattr(intersects, "__geo_interface__", intersects)
    try:
        if document.get("type") == "FeatureCollection":
            shapes = [shape(feature["geometry"]) for feature in document["features"]]
            geometry = shapely.union_all(shapes)
        else:
            geometry = shape(document.get("geometry", document))
        is_empty = geometry.is_empty
    except Exception as error:
        raise ValueError(
            f"Cannot read intersects ({error}): give a GeoJSON geometry in lon, lat."
        ) from error
    if is_empty:
        raise ValueError("intersects is an empty geometry.")
    return geometry


def _check_degrees(geometry: Any) -> None:
    west, south, east, north = geometry.bounds
    if not np.isfinite(geometry.bounds).all():
        raise ValueError("intersects has coordinates that are no numbers.")
    if min(south, -north) >= -90 and min(west, -east) >= -360:
        return
    if max(map(abs, (west, south, east, north))) > 360:
        problem = "It looks like metres of a projection: give degrees."
    elif max(abs(west), abs(east)) <= 90:
        problem = "It looks like lat/lon order: GeoJSON is lon, lat."
    else:
        problem = "Latitudes run from -90 to 90."
    raise ValueError(f"intersects reaches from {(west, south)} to {(east, north)}. {problem}")


def _valid(geometry: Any) -> Any:
    return geometry if geometry.is_valid else shapely.make_valid(geometry)


def _wrapped(geometry: Any) -> Any:
    """Cut a geometry at the antimeridian, and bring what lies beyond it to the other side."""
    west, _, east, _ = geometry.bounds
    if geometry.is_empty or min(west, -east) >= -180:
        return geometry
    pieces = []
    for turn in _TURNS_DEG:
        piece = geometry.intersection(box(-180 - turn, -90, 180 - turn, 90))
        pieces.append(_shifted(piece, turn))
    # The cut itself lies in two strips; only as a border, which is of a lower dimension.
    dimension = shapely.get_dimensions(geometry)
    return shapely.union_all([p for p in pieces if shapely.get_dimensions(p) == dimension])


def _shifted(geometry: Any, turn_deg: float) -> Any:
    return shapely.transform(geometry, lambda places: places + np.array([turn_deg, 0.0]))


def _unwound(part: Any) -> Any:
    """Continue a polygon beyond 180 degrees where it goes the long way round the globe."""
    longitudes = shapely.get_coordinates(part)[:, 0]
    is_wide = np.ptp(longitudes) > 180 if len(longitudes) else False
    if not is_wide or np.abs(longitudes).min() < 180 - _BESIDE_ANTIMERIDIAN_DEG:
        return part

    def continued(places: NDArray[np.float64]) -> NDArray[np.float64]:
        turned = places.copy()
        turned[places[:, 0] < 0, 0] += 360
        return turned

    crossing = shapely.transform(part, continued)
    # A box from -180 to 180 does go round the globe.
    return crossing if crossing.area > 0 else part
