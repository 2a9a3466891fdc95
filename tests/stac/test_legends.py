"""Land cover of many makers: what their codes mean."""

import numpy as np
import pytest

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.bands import locate_bands
from terramind_cube.stac.legends import LEGENDS, check_legend
from tests.stac.test_calibration import make

LULC = MODALITIES["LULC"]
WORLDCOVER = {
    10: "Tree cover", 20: "Shrubland", 30: "Grassland", 40: "Cropland", 50: "Built-up",
    60: "Bare / sparse vegetation", 70: "Snow and ice", 80: "Permanent water bodies",
    90: "Herbaceous wetland", 95: "Mangroves", 100: "Moss and lichen",
}  # fmt: skip
DYNAMIC_WORLD = {
    0: "water", 1: "trees", 2: "grass", 3: "flooded_vegetation", 4: "crops", 5: "shrub_and_scrub",
    6: "built", 7: "bare", 8: "snow_and_ice",
}  # fmt: skip


def located(collection, classes=None, key="data", where="classification:classes"):
    fields = {} if classes is None else {where: classes}
    return locate_bands(make(collection, (key,), fields), LULC)


@pytest.mark.parametrize("word", ["name", "title", "description"])
@pytest.mark.parametrize(
    ("words", "legend"), [(WORLDCOVER, "esa-worldcover"), (DYNAMIC_WORLD, "dynamic-world")]
)
def test_words_of_classes_are_the_legend(words, legend, word):
    found = located("my-lulc", [{"value": code, word: text} for code, text in words.items()])
    assert found.legend == tuple(pair for pair in LEGENDS[legend] if pair[0] in words)
    assert found.told_by == "item"


def test_words_may_stand_in_the_band_or_be_those_of_an_older_extension():
    classes = [{"value": 3, "name": "crops"}, {"value": 7, "name": "no data"}]
    for found in (
        located("my-lulc", [{"classification:classes": classes}], where="raster:bands"),
        located("my-lulc", [{"classification:classes": classes}], where="bands"),
        located("my-lulc", [{"values": [3], "summary": "Crops"}, {"values": [7], "summary": "No Data"}],
                where="file:values"),
    ):  # fmt: skip
        assert found.legend == ((3, 4), (7, 0))


def test_words_beat_the_row_of_the_provider():
    found = located("io-lulc-annual-v02", [{"value": 1, "name": "crops"}])
    assert (found.legend, found.told_by) == (((1, 4),), "item")


def test_class_that_is_not_understood_leaves_no_legend():
    found = located("my-lulc", [{"value": 1, "name": "water"}, {"value": 2, "name": "vineyard"}])
    assert found.legend is None
    assert found.unknown == "2: vineyard"


@pytest.mark.parametrize("collection", ["lulc", "my-lulc", "worldcover-lulc", "dynamic-world-lulc"])
@pytest.mark.parametrize("key", ["data", "map", "lulc"])
def test_codes_without_a_legend_are_nobodys(collection, key):
    assert located(collection, key=key).legend is None


def test_legends_may_be_named_or_given():
    assert check_legend(None) is None
    assert check_legend("dynamic-world") == LEGENDS["dynamic-world"]
    assert check_legend({np.uint8(3): 4, 1: 0}) == ((1, 0), (3, 4))
    for wrong in ("worldcover", {}, {"1": 2}, {1: 10}, {1: -1}, {1.5: 2}, {1: True}, [1, 2], 3):
        with pytest.raises(ValueError, match="lulc_legend"):
            check_legend(wrong)
