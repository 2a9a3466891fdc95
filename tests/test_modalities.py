"""The table of modalities against facts that were worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from terramind_cube.modalities import (
    CAPTIONS,
    LULC_CLASSES,
    MODALITIES,
    V1_STATISTICS,
    Statistics,
    find_modality,
    standardize,
    unstandardize,
)


def test_nine_modalities_and_captions():
    assert list(MODALITIES) == [
        "S2L1C", "S2L2A", "RGB", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI", "Coordinates",
    ]  # fmt: skip
    assert CAPTIONS.name not in MODALITIES
    assert find_modality("Captions") is CAPTIONS


def test_keys_say_what_can_enter_and_what_can_be_generated():
    raw = {row.name for row in MODALITIES.values() if row.is_raw_input}
    out = {row.name for row in MODALITIES.values() if row.is_output}
    assert raw == {"S2L1C", "S2L2A", "RGB", "S1GRD", "S1RTC", "DEM"}
    assert out == {"S2L2A", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI", "Coordinates"}
    assert MODALITIES["S2L2A"].token_key == "tok_sen2l2a@224"
    assert MODALITIES["RGB"].raw_key == "untok_sen2rgb@224"


@pytest.mark.parametrize("name", [row.name for row in MODALITIES.values() if row.fsq_levels])
def test_vocabulary_is_the_product_of_the_levels(name):
    row = MODALITIES[name]
    assert row.vocabulary == math.prod(row.fsq_levels)


@pytest.mark.parametrize("name", list(V1_STATISTICS))
def test_statistics_have_one_value_per_band(name):
    assert len(V1_STATISTICS[name].mean) == len(MODALITIES[name].bands)


def test_bands_are_in_the_models_order():
    s2 = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
    assert list(MODALITIES["S2L2A"].bands) == s2
    assert list(MODALITIES["S2L1C"].bands) == [*s2[:10], "B10", *s2[10:]]
    assert MODALITIES["S1RTC"].bands == ("VV", "VH")
    assert MODALITIES["S1RTC"].band_dim == "S1RTC_band"
    assert MODALITIES["DEM"].band_dim is None


def test_land_cover_classes_count_from_zero_in_the_providers_order():
    assert [row.value for row in LULC_CLASSES] == list(range(10))
    assert [row.provider_value for row in LULC_CLASSES] == [0, 1, 2, 4, 5, 7, 8, 9, 10, 11]
    assert len({row.color for row in LULC_CLASSES}) == 10
    assert not any(" " in row.name for row in LULC_CLASSES)


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MODALITIES["DEM"].units = "ft"
    with pytest.raises(TypeError):
        MODALITIES["DEM"] = None


@pytest.mark.parametrize("name", [name for name in V1_STATISTICS if name != "LULC"])
@pytest.mark.parametrize("dtype", ["int16", "float64"])
def test_standardize_inverts_and_agrees_between_libraries(name, dtype):
    channels = len(V1_STATISTICS[name].mean)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3000, (2, channels, 5, 4)).astype(dtype)
    found = standardize(name, x)
    mean, std = (np.array(v)[:, None, None] for v in dataclasses.astuple(V1_STATISTICS[name]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (x - mean) / std, rtol=1e-4, atol=1e-4)
    tensor = standardize(name, torch.from_numpy(x))
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), found)
    np.testing.assert_allclose(unstandardize(name, found), x, rtol=1e-4, atol=0.01)


def test_land_cover_is_not_standardised():
    classes = np.arange(10, dtype=np.uint8).reshape(1, 2, 5)
    assert standardize("LULC", classes) is classes
    assert unstandardize("LULC", classes) is classes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: standardize("S2L2A", np.zeros((11, 4, 4))), "12 channels on axis -3"),
        (lambda: standardize("S2L2B", np.zeros((12, 4, 4))), "did you mean 'S2L2A'"),
        (lambda: standardize("Coordinates", np.zeros((1, 4, 4))), "no statistics"),
        (lambda: Statistics((0.0,), (0.0,)), "must be positive"),
        (lambda: Statistics((0.0, 1.0), (1.0,)), "2 means but 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
