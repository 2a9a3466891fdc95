"""The native view: every sensor at its own resolution, pixels as they are in the files."""

import dask
import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.windows import from_bounds

from terramind_cube.cube import load_cube
from terramind_cube.cube.failures import AssetError
from terramind_cube.cube.native import native_grid
from terramind_cube.cube.radiometry import ndvi
from terramind_cube.modalities import MODALITIES
from tests.cube.scenes import CRS, LEFT, TOP, day, grid, make_item, s2_item, write_tiff

S2 = MODALITIES["S2L2A"]
LEVEL_1C = MODALITIES["S2L1C"]
METRES = {"B01": 60, "B09": 60, "B10": 60, "SCL": 20} | dict.fromkeys(
    ("B05", "B06", "B07", "B8A", "B11", "B12"), 20
)
BY_RESOLUTION = {
    10: ["B02", "B03", "B04", "B08"],
    20: ["B05", "B06", "B07", "B8A", "B11", "B12"],
    60: ["B01", "B09"],
}
SCENE_M = 1920
# Whole cells of 160 m inside of the scene, whose edges lie within pixels of 60 m.
AREA = grid(64, LEFT + 320, TOP - 480)


def scene(folder, item_id, when, *, bands=(*S2.bands, "SCL"), seed=0, metres=METRES, **where):
    """A scene with a file per band at its native resolution."""
    rng = np.random.default_rng(seed)
    assets = {}
    for band in bands:
        step = metres.get(band, 10)
        shape = (SCENE_M // step,) * 2
        if band == "SCL":
            pixels = rng.choice(np.array([4, 5, 6, 9], "uint8"), shape)
        else:
            pixels = rng.integers(0, 9000, shape).astype("uint16")
        path = folder / f"{item_id}_{band}.tif"
        assets[band] = write_tiff(path, pixels, resolution_m=float(step), nodata=0, **where)
    level = "l1c" if "B10" in bands else "l2a"
    raster = {"scale": 1e-4, "offset": 0, "nodata": 0}
    return make_item(item_id, when, assets, collection=f"sentinel-2-{level}", raster=raster)


def radar(folder, item_id, when, *, seed=1, orbit=None, step=10.0, **where):
    rng = np.random.default_rng(seed)
    size = round(SCENE_M / step)
    files = {
        band: write_tiff(
            folder / f"{item_id}_{band}.tif",
            rng.uniform(0.001, 1, (size, size)).astype("float32"),
            resolution_m=step,
            **where,
        )
        for band in ("vv", "vh")
    }
    properties = {} if orbit is None else {"sat:relative_orbit": orbit}
    return make_item(item_id, when, files, collection="sentinel-1-rtc", properties=properties)


def elevation(path, west, north, shape, spacing, seed=2):
    """A file in degrees, pixels of `spacing` (longitude, latitude) seconds of arc."""
    pixels = np.random.default_rng(seed).normal(500, 90, shape).astype("float32")
    across, down = (value / 3600 for value in spacing)
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:4326", count=1, dtype="float32",
        height=shape[0], width=shape[1], transform=Affine(across, 0, west, 0, -down, north),
    ) as dataset:  # fmt: skip
        dataset.write(pixels, 1)
    return path


def elevation_item(folder, name="dem", west=8.99, north=48.1, shape=(240, 160), **options):
    path = elevation(folder / f"{name}.tif", west, north, shape, (1.5, 1.0), **options)
    return make_item(name, day("2021-04-22"), {"data": path}, collection="cop-dem-glo-30")


def window_of(href, geobox):
    """Read what a grid covers of a file, and whether its pixels are whole ones of the file."""
    with rasterio.open(href) as dataset:
        window = from_bounds(*geobox.boundingbox.bbox, dataset.transform)
        edges = (window.col_off, window.row_off, window.width, window.height)
        assert all(abs(edge - round(edge)) < 1e-6 for edge in edges)
        # Rounded: rasterio would interpolate a window that misses the pixels by noise.
        whole = window.round_offsets(pixel_precision=0).round_lengths(pixel_precision=0)
        return dataset.read(1, window=whole, boundless=True, fill_value=0)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    lulc = write_tiff(folder / "lulc.tif", np.full((192, 192), 11, "uint8"))
    year = (day("2024-01-01"), day("2024-12-31"))
    return [
        scene(folder, "s2_a", day("2024-05-10"), seed=10),
        scene(folder, "s2_b", day("2024-05-20"), seed=11),
        radar(folder, "s1_a", day("2024-05-08"), seed=20, orbit=66),
        radar(folder, "s1_b", day("2024-05-09"), seed=21, orbit=139),
        radar(folder, "s1_c", day("2024-05-21"), seed=22, orbit=66),
        radar(folder, "s1_late", day("2024-07-21"), seed=23, orbit=66),
        elevation_item(folder),
        make_item("lulc", year, {"data": lulc}, collection="io-lulc-annual-v02"),
    ]


