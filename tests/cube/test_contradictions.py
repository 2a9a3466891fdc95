"""Items, files and grids that do not fit together."""

import warnings
from datetime import UTC, datetime, timedelta

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from terramind_cube.cube import ReadOptions, load_cube
from terramind_cube.cube.failures import AssetError
from tests.cube.scenes import (
    CRS,
    LEFT,
    SIZE_PX,
    TOP,
    day,
    grid,
    make_item,
    s1_item,
    s2_item,
    warns_user,
    write_tiff,
)

FEW = ReadOptions(retries=0)


def elevation(folder, pixels, *, raster=None, name="dem", **profile):
    path = write_tiff(folder / f"{name}.tif", pixels, **profile)
    return make_item(name, day("2021-04-22"), {"data": path}, collection="my-dem", raster=raster)


def test_remote_file_is_looked_for_where_its_item_lies(tmp_path):
    """A declared grid elsewhere must not make the pixels nodata without a word."""
    item = s2_item(tmp_path, "lost", day("2024-05-01"))
    item.assets["data"].href = "http://127.0.0.1:9/lost.tif"
    item.properties["proj:code"] = CRS
    data = item.assets["data"].extra_fields
    for transform in (
        [10, 0, LEFT + 100_000, 0, -10, TOP], [0, 0, 0, 0, 0, 0],
        [LEFT, 10, 0, TOP, 0, -10], [float("nan"), 0, LEFT, 0, -10, TOP], [1e300, 0, LEFT, 0, -10, TOP],
    ):  # fmt: skip
        data |= {"proj:shape": [SIZE_PX] * 2, "proj:transform": transform}
        cube = load_cube([item], geobox=grid(), modalities=["S2L2A"], reading=FEW)
        with pytest.raises(AssetError, match="item 'lost'"):
            cube["S2L2A"].compute()


def test_scale_of_elevation_is_applied_from_item_or_file(tmp_path):
    raw = np.full((SIZE_PX, SIZE_PX), 500, "int16")
    declared = elevation(tmp_path, raw, raster={"scale": 0.1, "offset": 10})
    np.testing.assert_allclose(load_cube([declared], modalities=["DEM"])["DEM"].values, 60)
    tagged = elevation(tmp_path, raw, name="tagged")
    with rasterio.open(tmp_path / "tagged.tif", "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5,), (-50.0,)
    np.testing.assert_allclose(load_cube([tagged], modalities=["DEM"])["DEM"].values, 200)


def test_masks_inside_files_are_kept(tmp_path):
    pixels = np.arange(SIZE_PX**2, dtype="float32").reshape(SIZE_PX, SIZE_PX)
    item = elevation(tmp_path, pixels)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"),
        rasterio.open(tmp_path / "dem.tif", "r+") as dataset,
    ):
        mask = np.full((SIZE_PX, SIZE_PX), 255, "uint8")
        mask[:5] = 0
        dataset.write_mask(mask)
    heights = load_cube([item], modalities=["DEM"])["DEM"].values
    assert np.isnan(heights[:5]).all()
    np.testing.assert_array_equal(heights[5:], pixels[5:])


def test_infinite_values_are_no_values(tmp_path):
    pixels = np.full((SIZE_PX, SIZE_PX), 3, "float32")
    pixels[0, 0], pixels[0, 1] = np.inf, -np.inf
    heights = load_cube([elevation(tmp_path, pixels)], modalities=["DEM"])["DEM"].values
    assert np.isnan(heights[0, :2]).all()
    files = {b: write_tiff(tmp_path / f"{b}.tif", pixels) for b in ("vv", "vh")}
    for unit in ("dB", "linear"):
        item = make_item(
            "s1", day("2024-05-01"), files, collection="my-s1rtc", raster={"unit": unit}
        )
        values = load_cube([item], modalities=["S1RTC"])["S1RTC"].values
        assert np.isnan(values[..., 0, :2]).all()
        assert np.isfinite(values[..., 1:, :]).all()


