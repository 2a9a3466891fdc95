"""The kernels' mathematics in plain NumPy: the definition that every engine is tested against.

All of it is float32, rounded operation by operation in the order written here, with the elementary
functions of `scalars`, so that engines agree bit for bit. Functions write into `out` arrays and
take their arguments as checked: `dispatch` checks them. `philox` is Philox4x32 with ten rounds
(Salmon et al., SC 2011).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from terramind_cube.kernels import scalars
from terramind_cube.kernels.rules import DECIBELS_PER_NEPER, LEAST_POWER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from terramind_cube.kernels.rules import Restoration, Standardization

__all__ = [
    "blend",
    "blend_accumulate",
    "blend_finish",
    "bounds",
    "class_map",
    "denormalize",
    "fsq_dequantize",
    "fsq_quantize",
    "normalize",
    "philox",
    "philox_normal",
    "philox_uniform",
    "pick",
    "valid_pixels",
]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
NODE_PX = 32
"""Side of the cells of the world in which places in another raster are linear."""
LEAST_WEIGHT = 1e-5
GREATEST_LOGIT = np.float32(80)
"""A sigmoid is 0 or 1 to float32 precision long before; its exponential stays finite."""
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def normalize(
    x: NDArray[np.generic],
    corners: NDArray[np.int64],
    rule: Standardization,
    out: NDArray[np.float32 | np.uint16],
) -> None:
    """Write standardised tiles of pixels to `out`; masked pixels become 0 in every channel.

    Parameters
    ----------
    x : numpy.ndarray, shape (B, C, H, W)
        uint8, uint16, int16 or float32, of any strides.
    corners : numpy.ndarray of int64, shape (T, 3)
        Image, first row and first column of each tile, which lies inside of its image.
    rule : Standardization
    out : numpy.ndarray of float32, or of uint16 that holds the bits of bfloat16
        Of shape (T, C, h, w), or (T, h / p, w / p, p, p, C): patches as a ViT reads them.
    """
    is_patches = out.ndim == 6
    h, w = (out.shape[k] * out.shape[k + 2] for k in (1, 2)) if is_patches else out.shape[2:]
    for tile, (b, row, column) in zip(out, corners, strict=True):
        values = _standardized(x[b, :, row : row + h, column : column + w], rule)
        if out.dtype == np.uint16:
            values = scalars.bfloat16_bits(values)
        if is_patches:
            p = out.shape[3]
            values = values.reshape(len(values), h // p, p, w // p, p).transpose(1, 3, 2, 4, 0)
        tile[...] = values


def _standardized(pixels: NDArray[np.generic], rule: Standardization) -> NDArray[np.float32]:
    values = pixels.astype(np.float32)
    is_masked = np.zeros(values.shape, np.bool_)
    if rule.nodata is not None or rule.from_power:
        is_masked |= ~np.isfinite(values)
    if rule.nodata is not None:
        is_masked |= values == np.float32(rule.nodata)
    if rule.from_power:
        is_masked |= values < LEAST_POWER
        values = scalars.log(np.where(is_masked, LEAST_POWER, values)) * DECIBELS_PER_NEPER
    with np.errstate(over="ignore", invalid="ignore"):
        values = (values - rule.shift[:, None, None]) * rule.scale[:, None, None]
    return np.where(is_masked.any(axis=0), np.float32(0), values)


def valid_pixels(x: NDArray[np.generic], nodata: float, out: NDArray[np.bool_]) -> None:
    """Write to `out` (B, H, W) where every channel of `x` (B, C, H, W) is finite and not nodata."""
    values = x.astype(np.float32)
    np.all(np.isfinite(values) & (values != np.float32(nodata)), axis=1, out=out)


def denormalize(
    x: NDArray[np.float32],
    first_row: int,
    rule: Restoration,
    valid: NDArray[np.bool_] | None,
    out: NDArray[np.generic],
) -> None:
    """Write standardised rows of pixels in units to rows of `out`.

    Parameters
    ----------
    x : numpy.ndarray of float32, shape (N, C, n, W)
    first_row : int
        Row of `out` that the first one of `x` becomes.
    rule : Restoration
    valid : numpy.ndarray of bool, shape (n, W), or None
        Pixels that are no nodata; None: all of them.
    out : numpy.ndarray, shape (N, C, H, W)
        uint8, uint16, int16 or float32; integers are rounded half to even.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = x * rule.std[:, None, None] + rule.mean[:, None, None]
    is_nodata = np.isnan(values)
    if valid is not None:
        is_nodata |= ~valid
    low, high = bounds(rule, out.dtype)
    values = np.where(values > low, values, low)
    values = np.where(values < high, values, high)
    if out.dtype.kind in "iu":
        values = scalars.round_half_even(values)
    nodata = out.dtype.type(rule.nodata)
    out[:, :, first_row : first_row + x.shape[2]] = np.where(
        is_nodata, nodata, values.astype(out.dtype)
    )


