"""Passes over pixels: the compiled ones equal the definition, and it is what it claims to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from terramind_cube.kernels import cpu, reference
from terramind_cube.kernels.rules import LEAST_POWER, Restoration, Standardization
from tests.kernels import cases

often = settings(deadline=None, max_examples=150)
ENGINES = pytest.mark.parametrize("engine", [cpu, reference], ids=["cpu", "reference"])


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_standardised_pixels_are_equal_bit_for_bit(dtype):
    @often
    @given(cases.pixels_to_standardize(dtypes=(dtype,)))
    def check(case):
        x, corners, constants, out = case
        expected, rule = out.copy(), Standardization(*constants)
        reference.normalize(x, corners, rule, expected)
        cpu.normalize(x, corners, rule, out)
        cases.assert_same(out, expected)

    check()


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("patch_px", [None, 16])
@pytest.mark.parametrize("share", [0, 0.001, 0.3], ids=["clear", "speckled", "clouded"])
def test_large_tiles_are_equal_bit_for_bit(dtype, patch_px, share):
    """They take several blocks of rows, and of columns of patches."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 10000, (2, 12, 90, 700), np.uint16)
    x[rng.random(x.shape) < share] = 0
    shape = (2, 12, 80, 688) if patch_px is None else (2, 5, 43, 16, 16, 12)
    rule = Standardization.of(rng.uniform(0, 3000, 12), rng.uniform(1, 2000, 12), 0)
    outs = [np.full(shape, 7, dtype) for _ in range(2)]
    for engine, out in zip((cpu, reference), outs, strict=True):
        engine.normalize(x, np.array([[1, 10, 12], [0, 0, 0]]), rule, out)
    cases.assert_same(*outs)


@ENGINES
def test_standardised_pixels_are_those_of_the_formula(engine):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 10000, (2, 3, 20, 30), np.uint16)
    x[1, 1, 4, 5] = 65535
    mean, std = np.array([1000.0, 2000, 10]), np.array([300.0, 7, 5000])
    out = np.empty((1, 3, 11, 12), np.float32)
    rule = Standardization.of(mean, std, 65535, offset=-1000)
    engine.normalize(x, np.array([[1, 2, 3]]), rule, out)
    part = x[1, :, 2:13, 3:15].astype(np.float64)
    expected = (part - 1000 - mean[:, None, None]) / std[:, None, None]
    expected[:, 2, 2] = 0
    np.testing.assert_allclose(out[0], expected, rtol=3e-7, atol=1e-4)
    assert (out[0, :, 2, 2] == 0).all()


@ENGINES
def test_power_becomes_decibels(engine):
    rng = np.random.default_rng(2)
    power = (10 ** rng.uniform(-37, 38, (1, 2, 40, 50))).astype(np.float32)
    rule = Standardization.of([-12.0, -20.0], [5.0, 4.0], from_power=True)
    out = np.empty_like(power)
    engine.normalize(power, np.zeros((1, 3), np.int64), rule, out)
    mean, std = np.array([[[-12.0]], [[-20.0]]]), np.array([[[5.0]], [[4.0]]])
    expected = (10 * np.log10(power.astype(np.float64)) - mean) / std
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


@ENGINES
@pytest.mark.parametrize(
    ("value", "nodata", "from_power", "is_masked"),
    [
        (7, 7, False, True),
        (7, 8, False, False),
        (7, None, False, False),
        (np.nan, 7, False, True),
        (np.inf, np.nan, False, True),
        (-np.inf, 7, False, True),
        (0, 7, False, False),
        (0, None, True, True),
        (-1, None, True, True),
        (np.nan, None, True, True),
        (np.inf, None, True, True),
        (LEAST_POWER, None, True, False),
        (np.nextafter(LEAST_POWER, np.float32(0)), None, True, True),
    ],
)
def test_a_pixel_is_masked_in_every_channel(engine, value, nodata, from_power, is_masked):
    x = np.full((1, 3, 2, 40), 5, np.float32)
    x[0, 1, 1, 30] = value
    out = np.full_like(x, 9)
    rule = Standardization.of([1, 2, 3], [1, 1, 2], nodata, from_power=from_power)
    engine.normalize(x, np.zeros((1, 3), np.int64), rule, out)
    assert np.isfinite(out).all()
    assert ((out[0] == 0).all(axis=0)).sum() == is_masked
    assert (out[0, :, 1, 30] == 0).all() == is_masked


@ENGINES
def test_without_nodata_what_is_no_number_flows_through(engine):
    x = np.array([[[[np.nan, np.inf, -np.inf, 5]]]], np.float32)
    out = np.empty_like(x)
    engine.normalize(x, np.zeros((1, 3), np.int64), Standardization.of([1], [2]), out)
    np.testing.assert_array_equal(out.ravel(), [np.nan, np.inf, -np.inf, 2])


