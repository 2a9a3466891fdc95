"""Latents, token ids and codes: the compiled passes equal the definition, and it is right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.special import expit, logit

from terramind_cube.kernels import cpu, reference
from tests.kernels import cases

often = settings(deadline=None, max_examples=150)
ENGINES = pytest.mark.parametrize("engine", [cpu, reference], ids=["cpu", "reference"])
CODEBOOKS = pytest.mark.parametrize("levels", cases.LEVELS[:2], ids=["15360", "4375"])


@often
@given(cases.latents())
def test_ids_are_equal_on_every_engine(case):
    latent, levels, out = case
    expected = out.copy()
    reference.fsq_quantize(latent, levels, expected)
    cpu.fsq_quantize(latent, levels, out)
    cases.assert_same(out, expected)
    assert ((out >= 0) & (out < np.prod(levels))).all()


@often
@given(cases.token_ids())
def test_codes_are_equal_on_every_engine(case):
    ids, levels, out = case
    expected = out.copy()
    reference.fsq_dequantize(ids, levels, expected)
    cpu.fsq_dequantize(ids, levels, out)
    cases.assert_same(out, expected)


@ENGINES
@CODEBOOKS
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_every_token_comes_back(engine, levels, dtype):
    ids = np.arange(np.prod(levels), dtype=dtype)[None]
    codes = np.empty((1, len(levels), ids.size), np.float32)
    engine.fsq_dequantize(ids, levels, codes)
    back = np.empty_like(ids)
    engine.fsq_quantize(logit(codes.clip(1e-6, 1 - 1e-6)), levels, back)
    np.testing.assert_array_equal(back, ids)


@ENGINES
@CODEBOOKS
def test_codes_are_the_digits_of_ids(engine, levels):
    ids = np.arange(np.prod(levels))
    codes = np.empty((1, len(levels), ids.size), np.float32)
    engine.fsq_dequantize(ids[None], levels, codes)
    digits = np.array(np.unravel_index(ids, levels, order="F"))
    np.testing.assert_allclose(codes[0], digits / (np.array(levels)[:, None] - 1), rtol=1e-7)
    assert np.unique(codes[0], axis=1).shape[1] == ids.size


@ENGINES
@CODEBOOKS
def test_ids_are_those_of_the_formula(engine, levels):
    rng = np.random.default_rng(0)
    latent = rng.normal(0, 2, (2, len(levels), 20_000)).astype(np.float32)
    ids = np.empty((2, 20_000), np.int64)
    engine.fsq_quantize(latent, levels, ids)
    top = np.array(levels)[:, None] - 1
    exact = expit(latent.astype(np.float64)) * top
    near_a_tie = (np.abs(exact % 1 - 0.5) < 1e-6).any(axis=1)
    assert near_a_tie.mean() < 1e-4
    basis = np.cumprod([1, *levels[:-1]])[:, None]
    expected = (np.rint(exact) * basis).sum(axis=1)
    np.testing.assert_array_equal(ids[~near_a_tie], expected[~near_a_tie])


@ENGINES
def test_ties_are_rounded_to_even_steps(engine):
    levels = (2, 4, 6, 8, 10)  # in the middle at 0.5, 1.5, 2.5, 3.5 and 4.5
    ids = np.empty((1, 1), np.int64)
    engine.fsq_quantize(np.zeros((1, 5, 1), np.float32), levels, ids)
    assert np.unravel_index(int(ids[0, 0]), levels, order="F") == (0, 2, 2, 4, 4)


@ENGINES
def test_latents_far_out_are_the_ends(engine):
    latent = np.array([[[-np.inf, -3e38, -100, 100, 3e38, np.inf, np.nan]]], np.float32)
    ids = np.empty((1, 7), np.int64)
    engine.fsq_quantize(latent, (8,), ids)
    np.testing.assert_array_equal(ids, [[0, 0, 0, 7, 7, 7, 0]])


@ENGINES
def test_ids_may_be_larger_than_32_bits(engine):
    levels = (1000, 1000, 1000, 1000)
    latent = np.full((1, 4, 1), 100, np.float32)
    ids, codes = np.empty((1, 1), np.int64), np.empty((1, 4, 1), np.float32)
    engine.fsq_quantize(latent, levels, ids)
    assert ids[0, 0] == 10**12 - 1
    engine.fsq_dequantize(ids, levels, codes)
    assert (codes == 1).all()