def bounds(rule: Restoration, dtype: np.dtype[Any]) -> tuple[np.float32, np.float32]:
    """Return the least and greatest value of restored pixels: a rule's limits, within a dtype's."""
    low, high = np.float32(rule.limits[0]), np.float32(rule.limits[1])
    if dtype.kind == "f":
        return low, high
    info = np.iinfo(dtype.name)
    return max(low, np.float32(info.min)), min(high, np.float32(info.max))


def fsq_quantize(
    latent: NDArray[np.float32], levels: tuple[int, ...], out: NDArray[np.integer[Any]]
) -> None:
    """Write to `out` (B, n) the token ids of latents (B, L, n), L numbers to a token.

    Finite scalar quantisation (Mentzer et al., ICLR 2024): number k is squeezed into 0 .. 1 and
    rounded to one of ``levels[k]`` steps; the steps are the digits of the id, the first one least.
    NaN is the step 0.
    """
    out[...] = 0
    basis = 1
    for k, level in enumerate(levels):
        logit = np.where(latent[:, k] > -GREATEST_LOGIT, latent[:, k], -GREATEST_LOGIT)
        logit = np.where(logit < GREATEST_LOGIT, logit, GREATEST_LOGIT)
        squeezed = np.float32(1) / (np.float32(1) + scalars.exp(-logit))
        step = scalars.round_half_even(squeezed * np.float32(level - 1))
        out += step.astype(out.dtype) * out.dtype.type(basis)
        basis *= level


def fsq_dequantize(
    ids: NDArray[np.integer[Any]], levels: tuple[int, ...], out: NDArray[np.float32]
) -> None:
    """Write to `out` (B, L, n) the codes, 0 to 1, of token ids (B, n): inverse of `fsq_quantize`."""
    basis = 1
    for k, level in enumerate(levels):
        step = ids // ids.dtype.type(basis) % ids.dtype.type(level)
        out[:, k] = step.astype(np.float32) / np.float32(level - 1)
        basis *= level


def blend_accumulate(
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    place: tuple[int, int, int, int, int, int],
    total: NDArray[np.float32],
    weight: NDArray[np.float32],
) -> None:
    """Add a weighted tile to the sums of a ring of rows: row r of the region is row r modulo R.

    Parameters
    ----------
    values : numpy.ndarray of float32, shape (K, t, t)
    weights : numpy.ndarray of float32, shape (t, t)
    place : tuple of int
        First row and column in the tile of the part that is added, its first row and column in the
        region, and how many rows and columns it has.
    total : numpy.ndarray of float32, shape (K, R, W)
        Sums of values times weights; R is at least the number of rows that are added.
    weight : numpy.ndarray of float32, shape (R, W)
        Sums of weights.
    """
    tile_row, tile_column, row, column, rows, columns = place
    part = np.s_[tile_row : tile_row + rows, tile_column : tile_column + columns]
    ring = np.arange(row, row + rows) % len(weight)
    target = np.s_[ring, column : column + columns]
    weight[target] += weights[part]
    for band, addend in zip(total, values, strict=True):
        band[target] += addend[part] * weights[part]


def blend_finish(
    total: NDArray[np.float32],
    weight: NDArray[np.float32],
    first_row: int,
    out: NDArray[np.float32],
) -> None:
    """Write means of rows of the region to `out` (K, n, W) and empty those rows of the ring.

    ``out`` is total / weight, NaN where no tile came; the other parameters are those of
    `blend_accumulate`.
    """
    ring = np.arange(first_row, first_row + out.shape[1]) % len(weight)
    with np.errstate(all="ignore"):
        np.divide(total[:, ring], weight[ring], out=out)
    total[:, ring] = 0
    weight[ring] = 0


def class_map(
    probability: NDArray[np.float32],
    classes: NDArray[np.uint8],
    confidence: NDArray[np.float32],
) -> None:
    """Write the most probable of C classes of (C, n) probabilities, and its probability.

    Of equal ones the first; where any is NaN, the class is 0 and the confidence NaN.
    """
    is_unknown = np.isnan(probability).any(axis=0)
    best = np.where(is_unknown, 0, probability.argmax(axis=0))
    classes[...] = best
    greatest = np.take_along_axis(probability, best[None], axis=0)[0]
    confidence[...] = np.where(is_unknown, np.float32(np.nan), greatest)


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
    radius = np.sqrt(np.float32(-2) * scalars.log(uniform[:, ::2]))
    turn = uniform[:, 1::2]
    cosine, sine = scalars.sin_turn(np.float32(0.25) - turn), scalars.sin_turn(turn)
    uniform[:, ::2], uniform[:, 1::2] = radius * cosine, radius * sine
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
