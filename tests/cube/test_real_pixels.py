"""Real rasters through `load_cube`, pixel by pixel against rasterio's own reading and warping.

Three sets: the Sentinel-2 COGs of tile 29RKH, which their repository has decimated ten times (the
item still describes 10 m: the files' own georeferencing counts), two tiles of the Copernicus DEM,
and three tiles of TerraMesh.
"""

import copy
import itertools
from datetime import UTC, datetime

import numpy as np
import odc.geo.xr  # noqa: F401
import pystac
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.warp import Resampling, reproject
from scipy import ndimage
from shapely.geometry import box, mapping

import terramind_cube as tc
from terramind_cube.cube.clouds import CLOUD_DILATION_M
from tests.stac.memory_api import open_client
from tests.stac.recordings import FIXTURES, read_items

# Decimated COGs and DEMs are coarser than what TerraMind was trained on.
pytestmark = pytest.mark.filterwarnings("ignore:The resolution is:UserWarning")

PDS = "cogeotiff+rio-tiler-pds/tests/fixtures"
SCENE = "sentinel-cogs/sentinel-s2-l2a-cogs/29/R/KH/2020/2/S2A_29RKH_20200219_0_L2A"
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
# 1098 pixels of 100 m, 549 of 200 m, 183 of 600 m.
METRES = dict(zip(BANDS, (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20), strict=True))
SCENE_GRID = GeoBox((1098, 1098), Affine(100, 0, 199980, 0, -100, 2800020), "EPSG:32629")
TILES = ("282D_485L_3_3", "433D_629L_3_1", "609U_541L_3_0")
CLOUDED = (0, 1, 3, 8, 9, 10)


def read(path, index=None):
    with rasterio.open(path) as dataset:
        return dataset.read(index)


@pytest.fixture(scope="module")
def scene():
    """Folder of the files of 29RKH, and a client of an API whose item points to them."""
    (raw,) = read_items("earth-search 2020")
    folder = FIXTURES / PDS / SCENE
    raw = copy.deepcopy(raw)
    for key, asset in raw["assets"].items():
        path = folder / asset["href"].rpartition("/")[2]
        if not key.endswith("-jp2") and path.is_file():
            asset["href"] = path.as_uri()
    return folder, open_client([raw])


def warped(path, grid, method, *, index=1, nodata):
    """Return a band on a grid as rasterio warps it, the whole file at once."""
    with rasterio.open(path) as dataset:
        pixels = dataset.read(index)
        source = {"src_transform": dataset.transform, "src_crs": dataset.crs}
    target = np.full(grid.shape.yx, nodata, pixels.dtype)
    reproject(
        pixels, target, **source, src_nodata=nodata, dst_transform=grid.affine,
        dst_crs=f"EPSG:{grid.crs.epsg}", dst_nodata=nodata, resampling=Resampling[method],
    )  # fmt: skip
    return target


def test_scene_on_its_own_grid_is_what_rasterio_reads(scene):
    folder, client = scene
    cube = tc.load_cube(
        client, geobox=SCENE_GRID, modalities=["S2L2A", "NDVI", "RGB"], chunks={"y": 500, "x": 700}
    )
    values = cube["S2L2A"].values[0]
    assert values.dtype == np.uint16
    for band, pixels in zip(BANDS, values, strict=True):
        expected = read(folder / f"{band}.tif", 1)
        factor = 1098 // len(expected)
        assert factor == {"B01": 6, "B09": 6}.get(
            band, 1 if band in {"B02", "B03", "B04", "B08"} else 2
        )
        np.testing.assert_array_equal(
            pixels, np.kron(expected, np.ones((factor, factor), "uint16"))
        )
    red, green, blue, near = (read(folder / f"{b}.tif", 1).astype(float) for b in
                              ("B04", "B03", "B02", "B08"))  # fmt: skip
    np.testing.assert_allclose(cube["NDVI"].values[0], (near - red) / (near + red), atol=1e-6)
    # As TerraMind saw it: reflectance 0 to 0.2 as 0 to 255, whichever way a rest is rounded.
    pictures = np.stack([red, green, blue]).clip(0, 2000) / 2000 * 255
    np.testing.assert_allclose(cube["RGB"].values[0], pictures, atol=1)