def to_zone_60(longitude, latitude):
    return Transformer.from_crs(4326, 32760, always_xy=True).transform(longitude, latitude)


def load(items, modalities, **options):
    return load_cube(
        items, **{"geobox": AREA, "mode": "native", "modalities": modalities} | options
    )


def test_bands_stand_in_groups_of_their_resolution_as_they_are_in_the_files(catalog):
    tree = load(catalog, ["S2L2A"])
    assert isinstance(tree, xr.DataTree)
    assert [node.path for node in tree.leaves] == ["/S2L2A/r10m", "/S2L2A/r20m", "/S2L2A/r60m"]
    for metres, bands in BY_RESOLUTION.items():
        group = tree[f"S2L2A/r{metres}m"].to_dataset()
        geobox = group.odc.geobox
        assert list(group["S2L2A_band"].values) == bands
        assert group["S2L2A"].dims == ("time", "S2L2A_band", "y", "x")
        assert group["S2L2A"].dtype == "uint16"
        assert geobox.crs == CRS
        assert geobox.resolution.x == metres
        assert geobox.boundingbox.polygon.contains(AREA.boundingbox.polygon)
        # Not a pixel more than the area touches.
        assert geobox.shape.x <= -(-640 // metres) + 1
        for place, item in enumerate(catalog[:2]):
            for number, band in enumerate(bands):
                expected = window_of(item.assets[band].href, geobox)
                got = group["S2L2A"].isel(time=place, S2L2A_band=number).values
                np.testing.assert_array_equal(got, expected)
    assert tree["S2L2A/r10m"].to_dataset().odc.geobox == AREA


def test_groups_are_whole_datasets_of_their_own(catalog):
    tree = load(catalog, ["S2L2A", "NDVI", "RGB"])
    fine, middle = (tree[f"S2L2A/r{m}m"].to_dataset(inherit=False) for m in (10, 20))
    assert set(fine.data_vars) == {"S2L2A", "NDVI", "RGB"}
    assert set(middle.data_vars) == {"S2L2A", "SCL", "cloud_mask"}
    for node in tree.leaves:
        group = node.to_dataset(inherit=False)
        assert {"time", "y", "x", "spatial_ref", "S2L2A_offset"} <= set(group.coords)
        assert group["S2L2A"].attrs["stac_items"] == ["s2_a", "s2_b"]
        assert group["S2L2A"].attrs["nodata"] == 0
        assert all(array.attrs["grid_mapping"] == "spatial_ref" for array in group.values())
    # What is on a parent must align with all children.
    assert not tree.to_dataset().variables
    assert not tree["S2L2A"].to_dataset().variables
    red, infrared = (fine["S2L2A"].sel(S2L2A_band=band).values for band in ("B04", "B08"))
    np.testing.assert_array_equal(fine["NDVI"].values, ndvi(red, infrared))
    assert list(fine["RGB_band"].values) == ["RED", "GREEN", "BLUE"]
    for place, item in enumerate(catalog[:2]):
        expected = window_of(item.assets["SCL"].href, middle.odc.geobox)
        np.testing.assert_array_equal(middle["SCL"].values[place], expected)
    np.testing.assert_allclose(
        middle["clear_fraction"].values, 1 - middle["cloud_mask"].values.mean(axis=(1, 2))
    )


def test_chosen_bands_and_what_is_computed_alone(catalog):
    tree = load(catalog, ["S2L2A"], bands={"S2L2A": ["coastal", "B8A"]}, clouds=False)
    assert [node.path for node in tree.leaves] == ["/S2L2A/r20m", "/S2L2A/r60m"]
    assert set(tree["S2L2A/r20m"].data_vars) == {"S2L2A"}
    masks = load(catalog, ["S2L2A"], bands={"S2L2A": ["B02"]})
    assert set(masks["S2L2A/r20m"].data_vars) == {"SCL", "cloud_mask"}
    index = load(catalog, ["NDVI"], clouds=False)
    assert [node.path for node in index.leaves] == ["/S2L2A/r10m"]
    assert set(index["S2L2A/r10m"].data_vars) == {"NDVI"}
    assert index["S2L2A/r10m"].to_dataset().odc.geobox == AREA


def test_bands_of_one_file_share_a_group(tmp_path):
    tree = load_cube([s2_item(tmp_path, "a", day("2024-05-01"))], modalities=["S2L2A"],
                     mode="native")  # fmt: skip
    assert [node.path for node in tree.leaves] == ["/S2L2A/r10m"]
    assert list(tree["S2L2A/r10m"]["S2L2A_band"].values) == list(S2.bands)


def test_level_1c_has_groups_of_its_own(tmp_path, catalog):
    other = scene(tmp_path, "l1c", day("2024-05-10"), bands=LEVEL_1C.bands, seed=5)
    tree = load([*catalog, other], ["S2L1C", "S2L2A"])
    coarse = tree["S2L1C/r60m"].to_dataset()
    assert list(coarse["S2L1C_band"].values) == ["B01", "B09", "B10"]
    assert coarse.sizes["time"] == 1
    assert tree["S2L2A/r60m"].sizes["time"] == 2
    assert "SCL" not in tree["S2L1C/r20m"].data_vars


def test_radar_keeps_all_its_dates_and_is_in_decibels(catalog):
    tree = load(catalog, ["S2L2A", "S1RTC"], datetime="2024-05")
    group = tree["S1RTC"].to_dataset()
    days = np.datetime_as_string(group["time"].values, "D").tolist()
    assert days == ["2024-05-08", "2024-05-09", "2024-05-21"]
    assert group["S1RTC_relative_orbit"].values.tolist() == [66, 139, 66]
    np.testing.assert_allclose(group["S1RTC_coverage"].values, 1)
    assert "S1RTC_time" not in group
    assert group.odc.geobox == AREA
    for place, item in enumerate(catalog[2:5]):
        for number, band in enumerate(("vv", "vh")):
            linear = window_of(item.assets[band].href, AREA)
            got = group["S1RTC"].isel(time=place, S1RTC_band=number).values
            np.testing.assert_array_equal(got, (10 * np.log10(linear)).astype("float32"))


def test_elevation_stays_in_degrees_on_its_own_rectangular_pixels(catalog):
    group = load(catalog, ["S2L2A", "DEM"])["DEM"].to_dataset()
    geobox = group.odc.geobox
    assert group["DEM"].dims == ("y", "x")
    assert "time" not in group.coords
    assert geobox.crs == "EPSG:4326"
    np.testing.assert_allclose([geobox.resolution.x, -geobox.resolution.y],
                               [1.5 / 3600, 1 / 3600])  # fmt: skip
    area = AREA.boundingbox.polygon.to_crs("EPSG:4326")
    assert geobox.boundingbox.polygon.contains(area)
    href = next(item for item in catalog if item.id == "dem").assets["data"].href
    np.testing.assert_array_equal(group["DEM"].values, window_of(href, geobox))
    assert np.isfinite(group["DEM"].values).all()


def test_classes_are_terraminds(catalog):
    group = load(catalog, ["S2L2A", "LULC"])["LULC"].to_dataset()
    assert (group["LULC"].values == 9).all()  # rangeland, 11 in the map
    assert group["time"].values.tolist() == [np.datetime64("2024-01-01T10", "ns").astype(int)]
    assert group.odc.geobox == AREA


def test_elevation_tiles_of_other_spacing_come_onto_the_lattice_of_the_finest(tmp_path):
    # North of 50 degrees the pixels of the Copernicus DEM are half as wide again.
    south = elevation(tmp_path / "s.tif", 8.95, 50.0, (360, 720), (1.0, 1.0))
    north = elevation(tmp_path / "n.tif", 8.95, 50.1, (360, 480), (1.5, 1.0), seed=3)
    items = [
        make_item(name, day("2021-04-22"), {"data": path}, collection="cop-dem-glo-30")
        for name, path in (("north", north), ("south", south))
    ]
    area = {"bbox": (9.0, 49.98, 9.04, 50.02), "geobox": None}
    group = load(items, ["DEM"], **area)["DEM"].to_dataset()
    geobox = group.odc.geobox
    np.testing.assert_allclose(geobox.resolution.x, 1 / 3600)
    values = group["DEM"].values
    assert np.isfinite(values).all()
    with rasterio.open(south) as dataset:
        column = round((geobox.affine.c - 8.95) * 3600)
        row = round((geobox.affine.f - 50.0) * -3600)
        expected = dataset.read(1)[: row + len(values), column : column + values.shape[1]]
    np.testing.assert_array_equal(values[-row:], expected)
    # Upon the coarser tile: between its pixels.
    with rasterio.open(north) as dataset:
        coarse = dataset.read(1)
    assert coarse.min() <= np.nanmin(values[:-row]) <= np.nanmax(values[:-row]) <= coarse.max()
    for length in (40, 61):
        chunks = {"y": length, "x": length}
        again = load(items, ["DEM"], chunks=chunks, **area)["DEM"]["DEM"].values
        np.testing.assert_array_equal(again, values)


def test_items_of_several_zones_come_onto_the_zone_of_the_area(tmp_path, catalog):
    other = scene(tmp_path, "z33", day("2024-06-10"), left=60_000.0, crs="EPSG:32633", seed=9)
    other.geometry, other.bbox = catalog[0].geometry, catalog[0].bbox
    tree = load([catalog[0], other], ["S2L2A"])
    for metres in BY_RESOLUTION:
        geobox = tree[f"S2L2A/r{metres}m"].to_dataset().odc.geobox
        assert geobox.crs == CRS
        assert geobox.resolution.x == metres
        assert geobox.boundingbox.left % metres == 0
    first = tree["S2L2A/r10m"]["S2L2A"].values[0, 0]
    np.testing.assert_array_equal(first, window_of(catalog[0].assets["B02"].href, AREA))


def test_pixels_stay_in_the_crs_of_the_items_whatever_the_area_has(catalog):
    bbox = tuple(AREA.boundingbox.polygon.to_crs("EPSG:4326").boundingbox)
    for options in ({"crs": "EPSG:32633"}, {"crs": "EPSG:3035"}, {"resolution": 12}):
        tree = load(catalog[:2], ["S2L2A"], geobox=None, bbox=bbox, **options)
        geobox = tree["S2L2A/r20m"].to_dataset().odc.geobox
        assert geobox.crs == CRS
        assert (geobox.resolution.x, geobox.boundingbox.left % 20) == (20, 0)
        expected = window_of(catalog[0].assets["B12"].href, geobox)
        got = tree["S2L2A/r20m"]["S2L2A"].sel(S2L2A_band="B12").values[0]
        np.testing.assert_array_equal(got, expected)


def test_a_lattice_off_the_usual_one_is_kept(tmp_path):
    item = scene(tmp_path, "off", day("2024-05-01"), left=LEFT + 6.04, top=TOP - 9.25)
    tree = load([item], ["S2L2A"])
    geobox = tree["S2L2A/r10m"].to_dataset().odc.geobox
    assert geobox.affine.c == pytest.approx(AREA.affine.c - 10 + 6.04)
    assert geobox.shape.yx == (65, 65)
    expected = window_of(item.assets["B03"].href, geobox)
    got = tree["S2L2A/r10m"]["S2L2A"].sel(S2L2A_band="B03").values[0]
    np.testing.assert_array_equal(got, expected)


def test_nothing_is_computed_and_a_task_is_a_chunk(catalog):
    def refuse(*_, **__):
        raise AssertionError("computed while building")

    chunks = {"y": 24, "x": 40}
    with dask.config.set(scheduler=refuse):
        tree = load(catalog, ["S2L2A", "S1RTC", "DEM"], chunks=chunks)
    for node in tree.leaves:
        group = node.to_dataset()
        for name in set(group.data_vars) & {"S2L2A", "S1RTC", "SCL", "cloud_mask"}:
            data = group[name].data
            assert len(dict(data.dask)) == data.npartitions, (node.path, name)
            assert max(data.chunks[-1]) <= 40
    assert tree["S2L2A/r10m"]["S2L2A"].chunksizes["y"] == (24, 24, 16)


def test_offset_is_as_asked(tmp_path):
    raw = {"scale": 1e-4, "offset": -0.1, "nodata": 0}
    item = s2_item(tmp_path, "new", day("2024-05-01"), value=1995, raster=raw)
    for s2_offset, value, added in (("remove", 995, -1000), ("keep", 1995, 0)):
        tree = load_cube([item], modalities=["S2L2A", "NDVI"], mode="native", s2_offset=s2_offset)
        group = tree["S2L2A/r10m"]
        assert group["S2L2A"].values[0, 0, 0, 0] == value
        assert group["S2L2A_offset"].values.tolist() == [added]
        # An index knows no offset, whatever was asked for the bands.
        np.testing.assert_allclose(group["NDVI"].values[0, 0, 0], 4 / (998 + 1002))


def test_missing_files_stop_or_are_nodata(tmp_path):
    item = scene(tmp_path, "broken", day("2024-05-01"))
    (tmp_path / "broken_B05.tif").unlink()
    with pytest.raises(AssetError, match="broken_B05"):
        load([item], ["S2L2A"])
    tree = load([item], ["S2L2A"], on_error="nodata")
    group = tree["S2L2A/r20m"].to_dataset()
    assert list(group["S2L2A_band"].values) == BY_RESOLUTION[20]
    assert not group["S2L2A"].sel(S2L2A_band="B05").values.any()
    assert group["S2L2A"].sel(S2L2A_band="B06").values.any()
    assert len(tree.attrs["read_failures"]) == 1


def test_a_modality_without_items_is_named(catalog):
    with pytest.raises(ValueError, match="No S1GRD item"):
        load(catalog, ["S2L2A", "S1GRD"])


def test_resampling_of_one_modality_does_not_disturb_the_others(catalog):
    options = {"resampling": {"DEM": "cubic", "S2L2A": "nearest"}}
    tree = load(catalog, ["S2L2A", "DEM", "NDVI"], **options)
    assert {"S2L2A", "DEM"} <= set(tree.children)


def test_a_store_keeps_the_tree(tmp_path, catalog):
    tree = load(catalog, ["S2L2A", "S1RTC", "DEM", "LULC"])
    tree.to_zarr(tmp_path / "tree.zarr", consolidated=False)
    options = {"engine": "zarr", "consolidated": False, "chunks": {}}
    with xr.open_datatree(tmp_path / "tree.zarr", **options) as opened:
        assert set(opened.groups) == set(tree.groups)
        for node in tree.leaves:
            before, after = node.to_dataset(), opened[node.path].to_dataset()
            assert after.odc.geobox.crs == before.odc.geobox.crs
            np.testing.assert_allclose(after.odc.geobox.affine, before.odc.geobox.affine)
            for name in before.data_vars:
                np.testing.assert_array_equal(after[name].values, before[name].values)
                assert after[name].odc.crs == before[name].odc.crs


def test_grids_over_the_antimeridian_run_on():
    step = 1 / 3600
    west = GeoBox((3600, 3600), Affine(step, 0, 179, 0, -step, -16), "EPSG:4326")
    east = GeoBox((3600, 3600), Affine(step, 0, -180, 0, -step, -16), "EPSG:4326")
    area = GeoBox((320, 320), Affine(10, 0, 819_000, 0, -10, 8_150_000), "EPSG:32760")
    for first, second in ((west, east), (east, west)):
        geobox = native_grid([first, second], area, 10.0)
        assert geobox.shape.x < 400
        assert geobox.boundingbox.left < (180 if first is west else -180)
        assert geobox.boundingbox.right > (180 if first is west else -180)


def test_elevation_on_both_sides_of_the_antimeridian_is_read(tmp_path):
    items = [
        elevation_item(tmp_path, "west", 179.9, -16.9, (360, 240), seed=1),
        elevation_item(tmp_path, "east", -180.0, -16.9, (360, 240), seed=2),
    ]
    x, y = (round(v / 10) * 10 for v in to_zone_60(180.0, -16.95))
    area = GeoBox((64, 64), Affine(10, 0, x - 320, 0, -10, y + 320), "EPSG:32760")
    group = load(items, ["DEM"], geobox=area, chunks={"x": 7})["DEM"].to_dataset()
    values, edge = group["DEM"].values, int((group["x"].values % 360 < 180).sum())
    assert 0 < edge < group.sizes["x"] < 30
    row = round((group.odc.geobox.affine.f + 16.9) * -3600)
    for item, part, columns in (
        (items[0], values[:, :edge], np.s_[240 - edge :]),
        (items[1], values[:, edge:], np.s_[: values.shape[1] - edge]),
    ):
        with rasterio.open(item.assets["data"].href) as dataset:
            expected = dataset.read(1)[row : row + len(values), columns]
        np.testing.assert_array_equal(part, expected)


def test_without_any_known_grid_the_areas_crs_is_taken():
    geobox = native_grid([None], AREA, 60.0)
    assert (geobox.crs, geobox.resolution.x) == (CRS, 60)
    assert geobox.boundingbox.left % 60 == 0


def test_radar_without_a_partner_is_no_matter(catalog):
    tree = load(catalog, ["S2L2A", "S1RTC"], pair_within="1D")
    days = np.datetime_as_string(tree["S1RTC"]["time"].values, "D").tolist()
    assert days == ["2024-05-09", "2024-05-21"]
