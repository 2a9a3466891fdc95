"""Numba twins of `reference`, one pass each, without the interpreter's lock.

Never `parallel=True`: with some threading layers it aborts the process under Dask's threads, and
one thread already saturates the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from terramind_cube.kernels.reference import (
    KEY_STEPS,
    LEAST_WEIGHT,
    MULTIPLIERS,
    NODE_PX,
    ROUNDS,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["blend", "normalize", "philox_normal", "philox_uniform", "pick"]

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


@numba.njit(nogil=True, cache=True)
def _mean(pixels, row, column, fill):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    j, i = int(np.floor(row)), int(np.floor(column))
    down, across = row - j, column - i
    total, divisor = 0.0, 0.0
    for k in range(4):
        y, x = j + k // 2, i + k % 2
        if 0 <= y < pixels.shape[0] and 0 <= x < pixels.shape[1]:
            value = float(pixels[y, x])
            if not (value == fill or np.isnan(value)):
                weight = (down if k // 2 else 1 - down) * (across if k % 2 else 1 - across)
                total += weight * value
                divisor += weight
    return total / divisor if divisor > LEAST_WEIGHT else fill


@numba.njit(nogil=True, cache=True)
def _sample(pixels, nodes, is_bent, frame, fill, is_mean, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    top, left, first_row, first_column, height, width = frame
    rows, columns = nodes[0], nodes[1]
    for y in range(out.shape[0]):
        j = (y + top) // NODE_PX
        v = (y + top - j * NODE_PX + 0.5) / NODE_PX
        for i in range(is_bent.shape[1]):
            if is_bent[j, i]:
                continue
            r0 = rows[j, i] * (1 - v) + rows[j + 1, i] * v
            r1 = rows[j, i + 1] * (1 - v) + rows[j + 1, i + 1] * v
            c0 = columns[j, i] * (1 - v) + columns[j + 1, i] * v
            c1 = columns[j, i + 1] * (1 - v) + columns[j + 1, i + 1] * v
            start = i * NODE_PX - left
            for x in range(max(start, 0), min(start + NODE_PX, out.shape[1])):
                u = (x - start + 0.5) / NODE_PX
                row, column = r0 * (1 - u) + r1 * u, c0 * (1 - u) + c1 * u
                if not (0 <= row < height and 0 <= column < width):
                    continue
                if is_mean:
                    out[y, x] = _mean(
                        pixels, row - 0.5 - first_row, column - 0.5 - first_column, fill
                    )
                    continue
                k, m = int(row) - first_row, int(column) - first_column
                if 0 <= k < pixels.shape[0] and 0 <= m < pixels.shape[1]:
                    out[y, x] = pixels[k, m]


def pick(
    pixels: NDArray[np.generic],
    nodes: NDArray[np.floating[Any]],
    is_bent: NDArray[np.bool_],
    frame: tuple[int, ...],
    out: NDArray[np.generic],
) -> None:
    """Twin of `reference.pick`."""
    _sample(pixels, nodes, is_bent, frame, 0.0, False, out)


def blend(
    pixels: NDArray[np.generic],
    nodes: NDArray[np.floating[Any]],
    is_bent: NDArray[np.bool_],
    frame: tuple[int, ...],
    fill: float,
    out: NDArray[np.generic],
) -> None:
    """Twin of `reference.blend`."""
    means = out if out.dtype.kind == "f" else out.astype(np.float64)
    _sample(pixels, nodes, is_bent, frame, float(fill), True, means)
    if means is not out:
        np.rint(means, out=means)
        out[...] = means
