"""What may be asked of a cube, and what is refused."""

import json
import warnings
from datetime import UTC, datetime, timedelta

import dask
import numpy as np
import pystac
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from terramind_cube.cube import ReadOptions, load_cube
from terramind_cube.cube.failures import AssetError, ReadFailures
from terramind_cube.modalities import MODALITIES
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

RAW = {"scale": 1e-4, "offset": -0.1, "nodata": 0}


def classified(folder, item, classes, *, left=LEFT, top=TOP, resolution_m=20.0):
    """Give a scene a scene classification of its own file."""
    path = write_tiff(folder / f"{item.id}_scl.tif", classes.astype("uint8"), left=left, top=top,
                      resolution_m=resolution_m)  # fmt: skip
    item.add_asset("scl", pystac.Asset(str(path), media_type="image/tiff"))
    return item


def test_bands_are_chosen_by_label_or_common_name(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    cube = load_cube([item], modalities=["S2L2A"], bands={"S2L2A": ["nir", "B04", "red"]})
    assert cube["S2L2A_band"].values.tolist() == ["B04", "B08"]
    np.testing.assert_array_equal(cube["S2L2A"].values[0, :, 0, 0], [1003, 1007])
    with pytest.raises(ValueError, match=r"bands of S2L2A: B99 given; it has B01, B02"):
        load_cube([item], modalities=["S2L2A"], bands={"S2L2A": ["B99"]})
    with pytest.raises(ValueError, match="rededge given"):  # four bands share it
        load_cube([item], modalities=["S2L2A"], bands={"S2L2A": ["rededge"]})
    with pytest.raises(ValueError, match="bands names DEM; the modalities are S2L2A"):
        load_cube([item], modalities=["S2L2A"], bands={"DEM": ["DEM"]})


def test_item_needs_only_the_bands_that_are_asked_for(tmp_path):
    files = {
        b: write_tiff(tmp_path / f"{b}.tif", np.full((SIZE_PX,) * 2, 7, "uint16"))
        for b in ("B04", "B08")
    }
    item = make_item("two", day("2024-05-01"), files, collection="sentinel-2-l2a")
    cube = load_cube([item], modalities=["S2L2A"], bands={"S2L2A": ["B08"]})
    assert cube["S2L2A"].shape == (1, 1, SIZE_PX, SIZE_PX)


@pytest.mark.parametrize(
    ("s2_offset", "first", "second", "recorded"),
    [
        ("remove", 1000, 1000, [-1000, 0]),
        ("keep", 2000, 1000, [0, 0]),
        ("add", 2000, 2000, [0, 1000]),
    ],
)
def test_offset_is_what_was_asked_for(tmp_path, s2_offset, first, second, recorded):
    items = [
        s2_item(tmp_path, "new", day("2024-05-01"), value=2000, raster=RAW),
        s2_item(tmp_path, "old", day("2024-06-01"), value=1000),
    ]
    cube = load_cube(items, modalities=["S2L2A", "NDVI"], s2_offset=s2_offset)
    np.testing.assert_array_equal(cube["S2L2A"].values[:, 0, 0, 0], [first, second])
    np.testing.assert_array_equal(cube["S2L2A_offset"].values, recorded)
    # A ratio is always of reflectance without an offset.
    red, infrared = 1003, 1007
    np.testing.assert_allclose(
        cube["NDVI"].values[:, 0, 0], (infrared - red) / (infrared + red), atol=1e-6
    )


def test_mixed_offsets_of_a_step_are_listed(tmp_path):
    items = [
        s2_item(tmp_path, "west", day("2024-05-01"), value=2000, raster=RAW,
                properties={"s2:processing_baseline": "05.10"}),
        s2_item(tmp_path, "east", day("2024-05-01"), value=1000, left=LEFT + 320,
                properties={"s2:processing_baseline": "02.14"}),
        s2_item(tmp_path, "later", day("2024-06-01"), value=1000),
    ]  # fmt: skip
    cube = load_cube(items, modalities=["S2L2A"])
    np.testing.assert_array_equal(cube["S2L2A_offset"].values, [-1000, 0])
    assert cube["S2L2A"].attrs["dn_offsets"] == ["2024-05-01: east +0, west -1000"]
    np.testing.assert_array_equal(cube["S2L2A"].values[0, 0, 0, [0, 31, 32, 79]], 1000)
    alone = load_cube(items[2:], modalities=["S2L2A"])
    assert "dn_offsets" not in alone["S2L2A"].attrs


def test_index_and_colours_come_with_or_without_the_bands(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    alone = load_cube([item], modalities=["RGB", "NDVI"])
    assert set(alone.data_vars) == {"RGB", "NDVI"}
    assert alone["RGB"].dims == ("time", "RGB_band", "y", "x")
    assert alone["RGB_band"].values.tolist() == ["RED", "GREEN", "BLUE"]
    assert alone["RGB"].dtype == "uint8"
    np.testing.assert_array_equal(
        alone["RGB"].values[0, :, 0, 0],
        [1003 * 255 // 2000, 1002 * 255 // 2000, 1001 * 255 // 2000],
    )
    beside = load_cube([item], modalities=["S2L2A", "RGB", "NDVI"], bands={"S2L2A": ["B11"]})
    assert beside["S2L2A_band"].values.tolist() == ["B11"]
    xr.testing.assert_equal(beside[["RGB", "NDVI"]], alone)


def test_clouds_are_masked_beside_whole_inputs(tmp_path):
    classes = np.full((24, 24), 4)
    classes[10:12, 10:12] = 9
    classes[20, 20] = 3
    clear = s2_item(tmp_path, "clear", day("2024-06-01"))
    items = [
        classified(tmp_path, s2_item(tmp_path, "cloudy", day("2024-05-01")), classes),
        classified(tmp_path, clear, np.full((24, 24), 5)),
        s2_item(tmp_path, "unclassified", day("2024-07-01")),
    ]
    cube = load_cube(items, modalities=["S2L2A"], chunks={"y": 17, "x": 23})
    assert cube["cloud_mask"].dtype == bool
    mask = cube["cloud_mask"].values
    rows, columns = np.mgrid[:48, :48]
    dropped = np.isin(np.kron(classes, np.ones((2, 2))), [3, 9])
    places = np.argwhere(dropped)
    distance = np.hypot(rows[..., None] - places[:, 0], columns[..., None] - places[:, 1]).min(
        axis=2
    )
    np.testing.assert_array_equal(mask[0], distance * 10 <= 60)
    assert not mask[1].any()
    assert mask[2].all()  # nothing is known
    np.testing.assert_allclose(
        cube["clear_fraction"].values, [1 - mask[0].mean(), 1, np.nan], rtol=1e-6
    )
    assert (cube["S2L2A"].values > 0).all()
    without = load_cube(items, modalities=["S2L2A"], clouds=False)
    assert set(without.variables) & {"SCL", "cloud_mask", "clear_fraction"} == set()


def test_tiles_of_two_zones_are_one_mosaic_with_native_pixels_on_top(tmp_path):
    rng = np.random.default_rng(0)
    native = s2_item(tmp_path, "z", day("2024-05-01"), value=1000)
    path = tmp_path / "neighbour.tif"
    # The same place in the zone to the east; earlier, so that it would come first by time.
    place = GeoBox((SIZE_PX,) * 2, Affine(10, 0, LEFT, 0, -10, TOP), CRS)
    corner = place.extent.to_crs("EPSG:32633").boundingbox
    left, top = np.floor(corner.left / 10) * 10, np.ceil(corner.top / 10) * 10
    pixels = rng.integers(3000, 4000, (12, 60, 70)).astype("uint16")
    write_tiff(path, pixels, left=left, top=top, crs="EPSG:32633", nodata=0)
    other = make_item(
        "a", day("2024-05-01") - timedelta(minutes=5), {"data": path}, collection="my-s2l2a"
    )
    wide = grid(size_px=64, left=LEFT - 80, top=TOP + 80)
    cube = load_cube([native, other], geobox=wide, modalities=["S2L2A"])
    assert cube.sizes["time"] == 1
    b01 = cube["S2L2A"].values[0, 0]
    np.testing.assert_array_equal(b01[8:56, 8:56], 1000)
    around = np.delete(b01[:, :8].ravel(), [])
    assert (around >= 3000).any()


def test_area_across_the_antimeridian_has_pixels_on_both_sides(tmp_path):
    items = []
    for name, west in (("west", 179.0), ("east", -180.0)):
        heights = np.full((360, 360), 100.0 if name == "west" else 200.0, "float32")
        path = write_tiff(tmp_path / f"{name}.tif", heights, left=west, top=-16.5,
                          resolution_m=1 / 360, crs="EPSG:4326")  # fmt: skip
        items.append(
            make_item(name, day("2021-04-22"), {"data": path}, collection="cop-dem-glo-30")
        )
    cube = load_cube(items, bbox=(179.95, -17.01, -179.95, -16.99), modalities=["DEM"])
    heights = cube["DEM"].values
    assert np.isfinite(heights).all()
    assert (heights[:, 0] == 100).all()
    assert (heights[:, -1] == 200).all()
    assert cube.sizes["x"] < 1200


def test_broken_files_stop_or_are_listed(tmp_path):
    items = [
        s2_item(tmp_path, "good", day("2024-05-01"), value=1000),
        s2_item(
            tmp_path, "bad", day("2024-05-01") + timedelta(minutes=1), value=2000, left=LEFT + 160
        ),
        s1_item(tmp_path, "radar", day("2024-05-02")),
    ]
    options = {"modalities": ["S2L2A", "S1RTC"], "on_error": "nodata"}
    cube = load_cube(items, **options)
    failures = cube.attrs["read_failures"]
    assert failures == []
    for name in ("bad.tif", "radar_vh.tif"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:700])
    result = cube.compute(scheduler="threads")
    assert len(failures) == 2  # each file once
    assert result.attrs["read_failures"] is failures
    assert any("bad, data" in text and "bad.tif" in text for text in failures)
    assert [t for t in failures if t.startswith("radar, vh")]
    b01 = result["S2L2A"].values[0, 0, 0]
    np.testing.assert_array_equal(b01[[0, 47, 48, 63]], [1000, 1000, 0, 0])
    assert np.isfinite(result["S1RTC"].values[0, 0, :, :48]).all()
    assert np.isnan(result["S1RTC"].values[0, 1]).all()
    assert json.loads(json.dumps(result.attrs))["read_failures"] == list(failures)
    # A file that is broken when the cube is built is no reason to stop either.
    again = load_cube(items, **options, geobox=grid(64)).compute(scheduler="synchronous")
    assert len(again.attrs["read_failures"]) == 2
    with pytest.raises(AssetError, match=r"bad\.tif of item 'bad' \(asset 'data'\)"):
        load_cube(items, modalities=["S2L2A"])


def test_files_that_contradict_their_item_are_named(tmp_path):
    item = s2_item(tmp_path, "moved", day("2024-05-01"))
    item.properties |= {"proj:code": "EPSG:32633"}
    data = item.assets["data"].extra_fields
    data |= {"proj:shape": [SIZE_PX] * 2, "proj:transform": [10, 0, LEFT, 0, -10, TOP]}
    with pytest.raises(
        AssetError, match=r"moved\.tif of item 'moved'.*EPSG:32632.*item says EPSG:32633"
    ):
        load_cube([item], geobox=grid(), modalities=["S2L2A"])
    item.properties["proj:code"] = CRS
    data["proj:transform"] = [10, 0, LEFT + 5000, 0, -10, TOP]
    with pytest.raises(AssetError, match=r"covers .*but its item says"):
        load_cube([item], geobox=grid(), modalities=["S2L2A"])
    # Coarser files over the same area, or parts of it, are no contradiction.
    for size, transform in (
        ([480, 480], [1, 0, LEFT, 0, -1, TOP]),
        ([10980, 10980], [10, 0, LEFT - 1000, 0, -10, TOP + 2000]),
    ):
        data |= {"proj:shape": size, "proj:transform": transform}
        assert (load_cube([item], geobox=grid(), modalities=["S2L2A"])["S2L2A"].values > 0).all()


def test_same_item_twice_is_read_once_and_two_of_one_id_are_told(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    cube = load_cube([item, item.clone()], modalities=["S2L2A"])
    assert cube["S2L2A"].attrs["stac_items"] == ["a"]
    (tmp_path / "other").mkdir()
    other = s2_item(tmp_path / "other", "a", day("2024-05-01"), value=5000)
    with warns_user("two items 'a' of collection 'my-s2l2a' with different files"):
        cube = load_cube([item, other], modalities=["S2L2A"])
    assert cube["S2L2A"].values[0, 0, 0, 0] == 1000


def test_coarser_grid_averages_power_and_picks_reflectance(tmp_path):
    power = np.random.default_rng(0).uniform(0.01, 1, (SIZE_PX, SIZE_PX)).astype("float32")
    power[:2, :2] = -32768
    power[2, 2] = -32768
    files = {b: write_tiff(tmp_path / f"{b}.tif", power) for b in ("vv", "vh")}
    item = make_item("s1", day("2024-05-01"), files, collection="sentinel-1-rtc")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        coarse = GeoBox((24, 24), Affine(20, 0, LEFT, 0, -20, TOP), CRS)
        found = load_cube([item], geobox=coarse, modalities=["S1RTC"])["S1RTC"].values[0, 0]
    masked = np.where(power > 0, power, np.nan).reshape(24, 2, 24, 2)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = 10 * np.log10(np.nanmean(masked, axis=(1, 3)))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.isnan(found[0, 0])


def test_method_of_resampling_can_be_asked_for(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    shifted = grid(left=LEFT + 5)
    near = load_cube([item], geobox=shifted, modalities=["S2L2A"])
    smooth = load_cube(
        [item], geobox=shifted, modalities=["S2L2A"], resampling={"S2L2A": "bilinear"}
    )
    assert near["S2L2A"].values[0, 0, 0, 0] == 1000
    assert smooth["S2L2A"].values[0, 0, 5, 5] == 1000
    with pytest.raises(
        ValueError, match=r"resampling of S2L2A: unknown method 'bilinea'.*bilinear"
    ):
        load_cube([item], modalities=["S2L2A"], resampling={"S2L2A": "bilinea"})


def test_dates_may_share_a_chunk_and_a_pass_is_read_once(tmp_path):
    items = [s2_item(tmp_path, f"s2_{d}", day(f"2024-05-{d:02}")) for d in (1, 3, 5)]
    items.append(s1_item(tmp_path, "s1", day("2024-05-03")))
    cube = load_cube(items, modalities=["S2L2A", "S1RTC"], chunks={"time": 2, "y": 24, "x": -1})
    assert cube["S2L2A"].chunksizes["time"] == (2, 1)
    assert cube["S1RTC"].chunksizes["y"] == (24, 24)
    np.testing.assert_array_equal(cube["S1RTC"].values[:, 0, 0, 0], [-10] * 3)
    plain = load_cube(items, modalities=["S1RTC", "S2L2A"])
    graph = dict(plain["S1RTC"].__dask_graph__())
    reads = [task for task in graph.values() if "_read_chunk" in repr(getattr(task, "func", ""))]
    assert len(reads) == 2  # bands of one pass, although three dates have it


def test_store_of_a_cube_opens_with_one_chunking(tmp_path):
    items = [classified(tmp_path, s2_item(tmp_path, f"a{d}", day(f"2024-05-{d:02}")), np.full((24, 24), 4))
             for d in (1, 3, 5)]  # fmt: skip
    items.append(s1_item(tmp_path, "s1", day("2024-05-03")))
    for time in (1, 2, -1):
        cube = load_cube(items, modalities=["RGB", "S2L2A", "S1RTC"], chunks={"time": time})
        assert list(cube.data_vars) == ["S2L2A", "S1RTC", "RGB", "SCL", "cloud_mask"]
        path = tmp_path / f"{time}.zarr"
        cube.to_zarr(path, consolidated=False)
        with xr.open_zarr(path, consolidated=False) as opened:
            assert opened.chunksizes["time"] == {1: (1, 1, 1), 2: (2, 1), -1: (3,)}[time]
            xr.testing.assert_identical(opened.load(), cube.compute())


def test_laziness_covers_every_option(tmp_path):
    item = classified(tmp_path, s2_item(tmp_path, "a", day("2024-05-01")), np.full((24, 24), 4))

    def refuse(*_, **__):
        raise AssertionError("computed while building")

    with dask.config.set(scheduler=refuse):
        cube = load_cube([item], modalities=["S2L2A", "NDVI", "RGB"], on_error="nodata",
                         chunks={"time": -1})  # fmt: skip
        assert cube["clear_fraction"].chunks is not None
        repr(cube)
        cube._repr_html_()
    again = load_cube([item], modalities=["S2L2A"])
    # Equal cubes have equal graphs: nothing in their names is random.
    assert again["S2L2A"].data.name == load_cube([item], modalities=["S2L2A"])["S2L2A"].data.name


def test_a_year_of_dates_and_their_order(tmp_path):
    items = [s2_item(tmp_path, f"s{n}", datetime(2023, 1, 1, 10, tzinfo=UTC) + timedelta(days=5 * n))
             for n in range(73)]  # fmt: skip
    cube = load_cube(items[::-1], modalities=["S2L2A"], datetime="2023")
    assert cube.sizes["time"] == 73
    assert (np.diff(cube["time"].values) == np.timedelta64(5, "D")).all()
    assert cube["S2L2A"].attrs["stac_items"] == [f"s{n}" for n in range(73)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "natural"}, "mode is one of 'analysis', 'native', got 'natural'"),
        ({"on_error": "ignore"}, "on_error is one of 'raise', 'nodata'"),
        ({"sign": "token"}, "sign is a function of an address"),
        ({"s2_offset": "subtract"}, "s2_offset is one of 'remove', 'keep', 'add'"),
        ({"resolution": 9e-5}, "looks like degrees"),
        ({"cloud_cover": 120}, "cloud_cover is a percentage"),
        ({"orbit": "up"}, "orbit"),
        ({"datetime": "2024-06-01/2024-05-01"}, "ends before it starts"),
        ({"bbox": (48.0, 91.0, 48.1, 91.1)}, "lat/lon order"),
        ({"bbox": (9.0, 48.1, 9.1, 48.0)}, "south lies north"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    with pytest.raises(ValueError, match=message):
        load_cube([item], **({"modalities": ["S2L2A"]} | options))


def test_exchanged_coordinates_are_noticed(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    west, south, east, north = item.bbox
    with pytest.raises(ValueError, match="longitude and latitude exchanged there are some"):
        load_cube([item], bbox=(south, west, north, east), modalities=["S2L2A"])


def test_items_come_in_every_wrapping(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    expected = load_cube([item], modalities=["S2L2A"])
    collection = pystac.ItemCollection([item])
    for wrapped in (
        item,
        (item,),
        iter([item]),
        collection,
        collection.to_dict(transform_hrefs=False),
    ):
        xr.testing.assert_identical(load_cube(wrapped, modalities=["S2L2A"]), expected)
    with pytest.raises(ValueError, match="no STAC item collection"):
        load_cube({"features": [3]}, modalities=["S2L2A"])


def test_empty_items_and_addresses_are_named(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    item.assets["data"].href = ""
    with pytest.raises(ValueError, match="Asset 'data' of item 'a' has no href"):
        load_cube([item], modalities=["S2L2A"])
    item.assets.clear()
    with pytest.raises(ValueError, match=r"Item 'a'.*lacks B01.*its assets are \(none\)"):
        load_cube([item], modalities=["S2L2A"])


def test_read_options_are_checked():
    for bad in ({"timeout_s": 0}, {"retries": -1}, {"delay_s": -1}):
        with pytest.raises(ValueError, match="ReadOptions need"):
            ReadOptions(**bad)


def test_failures_are_a_list_that_copies_share():
    failures = ReadFailures()
    failures.add("a", "gone")
    failures.add("a", "still gone")
    attrs = xr.Dataset(attrs={"read_failures": failures}).copy(deep=True).attrs
    assert attrs["read_failures"] is failures
    assert list(failures) == ["a: gone"]


def test_coarse_band_sets_no_grid(tmp_path):
    """Header of the finest band gives the grid of items; 60 m pixels may reach beyond it."""
    files = {}
    for band in MODALITIES["S2L2A"].bands:
        step = 6 if band in ("B01", "B09") else 1
        size = -(-SIZE_PX // step) + (step > 1)
        files[band] = write_tiff(tmp_path / f"{band}.tif", np.ones((size, size), "uint16"),
                                 resolution_m=10.0 * step)  # fmt: skip
    item = make_item("a", day("2024-05-01"), files, collection="sentinel-2-l2a")
    cube = load_cube([item], modalities=["S2L2A"])
    with rasterio.open(files["B02"]) as dataset:
        assert cube.odc.geobox == GeoBox.from_rio(dataset)
