"""Grids that items declare, against the geometry of the item and against the file."""

import warnings

import numpy as np
import pystac
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import box, shape

from terramind_cube.cube import ReadOptions, load_cube
from terramind_cube.cube.agreement import fit_of
from terramind_cube.cube.failures import AssetError
from terramind_cube.cube.grids import geographic_extent
from tests.cube.scenes import CRS, LEFT, TOP, day, make_item, warns_user, write_tiff

SHAPE = (60, 180)
TRANSFORM = [10, 0, LEFT, 0, -10, TOP]
FEW = ReadOptions(retries=0)
WRONG = {
    "width first": ([180, 60], TRANSFORM),
    "overview": ([15, 45], TRANSFORM),
    "half a pixel": ([60, 180], [5, 0, LEFT, 0, -5, TOP]),
    "upwards": ([60, 180], [10, 0, LEFT, 0, 10, TOP]),
    "elsewhere": ([60, 180], [10, 0, LEFT + 50_000, 0, -10, TOP]),
}


def remote_item(name, shape_px, transform):
    """An item of files that count as remote ones, as GDAL keeps them in memory."""
    pixels = np.full(SHAPE, -10, "float32")
    files = {b: write_tiff(f"/vsimem/{name}-{b}.tif", pixels) for b in ("vv", "vh")}
    item = make_item(name, day("2024-05-01"), files, collection="my-s1rtc", raster={"unit": "dB"})
    for asset in item.assets.values():
        asset.extra_fields |= {
            "proj:code": CRS, "proj:shape": shape_px, "proj:transform": transform,
        }  # fmt: skip
    return item


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("on_error", ["raise", "nodata"])
def test_area_that_a_wrong_grid_leaves_out_has_its_pixels(fault, on_error):
    item = remote_item(f"wrong-{fault.replace(' ', '-')}", *WRONG[fault])
    area = GeoBox((16, 16), Affine(10, 0, LEFT + 1280, 0, -10, TOP - 320), CRS)
    cube = load_cube([item], geobox=area, modalities=["S1RTC"], on_error=on_error, reading=FEW)
    with warns_user(f"Item '{item.id}', asset 'v[vh]': it covers .* mend proj:shape"):
        values = cube["S1RTC"].values
    np.testing.assert_allclose(values, -10, atol=1e-5)


@pytest.mark.parametrize("fault", WRONG)
def test_cube_without_an_area_has_the_extent_of_the_file(fault):
    item = remote_item(f"extent-{fault.replace(' ', '-')}", *WRONG[fault])
    with warns_user("is read as it is"):
        cube = load_cube([item], modalities=["S1RTC"])
    right = load_cube([remote_item("right", list(SHAPE), TRANSFORM)], modalities=["S1RTC"])
    assert cube.odc.geobox == right.odc.geobox


def test_file_that_lies_where_neither_grid_nor_geometry_do_is_named():
    item = remote_item("lost", *WRONG["elsewhere"])
    where = GeoBox((60, 180), Affine(10, 0, LEFT, 0, -10, TOP - 30_000), CRS)
    item.geometry = geographic_extent(where)
    item.bbox = list(shape(item.geometry).bounds)
    with pytest.raises(AssetError, match=r"item 'lost'.*it covers"):
        load_cube([item], modalities=["S1RTC"])


def test_right_grid_is_trusted_without_its_file():
    item = remote_item("trusted", list(SHAPE), TRANSFORM)
    for asset in item.assets.values():
        asset.href = "/vsimem/nothing.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cube = load_cube([item], modalities=["S1RTC"])
    assert isinstance(item, pystac.Item)
    assert cube.sizes["x"] >= SHAPE[1]


def test_geometries_of_all_kinds_fit_their_grid():
    tile = GeoBox((10980, 10980), Affine(10, 0, 300_000, 0, -10, 6_700_020), CRS)
    extent = shape(geographic_extent(tile))
    sliver = extent.intersection(box(*extent.bounds[:2], extent.bounds[0] + 0.3, extent.bounds[3]))
    for geometry in (extent, box(*extent.bounds), sliver, extent.simplify(0.005)):
        assert fit_of(tile, geometry).is_near
    assert not fit_of(tile, sliver).is_filled
    assert not fit_of(tile[:5000], extent).is_near
    assert not fit_of(tile[:, 1000:], extent).is_near
    double = GeoBox((10980, 10980), Affine(20, 0, 300_000, 0, -20, 6_700_020), CRS)
    assert not fit_of(double, extent).is_filled


@pytest.mark.parametrize("void", [-32767, -32768, -9999, 32767, -501, 8850])
def test_void_elevation_that_nobody_declares_does_not_reach_its_neighbours(tmp_path, void):
    heights = np.full((48, 48), 100, "int16")
    heights[20, 20], heights[0, 0], heights[0, 1] = void, -430, 8848
    path = write_tiff(tmp_path / "dem.tif", heights)
    item = make_item("dem", day("2021-04-22"), {"data": path}, collection="my-dem")
    exact = load_cube([item], modalities=["DEM"])["DEM"].values
    assert np.isnan(exact[20, 20])
    np.testing.assert_array_equal(exact[0, :2], [-430, 8848])
    shifted = GeoBox((40, 40), Affine(10, 0, LEFT + 45, 0, -10, TOP - 45), CRS)
    warped = load_cube([item], geobox=shifted, modalities=["DEM"])["DEM"].values
    np.testing.assert_allclose(warped[np.isfinite(warped)], 100, atol=1e-3)
