"""The kernels' mathematics in plain NumPy: the definition that every engine is tested against.

`normalize` is ``(float32(x) - shift) * scale`` in float32, with ``shift = float32(mean - offset)``
and ``scale = float32(1 / std)`` rounded once from float64; the order is fixed so that engines agree
bit for bit. `philox_uniform` is Philox4x32 with ten rounds (Salmon et al., SC 2011).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["blend", "normalize", "philox", "philox_normal", "philox_uniform", "pick"]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
NODE_PX = 32
"""Side of the cells of the world in which places in another raster are linear."""
LEAST_WEIGHT = 1e-5
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def normalize(
    x: NDArray[np.generic],
    shift: NDArray[np.float32],
    scale: NDArray[np.float32],
    nodata: float | None,
    out: NDArray[np.float32],
) -> None:
    """Write standardised (B, C, H, W) pixels to `out`; masked pixels become 0.

    A pixel is masked where any of its channels equals `nodata` (is NaN, for a NaN nodata); None
    masks nothing.
    """
    np.subtract(x.astype(np.float32), shift[:, None, None], out=out)
    out *= scale[:, None, None]
    if nodata is not None:
        is_nodata = np.isnan(x) if np.isnan(nodata) else x == nodata
        np.copyto(out, np.float32(0), where=is_nodata.any(axis=1, keepdims=True))


def philox(
    counter: tuple[NDArray[np.uint64], ...], key: tuple[int, int]
) -> tuple[NDArray[np.uint64], ...]:
    """Return four arrays of 32-bit words (as uint64) for four counter arrays and two key words."""
    c0, c1, c2, c3 = counter
    for i in range(ROUNDS):
        k0 = np.uint64((key[0] + i * KEY_STEPS[0]) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + i * KEY_STEPS[1]) & 0xFFFFFFFF)
        p0, p1 = np.uint64(MULTIPLIERS[0]) * c0, np.uint64(MULTIPLIERS[1]) * c2
        c0, c2 = (p1 >> _HALF) ^ c1 ^ k0, (p0 >> _HALF) ^ c3 ^ k1
        c1, c3 = p1 & _LOW, p0 & _LOW
    return c0, c1, c2, c3


def philox_uniform(
    key: tuple[int, int],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Fill `out` (cells, count) with uniform numbers in (0, 1) that depend on key and cell alone.

    Number 4 j + i of cell (row, col) is word i of the counter (j, 0, row, col), rows and columns
    modulo 2^32, turned into the middle of one of 2^23 equal intervals.
    """
    blocks = -(-out.shape[1] // 4)
    shape = (out.shape[0], blocks)
    counter = (
        np.broadcast_to(np.arange(blocks, dtype=np.uint64), shape),
        np.zeros(shape, np.uint64),
        np.broadcast_to((rows & 0xFFFFFFFF).astype(np.uint64)[:, None], shape),
        np.broadcast_to((cols & 0xFFFFFFFF).astype(np.uint64)[:, None], shape),
    )
    words = np.stack(philox(counter, key), axis=-1).reshape(out.shape[0], 4 * blocks)
    numbers = ((words >> np.uint64(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    out[:] = numbers[:, : out.shape[1]]


def philox_normal(
    key: tuple[int, int],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Fill `out` (cells, count) with standard normal numbers that depend on key and cell alone.

    Numbers 2 j and 2 j + 1 come from the uniform numbers of the same places by the transform of
    Box and Muller (1958), cosine first.
    """
    uniform = np.empty((out.shape[0], out.shape[1] + out.shape[1] % 2), np.float32)
    philox_uniform(key, rows, cols, uniform)
    radius = np.sqrt(np.float32(-2) * np.log(uniform[:, ::2]))
    angle = np.float32(2 * np.pi) * uniform[:, 1::2]
    uniform[:, ::2], uniform[:, 1::2] = radius * np.cos(angle), radius * np.sin(angle)
    out[:] = uniform[:, : out.shape[1]]


def pick(
    pixels: NDArray[np.generic],
    nodes: NDArray[np.floating[Any]],
    is_bent: NDArray[np.bool_],
    frame: tuple[int, ...],
    out: NDArray[np.generic],
) -> None:
    """Write to `out` the pixels of a raster that hold its pixels' centres.

    What lies outside of the raster, or in a bent cell, stays as it is.

    Parameters
    ----------
    pixels : numpy.ndarray, shape (h, w)
        A window of the raster that holds whatever is needed.
    nodes : numpy.ndarray of float64, shape (2, n + 1, m + 1)
        Row and column in the raster of the nodes of a lattice, `NODE_PX` pixels of `out` apart;
        linear between them, first along y.
    is_bent : numpy.ndarray of bool, shape (n, m)
        Cells to leave out.
    frame : tuple of int
        Row and column of the first pixel of `out` in the lattice, row and column of the window in
        the raster, height and width of the raster.
    out : numpy.ndarray, shape (y, x)
    """
    rows, columns, known = _places(nodes, is_bent, frame, out.shape)
    row, column = rows[known].astype(np.intp) - frame[2], columns[known].astype(np.intp) - frame[3]
    out[known] = pixels[row, column]


def blend(
    pixels: NDArray[np.generic],
    nodes: NDArray[np.floating[Any]],
    is_bent: NDArray[np.bool_],
    frame: tuple[int, ...],
    fill: float,
    out: NDArray[np.generic],
) -> None:
    """Write to `out` means of the four pixels around its pixels' centres, by distance.

    Pixels that are NaN or `fill`, or outside, have no weight; without any, the mean is `fill`.
    The other parameters are those of `pick`.
    """
    rows, columns, known = _places(nodes, is_bent, frame, out.shape)
    row, column = rows[known] - 0.5 - frame[2], columns[known] - 0.5 - frame[3]
    j, i = np.floor(row).astype(np.intp), np.floor(column).astype(np.intp)
    down, across = row - j, column - i
    total, divisor = np.zeros(row.shape), np.zeros(row.shape)
    for k in range(4):
        y, x = j + k // 2, i + k % 2
        is_in = (y >= 0) & (y < pixels.shape[0]) & (x >= 0) & (x < pixels.shape[1])
        value = np.full(row.shape, np.nan)
        value[is_in] = pixels[y[is_in], x[is_in]]
        weight = (down if k // 2 else 1 - down) * (across if k % 2 else 1 - across)
        weight = np.where((value == fill) | np.isnan(value), 0, weight)
        total += weight * np.where(weight > 0, value, 0)
        divisor += weight
    has_any = divisor > LEAST_WEIGHT
    mean = np.where(has_any, total / np.where(has_any, divisor, 1), fill)
    out[known] = np.rint(mean) if out.dtype.kind in "iu" else mean


def _places(
    nodes: NDArray[np.floating[Any]],
    is_bent: NDArray[np.bool_],
    frame: tuple[int, ...],
    shape: tuple[int, ...],
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]], NDArray[np.bool_]]:
    """Return rows and columns in the raster, and where they are known and inside."""
    (top, left), (height, width) = frame[:2], frame[4:]
    y, x = np.arange(shape[0]) + top, np.arange(shape[1]) + left
    j, i = np.ix_(y // NODE_PX, x // NODE_PX)
    v, u = (y % NODE_PX + 0.5)[:, None] / NODE_PX, (x % NODE_PX + 0.5)[None] / NODE_PX
    before = nodes[:, j, i] * (1 - v) + nodes[:, j + 1, i] * v
    after = nodes[:, j, i + 1] * (1 - v) + nodes[:, j + 1, i + 1] * v
    rows, columns = before * (1 - u) + after * u
    with np.errstate(invalid="ignore"):
        known = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return rows, columns, known & ~is_bent[j, i]