def places_in(path, grid):
    """Return row and column in a file of a grid's pixel centres, from PROJ itself.

    GDAL approximates them to an eighth of a pixel, so that two of its warps of one file differ.
    """
    with rasterio.open(path) as dataset:
        own = dataset.transform
        transformer = Transformer.from_crs(f"EPSG:{grid.crs.epsg}", dataset.crs, always_xy=True)
    y, x = np.mgrid[: grid.shape.y, : grid.shape.x] + 0.5
    to = grid.affine
    x, y = transformer.transform(to.c + to.a * x, to.f + to.e * y)
    return (y - own.f) / own.e, (x - own.c) / own.a


def nearest_agreement(found, path, grid, slack_px):
    """Return the share of pixels that are the file's at their centre's exact position."""
    pixels = read(path, 1)
    rows, columns = places_in(path, grid)
    agrees = np.zeros(grid.shape.yx, bool)
    for down, right in itertools.product({-slack_px, slack_px}, repeat=2):
        place = (np.floor(rows + down).astype(int), np.floor(columns + right).astype(int))
        agrees |= found == pixels[place]
    return agrees.mean()


def bilinear(path, grid, change=np.asarray):
    """Return a file's first band, interpolated at exact positions; NaN outside and at its edge."""
    pixels = change(read(path, 1).astype(float))
    rows, columns = places_in(path, grid)
    values = ndimage.map_coordinates(pixels, [rows - 0.5, columns - 0.5], order=1, cval=np.nan)
    height, width = pixels.shape
    inside = (rows > 1) & (rows < height - 1) & (columns > 1) & (columns < width - 1)
    return np.where(inside, values, np.nan)


@pytest.mark.parametrize(
    ("band", "resolution", "crs", "slack_px"),
    [
        ("B04", 100, "EPSG:32629", 0),
        ("B11", 100, "EPSG:32629", 0),
        ("B01", 100, "EPSG:32629", 0),
        ("B04", 100, "EPSG:32628", 0.13),
        ("B05", 60, "EPSG:32628", 0.13),
        ("B04", 90, "EPSG:3857", 0.13),
    ],
)
def test_scene_on_another_grid_has_the_nearest_pixels(scene, band, resolution, crs, slack_px):
    folder, client = scene
    cube = tc.load_cube(
        client, bbox=(-11.6, 24.6, -11.1, 25.0), modalities=["S2L2A"], bands={"S2L2A": [band]},
        resolution=resolution, crs=crs, chunks={"y": 300, "x": 200},
    )  # fmt: skip
    assert cube["S2L2A_band"].values.tolist() == [band]
    grid = cube.odc.geobox
    assert f"EPSG:{grid.crs.epsg}" == crs
    found = cube["S2L2A"].values[0, 0]
    assert nearest_agreement(found, folder / f"{band}.tif", grid, slack_px) >= 0.999
    # rasterio's own nearest pixels differ by that eighth too.
    expected = warped(folder / f"{band}.tif", grid, "nearest", nodata=0)
    assert (found == expected).mean() >= (0.9 if slack_px else 0.999)


def test_clouds_of_a_scene_are_extended_by_a_disk(scene):
    """Pixels of 20 m of a cloudy corner, classes of 200 m; three pixels are within 60 m."""
    folder, client = scene
    classes = np.kron(read(folder / "SCL.tif", 1), np.ones((10, 10), np.uint8))
    dropped = np.isin(classes, CLOUDED)
    y, x = np.mgrid[-4:5, -4:5] * 20
    mask = ndimage.binary_dilation(dropped, np.hypot(x, y) <= CLOUD_DILATION_M)
    window = np.s_[1000:1600, 4600:5200]
    grid = GeoBox((600, 600), Affine(20, 0, 291980, 0, -20, 2780020), "EPSG:32629")
    cube = tc.load_cube(
        client, geobox=grid, modalities=["S2L2A"], bands={"S2L2A": ["B02"]},
        chunks={"y": 170, "x": 230},
    )  # fmt: skip
    np.testing.assert_array_equal(cube["SCL"].values[0], classes[window])
    # Also across the borders of the chunks and of the area.
    np.testing.assert_array_equal(cube["cloud_mask"].values[0], mask[window])
    assert 0.3 < mask[window].mean() < 0.5
    np.testing.assert_allclose(cube["clear_fraction"].values, [1 - mask[window].mean()], atol=1e-6)
    assert "SCL" not in tc.load_cube(client, geobox=grid, modalities=["S2L2A"], clouds=False)


