"""Kernels of `cuda` against `reference` in Numba's simulator; `test_cuda_simulator` runs this.

NUMBA_ENABLE_CUDASIM=1 must be set before Numba is imported, hence the process of its own. The
simulator takes 10 ms for a launch and 5 us for a pixel: arrays are small.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import config

from tests.kernels import cases
from tests.kernels.cuda_alone import kernel_module

cuda, reference, rules = map(kernel_module, ("cuda", "reference", "rules"))

few = settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
WIDTHS = (0, 1, 2, 7, 16, 33)


def test_this_is_the_simulator():
    assert config.ENABLE_CUDASIM


def contiguous(*arrays):
    """Device arrays are contiguous."""
    return [np.ascontiguousarray(array) for array in arrays]


def agree(name, *arguments, outs):
    """Run a function of both engines on copies of the arrays that it writes to."""
    results = []
    for engine in (reference, cuda):
        written = [np.array(out, order="C") for out in outs]
        with np.errstate(all="ignore"):
            getattr(engine, name)(*arguments, *written)
        results.append(written)
    for expected, found in zip(*results, strict=True):
        cases.assert_same(found, expected)
    return results[1]


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_normalize(dtype):
    @few
    @given(cases.pixels_to_standardize(dtypes=(dtype,), widths=WIDTHS))
    def check(case):
        x, corners, constants, out = case
        rule = rules.Standardization(*constants)
        agree("normalize", *contiguous(x), corners, rule, outs=[out])

    check()


@few
@given(cases.pixels_to_check(widths=WIDTHS))
def test_valid_pixels(case):
    x, nodata, out = case
    agree("valid_pixels", *contiguous(x), nodata, outs=[out])


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_denormalize(dtype):
    @few
    @given(cases.numbers_to_restore(dtypes=(dtype,), widths=WIDTHS))
    def check(case):
        x, first_row, constants, valid, out = case
        rule = rules.Restoration(*constants)
        known = None if valid is None else np.ascontiguousarray(valid)
        agree("denormalize", *contiguous(x), first_row, rule, known, outs=[out])

    check()


@few
@given(cases.latents(widths=WIDTHS))
def test_fsq_quantize(case):
    latent, levels, out = case
    agree("fsq_quantize", *contiguous(latent), levels, outs=[out])


@few
@given(cases.token_ids(widths=WIDTHS))
def test_fsq_dequantize(case):
    ids, levels, out = case
    agree("fsq_dequantize", *contiguous(ids), levels, outs=[out])


def test_every_token_comes_back():
    levels = (8, 5, 6)
    ids = np.arange(240).reshape(2, 120)
    codes = np.empty((2, 3, 120), np.float32)
    cuda.fsq_dequantize(ids, levels, codes)
    found = np.empty_like(ids)
    with np.errstate(divide="ignore"):
        cuda.fsq_quantize(np.log(codes / (1 - codes)), levels, found)
    np.testing.assert_array_equal(found, ids)


@few
@given(cases.tiles_in_a_ring(widths=WIDTHS))
def test_blending(case):
    tiles, parts, total, weight = case
    sums = contiguous(total, weight)
    for values, weights, place in tiles:
        sums = agree("blend_accumulate", *contiguous(values, weights), place, outs=sums)
    results = []
    for engine in (reference, cuda):
        rest = [array.copy() for array in sums]
        outs = [np.full((len(total), rows, total.shape[2]), 7, np.float32) for _, rows in parts]
        for (first_row, _), out in zip(parts, outs, strict=True):
            engine.blend_finish(*rest, first_row, out)
        results.append([*rest, *outs])
    for expected, found in zip(*results, strict=True):
        cases.assert_same(found, expected)


@few
@given(cases.probabilities(widths=WIDTHS))
def test_class_map(case):
    probability, *outs = case
    agree("class_map", *contiguous(probability), outs=outs)


@few
@given(st.sampled_from(["philox_uniform", "philox_normal"]), cases.cells())
def test_random_numbers(name, case):
    key, rows, cols, out = case
    agree(name, key, rows, cols, outs=[out])
