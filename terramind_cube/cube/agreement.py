"""Whether the grid that an item declares lies where its geometry does.

A shape given as width and height, that of an overview, a row step upwards, or half a pixel size
make another area. Geometries are no exact outlines either: of valid pixels, in few vertices, rounded,
or a box in degrees around a grid that is turned against the meridians. In recorded items of the
providers a right grid leaves up to 1.3 % of its side outside; that is what the tolerances are for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import shapely
from odc.geo import CRS
from shapely.geometry import shape

from terramind_cube.cube.grids import crs_of, geographic_extent, joined, nearest_longitude
from terramind_cube.stac.providers import NATIVE_RESOLUTION_M

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from terramind_cube.stac.bands import BandLocation, ItemBands

__all__ = ["NOWHERE", "Fit", "fit_of", "tells_pixel_size"]

_SAME = 0.005
_NEAR = 0.025
_ROUNDING_PX = 3
_MOSTLY = 0.6
_BOX = 0.999
_SIZE_TOLERANCE = 0.01


class Fit(NamedTuple):
    """How a grid and an item's geometry lie to each other.

    Attributes
    ----------
    beyond : float
        How far the geometry reaches beyond the grid, as a share of the grid's longer side.
    filled : float
        Share of the grid's width or height that it takes, the smaller of both.
    """

    beyond: float
    filled: float

    @property
    def is_same(self) -> bool:
        """Whether no pixel that the item has lies beyond the grid."""
        return self.beyond <= _SAME

    @property
    def is_near(self) -> bool:
        """Whether the geometry may be that of the grid, in words that are less exact."""
        return self.beyond <= _NEAR

    @property
    def is_filled(self) -> bool:
        """Whether the grid cannot be much larger than its file."""
        return self.filled >= _MOSTLY


NOWHERE = Fit(math.inf, 0.0)


def fit_of(grid: GeoBox, where: Any) -> Fit:
    """Compare a grid to the geometry of its item.

    Parameters
    ----------
    grid : GeoBox
    where : shapely.Geometry
        In longitude and latitude.
    """
    crs, box = crs_of(grid), grid.boundingbox
    width, height = box.right - box.left, box.top - box.bottom
    if not (math.isfinite(width + height) and width > 0 and height > 0):
        return NOWHERE
    # Vertices alone are what a provider says: straight lines between them are another projection's.
    places = shapely.get_coordinates(where)
    x, y = map(np.asarray, CRS("EPSG:4326").transformer_to_crs(crs)(places[:, 0], places[:, 1]))
    if crs.geographic:
        x = nearest_longitude(x, (box.left + box.right) / 2)
    bounds = (x.min(), y.min(), x.max(), y.max())
    if not np.isfinite(bounds).all():
        return NOWHERE
    slack = _ROUNDING_PX * max(abs(grid.resolution.x), abs(grid.resolution.y))
    beyond = max(0.0, _excess(bounds, box.bbox) - slack) / max(width, height)
    if beyond > _SAME:
        beyond = min(beyond, _excess_of_box(grid, where))
    filled = min((bounds[2] - bounds[0]) / width, (bounds[3] - bounds[1]) / height)
    return Fit(float(beyond), float(filled))


def tells_pixel_size(found: ItemBands, place: BandLocation, grid: GeoBox) -> bool:
    """Whether an item, or what is known of its sensor, tells the pixel size that a grid has."""
    fields, item = found.item.assets[place.asset].extra_fields, found.item
    listed = [fields, item.properties]
    for name in ("raster:bands", "bands", "eo:bands"):
        listed += (fields.get(name) or ())[place.index - 1 : place.index]
    names = ("gsd", "raster:spatial_resolution", "spatial_resolution")
    told = [one[name] for one in listed for name in names if one.get(name)]
    if found.modality.units == "1e-4":
        labels = dict(zip(found.bands, found.labels, strict=True))
        told.append(NATIVE_RESOLUTION_M[labels.get(place, "SCL")])
    size = abs(grid.resolution.x)
    return any(
        isinstance(value, int | float) and math.isclose(value, size, rel_tol=_SIZE_TOLERANCE)
        for value in told
    )


def _excess(inner: Any, outer: Any) -> float:
    """Return how far a box (left, bottom, right, top) reaches beyond another one."""
    return float((np.subtract(inner, outer) * (-1, -1, 1, 1)).max())


def _excess_of_box(grid: GeoBox, where: Any) -> float:
    """Return how far a box in degrees reaches beyond that around a grid, in sides of it."""
    whole = joined(where)
    if whole.area < _BOX * whole.envelope.area:
        return math.inf
    try:
        extent = joined(shape(geographic_extent(grid)))
    except (shapely.errors.GEOSException, ValueError):  # nowhere on Earth
        return math.inf
    west, south, east, north = extent.bounds
    longer = max(east - west, north - south)
    return max(0.0, _excess(whole.bounds, extent.bounds)) / longer if longer > 0 else math.inf
