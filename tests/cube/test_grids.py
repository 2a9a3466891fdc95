"""The grid of a cube: lattice, zone, antimeridian, poles."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.geometry import box, mapping, shape

from terramind_cube.cube.grids import (
    area_grid,
    check_grid_request,
    covering_grid,
    describe_pixel_size,
    geographic_extent,
    local_crs,
)
from terramind_cube.stac.search import area_geometry


def request(crs=None, resolution=10, geobox=None):
    return check_grid_request(geobox, crs, resolution, None, None)


def grid_of(bbox, **options):
    return area_grid(request(**options), area_geometry(bbox))


@pytest.mark.parametrize(
    ("longitude", "latitude", "epsg"),
    [
        (9.0, 48.0, 32632), (11.99, -0.1, 32732), (12.0, 0.0, 32633), (-180.0, 60.0, 32601),
        (180.0, 60.0, 32601), (179.9, -17.0, 32760), (181.0, -17.0, 32701), (-179.9, 10.0, 32601),
        (0.0, 84.5, 32661), (100.0, -80.5, 32761), (15.0, 83.0, 32633),
    ],
)  # fmt: skip
def test_place_has_its_zone(longitude, latitude, epsg):
    assert local_crs(longitude, latitude).epsg == epsg


def test_area_across_the_antimeridian_is_one_small_grid():
    grid = grid_of((179.9, -17.1, -179.9, -16.9))
    assert grid.crs.epsg in {32701, 32760}
    assert 20_000 < grid.shape.x * 10 < 23_000
    assert 21_000 < grid.shape.y * 10 < 24_000
    extent = shape(geographic_extent(grid))
    assert len(extent.geoms) == 2
    west, east = sorted(extent.geoms, key=lambda part: part.bounds[0])
    assert west.bounds[0] == pytest.approx(-180)
    assert west.bounds[2] == pytest.approx(-179.9, abs=0.01)
    assert east.bounds[0] == pytest.approx(179.9, abs=0.01)
    assert east.bounds[2] == pytest.approx(180)
    # GeoJSON that continues beyond 180 is the same area.
    beyond = area_geometry(intersects=mapping(box(179.9, -17.1, 180.1, -16.9)))
    assert area_grid(request(), beyond) == grid


@pytest.mark.parametrize(
    ("bbox", "epsg"), [((-30, 85, -20, 85.5), 32661), ((5, -88, 6, -87.9), 32761)]
)
def test_area_beyond_utm_is_polar_stereographic(bbox, epsg):
    grid = grid_of(bbox)
    assert grid.crs.epsg == epsg
    assert shape(geographic_extent(grid)).buffer(1e-6).contains(box(*bbox))


@pytest.mark.parametrize(("epsg", "pole"), [(32661, 90), (32761, -90)])
def test_grid_around_a_pole_is_a_cap(epsg, pole):
    grid = GeoBox((2000, 2000), Affine(100, 0, 1.9e6, 0, -100, 2.1e6), f"EPSG:{epsg}")
    west, south, east, north = shape(geographic_extent(grid)).bounds
    assert (west, east) == (-180, 180)
    assert pole in (south, north)
    # The corners lie 141 km from the pole, the middle of a side 100 km.
    edge = south if pole > 0 else north
    assert abs(edge) == pytest.approx(90 - 141.4 / 111.5, abs=0.1)


@settings(max_examples=60, deadline=None)
@given(
    longitude=st.floats(-179.5, 179.5),
    latitude=st.floats(-79, 83),
    width=st.floats(0.001, 0.3),
    height=st.floats(0.001, 0.3),
)
@example(longitude=0.13, latitude=82.0, width=0.001, height=0.13)
def test_grid_lies_on_the_lattice_and_covers_its_area(longitude, latitude, width, height):
    bbox = (longitude, latitude, min(longitude + width, 180), latitude + height)
    grid = grid_of(bbox)
    assert grid.affine.c % 160 == grid.affine.f % 160 == 0
    assert grid.shape.y % 16 == grid.shape.x % 16 == 0
    # The lattice may miss an edge by 0.01 px: 0.1 m are 8e-6 degrees of longitude at 83 N.
    assert shape(geographic_extent(grid)).buffer(1e-5).contains(box(*bbox))


@settings(max_examples=40, deadline=None)
@given(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), st.floats(0.02, 0.4), st.floats(0.02, 0.4))
def test_grids_of_overlapping_areas_share_pixels(east, north, width, height):
    one = grid_of((9.0, 48.0, 9.3, 48.3), crs="EPSG:32632")
    other = grid_of((9.1 + east, 48.1 + north, 9.1 + east + width, 48.1 + north + height),
                    crs="EPSG:32632")  # fmt: skip
    shift = np.subtract((one.affine.c, one.affine.f), (other.affine.c, other.affine.f)) / 10
    np.testing.assert_array_equal(shift, np.rint(shift))


def test_items_of_one_zone_keep_it():
    tile = GeoBox((10980, 10980), Affine(10, 0, 600000, 0, -10, 5300040), "EPSG:32632")
    other = GeoBox((10980, 10980), Affine(10, 0, 300000, 0, -10, 5300040), "EPSG:32633")
    alone = covering_grid(request(), [tile])
    assert alone.crs == tile.crs
    # 600000 and 5300040 do not lie on the lattice of 160 m: snapped outwards.
    assert alone.boundingbox.left <= 600000 < alone.boundingbox.left + 160
    assert alone.boundingbox.top - 160 < 5300040 <= alone.boundingbox.top
    # A zone between items of several ones would be theirs only by chance, and mostly empty.
    far = GeoBox((10980, 10980), Affine(10, 0, 300000, 0, -10, 5300040), "EPSG:32623")
    for mixed in ([tile, other], [tile, far, tile]):
        with pytest.raises(ValueError, match=r"several zones \(EPSG:32\d+, EPSG:32\d+\).*bbox"):
            covering_grid(request(), mixed)
    both = covering_grid(request(crs="EPSG:32632"), [tile, other])
    assert both.crs.epsg == 32632
    assert both.shape.x > 13_000
    degrees = GeoBox((3600, 3600), Affine(1 / 3600, 0, 9, 0, -1 / 3600, 49), "EPSG:4326")
    assert covering_grid(request(), [degrees]).crs.epsg == 32632
    geometry = mapping(box(9, 48, 9.1, 48.1))
    assert covering_grid(request(), [geometry]).crs.epsg == 32632


@pytest.mark.parametrize(
    ("crs", "left", "top", "step", "size_m"),
    [
        # Web Mercator is stretched by 1 / cos(latitude): 10 at 47 N are 6.8 m.
        ("EPSG:3857", 1_224_500, 5_942_000, 10, "6.82"),
        ("EPSG:2263", 985_000, 210_000, 10, "3.05"),  # New York, US survey feet
        ("EPSG:32632", 600_000, 5_200_000, 60, "60"),
    ],
)
def test_pixels_are_measured_on_the_ground(crs, left, top, step, size_m):
    grid = GeoBox((64, 64), Affine(step, 0, left, 0, -step, top), crs)
    said = describe_pixel_size(grid)
    assert said.startswith(f"The resolution is {size_m} m on the ground")
    assert (crs in said) == (crs != "EPSG:32632")


@pytest.mark.parametrize(
    ("crs", "left", "top", "step"),
    [
        ("EPSG:32632", 166_020, 5_300_000, 10),  # 4.5 degrees from the middle of the zone
        ("EPSG:3857", 1_224_500, 5_942_000, 14.66),
        ("EPSG:2263", 985_000, 210_000, 32.808),
        ("EPSG:32661", 2_000_000, 1_400_000, 10),
    ],
)
def test_pixels_near_ten_metres_on_the_ground_are_right(crs, left, top, step):
    grid = GeoBox((64, 64), Affine(step, 0, left, 0, -step, top), crs)
    assert not describe_pixel_size(grid)


@pytest.mark.parametrize("resolution", [1e-4, 0.00009, 8.983e-5])
def test_resolution_in_degrees_is_refused(resolution):
    with pytest.raises(ValueError, match="looks like degrees"):
        check_grid_request(None, None, resolution, None, None)


def test_area_that_a_crs_cannot_express_is_refused():
    with pytest.raises(ValueError, match=r"cannot be expressed in .*choose another crs"):
        grid_of((-100, 30, -99, 31), crs="+proj=gnom +lat_0=0 +lon_0=80")
