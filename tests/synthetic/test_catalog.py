"""write_catalog: a valid, self-contained catalog whose pixels are those of make_scene."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pystac
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from odc.geo.geom import point

from terramind_cube.synthetic import make_scene, write_catalog
from terramind_cube.synthetic.catalog import _mgrs_square

if TYPE_CHECKING:
    from pathlib import Path

SIZE_PX = 300
DATES = ("2023-05-14", "2024-08-22")
SEED = 900_001


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_catalog(
        tmp_path_factory.mktemp("catalog") / "place", size_px=SIZE_PX, seed=SEED, dates=DATES
    )


def read(item, key):
    with rasterio.open(item.assets[key].get_absolute_href()) as file:
        return file.read(1)


@pytest.fixture(scope="module")
def items(path) -> dict[str, list[pystac.Item]]:
    catalog = pystac.Catalog.from_file(str(path))
    return {child.id: sorted(child.get_items(), key=str) for child in catalog.get_children()}


def test_the_catalog_holds_the_four_collections(path, items):
    assert path.name == "catalog.json"
    counts = {name: len(members) for name, members in items.items()}
    assert counts == {"sentinel-2-l2a": 2, "sentinel-1-rtc": 2, "cop-dem-glo-30": 1, "lulc": 2}
    assert set(items["sentinel-1-rtc"][0].assets) == {"vv", "vh"}
    assert set(items["lulc"][0].assets) == set(items["cop-dem-glo-30"][0].assets) == {"data"}


def test_every_href_is_relative_and_the_folder_may_move(path, items, tmp_path):
    documents = sorted(path.parent.rglob("*.json"))
    assert len(documents) == 1 + 4 + 7
    for document in documents:
        content = json.loads(document.read_text())
        links = content["links"] + list(content.get("assets", {}).values())
        for link in links:
            assert not link["href"].startswith(("/", "file:", "http"))
            assert (document.parent / link["href"]).exists()
    moved = tmp_path / "elsewhere"
    path.parent.rename(moved)
    try:
        read = pystac.Catalog.from_file(str(moved / "catalog.json"))
        assert len(list(read.get_items(recursive=True))) == 7
    finally:
        moved.rename(path.parent)


def test_times_are_those_of_the_missions(items):
    optical = [item.datetime for item in items["sentinel-2-l2a"]]
    assert sorted(f"{time:%Y-%m-%dT%H:%M}" for time in optical) == [f"{d}T10:30" for d in DATES]
    radar = sorted(item.datetime for item in items["sentinel-1-rtc"])
    for s1, s2 in zip(radar, sorted(optical), strict=True):
        assert 0.25 < abs((s1 - s2).total_seconds()) / 86400 < 2.5
    assert f"{items['cop-dem-glo-30'][0].datetime:%Y-%m-%d}" == "2021-04-22"
    spans = [item.properties for item in items["lulc"]]
    assert all(span["datetime"] is None for span in spans)
    assert sorted((s["start_datetime"][:10], s["end_datetime"][:10]) for s in spans) == [
        ("2023-01-01", "2023-12-31"),
        ("2024-01-01", "2024-12-31"),
    ]


def test_metadata_of_every_asset_is_that_of_its_file(items):
    for item in (member for members in items.values() for member in members):
        west, south, east, north = item.bbox
        assert -180 <= west < east <= 180
        assert -90 <= south < north <= 90
        assert item.geometry["type"] == "Polygon"
        for asset in item.assets.values():
            fields = asset.extra_fields
            [band] = fields["raster:bands"]
            with rasterio.open(asset.get_absolute_href()) as file:
                assert str(file.crs) == item.properties["proj:code"]
                assert list(file.shape) == fields["proj:shape"]
                assert list(file.transform)[:6] == fields["proj:transform"]
                assert file.dtypes == (band["data_type"],)
                expected = float(band["nodata"])
                assert file.nodata == expected or np.isnan([file.nodata, expected]).all()


def test_bands_are_named_and_scaled(items):
    for item in items["sentinel-2-l2a"]:
        assert len(item.assets) == 12 + 1
        assert item.properties["s2:processing_baseline"] == "05.10"
        assert item.properties["eo:cloud_cover"] == 0
        assert item.properties["grid:code"] == "MGRS-29TMM"
        [classes] = item.assets["scl"].extra_fields["raster:bands"]
        assert classes == {"data_type": "uint8", "nodata": 0, "spatial_resolution": 20}
        for key, asset in item.assets.items():
            if key == "scl":
                continue
            [band] = asset.extra_fields["raster:bands"]
            assert (band["scale"], band["offset"], band["nodata"]) == (1e-4, 0, 0)
            assert asset.extra_fields["eo:bands"] == [{"name": key}]
    for item in items["sentinel-1-rtc"]:
        for key, asset in item.assets.items():
            assert asset.extra_fields["raster:bands"][0]["unit"] == "dB"
            assert asset.extra_fields["eo:bands"] == [{"name": key.upper()}]
    [dem] = items["cop-dem-glo-30"]
    assert dem.assets["data"].extra_fields["raster:bands"][0]["unit"] == "m"


def test_files_are_cloud_optimized(path):
    files = sorted(path.parent.rglob("*.tif"))
    assert len(files) == 2 * 13 + 2 * 2 + 1 + 2
    for name in files:
        with rasterio.open(name) as file:
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert file.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "DEFLATE"
            assert file.block_shapes == [(256, 256)]
            assert bool(file.overviews(1)) == (max(file.shape) > 256)


def test_bands_lie_on_native_grids_that_cover_the_scene_from_its_corner(items):
    assets = items["sentinel-2-l2a"][0].assets
    boxes = {}
    for key in ("B04", "B05", "B09"):
        with rasterio.open(assets[key].get_absolute_href()) as file:
            boxes[key] = (file.res[0], file.shape, file.bounds.left, file.bounds.top)
    assert [boxes[key][0] for key in boxes] == [10, 20, 60]
    assert [boxes[key][1] for key in boxes] == [(300, 300), (150, 150), (50, 50)]
    assert len({box[2:] for box in boxes.values()}) == 1


def test_a_size_off_the_coarse_grids_is_covered_by_rounding_up(tmp_path):
    path = write_catalog(tmp_path, size_px=32, seed=5, dates=["2024-05-14"])
    shapes = {}
    for name in path.parent.rglob("B*.tif"):
        with rasterio.open(name) as file:
            shapes[name.stem] = file.shape
    assert shapes["B02"] == (32, 32)
    assert shapes["B11"] == (16, 16)
    assert shapes["B01"] == (6, 6)


def test_pixels_are_those_of_make_scene(items):
    scene = make_scene(SEED, (SIZE_PX, SIZE_PX), date=DATES[0])

    for key, step in (("B08", 1), ("B12", 2), ("B01", 6)):
        expected = scene["S2L2A"].sel(S2L2A_band=key).values[0, ::step, ::step]
        np.testing.assert_array_equal(read(items["sentinel-2-l2a"][0], key), expected)
    for key in ("VV", "VH"):
        expected = scene["S1RTC"].sel(S1RTC_band=key).values[0]
        np.testing.assert_array_equal(read(items["sentinel-1-rtc"][0], key.lower()), expected)
    np.testing.assert_array_equal(read(items["cop-dem-glo-30"][0], "data"), scene["DEM"])
    # The annual map knows no snow of a day; this day has none.
    np.testing.assert_array_equal(read(items["lulc"][0], "data"), scene["LULC"][0])


def test_a_place_is_seen_from_the_same_orbits_again_and_again(tmp_path):
    dates = ("2024-05-14", "2024-05-18", "2024-08-22")
    both = ("ascending", "descending")
    path = write_catalog(tmp_path, size_px=32, seed=SEED, dates=dates, orbits=both)
    items = list(pystac.Catalog.from_file(str(path)).get_items(recursive=True))
    radar = [item for item in items if item.collection_id == "sentinel-1-rtc"]
    assert len(radar) == len({item.id for item in radar}) == 6
    seen = {(i.properties["sat:orbit_state"], i.properties["sat:relative_orbit"]) for i in radar}
    assert [state for state, _ in sorted(seen)] == ["ascending", "descending"]
    assert len({number for _, number in seen}) == 2
    assert all(1 <= number <= 175 for _, number in seen)
    for item in radar:
        is_evening = item.datetime.hour in (17, 18)
        assert (item.properties["sat:orbit_state"] == "ascending") is is_evening
        assert any("/sat/" in schema for schema in item.stac_extensions)
        scenes = [
            make_scene(SEED, (32, 32), date=date, orbit=item.properties["sat:orbit_state"])
            for date in dates
        ]
        pixels = read(item, "vv")
        assert sum(np.array_equal(pixels, s["S1RTC"].values[0, 0]) for s in scenes) == 1


def test_clouds_are_those_of_make_scene_and_the_scene_classes_tell_them(tmp_path):
    size, dates, covers = 130, ("2024-05-14", "2024-08-22"), (0.25, 0.0)
    path = write_catalog(tmp_path, size_px=size, seed=SEED, dates=dates, clouds=covers)
    items = list(pystac.Catalog.from_file(str(path)).get_items(recursive=True))
    cloudy, clear = (item for item in items if item.collection_id == "sentinel-2-l2a")
    assert (cloudy.properties["eo:cloud_cover"], clear.properties["eo:cloud_cover"]) == (25, 0)
    scene = make_scene(SEED, (size, size), date=dates[0], clouds=covers[0])
    red = scene["S2L2A"].sel(S2L2A_band="B04").values[0]
    np.testing.assert_array_equal(read(cloudy, "B04"), red)
    classes = read(cloudy, "scl")
    assert (classes.dtype, classes.shape) == (np.uint8, (65, 65))
    assert set(np.unique(classes)) <= {3, 4, 5, 6, 8, 9, 11}
    fine = classes.repeat(2, axis=0).repeat(2, axis=1)
    is_cloud = scene["LULC"].values[0] == 8
    # No cloud is missed, and a pixel of 20 m that is called cloud has one.
    assert np.isin(fine[is_cloud], (8, 9)).all()
    assert is_cloud.reshape(65, 2, 65, 2).any(axis=(1, 3))[np.isin(classes, (8, 9))].all()
    sunny = make_scene(SEED, (size, size), date=dates[0])["S2L2A"].sel(S2L2A_band="B04").values[0]
    darkened = red[fine == 3] / sunny[fine == 3].astype(float)
    assert (fine == 3).any()
    assert np.median(darkened) < 0.8
    assert not np.isin(read(clear, "scl"), (0, 3, 8, 9)).any()


def test_scene_classes_of_clear_ground_follow_the_surface_and_the_season(items):
    item = items["sentinel-2-l2a"][0]
    truth = read(items["lulc"][0], "data")[::2, ::2]
    classes = read(item, "scl")
    assert (classes[truth == 1] == 6).all()
    assert (truth[classes == 6] == 1).all()
    red, infrared = (read(item, key)[::2, ::2].astype(float) for key in ("B04", "B08"))
    ndvi = (infrared - red) / (infrared + red)
    assert ndvi[classes == 4].min() > 0.4 >= ndvi[classes == 5].max()


def test_snow_is_a_scene_class(tmp_path):
    date = ["2024-01-14"]
    path = write_catalog(tmp_path, size_px=64, seed=900_008, dates=date)  # 61 degrees north
    items = list(pystac.Catalog.from_file(str(path)).get_items(recursive=True))
    classes = read(next(i for i in items if "scl" in i.assets), "scl")
    truth = make_scene(900_008, (64, 64), date=date[0])["LULC"].values[0]
    assert (truth == 7).mean() > 0.2
    np.testing.assert_array_equal(classes == 11, truth[::2, ::2] == 7)


@pytest.mark.parametrize(
    ("longitude", "latitude", "epsg", "square"),
    [
        (12.48, 41.89, 32633, "33TTG"),
        (-0.13, 51.5, 32630, "30UXC"),
        (-46.63, -23.55, 32723, "23KLP"),
        (144.96, -37.81, 32755, "55HCU"),
    ],
)
def test_the_grid_code_is_that_of_the_military_grid(longitude, latitude, epsg, square):
    [(east_m, north_m)] = point(longitude, latitude, "EPSG:4326").to_crs(epsg).coords
    bounds = (east_m - 50, north_m - 50, east_m + 50, north_m + 50)
    assert _mgrs_square(GeoBox.from_bbox(bounds, epsg, resolution=10)) == square


def test_writing_twice_gives_the_same_bytes(tmp_path):
    trees = []
    for name in ("one", "two"):
        path = write_catalog(tmp_path / name, size_px=48, seed=8, dates=["2024-05-14"])
        files = sorted(file for file in path.parent.rglob("*") if file.is_file())
        trees.append({str(f.relative_to(path.parent)): f.read_bytes() for f in files})
    assert trees[0] == trees[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": 0}, "positive"),
        ({"size_px": -16}, "positive"),
        ({"seed": -1}, "seed"),
        ({"dates": ()}, "dates"),
        ({"dates": ("2024-08-22", "2024-05-14")}, "ascending"),
        ({"dates": ("2024-05-14", "2024-05-14")}, "ascending"),
        ({"dates": ("tomorrow",)}, "tomorrow"),
        ({"clouds": 1.1}, "clouds"),
        ({"clouds": float("nan")}, "clouds"),
        ({"clouds": (0.1, 0.2, 0.3)}, "all 2 dates"),
        ({"orbits": ()}, "orbits"),
        ({"orbits": ("polar",)}, "polar"),
        ({"orbits": ("ascending", "ascending")}, "orbits"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(tmp_path, arguments, message):
    target = tmp_path / "place"
    with pytest.raises(ValueError, match=message):
        write_catalog(target, **{"size_px": 32, "seed": 1, **arguments})
    assert not target.exists()


def test_a_directory_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=str(tmp_path)):
        write_catalog(tmp_path, size_px=32)
    with pytest.raises(FileExistsError):
        write_catalog(tmp_path / "notes.txt", size_px=32)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]
