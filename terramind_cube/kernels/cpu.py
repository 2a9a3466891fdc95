"""Numba twins of `reference`, one pass each, without the interpreter's lock.

Never `parallel=True`: with some threading layers it aborts the process under Dask's threads, and
one thread already saturates the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from terramind_cube.kernels.reference import KEY_STEPS, MULTIPLIERS, ROUNDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["normalize", "philox_normal", "philox_uniform"]

_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint64(KEY_STEPS[0]), np.uint64(KEY_STEPS[1])
_LOW, _SHIFT, _DROP = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(9)


@numba.njit(nogil=True, cache=True)
def _scale(x, shift, scale, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    batch, channels, height, width = x.shape
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    out[b, c, i, j] = (np.float32(x[b, c, i, j]) - shift[c]) * scale[c]


@numba.njit(nogil=True, cache=True)
def _mask(x, nodata, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    batch, channels, height, width = x.shape
    is_nan = np.isnan(nodata)
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    value = x[b, c, i, j]
                    if (is_nan and np.isnan(value)) or value == nodata:
                        for other in range(channels):
                            out[b, other, i, j] = np.float32(0)


def normalize(
    x: NDArray[np.generic],
    shift: NDArray[np.float32],
    scale: NDArray[np.float32],
    nodata: float | None,
    out: NDArray[np.float32],
) -> None:
    """Twin of `reference.normalize`."""
    _scale(x, shift, scale, out)
    if nodata is not None:
        _mask(x, float(nodata), out)


@numba.njit(nogil=True, cache=True)
def _uniform(key0, key1, rows, cols, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    cells, count = out.shape
    for cell in range(cells):
        row, col = np.uint64(rows[cell]) & _LOW, np.uint64(cols[cell]) & _LOW
        for block in range((count + 3) // 4):
            c0, c1, c2, c3 = np.uint64(block), np.uint64(0), row, col
            k0, k1 = key0, key1
            for _ in range(ROUNDS):
                p0, p1 = _M0 * c0, _M1 * c2
                c0, c2 = (p1 >> _SHIFT) ^ c1 ^ k0, (p0 >> _SHIFT) ^ c3 ^ k1
                c1, c3 = p1 & _LOW, p0 & _LOW
                k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
            words = (c0, c1, c2, c3)
            for i in range(min(4, count - 4 * block)):
                number = np.float32(words[i] >> _DROP) + np.float32(0.5)
                out[cell, 4 * block + i] = number * np.float32(2.0**-23)


def philox_uniform(
    key: tuple[int, int],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Twin of `reference.philox_uniform`."""
    _uniform(np.uint64(key[0]), np.uint64(key[1]), rows, cols, out)


@numba.njit(nogil=True, cache=True)
def _box_muller(out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    cells, count = out.shape
    for cell in range(cells):
        for i in range(0, count, 2):
            radius = np.sqrt(np.float32(-2) * np.log(out[cell, i]))
            angle = np.float32(2 * np.pi) * out[cell, i + 1]
            out[cell, i] = radius * np.cos(angle)
            out[cell, i + 1] = radius * np.sin(angle)


def philox_normal(
    key: tuple[int, int],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Twin of `reference.philox_normal`, to the rounding of logarithm, sine and cosine."""
    count = out.shape[1]
    even = out if count % 2 == 0 else np.empty((len(out), count + 1), np.float32)
    philox_uniform(key, rows, cols, even)
    _box_muller(even)
    if even is not out:
        out[:] = even[:, :count]
