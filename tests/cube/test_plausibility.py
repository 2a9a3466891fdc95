"""Pixels that contradict what metadata say of them."""

import re

import dask
import numpy as np
import pytest
import xarray as xr

import terramind_cube as tc
from terramind_cube.cube.plausibility import find_implausible
from tests.cube.scenes import day, grid, make_item, write_tiff

SEED = 900_777


@pytest.fixture(scope="module")
def scene():
    return tc.synthetic.make_scene(SEED, (128, 128), date="2024-06-01")


def test_scenes_of_the_synthetic_earth_are_plausible(scene):
    assert find_implausible(scene) == []
    assert scene.terramind.find_implausible(window_px=64) == []


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("S2L2A", lambda s2: s2 + 1000, "offset of 1000 DN seems to be still there"),
        ("S2L2A", lambda s2: (s2.astype(int) - 1500).clip(1).astype("uint16"), "taken off twice"),
        ("S1RTC", lambda s1: 10 ** (s1 / 10), "linear power or digital numbers"),
        ("S1RTC", lambda s1: s1 * 0 + 300, "the median is 300 dB"),
        ("DEM", lambda dem: dem + 40_000, "where -500 to 9000 are possible"),
        ("DEM", lambda dem: holed(dem, -32768), r"from -32768 to .*25% of the pixels are void"),
        ("LULC", lambda lulc: lulc * 0 + 80, "class 80, where TerraMind has 0 to 9"),
        ("S2L2A", lambda s2: s2.astype("f4") / 10_000, r"reflectance in 0 to 1.*\* 10000"),
        ("S2L2A", lambda s2: (s2 / 1e4).where(s2[:, 7] > 3000), r"reflectance in 0 to 1.*\* 10000"),
        ("S2L2A", lambda s2: s2.astype("f4") / 100, r"reflectance in percent.*\* 100\."),
        ("S2L2A", lambda s2: s2.astype("f4") - 30_000, "negative .* no reflectance is"),
        ("S2L2A", lambda s2: (s2 - s2.mean()) / s2.std(), "standardised already"),
        (
            "S2L2A",
            lambda s2: holed(s2, 65535),
            r"25% .*numbers of 64000 or more.*65535 is saturated",
        ),
        ("S2L2A", lambda s2: holed(s2, 64321), r"25% .*64000 or more, up to 64321.*wrap around"),
        (
            "S2L2A",
            lambda s2: holed(s2.astype("i2"), -9999),
            "down to -9999: fill values that nobody",
        ),
        (
            "S2L2A",
            lambda s2: holed(s2.astype("f4"), -9999),
            "down to -9999: fill values that nobody",
        ),
        ("S2L2A", lambda s2: holed(s2.astype("f4") / 1e4, -9999), "reflectance in 0 to 1"),
        ("S2L1C", lambda s2: s2 / 1e4, r"S2L1C.*reflectance in 0 to 1.*'S2L1C'\] \* 10000"),
        ("S1RTC", lambda s1: holed(s1, -9999), "down to -9999: fill values that nobody"),
        ("RGB", lambda rgb: rgb.astype("f4") / 255, r"colours in 0 to 1.*\* 255"),
        ("RGB", lambda rgb: rgb.astype("f4") * 40, "where 0 to 255 are possible"),
        ("NDVI", lambda ndvi: ndvi * 10_000, r"an index x 10000.*\* 0.0001"),
        ("NDVI", lambda ndvi: ndvi * 2, "where -1 to 1 are possible"),
        ("S2L2A", lambda s2: s2.astype("i2") - 1900, "negative: the offset of 1000 DN seems"),
        ("S1RTC", lambda s1: s1.astype("c8"), "complex64, no real numbers"),
    ],
)
def test_what_is_wrong_is_told_with_its_date(scene, name, change, told):
    found = find_implausible(scene.assign({name: change(scene[name])}))
    assert len(found) == 1
    assert re.search(told, found[0])
    is_timeless = name == "DEM" or "complex" in told
    assert found[0].startswith(f"{name}: " if is_timeless else f"{name} of 2024-06-01: ")


