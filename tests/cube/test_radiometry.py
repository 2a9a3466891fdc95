"""Numbers of files become units of a cube."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from terramind_cube.cube.radiometry import (
    Radiometry,
    added_offset_dn,
    decode,
    encode,
    is_invalid,
    ndvi,
    rgb,
)
from terramind_cube.stac.legends import LEGENDS

DN = arrays(np.uint16, (3, 4), elements=st.integers(0, 63999))


def reflectance(offset_dn, nodata=0):
    return Radiometry("reflectance", "uint16", 0, nodata, offset_dn)


@given(DN, st.sampled_from([0, -1000, 1000]))
def test_valid_digital_numbers_never_become_nodata(raw, offset_dn):
    pixels = decode(raw, reflectance(offset_dn), 0)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels == 0, raw == 0)
    expected = np.clip(raw.astype(int) + offset_dn, 1, 65535)
    np.testing.assert_array_equal(pixels[raw != 0], expected[raw != 0])


@given(DN, DN, DN)
def test_offsets_commute_with_the_order_of_a_mosaic(one, other, third):
    """Each item's own offset before the mosaic: layers of -1000 and 0 cover as such."""
    items = [(one, -1000), (other, 0), (third, -1000)]

    def mosaic(order):
        out = np.zeros_like(one)
        for raw, offset_dn in order:
            pixels = decode(raw, reflectance(offset_dn))
            out = np.where(is_invalid(out, 0), pixels, out)
        return out

    def raw_mosaic_then_offset(order):
        """The same rule, pixel by pixel: the first valid item gives number and offset."""
        out = np.zeros(one.shape, np.uint16)
        for index in np.ndindex(one.shape):
            for raw, offset_dn in order:
                if raw[index]:
                    out[index] = max(int(raw[index]) + offset_dn, 1)
                    break
        return out

    for order in (items, items[::-1]):
        np.testing.assert_array_equal(mosaic(order), raw_mosaic_then_offset(order))


@pytest.mark.parametrize(
    ("own", "asked", "added"),
    [(-1000, "remove", -1000), (0, "remove", 0), (-1000, "keep", 0), (0, "keep", 0),
     (-1000, "add", 0), (0, "add", 1000)],
)  # fmt: skip
def test_offset_is_removed_kept_or_added(own, asked, added):
    assert added_offset_dn(own, asked) == added


def test_other_fill_values_and_signed_numbers_are_understood():
    raw = np.array([[-9999, 0, 1, 2000]], np.int16)
    np.testing.assert_array_equal(decode(raw, reflectance(-1000, nodata=-9999)), [[0, 0, 1, 1000]])
    # What the file itself declares counts as well.
    np.testing.assert_array_equal(decode(raw, reflectance(0, None), 2000), [[0, 0, 1, 0]])


@pytest.mark.parametrize("offset_dn", [0, -1000, 1000])
@pytest.mark.parametrize("nodata", [0, 7])
def test_saturated_and_wrapped_numbers_are_nodata(offset_dn, nodata):
    """65535 is saturated; 999 - 1000 is 65535, and 64535 a saturated pixel less 1000, in 16 bits."""
    raw = np.array([[65535, 64535, 64536, 64000, 63999, 28000]], np.uint16)
    pixels = decode(raw, reflectance(offset_dn, nodata))
    np.testing.assert_array_equal(pixels, [[0, 0, 0, 0, 63999 + offset_dn, 28000 + offset_dn]])
    wide = decode(raw.astype(np.int32), reflectance(offset_dn, nodata))
    np.testing.assert_array_equal(wide, pixels)


def test_undeclared_fill_values_of_signed_numbers_are_nodata():
    raw = np.array([[-9999, -32768, -2001, -2000, -5, 2000]], np.int16)
    np.testing.assert_array_equal(decode(raw, reflectance(0)), [[0, 0, 0, 1, 1, 2000]])


def test_floating_point_reflectance_is_refused():
    with pytest.raises(ValueError, match=r"pixels are float32, where integers are expected"):
        decode(np.ones((2, 2), np.float32), reflectance(0))
    with pytest.raises(ValueError, match="classes as codes"):
        decode(np.ones((2, 2), np.float32), classes("impact-observatory"))


def test_power_becomes_decibel_and_what_is_not_positive_nothing():
    power = Radiometry("power", "float32", float("nan"), -32768.0)
    raw = np.array([[1.0, 0.1, 0.0, -0.5, -32768.0, np.nan]], np.float32)
    found = encode(decode(raw, power), power)
    np.testing.assert_allclose(found[0, :2], [0, -10], atol=1e-6)
    assert np.isnan(found[0, 2:]).all()