def test_overviews_stand_in_for_nothing_that_they_may_have_spoilt(tmp_path):
    rng = np.random.default_rng(0)
    power = rng.gamma(1, 0.1, (480, 480)).astype("float32")
    codes = rng.choice([1, 9], (480, 480)).astype("uint8")
    paths = {"vv": power, "vh": power, "lulc": codes}
    for name, pixels in paths.items():
        write_tiff(tmp_path / f"{name}.tif", pixels, tiled=True, blockxsize=128, blockysize=128)
        method = "average" if name == "lulc" else "nearest"
        with rasterio.open(tmp_path / f"{name}.tif", "r+") as dataset:
            dataset.build_overviews([2, 4], rasterio.enums.Resampling[method])
    radar = make_item("s1", day("2024-05-01"), {b: tmp_path / f"{b}.tif" for b in ("vv", "vh")},
                      collection="sentinel-1-rtc")  # fmt: skip
    cover = make_item(
        "map", day("2024-01-01"), {"data": tmp_path / "lulc.tif"}, collection="io-lulc"
    )
    coarse = GeoBox((240, 240), Affine(20, 0, LEFT, 0, -20, TOP), CRS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = load_cube([radar, cover], geobox=coarse, modalities=["S1RTC", "LULC"])
    mean = power.reshape(240, 2, 240, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(found["S1RTC"].values[0, 0], 10 * np.log10(mean), atol=1e-4)
    assert set(np.unique(found["LULC"].values)) == {1, 7}


def test_item_without_a_polarisation_is_left_out(tmp_path):
    whole = s1_item(tmp_path, "whole", day("2024-05-01"))
    single = s1_item(tmp_path, "single", day("2024-05-07"))
    del single.assets["vh"]
    with warns_user("An item is left out. Item 'single'.*lacks VH"):
        cube = load_cube([whole, single], modalities=["S1RTC"])
    assert cube["S1RTC"].attrs["stac_items"] == ["whole"]
    with pytest.raises(ValueError, match="lacks VH"):
        load_cube([single], modalities=["S1RTC"])
    alone = load_cube([whole, single], modalities=["S1RTC"], bands={"S1RTC": ["VV"]})
    assert alone.sizes["time"] == 2


def test_item_without_a_band_stops_or_is_left_out_as_asked(tmp_path):
    good, bad = (s2_item(tmp_path, n, day("2024-05-01")) for n in ("good", "bad"))
    bad.assets["data"].href = ""
    with pytest.raises(ValueError, match="Asset 'data' of item 'bad' has no href"):
        load_cube([good, bad], modalities=["S2L2A"])
    with warns_user("Asset 'data' of item 'bad' has no href"):
        cube = load_cube([good, bad], modalities=["S2L2A"], on_error="nodata")
    assert cube["S2L2A"].attrs["stac_items"] == ["good"]


def test_pass_over_midnight_is_one_step(tmp_path):
    night = datetime(2024, 5, 1, 23, 20, 50, tzinfo=UTC)
    items = [s1_item(tmp_path, f"s{n}", night + timedelta(seconds=25 * n)) for n in range(3)]
    for item in items:
        item.properties |= {"sat:absolute_orbit": 53498, "platform": "sentinel-1a"}
    assert load_cube(items, modalities=["S1RTC"]).sizes["time"] == 1


def test_ids_of_scenes_do_not_exclude_radar(tmp_path):
    items = [s2_item(tmp_path, "a", day("2024-05-01")), s2_item(tmp_path, "b", day("2024-06-01")),
             s1_item(tmp_path, "s1", day("2024-05-02")), s1_item(tmp_path, "s2", day("2024-05-01"))]  # fmt: skip
    cube = load_cube(items, modalities=["S2L2A", "S1RTC"], ids=["a"])
    assert cube["S1RTC_items"].values.tolist() == ["s2"]
    narrowed = load_cube(items, modalities=["S2L2A", "S1RTC"], ids=["a", "s1"])
    assert narrowed["S1RTC_items"].values.tolist() == ["s1"]


def test_two_collections_at_hand_complete_each_other(tmp_path):
    tile = {"grid:code": "MGRS-32TPT"}
    items = []
    for name, collection, date in (
        ("new", "sentinel-2-c1-l2a", "2024-05-01"), ("same", "sentinel-2-l2a", "2024-05-01"),
        ("other", "sentinel-2-l2a", "2024-05-06"),
    ):  # fmt: skip
        taken = date.replace("-", "")
        item = s2_item(tmp_path, name, day(date),
                       properties={**tile, "s2:datatake_id": f"GS2B_{taken}T101559_0{taken[-2:]}_N05.10"})  # fmt: skip
        item.collection_id = collection
        items.append(item)
    cube = load_cube(items, modalities=["S2L2A"])
    assert cube["S2L2A_items"].values.tolist() == ["new", "other"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crs": "+proj=utm +zone=32 +units=us-ft"}, "counts in .*needs a CRS in metres"),
        ({"crs": "utm"}, "Cannot read crs 'utm'"),
        ({"resolution": "10m"}, "resolution must be positive metres"),
        ({"chunks": "auto"}, "chunks maps time, y and x"),
        ({"chunks": {"x": 10.5}}, "chunks maps time, y and x"),
        ({"pair_within": 7}, "pair_within must be a duration"),
        ({"pair_within": "7"}, "pair_within must be a duration"),
        ({"bands": ["B04"]}, "bands maps modalities"),
        ({"resampling": "cubic"}, "resampling maps modalities"),
        ({"reading": {"timeout_s": 3}}, r"reading is terramind_cube.ReadOptions"),
        ({"bbox": (9.02, 48.0, 9.01, 48.1)}, "west lies east of its east"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(tmp_path, options, message):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    with pytest.raises(ValueError, match=message):
        load_cube([item], modalities=["S2L2A"], **options)


def test_classes_are_not_interpolated(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    with pytest.raises(ValueError, match=r"'bilinear' would mix class codes"):
        load_cube([item], modalities=["S2L2A", "LULC"], resampling={"LULC": "bilinear"})


def test_grid_that_spans_the_world_is_refused(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    with pytest.raises(ValueError, match=r"pixels of 10 m in 3857: give a smaller one"):
        load_cube([item], bbox=(179.9, -17.1, -179.9, -17.0), crs="EPSG:3857", modalities=["S2L2A"])


def test_chunk_with_a_pole_inside_is_read(tmp_path):
    items = []
    for west in (-180, -90, 0, 90):
        path = write_tiff(tmp_path / f"w{west}.tif", np.full((20, 900), 100, "float32"), left=west,
                          top=-88.0, resolution_m=0.1, crs="EPSG:4326")  # fmt: skip
        items.append(
            make_item(f"w{west}", day("2021-04-22"), {"data": path}, collection="cop-dem-glo-30")
        )
    polar = GeoBox((200, 200), Affine(1000, 0, 1.9e6, 0, -1000, 2.1e6), "EPSG:32761")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        whole = load_cube(items, geobox=polar, modalities=["DEM"], chunks={"y": -1, "x": -1})[
            "DEM"
        ].values
        small = load_cube(items, geobox=polar, modalities=["DEM"], chunks={"y": 50, "x": 50})[
            "DEM"
        ].values
    np.testing.assert_array_equal(whole, small)
    assert np.isfinite(whole).mean() > 0.98


def test_grids_of_a_float_error_are_square(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    nearly = GeoBox((48, 48), Affine(10, 0, LEFT, 0, -10.0000000001, TOP), CRS)
    assert (load_cube([item], geobox=nearly, modalities=["S2L2A"])["S2L2A"].values > 0).all()


def test_same_crs_in_other_words_is_no_contradiction(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"), crs="+proj=utm +zone=32 +ellps=WGS84 +units=m")
    item.properties["proj:code"] = CRS
    item.assets["data"].extra_fields |= {"proj:shape": [SIZE_PX] * 2,
                                         "proj:transform": [10, 0, LEFT, 0, -10, TOP]}  # fmt: skip
    assert (load_cube([item], geobox=grid(), modalities=["S2L2A"])["S2L2A"].values > 0).all()


def test_area_of_a_search_is_that_of_the_cube(tmp_path):
    from terramind_cube.stac import StaticCatalog

    item = s2_item(tmp_path, "a", day("2024-05-01"))
    west, south, east, north = item.bbox
    part = (west, south, (west + east) / 2, north)
    found = StaticCatalog("x", (item,)).search(modalities=["S2L2A"], bbox=part)
    cube = load_cube(found, modalities=["S2L2A"])
    assert cube.sizes == load_cube([item], bbox=part, modalities=["S2L2A"]).sizes
    assert cube.sizes["x"] < SIZE_PX


def test_dates_may_be_days_and_numpy_times(tmp_path):
    from datetime import date

    items = [s2_item(tmp_path, n, day(f"2024-05-0{n}")) for n in "123"]
    for when in (date(2024, 5, 2), np.datetime64("2024-05-02"),
                 (np.datetime64("2024-05-02T00:00"), np.datetime64("2024-05-02T23:00"))):  # fmt: skip
        cube = load_cube(items, modalities=["S2L2A"], datetime=when)
        assert cube["S2L2A_items"].values.tolist() == ["2"]


def test_offset_that_is_left_is_told(tmp_path, small_weights):
    raw = {"scale": 1e-4, "offset": -0.1, "nodata": 0}
    items = [s2_item(tmp_path, "new", day("2024-05-01"), value=2000, raster=raw),
             s2_item(tmp_path, "old", day("2024-06-01"), value=1000)]  # fmt: skip
    kept = load_cube(items, modalities=["S2L2A"], s2_offset="keep")
    np.testing.assert_array_equal(kept["S2L2A_offset_left"].values, [1000, 0])
    added = load_cube(items, modalities=["S2L2A"], s2_offset="add")
    np.testing.assert_array_equal(added["S2L2A_offset_left"].values, [1000, 1000])
    assert "S2L2A_offset_left" not in load_cube(items, modalities=["S2L2A"]).coords
    with warns_user("S2L2A holds digital numbers 1000 above reflectance"):
        kept.terramind.generate(["LULC"], **small_weights, overlap=16)


def test_cloud_mask_of_fine_classes_does_not_depend_on_chunks(tmp_path):
    """Clouds of an item beside a chunk reach into it, also where classes are finer than 20 m."""
    items = []
    for name, left, code in (("west", LEFT, 4), ("east", LEFT + 240, 9)):
        item = s2_item(tmp_path, name, day("2024-05-01"))
        path = write_tiff(tmp_path / f"{name}_scl.tif", np.full((48, 24), code, "uint8"), left=left)
        item.add_asset("scl", pystac.Asset(str(path), media_type="image/tiff"))
        items.append(item)
    masks = [
        load_cube(items, geobox=grid(), modalities=["S2L2A"], chunks={"x": width})[
            "cloud_mask"
        ].values
        for width in (-1, 16, 19, 20, 21, 22, 24)
    ]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])
    # Centres within 60 m of the first cloudy column, and that column.
    np.testing.assert_array_equal(masks[0][0, 0], np.arange(48) >= 24 - 6)


def test_date_without_classes_is_never_the_best(tmp_path):
    items = [s2_item(tmp_path, n, day(f"2024-05-0{n}")) for n in "12"]
    path = write_tiff(tmp_path / "scl.tif", np.full((24, 24), 4, "uint8"), resolution_m=20.0)
    items[1].add_asset("scl", pystac.Asset(str(path), media_type="image/tiff"))
    cube = load_cube(items, modalities=["S2L2A"])
    assert cube.terramind.best_dates(2).dt.day.values.tolist() == [2]
    with pytest.raises(ValueError, match="clear_fraction along time"):
        cube.isel(time=0).terramind.best_dates(1)