def test_clouds_of_coarse_pixels_are_those_of_the_classes(scene):
    folder, client = scene
    cube = tc.load_cube(client, geobox=SCENE_GRID, modalities=["S2L2A"])
    classes = np.kron(read(folder / "SCL.tif", 1), np.ones((2, 2), np.uint8))
    np.testing.assert_array_equal(cube["SCL"].values[0], classes)
    np.testing.assert_array_equal(cube["cloud_mask"].values[0], np.isin(classes, CLOUDED))


def elevation_item(metres, name, corner):
    """Return the file of a DEM tile, and an item of it without proj fields."""
    path = FIXTURES / PDS / f"copernicus-dem-{metres}m" / name / f"{name}.tif"
    if not path.is_file():
        pytest.skip("shared/ with the DEM tiles is not beside this clone")
    lon, lat = corner
    item = pystac.Item(
        name, mapping(box(lon, lat, lon + 1, lat + 1)), [lon, lat, lon + 1, lat + 1],
        datetime(2021, 4, 22, tzinfo=UTC), {}, collection=f"cop-dem-glo-{metres}",
    )  # fmt: skip
    item.add_asset("data", pystac.Asset(path.as_uri(), media_type="image/tiff"))
    return path, item


EQUATOR = (30, "Copernicus_DSM_COG_10_N00_00_E006_00_DEM", (6, 0))
POLE = (90, "Copernicus_DSM_COG_30_S90_00_W164_00_DEM", (-164, -90))


@pytest.mark.parametrize(
    ("tile", "bbox", "resolution", "crs", "typical_m", "largest_m"),
    [
        # São Tomé, 2000 m over the sea within 12 km: a tenth of a pixel is a metre and more.
        (EQUATOR, (6.5, 0.1, 6.7, 0.3), 30, None, 0.02, 0.5),
        (EQUATOR, (6.55, 0.2, 6.62, 0.27), 10, None, 0.01, 0.1),
        (EQUATOR, (6.5, 0.1, 6.7, 0.3), 30, "EPSG:32631", 0.02, 0.5),
        # Pixels of 93 m by 11 to 17 m: polar stereographic by default, and a zone of UTM.
        (POLE, (-163.9, -89.3, -163.1, -89.1), 90, None, 0.02, 0.3),
        (POLE, (-163.9, -89.3, -163.1, -89.1), 90, "EPSG:32703", 0.02, 0.3),
    ],
)
def test_elevation_is_interpolated(tile, bbox, resolution, crs, typical_m, largest_m):
    path, item = elevation_item(*tile)
    cube = tc.load_cube(
        [item], bbox=bbox, modalities=["DEM"], resolution=resolution, crs=crs,
        chunks={"y": 200, "x": 200},
    )  # fmt: skip
    grid = cube.odc.geobox
    default = 32632 if tile is EQUATOR else 32761
    assert f"EPSG:{grid.crs.epsg}" == (crs or f"EPSG:{default}")
    found, expected = cube["DEM"].values, bilinear(path, grid)
    compare(found, expected, typical_m, largest_m)
    # rasterio's own warp of the whole file at once differs by that eighth of a pixel.
    theirs = warped(path, grid, "bilinear", nodata=np.nan)
    compare(found, np.where(np.isfinite(expected), theirs, np.nan), 0.5, 2.5)


