"""What the numbers in files mean, where items say it badly or not at all."""

import warnings
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio

from terramind_cube.cube import ReadOptions, load_cube, units
from terramind_cube.cube.failures import AssetError
from terramind_cube.cube.radiometry import Radiometry, decode
from terramind_cube.testing import assert_lazy
from tests.cube.scenes import SIZE_PX, day, make_item, s1_item, s2_item, warns_user, write_tiff

SPAN = (datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))
SCALED = {"scale": 1e-4, "offset": -0.1}


@contextmanager
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def radar(folder, name, low, high, *, collection=None, when="2024-05-01", unit=None, dtype="f4"):
    """A pass whose pixels are drawn between two numbers, VH half of VV."""
    drawn = np.random.default_rng(len(name)).uniform(low, high, (SIZE_PX, SIZE_PX))
    files = {band: write_tiff(folder / f"{name}_{band}.tif", (drawn * share).astype(dtype))
             for band, share in (("vv", 1), ("vh", 0.5))}  # fmt: skip
    raster = None if unit is None else {"unit": unit}
    return make_item(name, day(when), files, collection=collection, raster=raster), drawn


def backscatter(items, **options):
    return load_cube(items, modalities=["S1RTC"], **options)["S1RTC"]


def decibels(power):
    return (10 * np.log10(power)).astype("f4")


def tag(folder, name, scale, offset, bands=range(1, 13)):
    with rasterio.open(folder / f"{name}.tif", "r+") as file:
        file.scales = [scale if band in bands else 1.0 for band in file.indexes]
        file.offsets = [offset if band in bands else 0.0 for band in file.indexes]


def reflectance(items, **options):
    cube = load_cube(items, modalities=["S2L2A"], **options)
    return cube["S2L2A"].values[:, 0, 0, 0].tolist(), cube["S2L2A_offset"].values.tolist()


def cover(folder, codes, *, collection="my-lulc", key="data", classes=None):
    path = write_tiff(folder / "cover.tif", np.resize(np.array(codes, "u1"), (SIZE_PX, SIZE_PX)))
    item = make_item("cover", SPAN, {key: path}, collection=collection)
    if classes is not None:
        item.assets[key].extra_fields["classification:classes"] = [
            {"value": code, "name": name} for code, name in classes.items()
        ]
    return item


def land_cover(item, **options):
    return load_cube([item], modalities=["LULC"], **options)["LULC"]


