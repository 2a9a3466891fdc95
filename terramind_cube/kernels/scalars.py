"""Elementary functions in a fixed order of float32 operations: one source for every engine.

Each function is compiled as it stands by Numba for the CPU and for CUDA, and takes whole arrays in
`reference`: operations that are rounded one by one give every engine the same bits, which the
functions of the platforms' libraries do not. Nothing branches, so that CPUs compute many pixels at
once; nothing promotes to float64, which GPUs have little of; and no function calls another, since
each engine compiles its own.

Sources: range reduction after Cody and Waite, Software Manual for the Elementary Functions (1980);
polynomials of Moshier's Cephes library (logf, expf); the sine's is a fit over half a turn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["SCALARS", "bfloat16_bits", "exp", "log", "round_half_even", "sin_turn"]

_F, _I, _U = np.float32, np.int32, np.uint32

_ONE, _HALF, _TWO = np.float32(1), np.float32(0.5), np.float32(2)
_MANTISSA_BITS, _SQRT_HALF_BITS, _BIAS = np.int32(23), np.int32(0x3F3504F3), np.int32(127)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOG_FIRST = np.float32(7.0376836292e-2)
_LOG_REST = tuple(
    map(
        np.float32,
        (
            -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
            -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
        ),
    )
)  # fmt: skip
_LOG2_E = np.float32(1.44269504088896341)
_EXP_FIRST = np.float32(1.9875691500e-4)
_EXP_REST = tuple(
    map(
        np.float32,
        (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    )
)
_ROUNDER = np.float32(12582912)
"""1.5 x 2^23: a sum with it has no bits left behind the point."""
_SIN_FIRST = np.float32(-14.406266)
_SIN_REST = tuple(map(np.float32, (42.011806, -76.7044, 81.60523, -41.341702, 6.2831855)))
_LOWER_HALF, _WORD_BITS, _QUIET_NAN = np.uint32(0x7FFF), np.uint32(16), np.uint32(0x7FC0)
_BIT = np.uint32(1)


def log(x: Any) -> Any:
    """Return the natural logarithm of positive, normal, finite float32 numbers."""
    bits = _F(x).view(np.int32)
    exponent = _I(_I(bits - _SQRT_HALF_BITS) >> _MANTISSA_BITS)
    mantissa = _I(bits - _I(exponent << _MANTISSA_BITS)).view(np.float32)  # sqrt(1/2) .. sqrt(2)
    f = mantissa - _ONE
    series = _LOG_FIRST
    for term in _LOG_REST:
        series = series * f + term
    square = f * f
    powers = _F(exponent)
    return (f + (f * square * series - _HALF * square + powers * _LN2_LOW)) + powers * _LN2_HIGH


def exp(x: Any) -> Any:
    """Return e to the power of float32 numbers in -87 .. 88."""
    powers = (_F(x) * _LOG2_E + _ROUNDER) - _ROUNDER
    f = (_F(x) - powers * _LN2_HIGH) - powers * _LN2_LOW
    series = _EXP_FIRST
    for term in _EXP_REST:
        series = series * f + term
    scale = _I(_I(_I(powers) + _BIAS) << _MANTISSA_BITS).view(np.float32)
    return (series * (f * f) + f + _ONE) * scale


def round_half_even(x: Any) -> Any:
    """Round float32 numbers below 2^22 in size to whole numbers, halves to even ones."""
    return (_F(x) + _ROUNDER) - _ROUNDER


def sin_turn(u: Any) -> Any:
    """Return the sine of ``2 pi u`` of float32 numbers in -2 .. 2."""
    halves = (_F(u) * _TWO + _ROUNDER) - _ROUNDER
    r = _F(u) - halves * _HALF  # -1/4 .. 1/4
    odd = halves - _TWO * ((halves * _HALF + _ROUNDER) - _ROUNDER)  # -1, 0 or 1
    square = r * r
    series = _SIN_FIRST
    for term in _SIN_REST:
        series = series * square + term
    return (r * series) * (_ONE - _TWO * (odd * odd))


def bfloat16_bits(x: Any) -> Any:
    """Return the bits of the nearest bfloat16 numbers, as uint32; halves to even ones."""
    bits = _F(x).view(np.uint32)
    is_nan = _U(_F(x) != _F(x))
    rounded = _U(_U(bits + _LOWER_HALF) + _U(_U(bits >> _WORD_BITS) & _BIT)) >> _WORD_BITS
    return _U(_U(rounded) * _U(_BIT - is_nan) + _U(_QUIET_NAN * is_nan))


SCALARS = (log, exp, round_half_even, sin_turn, bfloat16_bits)