def compare(found, expected, typical, largest):
    """Assert that values are alike where something is expected; beyond the file there is nothing."""
    known = np.isfinite(expected)
    assert known.any()
    assert np.isfinite(found[known]).all()
    # The file's outermost pixels, of which nothing is expected, may be there.
    assert np.isnan(found[~ndimage.binary_dilation(known, iterations=12)]).all()
    difference = np.abs(found - expected)[known]
    assert np.median(difference) <= typical
    assert np.quantile(difference, 0.999) <= largest


def items_of_tile(terramesh, tile, **collections):
    """One item per modality; the footprint is the tile's own."""
    with rasterio.open(terramesh / "S2L2A" / f"{tile}.tif") as dataset:
        grid = GeoBox.from_rio(dataset)
    footprint = grid.extent.to_crs("EPSG:4326")
    items = []
    for name, (collection, path, fields) in collections.items():
        item = pystac.Item(
            f"{tile}-{name}", footprint.json, list(footprint.boundingbox),
            datetime(2021, 7, 23, 13, 40, tzinfo=UTC), {}, collection=collection,
        )  # fmt: skip
        keys = ("vv", "vh") if name == "S1RTC" and isinstance(path, tuple) else ("data",)
        paths = path if isinstance(path, tuple) else (path,)
        for key, href in zip(keys, paths, strict=True):
            asset = pystac.Asset(href.as_uri(), media_type="image/tiff", extra_fields=fields)
            item.add_asset(key, asset)
        items.append(item)
    return grid, items


def plain(terramesh, tile, *names):
    return {n: (f"terramesh-{n.lower()}", terramesh / n / f"{tile}.tif", {}) for n in names}


@pytest.mark.parametrize("tile", TILES)
def test_tile_on_its_own_grid_is_what_rasterio_reads(terramesh, tile):
    names = ("S2L2A", "S2L1C", "S1RTC", "DEM", "LULC")
    grid, items = items_of_tile(terramesh, tile, **plain(terramesh, tile, *names))
    cube = tc.load_cube(
        items, geobox=grid, modalities=[*names, "NDVI"], chunks={"y": 100, "x": 150}
    )
    for name in names:
        expected = read(terramesh / name / f"{tile}.tif")
        found = cube[name].values.reshape(expected.shape)
        np.testing.assert_array_equal(found, expected.astype(found.dtype))
    # TerraMesh's own index, stored in half precision.
    stored = read(terramesh / "NDVI" / f"{tile}.tif", 1)
    np.testing.assert_allclose(cube["NDVI"].values[0], stored, atol=5e-4)


@pytest.mark.parametrize("tile", TILES[:2])
def test_tile_in_the_next_zone_is_warped(terramesh, tile):
    names = ("S2L2A", "S1RTC", "DEM", "LULC")
    grid, items = items_of_tile(terramesh, tile, **plain(terramesh, tile, *names))
    crs = f"EPSG:{grid.crs.epsg + 1}"
    cube = tc.load_cube(items, modalities=names, crs=crs, chunks={"y": 100, "x": 150})
    target = cube.odc.geobox
    assert target.crs.epsg == grid.crs.epsg + 1
    for name, bands in {"S2L2A": 12, "LULC": 1}.items():
        found = cube[name].values.reshape(bands, *target.shape.yx)
        for index in range(bands):
            path = terramesh / name / f"{tile}.tif"
            expected = warped(path, target, "nearest", index=index + 1, nodata=0)
            agreement = (found[index] == expected).mean()
            assert agreement >= 0.999, f"{name} {index}: {agreement:.5f}"
    files = {name: terramesh / name / f"{tile}.tif" for name in ("S1RTC", "DEM")}
    # Interpolated as power. GDAL's own choice of kernel would be off by 0.3 dB: it widens the
    # kernel where the part of the file that it looks at is turned or cropped.
    power = bilinear(files["S1RTC"], target, lambda decibel: 10 ** (decibel / 10))
    compare(cube["S1RTC"].values[0, 0], 10 * np.log10(power), 0.01, 0.05)
    compare(cube["DEM"].values, bilinear(files["DEM"], target), 0.02, 0.2)