def test_wrapped_pixels_are_nodata_and_named(tmp_path):
    """A provider took 1000 off in 16 bits: a third of the pixels are dark water, near 65000."""
    item = s2_item(tmp_path, "wrapped", day("2024-05-01"))
    with rasterio.open(tmp_path / "wrapped.tif", "r+") as file:
        pixels = file.read()
        pixels[:, : SIZE_PX // 3] = 65000
        file.write(pixels)
    cube = load_cube([item], modalities=["S2L2A"])
    with warns_user(r"Item 'wrapped', asset 'data'.*64000 or more.*nodata"):
        values = cube["S2L2A"].values[0]
    assert (values[:, : SIZE_PX // 3] == 0).all()
    np.testing.assert_array_equal(values[:, SIZE_PX // 3 :], pixels[:, SIZE_PX // 3 :])


def test_wrapped_pixels_of_a_real_product_are_nodata():
    """iCOR's reflectance went below zero in four pixels: 64642 to 65475."""
    name = "shared/data/icor_s2_srtm/ref_check_icor_S2_B02.tif"
    places = [parent / name for parent in Path(__file__).resolve().parents]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        pytest.skip("shared/ with the iCOR scene is not beside this clone")
    with rasterio.open(path) as file:
        raw, nodata = file.read(1), file.nodatavals[0]
    found = decode(raw, Radiometry("reflectance", "uint16", 0), nodata)
    assert np.count_nonzero(found == 0) == 4
    assert found.max() == 19856


def test_fill_value_of_a_file_is_no_saturation(tmp_path):
    """Some tools fill with 65535 and say so."""
    pixels = np.full((12, SIZE_PX, SIZE_PX), 1500, "u2")
    pixels[:, 10:] = 65535
    path = write_tiff(tmp_path / "a.tif", pixels, nodata=65535)
    item = make_item("a", day("2024-05-01"), {"data": path}, collection="my-s2l2a")
    with silent():
        values = load_cube([item], modalities=["S2L2A"])["S2L2A"].values[0]
    assert (values[:, :10] == 1500).all()
    assert not values[:, 10:].any()


def test_saturated_pixels_let_the_scene_below_show_through(tmp_path):
    """A few of them are no fault: nothing is said."""
    items = [s2_item(tmp_path, name, day("2024-05-01"), value=value)
             for name, value in (("above", 3000), ("below", 1000))]  # fmt: skip
    with rasterio.open(tmp_path / "above.tif", "r+") as file:
        pixels = file.read()
        pixels[:, 5, 5] = 65535
        file.write(pixels)
    with silent():
        values = load_cube(items, modalities=["S2L2A"])["S2L2A"].values[0, 0]
    assert values[5, 5] == 1000
    assert np.count_nonzero(values == 3000) == SIZE_PX**2 - 1


@pytest.mark.parametrize("collection", ["s1_rtc", "OPERA_L2_RTC-S1_V1", "sentinel-1-rtc"])
def test_power_of_known_providers_becomes_decibels(tmp_path, collection):
    item, power = radar(tmp_path, "pass", 0.02, 0.3, collection=collection)
    with silent():
        found = backscatter([item])
    np.testing.assert_allclose(found.values[0, 0], decibels(power), atol=1e-4)
    assert found.attrs["source_unit"] == "linear (provider)"


@pytest.mark.parametrize("collection", [None, "SENTINEL-1-RTC-my-area", "my-s1rtc"])
def test_power_without_a_unit_is_told_by_its_pixels(tmp_path, collection):
    item, power = radar(tmp_path, "pass", 0.02, 0.3, collection=collection)
    with (
        warns_user(r"'pass'.*declares no unit.*0% below zero.*linear power.*radar_unit"),
        assert_lazy(),
    ):
        cube = load_cube([item], modalities=["S1RTC"], chunks={"y": 16, "x": 20})
    np.testing.assert_allclose(cube["S1RTC"].values[0, 0], decibels(power), atol=1e-4)
    assert cube["S1RTC"].attrs["source_unit"] == "linear (pixels)"
    with silent():
        said = backscatter([item], radar_unit="linear")
    np.testing.assert_array_equal(said.values, cube["S1RTC"].values)
    assert said.attrs["source_unit"] == "linear (radar_unit)"


def test_decibels_without_a_unit_stay_what_they_are(tmp_path):
    item, drawn = radar(tmp_path, "pass", -25, 3)
    with silent():
        found = backscatter([item])
    np.testing.assert_array_equal(found.values[0, 0], drawn.astype("f4"))
    assert found.attrs["source_unit"] == "dB (pixels)"


def test_native_view_decides_alike(tmp_path):
    item, power = radar(tmp_path, "pass", 0.02, 0.3)
    with warns_user("declares no unit"):
        tree = load_cube([item], modalities=["S1RTC"], mode="native")
    np.testing.assert_allclose(tree["S1RTC"]["S1RTC"].values[0, 0], decibels(power), atol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(80, 400), (-3, 8)])
def test_pixels_that_tell_no_unit_stop_with_the_parameter(tmp_path, low, high):
    item, drawn = radar(tmp_path, "pass", low, high)
    with pytest.raises(ValueError, match=r"'pass'.*no unit.*do not tell it \(median.*radar_unit"):
        backscatter([item])
    found = backscatter([item], radar_unit="dB")
    np.testing.assert_array_equal(found.values[0, 0], drawn.astype("f4"))


def test_amplitude_is_squared_where_it_is_asked_for_or_declared(tmp_path):
    asked, amplitude = radar(tmp_path, "pass", 0.1, 0.6)
    declared, _ = radar(tmp_path, "hyp3", 0.1, 0.6, collection="hyp3-s1-rtc", unit="amplitude")
    for item, options in ((asked, {"radar_unit": "amplitude"}), (declared, {})):
        with silent():
            found = backscatter([item], **options).values[0, 0]
        np.testing.assert_allclose(found, decibels(amplitude**2), atol=1e-4)


def test_unit_that_is_declared_is_not_asked_for(tmp_path):
    """`radar_unit` is for items that do not tell theirs, of which there may be some."""
    own, _ = radar(tmp_path, "own", -20, -5, unit="dB")
    other, power = radar(tmp_path, "other", 0.02, 0.3, when="2024-06-01")
    found = backscatter([own, other], radar_unit="linear").values
    assert found[0, 0].max() < -5
    np.testing.assert_allclose(found[1, 0], decibels(power), atol=1e-4)
    odd, _ = radar(tmp_path, "odd", 0.02, 0.3, unit="furlongs")
    with pytest.raises(ValueError, match=r"unit 'furlongs'.*not understood.*radar_unit"):
        backscatter([odd])
    np.testing.assert_allclose(
        backscatter([odd], radar_unit="linear").values[0, 0].max(), -5.2, atol=0.1
    )
    with pytest.raises(ValueError, match="radar_unit is one of 'dB', 'linear', 'amplitude'"):
        backscatter([own], radar_unit="power")


def test_items_that_are_mixed_tell_each_for_itself(tmp_path):
    items = [radar(tmp_path, f"p{n}", *((0.02, 0.3) if n in (0, 3) else (-20, -5)),
                   when=f"2024-05-{n + 1:02}")[0] for n in range(5)]  # fmt: skip
    with warns_user("'p0' and 1 more.*linear power"):
        found = backscatter(items).values
    assert ((found < -2) & (found > -25)).all()


def test_few_of_many_files_are_opened_and_the_others_are_watched(tmp_path, monkeypatch):
    items = [radar(tmp_path, f"p{n}", 0.02, 0.3, when=f"2024-05-{n + 1:02}")[0] for n in range(6)]
    items[1], _ = radar(tmp_path, "odd", -20, -5, when="2024-05-02")
    asked, look = [], units._ask_pixels
    monkeypatch.setattr(units, "_ask_pixels", lambda s, r: (asked.append(s.item.id), look(s, r))[1])
    with warns_user("'p0' and 5 more"):
        found = backscatter(items)
    assert asked == ["p0", "p3", "p5"]
    assert np.isfinite(found.isel(time=0).values).all()
    with pytest.raises(AssetError, match=r"item 'odd'.*below zero"):
        found.isel(time=1).compute()


def test_file_without_a_valid_pixel_is_like_the_others(tmp_path):
    empty, _ = radar(tmp_path, "empty", 0, 0)
    item, _ = radar(tmp_path, "pass", -20, -5, when="2024-06-01")
    found = backscatter([empty, item])
    assert found.attrs["source_unit"] == "dB (pixels)"
    with pytest.raises(ValueError, match="hardly any valid pixel"):
        backscatter([empty])


def test_fill_values_that_nobody_declares_do_not_count(tmp_path):
    item, _ = radar(tmp_path, "pass", 0.02, 0.3)
    for asset in item.assets.values():
        with rasterio.open(asset.href, "r+") as file:
            pixels = file.read(1)
            pixels[: SIZE_PX // 2] = -9999
            file.write(pixels, 1)
    with warns_user("linear power"):
        found = backscatter([item])
    assert np.isnan(found.values[0, :, : SIZE_PX // 2]).all()
    assert np.isfinite(found.values[0, :, SIZE_PX // 2 :]).all()


def test_lost_file_is_nodata_where_that_was_asked_for(tmp_path):
    item = s1_item(tmp_path, "lost", day("2024-05-01"))
    for asset in item.assets.values():
        asset.href = "http://127.0.0.1:9/lost.tif"
    reading = ReadOptions(retries=0)
    with pytest.raises(AssetError, match="item 'lost'"):
        backscatter([item], reading=reading)
    cube = load_cube([item], modalities=["S1RTC"], reading=reading, on_error="nodata")
    assert np.isnan(cube["S1RTC"].values).all()
    assert len(cube.attrs["read_failures"]) == 2


@pytest.mark.parametrize("baseline", [None, "02.14", "05.09"])
@pytest.mark.parametrize(("offset", "expected"), [(-0.1, -1000), (0.0, 0)])
def test_tags_of_a_file_tell_the_offset_where_its_item_does_not(
    tmp_path, baseline, offset, expected
):
    item = s2_item(
        tmp_path,
        "a",
        day("2024-05-01"),
        value=2500,
        properties={"s2:processing_baseline": baseline},
    )
    tag(tmp_path, "a", 1e-4, offset)
    assert reflectance([item]) == ([2500 + expected], [expected])
    assert reflectance([item], s2_offset="keep") == ([2500], [0])
    tree = load_cube([item], modalities=["S2L2A"], mode="native")
    assert int(tree["S2L2A/r10m"]["S2L2A"][0, 0, 0, 0]) == 2500 + expected


def test_tags_that_say_nothing_leave_it_to_the_baseline(tmp_path):
    item = s2_item(
        tmp_path, "a", day("2024-05-01"), value=2500, properties={"s2:processing_baseline": "05.09"}
    )
    assert reflectance([item]) == ([1500], [-1000])


def test_item_and_file_that_contradict_each_other_are_named(tmp_path):
    item = s2_item(
        tmp_path, "a", day("2024-05-01"), value=2500, raster={"scale": 1e-4, "offset": 0}
    )
    tag(tmp_path, "a", 1e-4, -0.1)
    with pytest.raises(AssetError, match=r"item 'a'.*tags say.*-1000 DN.*by its item.*it is 0 DN"):
        reflectance([item])
    assert reflectance([item], s2_offset="keep") == ([2500], [0])
    tag(tmp_path, "a", 1e-4, 0.0)
    assert reflectance([item]) == ([2500], [0])
    tag(tmp_path, "a", 1e-3, 0.0)
    with pytest.raises(AssetError, match=r"item 'a'.*has scale 0\.001"):
        reflectance([item])


@pytest.mark.parametrize("raster", [{"scale": 0.1, "offset": 10}, {"scale": 1, "offset": 0}])
def test_elevation_that_item_and_file_scale_differently_is_named(tmp_path, raster):
    path = write_tiff(tmp_path / "dem.tif", np.full((SIZE_PX, SIZE_PX), 500, "int16"))
    item = make_item("dem", day("2021-04-22"), {"data": path}, collection="my-dem", raster=raster)
    expected = 500 * raster["scale"] + raster["offset"]
    np.testing.assert_allclose(load_cube([item], modalities=["DEM"])["DEM"].values, expected)
    tag(tmp_path, "dem", 0.5, -50.0)
    with pytest.raises(AssetError, match=r"item 'dem'.*tags say scale 0\.5 and offset -50"):
        load_cube([item], modalities=["DEM"])["DEM"].compute()


def test_bands_of_a_file_that_differ_are_named(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"), value=2500)
    tag(tmp_path, "a", 1e-4, -0.1, bands=(1,))
    with pytest.raises(AssetError, match="tags say that an offset of -1000 DN"):
        reflectance([item])


def test_flag_of_a_provider_beats_fields_and_tags_that_repeat_them(tmp_path):
    """Earth Search's items carry offset -0.1 where it is applied; newer files may repeat it."""
    flag = {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.09"}
    item = s2_item(tmp_path, "a", day("2024-05-01"), value=2500, raster=SCALED, properties=flag)
    for offset in (-0.1, 0.0):
        tag(tmp_path, "a", 1e-4, offset)
        assert reflectance([item]) == ([2500], [0])
    # Tags alone against the flag are a contradiction.
    item = s2_item(tmp_path, "b", day("2024-05-01"), value=2500, properties=flag)
    tag(tmp_path, "b", 1e-4, -0.1)
    with pytest.raises(AssetError, match="it is 0 DN"):
        reflectance([item])


def test_offsets_of_files_are_taken_one_by_one_before_the_mosaic(tmp_path):
    items = [s2_item(tmp_path, name, day(f"2024-05-0{n}"), value=2500)
             for n, name in enumerate("abcd", start=1)]  # fmt: skip
    tag(tmp_path, "b", 1e-4, -0.1)
    assert reflectance(items) == ([2500, 1500, 2500, 2500], [0, -1000, 0, 0])


def test_offset_of_products_by_another_tool_counts_for_indices(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"), value=2500)
    tag(tmp_path, "a", 1e-4, -0.1)
    index = load_cube([item], modalities=["NDVI"])["NDVI"].values[0, 0, 0]
    red, infrared = 2503 - 1000, 2507 - 1000
    assert index == pytest.approx((infrared - red) / (infrared + red))


@pytest.mark.parametrize(
    ("codes", "classes", "expected"),
    [
        ([10, 40, 50, 80], {10: "Tree cover", 40: "Cropland", 50: "Built-up", 80: "Water"}, [2, 4, 5, 1]),
        ([0, 4, 6, 8], {0: "water", 4: "crops", 6: "built", 8: "snow_and_ice"}, [1, 4, 5, 7]),
        ([1, 2, 5], {1: "crops", 2: "trees", 5: "nodata"}, [4, 2, 0]),
    ],
)  # fmt: skip
def test_land_cover_is_translated_by_the_words_of_its_item(tmp_path, codes, classes, expected):
    found = land_cover(cover(tmp_path, codes, classes=classes))
    np.testing.assert_array_equal(found.values[0].ravel()[: len(codes)], expected)
    assert found.attrs["source_legend"] == "own codes (item)"


@pytest.mark.parametrize(
    ("collection", "key"),
    [
        ("io-10m-annual-lulc", "supercell"),
        ("esri-lulc", "data"),
        ("io_lulc_v2", "classification"),
        ("my-io-lulc-annual-v02", "data"),
    ],
)
def test_land_cover_of_the_annual_map_by_other_names(tmp_path, collection, key):
    item = cover(tmp_path, [1, 2, 4, 5, 7, 8, 9, 10, 11], collection=collection, key=key)
    found = land_cover(item)
    np.testing.assert_array_equal(found.values[0].ravel()[:9], range(1, 10))
    assert found.attrs["source_legend"] == "impact-observatory (provider)"


def test_land_cover_without_a_legend_is_refused_with_the_parameter(tmp_path):
    item = cover(tmp_path, [1, 2, 4])
    with pytest.raises(ValueError, match=r"'cover'.*does not list its classes.*lulc_legend"):
        land_cover(item)
    odd = cover(tmp_path, [1, 2, 4], classes={1: "water", 2: "vineyard"})
    with pytest.raises(ValueError, match=r"has the class '2: vineyard'.*lulc_legend"):
        land_cover(odd)
    for legend, expected in (
        ("terramind", [1, 2, 4]), ("impact-observatory", [1, 2, 3]), ({1: 5, 2: 5, 4: 0}, [5, 5, 0]),
    ):  # fmt: skip
        found = land_cover(item, lulc_legend=legend)
        np.testing.assert_array_equal(found.values[0].ravel()[:3], expected)
        assert found.attrs["source_legend"].endswith("(lulc_legend)")
        tree = load_cube([item], modalities=["LULC"], mode="native", lulc_legend=legend)
        np.testing.assert_array_equal(tree["LULC"]["LULC"].values, found.values)
    with pytest.raises(AssetError, match=r"codes 1, 2, 4, which are not in its legend"):
        land_cover(item, lulc_legend="esa-worldcover").compute()