def test_calibrated_amplitudes_are_squared():
    amplitude = Radiometry("amplitude", "float32", float("nan"), 0.0)
    raw = np.array([[1.0, 0.1, 0.0, -0.5, np.nan]], np.float32)
    found = encode(decode(raw, amplitude), amplitude)
    np.testing.assert_allclose(found[0, :2], [0, -20], atol=1e-5)
    assert np.isnan(found[0, 2:]).all()


@pytest.mark.parametrize("kind", ["power", "amplitude"])
def test_decibels_that_are_declared_as_power_are_named(kind):
    row = Radiometry(kind, "float32", float("nan"))
    raw = np.full((20, 20), -12, np.float32)
    with pytest.raises(ValueError, match=r'below zero.*unit "dB"'):
        decode(raw, row)
    # Undeclared fill values are no decibels, and a few negative pixels are noise taken off.
    raw[:] = -9999
    assert np.isnan(decode(raw, row)).all()
    raw[:] = 0.1
    raw[:5] = -0.001
    assert np.isfinite(decode(raw, row)).sum() == 300


def test_power_that_is_declared_as_decibels_is_named():
    row = Radiometry("decibel", "float32", float("nan"))
    raw = np.full((110, 110), 0.1, np.float32)
    with pytest.raises(ValueError, match=r'no pixel below zero.*it is in dB.*"linear"'):
        decode(raw, row, interpolated=False)
    # A few bright pixels may be a building, many with a dark one among them a city.
    np.testing.assert_array_equal(decode(raw[:9], row, interpolated=False), raw[:9])
    raw[50, 50] = -3
    np.testing.assert_array_equal(decode(raw, row, interpolated=False), raw)
    with pytest.raises(ValueError, match="declares no unit"):
        decode(raw[:9], replace(row, is_guess=True))


def test_decibels_are_averaged_as_power():
    decibel = Radiometry("decibel", "float32", float("nan"), -99.0)
    raw = np.array([[-10.0, 0.0, -99.0, -9999.0]], np.float32)
    linear = decode(raw, decibel)
    np.testing.assert_allclose(linear[0, :2], [0.1, 1.0], rtol=1e-6)
    assert np.isnan(linear[0, 2:]).all()
    mean = encode(np.nanmean(linear, keepdims=True), decibel)
    np.testing.assert_allclose(mean, 10 * np.log10(0.55), rtol=1e-5)
    # Pixels that are only picked stay bit for bit.
    picked = decode(raw, decibel, interpolated=False)
    np.testing.assert_array_equal(picked[0, :2], raw[0, :2])


def classes(name, nodata=0):
    return Radiometry("classes", "uint8", 0, nodata, legend=LEGENDS[name])


def test_codes_of_both_editions_of_the_map_become_classes():
    codes = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]], np.uint8)
    expected = [[0, 1, 2, 9, 3, 4, 9, 5, 6, 7, 8, 9]]
    np.testing.assert_array_equal(decode(codes, classes("impact-observatory")), expected)


def test_codes_of_other_maps_become_classes():
    codes = np.array([[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]], np.int16)
    found = decode(codes, classes("esa-worldcover"))
    np.testing.assert_array_equal(found, [[0, 2, 9, 9, 4, 5, 6, 7, 1, 3, 3, 9]])
    # Zero is water, and nodata is what the file says.
    codes = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 255]], np.uint8)
    found = decode(codes, classes("dynamic-world", nodata=None), 255)
    np.testing.assert_array_equal(found, [[1, 2, 9, 3, 4, 9, 5, 6, 7, 0]])


@pytest.mark.parametrize(
    ("name", "code"), [("terramind", 10), ("impact-observatory", 12), ("impact-observatory", 255),
                       ("esa-worldcover", 11), ("terramind", -1), ("dynamic-world", 300)],
)  # fmt: skip
def test_codes_that_are_not_in_the_legend_are_named(name, code):
    codes = np.array([[0, code]], np.int16)
    with pytest.raises(ValueError, match=rf"holds the codes {code}, which are not in its legend"):
        decode(codes, classes(name))
    np.testing.assert_array_equal(decode(codes, classes(name), code)[0, 1], 0)


@given(DN, DN)
def test_vegetation_index_is_a_ratio_of_valid_pixels(red, infrared):
    index = ndvi(red, infrared)
    assert index.dtype == np.float32
    invalid = (red == 0) | (infrared == 0)
    np.testing.assert_array_equal(np.isnan(index), invalid)
    low, high = red[~invalid].astype(float), infrared[~invalid].astype(float)
    np.testing.assert_allclose(index[~invalid], (high - low) / (high + low), atol=1e-6)


def test_colours_are_reflectance_up_to_a_fifth():
    band = np.array([0, 1, 1000, 2000, 2001, 65535], np.uint16)
    np.testing.assert_array_equal(rgb(band), [0, 1, 127, 255, 255, 255])
