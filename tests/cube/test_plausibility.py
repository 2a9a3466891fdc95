"""Pixels that contradict what metadata say of them."""

import dask
import numpy as np
import pytest
import xarray as xr

import terramind_cube as tc
from terramind_cube.cube.plausibility import find_implausible

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
        ("LULC", lambda lulc: lulc * 0 + 80, "class 80, where TerraMind has 0 to 9"),
    ],
)
def test_what_is_wrong_is_told_with_its_date(scene, name, change, told):
    wrong = scene.assign({name: change(scene[name]).astype(scene[name].dtype)})
    found = find_implausible(wrong)
    assert len(found) == 1
    assert told in found[0]
    when = "" if name == "DEM" else " of 2024-06-01"
    assert found[0].startswith(f"{name}{when}: ")


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
