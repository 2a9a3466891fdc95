"""Arguments of the engine functions, as strategies: NumPy arrays and plain numbers alone.

Arrays are small enough for a simulator and, where not told otherwise, wide enough for the vector
instructions of a CPU and what remains behind them. Contents come from a seed, since Hypothesis
would take longer to draw single pixels than the kernels take for all of them.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

DTYPES = ("uint8", "uint16", "int16", "float32")
WIDTHS = (0, 1, 2, 7, 16, 33, 70, 131)
SPECIAL = np.array(
    [0, -0.0, 1, -1, 0.5, -9999, -32768, 65535, 1e-38, 1e-45, 3.4028235e38, -3.4028235e38,
     np.inf, -np.inf, np.nan, 1.1754944e-38, 1.1754942e-38],
    np.float32,
)  # fmt: skip
"""Zeros, the ends of dtypes, around the smallest normal number, and what is no number."""
LEVELS = ((8, 8, 8, 6, 5), (7, 5, 5, 5, 5), (2,), (3, 2), (1000, 60))
"""Of TerraMind's two kinds of codebooks, and of smaller and wider ones."""

generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def numbers(rng, shape, dtype):
    """Any pixels: ordinary, the ends of the dtype, and for floats any bits and special ones."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        ends = rng.choice(np.array([info.min, 0, 1, info.max], dtype), shape)
        return np.where(rng.random(shape) < rng.choice([0, 0.1, 1]), ends, x)
    ordinary = rng.normal(0, 10 ** rng.uniform(-3, 4), shape).astype(dtype)
    any_bits = rng.integers(0, 2**32, shape, np.uint32).view(dtype)
    x = np.where(rng.random(shape) < rng.choice([0, 0, 0.2]), any_bits, ordinary)
    return np.where(rng.random(shape) < rng.choice([0, 0.1, 1]), rng.choice(SPECIAL, shape), x)


def laid_out(rng, x):
    """The same numbers in memory of another layout: cropped, strided, backwards and so on."""
    how = rng.integers(6)
    if how == 1:  # a crop
        padded = np.zeros([n + 3 for n in x.shape], x.dtype)
        target = padded[tuple(slice(1, n + 1) for n in x.shape)]
    elif how == 2:  # every second number
        target = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2]
    elif how == 3:
        target = np.flip(np.zeros_like(x), rng.integers(x.ndim))
    elif how == 4:  # the last axis first
        target = np.moveaxis(np.zeros((x.shape[-1], *x.shape[:-1]), x.dtype), 0, -1)
    elif how == 5:  # a field of records, at places that are no multiples of a number's size
        target = np.zeros(x.shape, [("flag", np.uint8), ("number", x.dtype)])["number"]
    else:
        target = np.zeros_like(x)
    target[...] = x
    return target


@st.composite
def pixels_to_standardize(draw, dtypes=DTYPES, widths=WIDTHS):
    """Return x, corners, (shift, scale, nodata, from_power) and an array to write."""
    rng, dtype = draw(generators), draw(st.sampled_from(dtypes))
    patch_px = draw(st.sampled_from([None, None, 1, 2, 3, 8]))
    channels, batch, tiles = draw(st.sampled_from([1, 2, 3, 4, 5, 12])), *rng.integers(1, 4, 2)
    tiles = draw(st.sampled_from([int(tiles), 0]))
    tile = np.array([int(rng.integers(0, 6)), draw(st.sampled_from(widths))])
    if patch_px:
        tile = -(-tile // patch_px) * patch_px
    room = rng.integers(0, 4, 2)
    x = laid_out(rng, numbers(rng, (batch, channels, *(tile + room)), dtype))
    corners = rng.integers(0, (batch, *(room + 1)), (tiles, 3))
    nodata = draw(st.sampled_from([None, 0.0, 0.0, float("nan"), -9999.0, 0.5, 65535.0]))
    if draw(st.booleans()):
        x[:, rng.integers(channels), :, x.shape[-1] // 2 :] = 0
    mean, std = rng.uniform(-3000, 3000, channels), 10 ** rng.uniform(-3, 3, channels)
    constants = mean.astype(np.float32), (1 / std).astype(np.float32), nodata, draw(st.booleans())
    shape = (tiles, channels, *tile)
    if patch_px:
        shape = (tiles, *(tile // patch_px), patch_px, patch_px, channels)
    out = np.full(shape, 7, draw(st.sampled_from(["float32", "uint16"])))
    return x, corners, constants, laid_out(rng, out)


@st.composite
def pixels_to_check(draw, dtypes=DTYPES, widths=WIDTHS):
    """Return x, nodata and an array to write."""
    rng, dtype = draw(generators), draw(st.sampled_from(dtypes))
    batch, channels, height = rng.integers(0, (3, 5, 5))
    x = numbers(rng, (batch, channels, height, draw(st.sampled_from(widths))), dtype)
    out = laid_out(rng, np.ones((batch, *x.shape[2:]), np.bool_))
    return laid_out(rng, x), draw(st.sampled_from([0.0, float("nan"), -32768.0, 0.5])), out


@st.composite
def numbers_to_restore(draw, dtypes=DTYPES, widths=WIDTHS):
    """Return x, first_row, (mean, std, limits, nodata), valid and an array to write."""
    rng, dtype = draw(generators), draw(st.sampled_from(dtypes))
    images, channels, rows = rng.integers(0, (3, 5, 5))
    x = numbers(rng, (images, channels, rows, draw(st.sampled_from(widths))), np.float32)
    mean, std = rng.uniform(-3000, 3000, channels), 10 ** rng.uniform(-3, 3, channels)
    if draw(st.booleans()):  # ties
        mean, std = np.round(mean), np.ones(channels)
        x = (rng.integers(-(2**14), 2**14, x.shape) / 2).astype(np.float32)
    bounds = [(-np.inf, np.inf), (0.0, 10000.0), (-50.0, 1.5), (-1e6, 1e6)]
    nodata = draw(st.sampled_from([0.0, 255.0 if dtype != "float32" else float("nan")]))
    constants = (
        mean.astype(np.float32),
        std.astype(np.float32),
        draw(st.sampled_from(bounds)),
        nodata,
    )
    valid = laid_out(rng, rng.random(x.shape[2:]) < 0.7) if draw(st.booleans()) else None
    first_row, below = (int(row) for row in rng.integers(0, 3, 2))
    shape = (images, channels, first_row + rows + below, x.shape[-1])
    return laid_out(rng, x), first_row, constants, valid, laid_out(rng, np.full(shape, 9, dtype))


@st.composite
def latents(draw, widths=WIDTHS):
    """Return a latent without NaN, levels and an array to write."""
    rng, levels = draw(generators), draw(st.sampled_from(LEVELS))
    shape = (int(rng.integers(0, 3)), len(levels), draw(st.sampled_from(widths)))
    latent = rng.normal(0, 10 ** rng.uniform(-2, 3), shape).astype(np.float32)
    special = SPECIAL[~np.isnan(SPECIAL)]
    latent = np.where(rng.random(shape) < rng.choice([0, 0.2]), rng.choice(special, shape), latent)
    ids = np.full((shape[0], shape[2]), -1, draw(st.sampled_from(["int64", "int32"])))
    return laid_out(rng, latent), levels, laid_out(rng, ids)


@st.composite
def token_ids(draw, widths=WIDTHS):
    """Return token ids, levels and an array to write."""
    rng, levels = draw(generators), draw(st.sampled_from(LEVELS))
    shape = (int(rng.integers(0, 3)), draw(st.sampled_from(widths)))
    ids = rng.integers(0, np.prod(levels), shape).astype(draw(st.sampled_from(["int64", "int32"])))
    out = np.full((shape[0], len(levels), shape[1]), np.nan, np.float32)
    return laid_out(rng, ids), levels, laid_out(rng, out)


@st.composite
def tiles_in_a_ring(draw, widths=WIDTHS):
    """Return lists of (values, weights, place) and of (first row, rows), total and weight.

    The rows, which follow each other, are to be finished one by one after all tiles are added.
    """
    rng = draw(generators)
    bands, tile_px = int(rng.integers(1, 4)), int(rng.integers(1, 9))
    ring_rows, width = int(rng.integers(tile_px, 20)), max(tile_px, draw(st.sampled_from(widths)))
    tile_px = width if draw(st.booleans()) and width <= ring_rows else tile_px
    top = int(rng.integers(0, 100))
    tiles = []
    for _ in range(int(rng.integers(0, 4))):
        values = numbers(rng, (bands, tile_px, tile_px), np.float32)
        weights = rng.random((tile_px, tile_px)).astype(np.float32)
        tile_row, tile_column = (int(n) for n in rng.integers(0, tile_px, 2))
        rows, columns = tile_px - tile_row, tile_px - tile_column
        row = top + int(rng.integers(0, ring_rows - rows + 1))
        column = int(rng.integers(0, width - columns + 1))
        place = (tile_row, tile_column, row, column, rows, columns)
        tiles.append((laid_out(rng, values), laid_out(rng, weights), place))
    half = int(rng.integers(0, ring_rows + 1))
    parts = [(top, half), (top + half, ring_rows - half)]
    total, weight = np.zeros((bands, ring_rows, width), np.float32), np.zeros((ring_rows, width))
    return tiles, parts, laid_out(rng, total), laid_out(rng, weight.astype(np.float32))


@st.composite
def probabilities(draw, widths=WIDTHS):
    """Return probabilities and arrays to write classes and confidence."""
    rng = draw(generators)
    shape = (int(rng.integers(1, 11)), draw(st.sampled_from(widths)))
    probability = rng.random(shape).astype(np.float32)
    if draw(st.booleans()):  # ties
        probability = np.round(probability * 3) / np.float32(3)
    special = rng.choice(SPECIAL, shape)
    probability = np.where(rng.random(shape) < rng.choice([0, 0.1]), special, probability)
    outs = np.full(shape[1], 9, np.uint8), np.full(shape[1], 9, np.float32)
    return laid_out(rng, probability), *(laid_out(rng, out) for out in outs)


@st.composite
def cells(draw):
    """Return a key, rows, columns and an array to write."""
    rng = draw(generators)
    key = tuple(int(word) for word in rng.integers(0, 2**32, 2))
    count, n = draw(st.integers(1, 23)), draw(st.sampled_from([0, 1, 2, 5, 30]))
    rows, cols = rng.integers(-(2**33), 2**33, (2, n))
    return key, laid_out(rng, rows), cols, laid_out(rng, np.full((n, count), np.nan, np.float32))


def assert_same(found, expected):
    """Equal bit for bit, but for what kind of NaN."""
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    if found.dtype.kind == "f":
        is_number = ~np.isnan(found)
        signs = np.signbit(found)[is_number], np.signbit(expected)[is_number]
        np.testing.assert_array_equal(*signs)