@ENGINES
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_patches_hold_the_pixels_of_the_image(engine, dtype):
    rng = np.random.default_rng(3)
    x = rng.integers(0, 9, (2, 5, 13, 20), np.uint8)
    corners, rule = (
        np.array([[1, 1, 2], [0, 0, 0], [1, 0, 4]]),
        Standardization.of([3] * 5, [2] * 5, 1),
    )
    image, patches = np.empty((3, 5, 12, 16), dtype), np.empty((3, 3, 4, 4, 4, 5), dtype)
    engine.normalize(x, corners, rule, image)
    engine.normalize(x, corners, rule, patches)
    for t, i, j, y, column, c in np.ndindex(patches.shape):
        assert patches[t, i, j, y, column, c] == image[t, c, 4 * i + y, 4 * j + column]


@often
@given(cases.pixels_to_check())
def test_valid_pixels_are_equal(case):
    x, nodata, out = case
    expected = out.copy()
    reference.valid_pixels(x, nodata, expected)
    cpu.valid_pixels(x, nodata, out)
    cases.assert_same(out, expected)


@ENGINES
def test_pixels_are_valid_where_every_channel_is(engine):
    x = np.full((1, 3, 2, 4), 5, np.float32)
    x[0, 0, 0, 0], x[0, 1, 0, 1], x[0, 2, 1, 3] = np.nan, -9999, np.inf
    out = np.empty((1, 2, 4), np.bool_)
    engine.valid_pixels(x, -9999, out)
    assert out.sum() == 5
    assert not out[0, [0, 0, 1], [0, 1, 3]].any()
    engine.valid_pixels(x, np.nan, out)
    assert out.sum() == 6


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_restored_pixels_are_equal_bit_for_bit(dtype):
    @often
    @given(cases.numbers_to_restore(dtypes=(dtype,)))
    def check(case):
        x, first_row, constants, valid, out = case
        expected, rule = out.copy(), Restoration(*constants)
        reference.denormalize(x, first_row, rule, valid, expected)
        cpu.denormalize(x, first_row, rule, valid, out)
        cases.assert_same(out, expected)

    check()


@ENGINES
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_restored_pixels_are_those_of_the_formula(engine, dtype):
    rng = np.random.default_rng(4)
    x = rng.normal(0, 2, (2, 3, 5, 40)).astype(np.float32)
    mean, std = np.array([100.0, 3000, -50]), np.array([30.0, 1000, 200])
    x[1, 2, 3, 4] = np.nan
    valid = rng.random((5, 40)) < 0.8
    rule = Restoration(mean.astype(np.float32), std.astype(np.float32), (-1000.0, 4000.0), 77.0)
    out = np.full((2, 3, 8, 40), 9, dtype)
    engine.denormalize(x, 2, rule, valid, out)
    expected = x.astype(np.float64) * std[:, None, None] + mean[:, None, None]
    expected = expected.clip(-1000, 4000)
    if dtype != "float32":
        info = np.iinfo(dtype)
        expected = np.rint(expected).clip(info.min, info.max)
    expected = np.where(valid & ~np.isnan(expected), expected, 77)
    np.testing.assert_allclose(out[:, :, 2:7], expected, rtol=1e-6, atol=1e-3)
    assert (out[:, :, [0, 1, 7]] == 9).all()


@ENGINES
def test_whole_numbers_are_rounded_half_to_even(engine):
    x = np.arange(-100, 100, dtype=np.float32).reshape(1, 1, 1, -1) / 2
    rule = Restoration(np.zeros(1, np.float32), np.ones(1, np.float32), (-np.inf, np.inf), 0)
    for dtype, expected in (("int16", np.rint(x)), ("uint8", np.rint(x.clip(0)))):
        out = np.empty(x.shape, dtype)
        engine.denormalize(x, 0, rule, None, out)
        np.testing.assert_array_equal(out, expected)


@ENGINES
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (1793.2, 1160.1), (0.0, 20000.0)])
def test_every_number_of_sixteen_bits_comes_back(engine, mean, std):
    x = np.arange(65536, dtype=np.uint16).reshape(1, 1, 256, 256)
    numbers, back = np.empty(x.shape, np.float32), np.empty_like(x)
    engine.normalize(x, np.zeros((1, 3), np.int64), Standardization.of([mean], [std]), numbers)
    rule = Restoration(np.float32([mean]), np.float32([std]), (-np.inf, np.inf), 0)
    engine.denormalize(numbers, 0, rule, None, back)
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_arrays_that_are_only_read_may_be_read_only(dtype):
    x = np.ones((1, 2, 4, 4), dtype)
    x.flags.writeable = False
    out = np.empty(x.shape, np.float32)
    cpu.normalize(x, np.zeros((1, 3), np.int64), Standardization.of([0, 1], [1, 2]), out)
    np.testing.assert_array_equal(out[0, :, 0, 0], [1, 0])
    assert not x.flags.writeable
