"""Loading cubes from items made on the spot."""

import pickle
import warnings
from datetime import UTC, datetime
from pathlib import Path

import dask
import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from terramind_cube.cube.failures import AssetError
from terramind_cube.cube.load import load_cube
from terramind_cube.modalities import LULC_CLASSES
from tests.cube.scenes import (
    CRS,
    LEFT,
    S2,
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

# rasterio 1.4 warns of its own in-memory target, once, when warping in threads.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Dataset has no geotransform:rasterio.errors.NotGeoreferencedWarning"
)


def test_scene_with_a_file_per_band_is_read_at_three_resolutions(tmp_path):
    rng = np.random.default_rng(0)
    assets, expected = {}, []
    for band in S2.bands:
        factor = {"B01": 6, "B09": 6, "B05": 2, "B06": 2, "B07": 2, "B8A": 2}.get(band, 1)
        pixels = rng.integers(0, 9000, (SIZE_PX // factor,) * 2).astype("uint16")
        expected.append(np.kron(pixels, np.ones((factor, factor), "uint16")))
        # No nodata in the files: a DN of 0 must still come out as 0, not as GDAL's 1.
        assets[band] = write_tiff(tmp_path / f"{band}.tif", pixels, resolution_m=10.0 * factor)
    raster = {"data_type": "uint16", "scale": 1e-4, "offset": 0, "nodata": 0}
    item = make_item("scene", day("2024-05-01"), assets, collection="sentinel-2-l2a", raster=raster)

    cube = load_cube([item], modalities=["S2L2A"])

    assert cube["S2L2A"].dims == ("time", "S2L2A_band", "y", "x")
    assert cube["S2L2A"].dtype == "uint16"
    assert tuple(cube["S2L2A_band"].values) == S2.bands
    assert cube["S2L2A"].attrs["units"] == "1e-4"
    assert cube["S2L2A"].attrs["nodata"] == 0
    assert cube["S2L2A"].attrs["stac_items"] == ["scene"]
    assert cube["time"].dtype == "datetime64[ns]"
    assert cube["time"].values[0] == np.datetime64("2024-05-01T10:00:00")
    assert cube["S2L2A_offset"].dtype == np.int16
    np.testing.assert_array_equal(cube["S2L2A"].values[0], np.stack(expected))
    assert cube.odc.geobox == grid()


def test_bands_named_by_metadata_are_put_into_the_models_order(tmp_path):
    item = s2_item(tmp_path, "reversed", day("2024-05-01"))
    names = [{"name": band} for band in reversed(S2.bands)]
    item.assets["data"].extra_fields["eo:bands"] = names
    item.collection_id = None
    values = load_cube([item], modalities=["S2L2A"])["S2L2A"].values
    np.testing.assert_array_equal(values[0, :, 0, 0], 1000 + np.arange(12)[::-1])


def test_building_a_cube_computes_nothing_and_changes_no_item(tmp_path):
    items = [
        s2_item(tmp_path, "a", day("2024-05-01"), raster={"scale": 1e-4, "offset": -0.1}),
        s2_item(tmp_path, "b", day("2024-06-01")),
        s1_item(tmp_path, "c", day("2024-05-02"), raster={"unit": "linear"}),
    ]
    before = [item.to_dict(transform_hrefs=False) for item in items]

    def refuse(*_, **__):
        raise AssertionError("computed while building")

    with dask.config.set(scheduler=refuse), warns_user("2024-06-01"):
        cube = load_cube(items, modalities=["S2L2A", "S1RTC"], chunks={"y": 20, "x": 30})
    assert all(cube[name].chunks is not None for name in cube.data_vars)
    assert cube["S2L2A"].chunksizes["y"] == (20, 20, 8)
    assert all(cube[name].chunks is None for name in cube.coords)
    assert [item.to_dict(transform_hrefs=False) for item in items] == before


def test_box_is_snapped_outwards_to_whole_cells_of_160_m(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    inner = GeoBox((10, 10), Affine(10, 0, LEFT + 170, 0, -10, TOP - 170), CRS)
    bbox = tuple(inner.extent.to_crs("EPSG:4326").boundingbox)
    cube = load_cube([item], bbox=bbox, modalities=["S2L2A"])
    assert cube.odc.geobox == grid(16, LEFT + 160, TOP - 160)
    wider = load_cube([item], bbox=(*bbox[:2], bbox[2] + 0.0011, bbox[3]), modalities=["S2L2A"])
    assert wider.sizes["x"] == 32
    assert wider.sizes["y"] == 16


def test_items_of_one_day_are_mosaicked_and_those_of_another_are_a_step(tmp_path):
    items = [
        s2_item(tmp_path, "later", day("2024-06-01"), value=3000),
        s2_item(tmp_path, "west", day("2024-05-01"), value=1000),
        s2_item(tmp_path, "east", day("2024-05-01"), value=2000, left=LEFT + 320),
    ]
    cube = load_cube(items, modalities=["S2L2A"])
    assert cube.sizes == {"time": 2, "S2L2A_band": 12, "y": 48, "x": 80}
    b01 = cube["S2L2A"].sel(S2L2A_band="B01").values
    # Within a day the items go by time, then id: "east" covers the overlap.
    np.testing.assert_array_equal(b01[0, 0, [0, 31, 32, 79]], [1000, 1000, 2000, 2000])
    np.testing.assert_array_equal(b01[1, 0, [0, 47, 48]], [3000, 3000, 0])


def test_radar_is_pasted_to_the_nearest_optical_date_with_its_real_time(tmp_path):
    items = [
        s2_item(tmp_path, "s2_a", day("2024-05-10")),
        s2_item(tmp_path, "s2_b", day("2024-06-20")),
        s1_item(tmp_path, "s1_far", day("2024-05-06"), -5.0),
        s1_item(tmp_path, "s1_near", day("2024-05-11"), -10.0),
        s1_item(tmp_path, "s1_too_far", day("2024-07-09"), -20.0),
    ]
    with warns_user("S1RTC has no scene for 2024-06-20"):
        cube = load_cube(items, modalities=["S1RTC", "S2L2A"], datetime="2024-05/2024-06")
    stamps = cube["S1RTC_time"].values
    assert stamps[0] == np.datetime64("2024-05-11T10:00:00")
    assert np.isnat(stamps[1])
    assert cube["S1RTC"].dtype == "float32"
    np.testing.assert_array_equal(cube["S1RTC"].values[0, :, 5, 5], [-10.0, -5.0])
    assert np.isnan(cube["S1RTC"].values[1]).all()
    assert cube["S1RTC"].attrs["stac_items"] == ["s1_near"]

    wide = load_cube(items, modalities=["S2L2A", "S1RTC"], pair_within="30D")
    np.testing.assert_array_equal(wide["S1RTC"].values[:, 0, 5, 5], [-10.0, -20.0])
    with pytest.raises(ValueError, match=r"No S1RTC item.*2024-07-09"):
        load_cube(items, modalities=["S2L2A", "S1RTC"], datetime="2024-06-20", pair_within="1D")


def test_radar_alone_gives_the_time_axis_and_keeps_passes_apart(tmp_path):
    up = s1_item(tmp_path, "up", datetime(2024, 5, 1, 5, tzinfo=UTC), -10.0)
    down = s1_item(tmp_path, "down", datetime(2024, 5, 1, 17, tzinfo=UTC), -12.0)
    up.properties["sat:orbit_state"] = "ascending"
    down.properties["sat:orbit_state"] = "descending"
    cube = load_cube([down, up], modalities=["S1RTC"])
    np.testing.assert_array_equal(cube["S1RTC"].values[:, 0, 0, 0], [-10.0, -12.0])


def test_offset_is_subtracted_item_by_item(tmp_path):
    raw = {"scale": 1e-4, "offset": -0.1, "nodata": 0}
    items = [
        s2_item(tmp_path, "old", day("2021-05-01"), value=2000),
        s2_item(tmp_path, "new", day("2024-05-01"), value=995, raster=raw),
        s2_item(tmp_path, "same_day", day("2024-05-01"), value=4000, left=LEFT + 160),
        s2_item(
            tmp_path, "applied", day("2024-06-01"), value=1500, raster=raw,
            properties={"earthsearch:boa_offset_applied": True},
        ),
    ]  # fmt: skip
    cube = load_cube(items, modalities=["S2L2A"])
    np.testing.assert_array_equal(cube["S2L2A_offset"].values, [0, -1000, 0])
    row = cube["S2L2A"].values[:, :, 0, :]
    assert row[0, 0, 0] == 2000
    # DN 995 to 1006 become at least 1: a valid pixel is never nodata.
    np.testing.assert_array_equal(row[1, :, 0], [1] * 6 + [1, 2, 3, 4, 5, 6])
    assert row[1, 0, 63] == 4000
    assert row[1, 0, 5] == 1
    assert row[0, 0, 63] == 0
    assert row[2, 0, 0] == 1500


def test_linear_backscatter_becomes_decibel_and_fill_values_nan(tmp_path):
    items = [s1_item(tmp_path, "power", day("2024-05-01"), 0.1, collection="sentinel-1-rtc")]
    cube = load_cube(items, modalities=["S1RTC"])
    np.testing.assert_allclose(cube["S1RTC"].values[0, :, 3, 3], [-10, -13.0103], atol=1e-4)

    with rasterio.open(items[0].assets["vv"].href, "r+") as dataset:
        pixels = np.full((SIZE_PX, SIZE_PX), 0.01, "float32")
        pixels[:4] = -32768
        pixels[4] = 0
        dataset.write(pixels, 1)
    values = load_cube(items, modalities=["S1RTC"])["S1RTC"].values[0, 0]
    assert np.isnan(values[:5]).all()
    np.testing.assert_allclose(values[5:], -20, atol=1e-4)

    decibel = s1_item(
        tmp_path, "db", day("2024-05-01"), -7.0, collection="sentinel-1-rtc", raster={"unit": "dB"}
    )
    assert load_cube([decibel], modalities=["S1RTC"])["S1RTC"].values[0, 0, 0, 0] == -7


def test_annual_classes_are_matched_by_year_and_translated(tmp_path):
    codes = np.zeros((SIZE_PX, SIZE_PX), "uint8")
    codes[0, :10] = [row.provider_value for row in LULC_CLASSES]
    items = [s2_item(tmp_path, f"s2_{year}", day(f"{year}-07-01")) for year in (2022, 2023, 2024)]
    for year in (2022, 2023):
        path = write_tiff(tmp_path / f"lulc{year}.tif", codes + (year == 2023) * (codes == 1))
        span = (datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC))
        items.append(make_item(f"m{year}", span, {"data": path}, collection="io-lulc-annual-v02"))
    with warns_user("LULC has no scene for 2024-07-01"):
        cube = load_cube(items, modalities=["S2L2A", "LULC"])
    assert cube["LULC"].dims == ("time", "y", "x")
    assert cube["LULC"].dtype == "uint8"
    np.testing.assert_array_equal(cube["LULC"].values[0, 0, :10], [r.value for r in LULC_CLASSES])
    assert cube["LULC"].values[1, 0, 1] == 2
    assert not cube["LULC"].values[2].any()
    with warns_user("LULC is a map of another year: 2024 from 2023"):
        nearest = load_cube(items, modalities=["S2L2A", "LULC"], lulc_year="nearest")
    assert nearest["LULC"].values[:, 0, 1].tolist() == [1, 2, 2]
    with warns_user("2023 from 2022, 2024 from 2022"):
        fixed = load_cube(items, modalities=["S2L2A", "LULC"], lulc_year=2022)
    assert fixed["LULC"].values[:, 0, 1].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"No LULC item"):
        load_cube(items, modalities=["S2L2A", "LULC"], lulc_year=2015)
    for bad in ("last", 20, True, 2023.5):
        with pytest.raises(ValueError, match="lulc_year is a year"):
            load_cube(items, modalities=["S2L2A", "LULC"], lulc_year=bad)


def elevation(folder, edition, metres, *, left=LEFT, width=SIZE_PX, resolution_m=10.0):
    pixels = np.full((int(480 / resolution_m), int(width * 10 / resolution_m)), metres, "float32")
    name = f"{edition}_{metres}"
    path = write_tiff(folder / f"{name}.tif", pixels, left=left, resolution_m=resolution_m)
    # The coarser edition is older and its id comes first.
    return make_item(name, day(f"20{edition[-2:]}-01-01"), {"data": path}, collection=edition)


def test_static_layer_is_completed_by_a_coarser_edition(tmp_path):
    fine = elevation(tmp_path, "cop-dem-glo-30", 30, width=SIZE_PX // 2)
    coarse = elevation(tmp_path, "cop-dem-glo-90", 90, resolution_m=20.0)
    for items in ([fine, coarse], [coarse, fine]):
        heights = load_cube(items, geobox=grid(), modalities=["DEM"])["DEM"].values
        assert (heights[:, : SIZE_PX // 2 - 1] == 30).all()
        assert (heights[:, SIZE_PX // 2 + 2 :] == 90).all()
        assert not np.isnan(heights).any()
    # Where the fine one is whole, the other is not read, nor is one of another source.
    whole = elevation(tmp_path, "cop-dem-glo-30", 31)
    assert (load_cube([coarse, whole], geobox=grid(), modalities=["DEM"])["DEM"] == 31).all()
    other = elevation(tmp_path, "nasadem-90", 7, resolution_m=20.0)
    with warns_user("DEM covers 50% of the area"):
        cube = load_cube([fine, other, s2_item(tmp_path, "s", day("2024-05-01"))], geobox=grid(),
                         modalities=["DEM", "S2L2A"])  # fmt: skip
    assert np.isnan(cube["DEM"].values).mean() == 0.5


def test_static_layer_is_found_at_any_time_and_alone_has_no_time(tmp_path):
    heights = np.linspace(0, 900, SIZE_PX**2, dtype="float32").reshape(SIZE_PX, SIZE_PX)
    assets = {"data": write_tiff(tmp_path / "dem.tif", heights)}
    dem = make_item("dem", day("2011-01-01"), assets, collection="cop-dem-glo-30")
    cube = load_cube([dem, s2_item(tmp_path, "a", day("2024-05-01"))], datetime="2024",
                     modalities=["DEM", "S2L2A"])  # fmt: skip
    assert cube["DEM"].dims == ("y", "x")
    np.testing.assert_array_equal(cube["DEM"].values, heights)
    alone = load_cube([dem], modalities=["DEM"])
    assert "time" not in alone.dims
    assert "time" not in alone.coords
    assert "nodata" not in alone["DEM"].attrs


def test_warped_pixels_do_not_depend_on_the_chunks(tmp_path):
    rng = np.random.default_rng(0)
    heights = rng.normal(500, 100, (120, 120)).astype("float32")
    path = tmp_path / "dem.tif"
    write_tiff(path, heights, left=8.999, top=48.1, resolution_m=1 / 3600, crs="EPSG:4326")
    dem = make_item("dem", day("2011-01-01"), {"data": path}, collection="cop-dem-glo-30")
    area = grid(280, LEFT, 5326400.0)
    whole = load_cube([dem], geobox=area, modalities=["DEM"])["DEM"].values
    assert np.isfinite(whole).mean() > 0.5
    for length in (64, 100):
        chunks = {"y": length, "x": length}
        cut = load_cube([dem], geobox=area, modalities=["DEM"], chunks=chunks)["DEM"].values
        np.testing.assert_array_equal(cut, whole)
    part = load_cube([dem], geobox=area[50:150, 30:170], modalities=["DEM"])["DEM"].values
    np.testing.assert_array_equal(part, whole[50:150, 30:170])


def test_crs_survives_arithmetic_and_a_store(tmp_path):
    cube = load_cube([s2_item(tmp_path, "a", day("2024-05-01"))], modalities=["S2L2A"])
    assert cube["S2L2A"].odc.crs == CRS
    assert (cube["S2L2A"] * 2).odc.crs == CRS
    cube.to_zarr(tmp_path / "cube.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "cube.zarr", consolidated=False) as opened:
        assert opened["S2L2A"].odc.crs == CRS
        np.testing.assert_array_equal(opened["S2L2A"].values, cube["S2L2A"].values)


def test_missing_and_truncated_files_are_named_while_building(tmp_path):
    noise = np.random.default_rng(0).integers(1, 9999, (12, 512, 512)).astype("uint16")
    path = write_tiff(tmp_path / "scene.tif", noise, driver="COG", compress="deflate")
    item = make_item("scene", day("2024-05-01"), {"S2L2A": path})
    load_cube([item], modalities=["S2L2A"])
    whole = path.read_bytes()
    # A COG's header lies in front: it opens, and only its last blocks are gone.
    path.write_bytes(whole[: len(whole) * 9 // 10])
    with rasterio.open(path):
        pass
    with pytest.raises(AssetError, match=r"scene\.tif of item 'scene'.*truncated"):
        load_cube([item], modalities=["S2L2A"])
    path.write_bytes(b"no raster")
    with pytest.raises(AssetError, match=r"scene\.tif of item 'scene'.*no raster"):
        load_cube([item], modalities=["S2L2A"])
    path.unlink()
    with pytest.raises(AssetError, match=r"scene\.tif of item 'scene'.*no such file"):
        load_cube([item], modalities=["S2L2A"])


def test_error_while_computing_names_the_file_and_travels(tmp_path):
    item = s2_item(tmp_path, "scene", day("2024-05-01"))
    cube = load_cube([item], modalities=["S2L2A"])
    path = Path(item.assets["data"].href)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(AssetError, match=r"Cannot read .*scene\.tif") as caught:
        cube["S2L2A"].compute(scheduler="synchronous")
    assert isinstance(caught.value, OSError)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copied, AssetError)
    assert (str(copied), copied.href) == (str(caught.value), str(path))
    # The graph itself must travel to workers as well.
    pickle.dumps(cube["S2L2A"].data)


def test_missing_bands_are_named(tmp_path):
    files = {
        band: write_tiff(tmp_path / f"{band}.tif", np.ones((SIZE_PX, SIZE_PX), "uint16"))
        for band in S2.bands
        if band not in {"B05", "B12"}
    }
    for collection in ("sentinel-2-l2a", None):
        item = make_item("short", day("2024-05-01"), files, collection=collection)
        with pytest.raises(ValueError, match=r"'short'.*lacks B05, B12 of S2L2A"):
            load_cube([item], modalities=["S2L2A"])
    stack = write_tiff(tmp_path / "stack.tif", np.ones((10, SIZE_PX, SIZE_PX), "uint16"))
    item = make_item("stack", day("2024-05-01"), {"S2L2A": stack})
    with pytest.raises(ValueError, match=r"stack\.tif of item 'stack' has 10 bands where S2L2A"):
        load_cube([item], modalities=["S2L2A"])


def test_uncalibrated_radar_is_refused(tmp_path):
    item = s1_item(tmp_path, "grd", day("2024-05-01"), 300.0, collection="sentinel-1-grd")
    with pytest.raises(ValueError, match=r"'grd'.*uncalibrated"):
        load_cube([item], modalities=["S1GRD"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ["S2L2"]}, r"Unknown modality 'S2L2'.*did you mean 'S2L2A'"),
        ({"modalities": []}, "modalities is empty"),
        ({"modalities": ["Coordinates"]}, "Coordinates is not read from items"),
        ({"modalities": ["DEM"]}, r"No DEM item: The given list holds 1 items.*my-s2l2a \(1\)"),
        ({"datetime": "2019"}, r"No S2L2A item for datetime '2019'.*2024-05-01 to 2024-05-01"),
        ({"datetime": "spring"}, "Cannot read datetime 'spring'"),
        ({"bbox": (0, 0, 1, 1)}, r"No S2L2A item in the area.*holds 1 items in bbox \(9\."),
        ({"bbox": (9.1, 48, 9.0, 49, 7)}, "bbox must be"),
        ({"bbox": (0, 0, 1, 1), "intersects": {}}, "not both"),
        ({"crs": "EPSG:4326"}, "EPSG:4326 is geographic"),
        ({"resolution": 0}, "resolution must be positive"),
        ({"pair_within": "soon"}, "pair_within must be a duration"),
        ({"chunks": {"band": 1}}, "chunks maps time, y and x"),
        ({"geobox": grid(crs="EPSG:4326")}, "geographic"),
        ({"geobox": grid(), "bbox": (9, 48, 10, 49)}, "Give geobox alone"),
        ({"geobox": GeoBox((4, 4), Affine(10, 0, 0, 0, 10, 0), CRS)}, "north-up"),
    ],
)
def test_bad_input_is_refused(tmp_path, options, message):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    with pytest.raises(ValueError, match=message):
        load_cube([item], **({"modalities": ["S2L2A"]} | options))


def test_what_is_no_item_is_refused():
    with pytest.raises(ValueError, match="got int"):
        load_cube([3], modalities=["S2L2A"])


def test_resolution_far_from_ten_metres_warns(tmp_path):
    item = s2_item(tmp_path, "a", day("2024-05-01"))
    with warns_user("resolution is 60 m"):
        cube = load_cube([item], modalities=["S2L2A"], resolution=60)
    assert cube.odc.geobox.resolution.x == 60
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_cube([item], modalities=["S2L2A"], resolution=12)