@pytest.fixture
def power_tile(terramesh, tmp_path):
    """A TerraMesh tile as the Planetary Computer stores such: linear power, -32768 where invalid."""
    tile = TILES[0]
    decibel = read(terramesh / "S1RTC" / f"{tile}.tif")
    power = (10 ** (decibel / 10)).astype(np.float32)
    power[:, 40:60, 70:90] = -32768
    power[0, 100, 100] = 0
    with rasterio.open(terramesh / "S1RTC" / f"{tile}.tif") as dataset:
        profile = dataset.profile | {"dtype": "float32", "count": 1}
    paths = []
    for pixels, key in zip(power, ("vv", "vh"), strict=True):
        paths.append(tmp_path / f"iw-{key}.rtc.tiff")
        with rasterio.open(paths[-1], "w", **profile) as dataset:
            dataset.write(pixels, 1)
    fields = {"raster:bands": [{"nodata": -32768, "data_type": "float32"}]}
    grid, items = items_of_tile(terramesh, tile, S1RTC=("sentinel-1-rtc", tuple(paths), fields))
    return grid, items, np.where(power > 0, power, np.nan).astype(float)


def test_backscatter_is_turned_into_decibels(power_tile):
    grid, items, power = power_tile
    cube = tc.load_cube(items, geobox=grid, modalities=["S1RTC"], chunks={"y": 100, "x": 150})
    np.testing.assert_allclose(cube["S1RTC"].values[0], 10 * np.log10(power), atol=1e-4)


def test_backscatter_is_interpolated_as_power(power_tile):
    """Half a pixel away, a bilinear pixel is the mean of four."""
    grid, items, power = power_tile
    own = grid.affine
    place = Affine(10, 0, own.c + 5, 0, -10, own.f - 5)
    shifted = GeoBox((223, 223), place, grid.crs)
    found = tc.load_cube(items, geobox=shifted, modalities=["S1RTC"])["S1RTC"].values[0]
    four = np.stack([power[:, y : y + 223, x : x + 223] for y in (0, 1) for x in (0, 1)])
    whole = np.isfinite(four).all(axis=0)
    np.testing.assert_allclose(found[whole], 10 * np.log10(four.mean(axis=0)[whole]), atol=0.01)
    # A mean of decibels would be another number, and invalid pixels leak nowhere.
    assert np.nanmedian(np.abs(found - (10 * np.log10(four)).mean(axis=0))) > 0.05
    assert np.isnan(found[np.isnan(four).all(axis=0)]).all()
    assert np.nanmin(found) > -40


def test_backscatter_of_coarser_pixels_is_the_mean_power(power_tile):
    grid, items, power = power_tile
    own = grid.affine
    coarse = GeoBox((112, 112), Affine(20, 0, own.c, 0, -20, own.f), grid.crs)
    found = tc.load_cube(items, geobox=coarse, modalities=["S1RTC"])["S1RTC"].values[0]
    four = power.reshape(2, 112, 2, 112, 2)
    whole = np.isfinite(four).all(axis=(2, 4))
    expected = 10 * np.log10(four.mean(axis=(2, 4))[whole])
    np.testing.assert_allclose(found[whole], expected, atol=0.01)
    assert np.isnan(found[np.isnan(four).all(axis=(2, 4))]).all()


