"""Files as large as providers' supercells: only what is needed is touched."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from terramind_cube.cube import load_cube
from tests.cube.scenes import day, make_item


def sparse(path, shape, transform, crs, dtype, window, pixels):
    """A tiled file of which one window exists."""
    profile = {
        "driver": "GTiff", "count": 1, "height": shape[0], "width": shape[1], "dtype": dtype,
        "crs": crs, "transform": transform, "tiled": True, "sparse_ok": True, "nodata": 0,
        "blockxsize": 2048, "blockysize": 2048,
        "compress": "deflate", "bigtiff": "yes",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels, 1, window=Window(*window))
    return path


@pytest.fixture
def block():
    return np.random.default_rng(0).integers(1, 12, (512, 512)).astype("uint8")


def test_supercell_of_a_whole_zone(tmp_path, block):
    """89448 x 29338 pixels, as the annual land cover has them (odc-stac came back empty, #248)."""
    transform = Affine(10, 0, 353310, 0, -10, 7991500)
    path = sparse(tmp_path / "60W.tif", (89448, 29338), transform, "EPSG:32660", "uint8",
                  (10240, 20480, 512, 512), block)  # fmt: skip
    item = make_item("60W-2023", day("2023-01-01"), {"data": path}, collection="io-lulc-annual-v02")
    grid = GeoBox(
        (512, 512), Affine(10, 0, 353310 + 102400, 0, -10, 7991500 - 204800), "EPSG:32660"
    )
    cube = load_cube([item], geobox=grid, modalities=["LULC"], chunks={"y": 300, "x": 300})
    table = np.array([0, 1, 2, 9, 3, 4, 9, 5, 6, 7, 8, 9], "uint8")
    np.testing.assert_array_equal(cube["LULC"].values[0], table[block])
    # The neighbouring zone sees the same land.
    other = load_cube([item], geobox=grid.to_crs("EPSG:32601", resolution=10), modalities=["LULC"])
    assert (other["LULC"].values > 0).mean() > 0.5


def test_file_of_the_whole_world(tmp_path, block):
    """Its outline cannot be expressed in a zone of UTM, its pixels can."""
    step = 1 / 3600
    column, row = round((11.5 + 180) / step), round((90 - 47.5) / step)
    path = sparse(tmp_path / "world.tif", (648_000, 1_296_000), Affine(step, 0, -180, 0, -step, 90),
                  "EPSG:4326", "float32", (column - 256, row - 256, 512, 512),
                  block.astype("float32") * 100)  # fmt: skip
    item = make_item("world", day("2021-04-22"), {"data": path}, collection="cop-dem-glo-30")
    item.properties |= {"proj:code": "EPSG:4326", "proj:shape": [648_000, 1_296_000],
                        "proj:transform": [step, 0, -180, 0, -step, 90]}  # fmt: skip
    cube = load_cube([item], bbox=(11.47, 47.48, 11.53, 47.52), modalities=["DEM"])
    heights = cube["DEM"].values
    assert np.isfinite(heights).mean() > 0.95
    assert 100 <= np.nanmin(heights) <= np.nanmax(heights) <= 1100
