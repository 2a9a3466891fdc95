"""Public passes over token cells: latents, ids, codes, and the random numbers of cells.

Arguments are checked before any kernel runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from terramind_cube.kernels.dispatch import (
    engine_of,
    hold,
    input_array,
    numbers,
    output_array,
    refuse_overlap,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from terramind_cube.kernels.dispatch import Array, Held

__all__ = ["fsq_dequantize", "fsq_quantize", "philox_normal", "philox_uniform"]

_IDS, _CELLS = ("int64", "int32"), ("rows", "cols")
_MOST_LEVELS = 2**22
"""`scalars.round_half_even` is exact below it."""


def fsq_quantize(latent: Array, levels: Sequence[int], out: Array | None = None) -> Array:
    """Map latents to token ids by finite scalar quantization (arXiv 2309.15505).

    Each latent goes through a sigmoid and is rounded to its level, halves to even ones; the levels
    are the digits of the id, least significant first.

    Parameters
    ----------
    latent : array of float32, shape (B, L, h, w)
        Or any other axes behind the second; C-contiguous on a GPU, where this waits for it.
    levels : sequence of int, length L
        Levels of each latent, 2 .. 2**22.
    out : array of int64 or int32, shape (B, h, w), optional
        Written to and returned, if given.

    Returns
    -------
    array of int64, shape (B, h, w)
        Or `out`.

    Raises
    ------
    TypeError, ValueError
        If arrays do not fit, or a latent is NaN; nothing is written then.
    """
    given = input_array(latent, "latent", ("float32",))
    digits = _whole_levels(levels)
    if len(given.shape) < 2 or given.shape[1] != len(digits):
        raise ValueError(
            f"latent: expected shape (B, {len(digits)}, ...) for {len(digits)} levels, "
            f"got {given.shape}."
        )
    batch, inner = given.shape[0], given.shape[2:]
    held = output_array(out, "out", (batch, *inner), _IDS, given)
    refuse_overlap((held,), (given,))
    _check_width(held, digits)
    target = held.merged_out(batch, math.prod(inner))
    if given.any_nan():
        raise ValueError("latent: expected numbers, got NaN, which is nearest to no token.")
    if held.size:
        source = given.merged(batch, len(digits), math.prod(inner))
        engine_of(held).fsq_quantize(source, digits, target)
    return held.array


def fsq_dequantize(ids: Array, levels: Sequence[int], out: Array | None = None) -> Array:
    """Map token ids to codes in 0 .. 1, the inverse of `fsq_quantize` up to rounding.

    Parameters
    ----------
    ids : array of int64 or int32, shape (B, h, w)
        Or any other axes behind the first; C-contiguous on a GPU, where this waits for it.
    levels : sequence of int, length L
        Levels of each code, 2 .. 2**22.
    out : array of float32, shape (B, L, h, w), optional
        Written to and returned, if given.

    Returns
    -------
    array of float32, shape (B, L, h, w)

    Raises
    ------
    TypeError, ValueError
        If arrays do not fit, or an id is none of the codebook; nothing is written then.
    """
    tokens = input_array(ids, "ids", _IDS)
    digits = _whole_levels(levels)
    _check_width(tokens, digits)
    if not tokens.shape:
        raise ValueError("ids: expected shape (B, ...), got ().")
    batch, inner = tokens.shape[0], tokens.shape[1:]
    held = output_array(out, "out", (batch, len(digits), *inner), ("float32",), tokens)
    refuse_overlap((held,), (tokens,))
    target = held.merged_out(batch, len(digits), math.prod(inner))
    if not tokens.size:
        return held.array
    least, most = tokens.bounds()
    if least < 0 or most >= math.prod(digits):
        raise ValueError(
            f"ids: expected 0 .. {math.prod(digits) - 1} for levels {digits}, "
            f"got {least if least < 0 else most}."
        )
    source = tokens.merged(batch, math.prod(inner))
    engine_of(held).fsq_dequantize(source, digits, target)
    return held.array


def philox_uniform(
    key: tuple[int, int], rows: NDArray[np.int64], cols: NDArray[np.int64], out: Array
) -> Array:
    """Fill `out` with uniform numbers in (0, 1) that depend on key and cell alone.

    Parameters
    ----------
    key : (int, int)
        Two words of 32 bits.
    rows, cols : numpy.ndarray of int64, shape (cells,)
        World cells.
    out : array of float32, shape (..., count)
        Written to; its leading axes hold the cells in order. It decides where the numbers are made.

    Returns
    -------
    array of float32, shape (..., count)
        `out`.

    Raises
    ------
    TypeError, ValueError
        If arrays do not fit.
    """
    return _philox("philox_uniform", key, (rows, cols), out)


def philox_normal(
    key: tuple[int, int], rows: NDArray[np.int64], cols: NDArray[np.int64], out: Array
) -> Array:
    """Fill `out` with standard normal numbers that depend on key and cell alone.

    Parameters, result and errors are those of `philox_uniform`.
    """
    return _philox("philox_normal", key, (rows, cols), out)


def _whole_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """Return the levels of a quantizer."""
    expected = f"whole numbers in 2 .. {_MOST_LEVELS}"
    found = tuple(numbers(levels, "levels", expected, is_whole=True).tolist())
    if not found or min(found) < 2 or max(found) > _MOST_LEVELS:
        raise ValueError(f"levels: expected {expected}, got {found}.")
    if math.prod(found) > np.iinfo(np.int64).max:
        raise ValueError(f"levels: expected a codebook that int64 can count, got {found}.")
    return found


def _check_width(held: Held, digits: tuple[int, ...]) -> None:
    if math.prod(digits) > np.iinfo(held.dtype).max:
        raise ValueError(f"{held.name}: expected int64 for levels {digits}, got {held.dtype}.")


def _philox(
    name: str, key: tuple[int, int], cells: tuple[NDArray[np.int64], NDArray[np.int64]], out: Array
) -> Array:
    held = hold(out, "out")
    if not held.shape:
        raise ValueError("out: expected shape (..., count), got ().")
    output_array(out, "out", held.shape, ("float32",), held)
    count = math.prod(held.shape[:-1])
    _check_cells(cells, count)
    refuse_overlap((held,), [hold(array, axis) for array, axis in zip(cells, _CELLS, strict=True)])
    words = tuple(numbers(key, "key", "two words of 32 bits", is_whole=True).tolist())
    if len(words) != 2 or not all(0 <= word < 2**32 for word in words):
        raise ValueError(f"key: expected two words of 32 bits, got {key!r}.")
    target = held.merged_out(count, held.shape[-1])
    if held.size:
        getattr(engine_of(held), name)(words, *cells, target)
    return held.array


def _check_cells(cells: tuple[Array, Array], count: int) -> None:
    """Refuse world cells that are not as many as the numbers' places."""
    for name, array in zip(_CELLS, cells, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.shape != (count,):
            kind = getattr(array, "dtype", type(array).__name__)
            raise ValueError(
                f"{name}: expected a NumPy array of int64 {(count,)}, "
                f"got {kind} {getattr(array, 'shape', '')}."
            )
