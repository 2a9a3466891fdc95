"""What the numbers in files mean, where items say it badly or not at all."""

import warnings

import numpy as np
import rasterio

from terramind_cube.cube import load_cube
from tests.cube.scenes import SIZE_PX, day, s2_item, warns_user


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


def test_saturated_pixels_let_the_scene_below_show_through(tmp_path):
    """A few of them are no fault: nothing is said."""
    items = [s2_item(tmp_path, name, day("2024-05-01"), value=value)
             for name, value in (("above", 3000), ("below", 1000))]  # fmt: skip
    with rasterio.open(tmp_path / "above.tif", "r+") as file:
        pixels = file.read()
        pixels[:, 5, 5] = 65535
        file.write(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        values = load_cube(items, modalities=["S2L2A"])["S2L2A"].values[0, 0]
    assert values[5, 5] == 1000
    assert np.count_nonzero(values == 3000) == SIZE_PX**2 - 1
