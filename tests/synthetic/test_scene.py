"""make_scene: the contract of a cube, determinism, seasons, clouds, radar, and the truth."""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import sys

import numpy as np
import odc.geo.xr  # noqa: F401  (registers .odc)
import pytest
import xarray as xr

from terramind_cube.modalities import LULC_CLASSES, MODALITIES
from terramind_cube.synthetic import make_scene

SHAPE = (192, 224)
SUMMER = "2024-06-24"

DIGEST = """
import hashlib, warnings
warnings.simplefilter("ignore")
from terramind_cube.synthetic import make_scene
scene = make_scene(900_007, (96, 128), latitude=51.0, date="2023-09-03", clouds=0.2)
digest = hashlib.sha256()
for name in sorted(scene.variables):
    digest.update(name.encode() + scene[name].values.tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def scene() -> xr.Dataset:
    return make_scene(900_001, SHAPE, latitude=47.0, date=SUMMER)


def pixels(scene: xr.Dataset, value: int) -> np.ndarray:
    mask = scene["LULC"].values[0] == value
    assert mask.sum() >= 40, f"the scene shows too little of class {value} to judge"
    return mask


@pytest.mark.parametrize("name", [name for name in MODALITIES if name != "Coordinates"])
def test_every_modality_has_the_dims_dtype_bands_and_range_of_its_row(scene, name):
    row, layer = MODALITIES[name], scene[name]
    bands = () if row.band_dim is None else (row.band_dim,)
    time = () if row.temporal == "static" else ("time",)
    assert layer.dims == (*time, *bands, "y", "x")
    assert layer.dtype == row.dtype
    assert layer.attrs["units"] == row.units
    assert layer.encoding["grid_mapping"] == "spatial_ref"
    low, high = row.valid_range
    assert float(layer.min()) >= low
    assert float(layer.max()) <= high
    if bands:
        assert tuple(scene[row.band_dim].values) == row.bands
    if np.issubdtype(layer.dtype, np.integer):
        assert layer.attrs["nodata"] == 0
        assert int(layer.min()) > 0, "a synthetic scene has no invalid pixels"


def test_time_coordinates_say_when_and_how_clear(scene):
    assert scene.sizes["time"] == 1
    assert scene["time"].dtype == "datetime64[ns]"
    assert str(scene["time"].values[0]).startswith(f"{SUMMER}T10:30")
    assert scene["S2L2A_offset"].dtype == np.int16
    assert scene["S2L2A_offset"].dims == scene["S1RTC_time"].dims == ("time",)
    assert int(scene["S2L2A_offset"][0]) == 0
    gap = abs(scene["S1RTC_time"].values[0] - scene["time"].values[0])
    assert np.timedelta64(6, "h") < gap < np.timedelta64(60, "h")
    assert float(scene["clear_fraction"][0]) == 1.0


@pytest.mark.parametrize(("latitude", "family"), [(47.0, 326), (-33.5, 327), (0.0, 326)])
def test_the_grid_is_10_m_utm_of_the_hemisphere_on_whole_160_m_cells(latitude, family):
    scene = make_scene(900_003, (64, 48), latitude=latitude, date=SUMMER)
    box = scene.odc.geobox
    assert box.crs.to_epsg() // 100 == family
    assert (box.transform.a, box.transform.e) == (10.0, -10.0)
    assert box.transform.c % 160 == 0
    assert box.transform.f % 160 == 0
    assert (scene["y"].diff("y") < 0).all()
    north = box.geographic_extent.boundingbox.top
    assert abs(north - latitude) < 0.01


def test_two_processes_make_the_same_bytes():
    there = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
    ).stdout.strip()
    here = make_scene(900_007, (96, 128), latitude=51.0, date=dt.date(2023, 9, 3), clouds=0.2)
    digest = hashlib.sha256()
    for name in sorted(here.variables):
        digest.update(str(name).encode() + here[name].values.tobytes())
    assert there == digest.hexdigest()


def test_another_seed_is_another_place(scene):
    other = make_scene(900_002, SHAPE, latitude=47.0, date=SUMMER)
    assert (other["LULC"].values != scene["LULC"].values).mean() > 0.3


def test_without_date_latitude_or_orbit_the_seed_decides():
    xr.testing.assert_identical(make_scene(11, (40, 40)), make_scene(11, (40, 40)))
    assert make_scene(11, (40, 40)).time.values[0] != make_scene(12, (40, 40)).time.values[0]


def test_another_season_keeps_terrain_water_and_settlement(scene):
    autumn = make_scene(900_001, SHAPE, latitude=47.0, date="2023-10-05")
    np.testing.assert_array_equal(autumn["DEM"], scene["DEM"])
    for value in (1, 5):
        np.testing.assert_array_equal(autumn["LULC"] == value, scene["LULC"] == value)
    crops = pixels(scene, 4)
    change = np.abs(autumn["NDVI"].values - scene["NDVI"].values)[0]
    assert change[crops].mean() > 0.15


def test_winter_brings_snow_and_takes_the_leaves(scene):
    winter = make_scene(900_001, SHAPE, latitude=64.0, date="2024-01-20")
    summer = make_scene(900_001, SHAPE, latitude=64.0, date="2024-07-20")
    assert (winter["LULC"] == 7).mean() > 0.3
    assert (summer["LULC"] == 7).mean() < 0.05
    snow = pixels(winter, 7)
    assert np.median(winter["S2L2A"].sel(S2L2A_band="B03").values[0][snow]) > 2500


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_clouds_cover_exactly_the_fraction_asked_for(scene, fraction):
    cloudy = make_scene(900_001, SHAPE, latitude=47.0, date=SUMMER, clouds=fraction)
    mask = cloudy["LULC"].values[0] == 8
    assert mask.sum() == round(fraction * mask.size)
    assert float(cloudy["clear_fraction"][0]) == pytest.approx(1 - fraction)
    if fraction:
        blue = cloudy["S2L2A"].sel(S2L2A_band="B02").values[0]
        assert np.quantile(blue[mask], 0.02) > 2500
        cirrus = cloudy["S2L1C"].sel(S2L1C_band="B10").values[0]
        assert cirrus[mask].min() > 12
    np.testing.assert_array_equal(cloudy["S1RTC"], scene["S1RTC"])
    np.testing.assert_array_equal(cloudy["DEM"], scene["DEM"])


def test_ndvi_is_that_of_the_stored_reflectance(scene):
    red = scene["S2L2A"].sel(S2L2A_band="B04", drop=True).astype("float64")
    infrared = scene["S2L2A"].sel(S2L2A_band="B08", drop=True).astype("float64")
    expected = (infrared - red) / (infrared + red)
    np.testing.assert_allclose(scene["NDVI"], expected, atol=1e-6)


def test_coarse_bands_repeat_their_native_pixels(scene):
    for band, step in (("B05", 2), ("B09", 6)):
        values = scene["S2L2A"].sel(S2L2A_band=band).values[0]
        corner = values[::step, ::step].repeat(step, 0).repeat(step, 1)
        np.testing.assert_array_equal(values, corner[: SHAPE[0], : SHAPE[1]])
    fine = scene["S2L2A"].sel(S2L2A_band="B04").values[0]
    assert (fine[::2, ::2] != fine[1::2, ::2]).mean() > 0.5


def test_orbit_turns_the_slopes_that_shine():
    views = {
        orbit: make_scene(900_008, SHAPE, latitude=44.0, date=SUMMER, orbit=orbit)
        for orbit in ("ascending", "descending")
    }
    dem = views["ascending"]["DEM"].values
    rise_east = np.gradient(dem, 10.0, axis=1)
    both = views["ascending"]["S1GRD"] - views["descending"]["S1GRD"]
    difference = both.sel(S1GRD_band="VV").values[0]
    steep = np.abs(rise_east) > 0.1
    assert steep.sum() > 500
    # Ascending looks east, so that ground rising eastwards faces it.
    assert np.corrcoef(rise_east[steep], difference[steep])[0, 1] > 0.3
    evening = views["ascending"]["S1RTC_time"].dt.hour.item()
    assert evening > 12 > views["descending"]["S1RTC_time"].dt.hour.item()


def test_the_truth_agrees_with_what_the_sensors_see(scene):
    ndvi = scene["NDVI"].values[0]
    vv = scene["S1RTC"].sel(S1RTC_band="VV").values[0]
    infrared = scene["S2L2A"].sel(S2L2A_band="B11").values[0]
    water, trees, crops, built = (pixels(scene, value) for value in (1, 2, 4, 5))
    assert np.median(ndvi[water]) < 0.05
    assert np.median(infrared[water]) < 600
    assert np.median(vv[water]) < -15
    assert np.median(ndvi[trees]) > 0.6
    assert np.median(ndvi[built]) < 0.45
    assert np.median(vv[built]) > np.median(vv[crops]) + 3
    assert np.std(ndvi[crops]) > 2 * np.std(ndvi[trees])


def test_water_lies_level_and_low(scene):
    dem, water = scene["DEM"].values, pixels(scene, 1)
    slope = np.hypot(*np.gradient(dem, 10.0))
    assert np.median(slope[water]) < np.median(slope[~water])


def test_classes_carry_their_meaning(scene):
    meanings = scene["LULC"].attrs["flag_meanings"].split()
    assert meanings == [row.name for row in LULC_CLASSES]
    assert set(np.unique(scene["LULC"])) <= set(scene["LULC"].attrs["flag_values"])


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (37, 16)])
def test_any_positive_shape_works(shape):
    scene = make_scene(3, shape)
    assert scene["LULC"].shape == (1, *shape)
    assert bool(np.isfinite(scene["S1RTC"]).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"shape": (0, 16)}, "shape"),
        ({"shape": (16, -3)}, "shape"),
        ({"shape": (16, 16, 16)}, "shape"),
        ({"shape": (16.5, 16)}, "shape"),
        ({"clouds": 1.01}, "clouds"),
        ({"clouds": -0.1}, "clouds"),
        ({"clouds": float("nan")}, "clouds"),
        ({"orbit": "sideways"}, "orbit"),
        ({"latitude": 89.0}, "latitude"),
        ({"date": "2024-13-40"}, "date"),
        ({"date": "2024"}, "date"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    given = {"seed": 1, "shape": (16, 16), **arguments}
    with pytest.raises(ValueError, match=message):
        make_scene(given.pop("seed"), given.pop("shape"), **given)
