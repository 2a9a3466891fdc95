"""Elementary functions: how exact they are, and that compiling them changes no bit."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from terramind_cube.kernels import cpu, reference, scalars
from terramind_cube.kernels.rules import Standardization

torch = pytest.importorskip("torch")

MANY = 400_000


def numbers_of(name):
    """Return numbers all over the range in which a function is promised to work."""
    rng = np.random.default_rng(0)
    if name == "log":
        bits = rng.integers(0x00800000, 0x7F800000, MANY, np.uint32)  # positive, normal, finite
        near_one = np.float32(1) + rng.uniform(-1e-3, 1e-3, MANY).astype(np.float32)
        x = np.concatenate([bits.view(np.float32), near_one, rng.uniform(0.3, 3, MANY)])
        return np.append(x, [1, 1.1754944e-38, 3.4028235e38, np.sqrt(0.5)]).astype(np.float32)
    if name == "exp":
        return np.append(rng.uniform(-87, 88, MANY), [0, -0.0, -87, 88, 1e-30]).astype(np.float32)
    if name == "round_half_even":
        x = np.append(rng.uniform(-(2**22), 2**22, MANY), np.arange(-5000, 5000) / 2)
        return np.append(x, [0.49999997, -0.49999997]).astype(np.float32)
    if name == "sin_turn":
        return np.append(rng.uniform(-2, 2, MANY), np.arange(-16, 17) / 8).astype(np.float32)
    bits = rng.integers(0, 2**32, MANY, np.uint32)
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << np.uint32(16)
    ends = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    return np.concatenate([bits, (upper | ends).ravel()]).view(np.float32)


def units_off(found, truth):
    """Return by how many units in the last place float32 numbers differ from float64 ones."""
    spacing = np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)
    return np.abs(found.astype(np.float64) - truth) / spacing


@pytest.mark.parametrize(("name", "bound"), [("log", 1.0), ("exp", 1.0)])
def test_logarithm_and_exponential_are_exact_to_a_unit(name, bound):
    x = numbers_of(name)
    found = getattr(scalars, name)(x)
    assert found.dtype == np.float32
    assert units_off(found, getattr(np, name)(x.astype(np.float64))).max() < bound


def test_the_sine_of_turns_is_exact_to_four_units_below_one():
    u = numbers_of("sin_turn")
    found = scalars.sin_turn(u)
    truth = np.sin(2 * np.pi * u.astype(np.float64))
    assert np.abs(found - truth).max() < 2.0**-22
    eighths = scalars.sin_turn((np.arange(-8, 9) / 4).astype(np.float32))
    np.testing.assert_array_equal(np.abs(eighths), np.abs(np.arange(-8, 9) % 2))
    assert (np.abs(found) <= 1 + 2.0**-23).all()


def test_halves_are_rounded_to_even_numbers():
    x = numbers_of("round_half_even")
    np.testing.assert_array_equal(scalars.round_half_even(x), np.rint(x))


def test_bfloat16_is_that_of_torch():
    import torch

    x = numbers_of("bfloat16_bits")
    theirs = torch.from_numpy(x.copy()).to(torch.bfloat16).view(torch.int16).numpy()
    ours = scalars.bfloat16_bits(x).astype(np.uint16)
    is_nan = np.isnan(x)
    np.testing.assert_array_equal(ours[~is_nan], theirs.view(np.uint16)[~is_nan])
    assert (ours[is_nan] == 0x7FC0).all()


@pytest.mark.parametrize("function", scalars.SCALARS, ids=lambda function: function.__name__)
def test_compiling_changes_no_bit(function):
    compiled = numba.njit(function)

    @numba.njit(error_model="numpy")
    def fill(x, out):
        for i in range(len(x)):
            out[i] = compiled(x[i])

    x = numbers_of(function.__name__)
    expected = function(x)
    out = np.empty_like(expected)
    fill(x, out)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


def test_bfloat16_output_is_the_rounded_float32_output():
    x = np.random.default_rng(0).normal(0, 100, (1, 2, 30, 40)).astype(np.float32)
    x[0, 0, 0, :3] = np.nan, np.inf, 3e38
    rule = Standardization.of([3, -5], [7, 0.3])
    outs = [np.empty(x.shape, dtype) for dtype in ("float32", "uint16")]
    for engine in (cpu, reference):
        for out in outs:
            engine.normalize(x, np.zeros((1, 3), np.int64), rule, out)
        np.testing.assert_array_equal(scalars.bfloat16_bits(outs[0]), outs[1])