def holed(data, value):
    """Return pixels of which a quarter has another value."""
    data = data.copy(deep=True)
    data[..., :64, :64] = value
    return data


def test_a_few_saturated_pixels_are_no_fault_of_the_scene(scene):
    few = scene.S2L2A.copy(deep=True)
    few[..., 5:9, 7:11] = 65535
    assert find_implausible(scene.assign(S2L2A=few)) == []


def test_means_of_digital_numbers_are_digital_numbers(scene):
    """Fractions alone do not make reflectance in another unit."""
    mean = scene.S2L2A.astype("f4").where(scene.S2L2A > 0) + np.float32(0.37)
    assert find_implausible(scene.assign(S2L2A=mean)) == []
    clouds = scene.assign(S2L2A=scene.S2L2A * 0 + 4000)
    assert find_implausible(clouds) == []


def test_dark_water_is_no_offset_taken_off_twice(scene):
    """Its infrared bands lie at the smallest valid number, as in a real tile of TerraMesh."""
    water = scene.S2L2A.copy(deep=True)
    water[:, 6:] = 1
    assert find_implausible(scene.assign(S2L2A=water)) == []


@pytest.mark.parametrize(
    ("noted", "is_told"),
    [
        ({}, True),
        ({"S2L2A_baseline": 2.14}, False),
        ({"S2L2A_baseline": 5.09}, True),
        ({"S2L2A_baseline": np.nan}, True),
        ({"S2L2A_baseline": 5.09, "S2L2A_offset": -1000}, False),
        ({"S2L2A_baseline": 5.09, "S2L2A_offset_left": 1000}, False),
    ],
)
@pytest.mark.parametrize("place", [0, [0]])
@pytest.mark.parametrize("chunks", [None, {}])
def test_a_desert_is_no_offset_where_there_can_be_none(scene, noted, is_told, place, chunks):
    desert = scene.S2L2A.clip(1000).assign_coords(S2L2A_offset=("time", np.zeros(1, np.int16)))
    cube = desert.assign_coords({k: ("time", [v]) for k, v in noted.items()}).to_dataset()
    if chunks is not None:
        cube = cube.chunk(chunks)
    found = find_implausible(cube.isel(time=place))
    assert len(found) == is_told
    assert all("S2L2A of 2024-06-01: no band has pixels darker" in text for text in found)


def test_the_baseline_stands_along_time(tmp_path):
    """In the items it stands as a property, in a product's name, or nowhere."""
    path = write_tiff(tmp_path / "one.tif", np.full((16, 16), 1500, "uint16"), nodata=0)
    items = []
    for month, properties in enumerate(
        ({"s2:processing_baseline": "02.14"}, {"s2:processing_baseline": "05.11"}, {}), start=1
    ):
        item = make_item(
            f"item-{month}", day(f"2024-0{month}-01"), {"B02": path}, collection="sentinel-2-l2a"
        )
        item.properties |= properties
        items.append(item)
    cube = tc.load_cube(items, modalities=["S2L2A"], bands={"S2L2A": ["B02"]}, geobox=grid(16))
    np.testing.assert_array_equal(cube["S2L2A_baseline"], [2.14, 5.11, np.nan])


def test_nodata_tells_nothing_and_only_windows_are_computed(scene):
    assert find_implausible(xr.zeros_like(scene[["S2L2A"]])) == []
    cube = scene[["S2L2A"]].chunk(y=32, x=32)
    touched = []

    def note(block, block_info=None):
        if block_info:
            touched.append(tuple(block_info[0]["chunk-location"][-2:]))
        return block

    watched = cube.assign(S2L2A=cube["S2L2A"].copy(data=cube["S2L2A"].data.map_blocks(
        note, dtype="uint16", meta=np.empty((0,) * 4, "uint16"))))  # fmt: skip
    with dask.config.set(scheduler="synchronous"):
        find_implausible(watched, window_px=32)
    assert set(touched) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    with pytest.raises(ValueError, match="window_px"):
        find_implausible(scene, window_px=0)