def localised(raw, folder, pixels):
    """Return a copy of an item whose bands and classes are small rasters of ours."""
    item = copy.deepcopy(raw)
    keys = dict(zip(BANDS, ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3",
                          "nir", "nir08", "nir09", "swir16", "swir22"), strict=True))  # fmt: skip
    for band, key in {**keys, "SCL": "scl"}.items():
        metres = METRES.get(band, 20)
        path = folder / f"{raw['id']}_{band}.tif"
        profile = {
            "driver": "GTiff", "count": 1, "width": 960 // metres, "height": 960 // metres,
            "dtype": pixels[band].dtype, "crs": "EPSG:32724", "nodata": 0,
            "transform": Affine(metres, 0, 500040, 0, -metres, 9499960),
        }  # fmt: skip
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(pixels[band], 1)
        size, transform = [960 // metres] * 2, list(profile["transform"])[:6]
        item["assets"][key] |= {
            "href": path.as_uri(), "proj:shape": size, "proj:transform": transform
        }  # fmt: skip
    return item


def test_one_scene_of_two_collections_has_the_same_reflectance(tmp_path):
    """`sentinel-2-l2a` says offset -0.1 although it has subtracted it; Collection 1 has not."""
    rng = np.random.default_rng(1)
    delivered = {b: rng.integers(1, 12_000, (960 // m,) * 2, np.uint16) for b, m in METRES.items()}
    for pixels in delivered.values():
        pixels[rng.random(pixels.shape) < 0.1] = 0
    subtracted = {
        band: np.where(dn == 0, 0, np.clip(dn.astype(int) - 1000, 1, None)).astype(np.uint16)
        for band, dn in delivered.items()
    }
    classes = {"SCL": np.full((48, 48), 4, np.uint8)}
    raw = {item["id"]: item for item in read_items("earth-search")}
    one = localised(raw["S2B_T24MWV_20250731T130245_L2A"], tmp_path, delivered | classes)
    other = localised(raw["S2B_24MWV_20250731_0_L2A"], tmp_path, subtracted | classes)
    grid = GeoBox((96, 96), Affine(10, 0, 500040, 0, -10, 9499960), "EPSG:32724")
    expected = np.stack(
        [np.kron(subtracted[b], np.ones((m // 10, m // 10), np.uint16)) for b, m in METRES.items()]
    )

    def read(items, **settings):
        client = open_client(items)
        return tc.load_cube(client, geobox=grid, modalities=["S2L2A"], **settings)

    cubes = read([one]), read([other])
    assert [cube["S2L2A_offset"].values.tolist() for cube in cubes] == [[-1000], [0]]
    for cube in cubes:
        np.testing.assert_array_equal(cube["S2L2A"].values[0], expected)
    # Of both together the preferred one is read, once.
    both = read([other, one])
    assert both["S2L2A"].attrs["stac_items"] == [one["id"]]
    np.testing.assert_array_equal(both["S2L2A"].values[0], expected)
    # As delivered, and as TerraMesh's shifted half has it.
    kept = read([one], s2_offset="keep")
    assert kept["S2L2A_offset"].values.tolist() == [0]
    np.testing.assert_array_equal(kept["S2L2A"].values[0, 1], delivered["B02"])
    for item in (one, other):
        added = read([item], s2_offset="add")["S2L2A"].values[0, 1]
        valid = subtracted["B02"] > 1  # 1 is what was clipped
        np.testing.assert_array_equal(added[valid], subtracted["B02"][valid] + 1000)
        np.testing.assert_array_equal(added == 0, delivered["B02"] == 0)


@pytest.mark.parametrize("bbox", [(178.9, 66, 179.2, 66.1), (179.8, 66.0, -179.8, 66.1)])
def test_scene_across_the_antimeridian_is_read_on_both_sides(tmp_path, bbox):
    """Tile 01WCP lies in zone 1; an area west of the antimeridian is in zone 60."""
    raw = copy.deepcopy(read_items("tools 01WCP")[0])
    path = tmp_path / "blue.tif"
    rng = np.random.default_rng(2)
    pixels = rng.integers(1100, 9000, (183, 183), np.uint16)
    profile = {
        "driver": "GTiff", "count": 1, "width": 183, "height": 183, "dtype": "uint16",
        "crs": "EPSG:32601", "transform": Affine(600, 0, 300000, 0, -600, 7400040), "nodata": 0,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels, 1)
    raw["assets"]["blue"]["href"] = path.as_uri()
    items = open_client([raw]).search().item_collection()
    cube = tc.load_cube(
        items, bbox=bbox, modalities=["S2L2A"], bands={"S2L2A": ["B02"]}, resolution=100,
        clouds=False, s2_offset="keep",
    )  # fmt: skip
    grid = cube.odc.geobox
    assert grid.crs.epsg in {32601, 32660}
    assert nearest_agreement(cube["S2L2A"].values[0, 0], path, grid, 0.13) >= 0.999
