"""Loops over pixels, numbers and cells that Numba compiles for `cpu`.

Arrays come as lines: their memory from the first number on in one dimension, and the distances of
all axes but the last, whose numbers are neighbours. So one compiled function serves every layout,
crops of larger arrays among them, and its inner loop is one that a compiler turns into vector
instructions. All places are unsigned: Numba would ask each signed one whether it counts from the
end, and a mixture of both would become float64.
"""

# Numba's types are not Python's.
# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202
# `max` and `min` say nothing of NaN.
# ruff: noqa: FURB136

from __future__ import annotations

import numpy as np

from terramind_cube.kernels import scalars
from terramind_cube.kernels.compiled import kernel, part
from terramind_cube.kernels.reference import GREATEST_LOGIT, KEY_STEPS, MULTIPLIERS, ROUNDS
from terramind_cube.kernels.rules import DECIBELS_PER_NEPER, LEAST_POWER

__all__ = [
    "FROM_POWER",
    "KEEP_ALL",
    "MASK",
    "accumulate",
    "dequantize",
    "finish",
    "images",
    "most_probable",
    "noise",
    "patches",
    "quantize",
    "restore",
    "validity",
]

_log, _exp, _round, _sin_turn, _bfloat16 = map(part, scalars.SCALARS)

KEEP_ALL, MASK, FROM_POWER = 0, 1, 2
"""What `images` and `patches` do beyond scaling: nothing; mask; mask and take decibels of power."""
_BLOCK = np.uint64(1 << 15)
"""Pixels of a block: its mask fits the nearest cache, its rows are long enough for prefetching."""
_PIECE = np.uint64(256)
"""Pixels of a piece where many channels are read and few are written: all are read ahead at once."""
_SCRATCH = np.uint64(1 << 16)
_BATCH = np.uint64(256)
_0, _1, _2, _3, _4 = (np.uint64(number) for number in range(5))
_LINE = np.uint64(16)
_ZERO, _ONE, _QUARTER = np.float32(0), np.float32(1), np.float32(0.25)
_MINUS_TWO, _HALF, _STEP = np.float32(-2), np.float32(0.5), np.float32(2.0**-23)
_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint64(KEY_STEPS[0]), np.uint64(KEY_STEPS[1])
_LOW, _WORD_BITS, _DROP = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(9)


@kernel
def _write(out, place, value, as_bits):
    if as_bits is None:  # which is known, and so decided, when this is compiled
        out[place] = value
    else:
        out[place] = np.uint16(_bfloat16(value))


@kernel
def _standardize(source, area, constants, mask, as_bits, target):
    """Write a channel of a block of pixels, and add its masked ones to `mask`."""
    x, first, stride = source
    rows, columns = area
    shift, scale, nodata, task = constants
    out, to, distance = target
    for i in range(rows):
        a, m, o = first + i * stride, i * columns, to + i * distance
        if task == KEEP_ALL:
            for j in range(columns):
                value = (np.float32(x[a + j]) - shift) * scale
                _write(out, o + j, value, as_bits)
        elif task == MASK:
            for j in range(columns):
                value = np.float32(x[a + j])
                mask[m + j] |= np.uint8((value == nodata) | (value - value != _ZERO))
                value = (value - shift) * scale
                _write(out, o + j, value, as_bits)
        else:
            for j in range(columns):
                value = np.float32(x[a + j])
                is_finite = value - value == _ZERO
                is_power = value >= LEAST_POWER
                mask[m + j] |= np.uint8((value == nodata) | (not is_finite) | (not is_power))
                value = _log(value if is_power else LEAST_POWER) * DECIBELS_PER_NEPER
                value = (value - shift) * scale
                _write(out, o + j, value, as_bits)


@kernel
def _clear(mask, area, channels, target, plane):
    """Write 0 to every channel of the masked pixels of a block."""
    rows, columns = area
    out, to, distance = target
    places = np.empty(columns, np.uint32)
    for i in range(rows):
        m = i * columns
        masked = np.uint32(0)
        for j in range(columns):
            masked += np.uint32(mask[m + j])
        if masked > columns >> _4:
            for c in range(channels):
                o = to + c * plane + i * distance
                for j in range(columns):
                    if mask[m + j]:
                        out[o + j] = 0
        elif masked:
            n = _0
            for j in range(columns):
                places[n] = j
                n += np.uint64(mask[m + j])
            for c in range(channels):
                o = to + c * plane + i * distance
                for k in range(n):
                    out[o + np.uint64(places[k])] = 0


@kernel
def images(source, corners, constants, as_bits, target):
    """Write standardised tiles (T, C, h, w), in blocks of whole rows."""
    x, strides = source
    shift, scale, nodata, task = constants
    out, (to_tile, to_channel, to_row), (height, width) = target
    channels = np.uint64(len(shift))
    step = max(_1, min(height, _BLOCK // max(width, _1)))
    mask = np.empty(step * width, np.uint8)
    for t in range(len(corners)):
        first, tile = _first(corners[t], strides), np.uint64(t) * to_tile
        for i in range(_0, height, step):
            area = (min(step, height - i), width)
            mask[:] = 0
            for c in range(channels):
                _standardize(
                    (x, first + c * strides[1] + i * strides[2], strides[2]),
                    area,
                    (shift[c], scale[c], nodata, task),
                    mask,
                    as_bits,
                    (out, tile + c * to_channel + i * to_row, to_row),
                )
            if task != KEEP_ALL:
                _clear(mask, area, channels, (out, tile + i * to_row, to_row), to_channel)


@kernel
def _first(corner, strides):
    b, row, column = np.uint64(corner[0]), np.uint64(corner[1]), np.uint64(corner[2])
    return b * strides[0] + row * strides[2] + column


@kernel
def patches(source, corners, constants, as_bits, target):
    """Write standardised tiles (T, h / p, w / p, p, p, C), in blocks of a row of patches.

    A block is standardised channel by channel in a scratch in the cache, and then turned around.
    """
    x, strides = source
    shift, scale, nodata, task = constants
    out, (to_tile, to_down, to_across, to_row, to_pixel), (height, width), p = target
    channels = np.uint64(len(shift))
    step = max(p, min(width, _SCRATCH // (p * max(channels, _1)) // p * p))
    mask = np.empty(p * step, np.uint8)
    plane = p * step + _LINE  # no power of two, which would crowd few places of the cache
    scratch = np.empty(channels * plane, out.dtype)
    for t in range(len(corners)):
        first = _first(corners[t], strides)
        for i in range(_0, height, p):
            for j in range(_0, width, step):
                columns = min(step, width - j)
                mask[:] = 0
                for c in range(channels):
                    _standardize(
                        (x, first + c * strides[1] + i * strides[2] + j, strides[2]),
                        (p, columns),
                        (shift[c], scale[c], nodata, task),
                        mask,
                        as_bits,
                        (scratch, c * plane, columns),
                    )
                if task != KEEP_ALL:
                    _clear(mask, (p, columns), channels, (scratch, _0, columns), plane)
                to = np.uint64(t) * to_tile + i // p * to_down + j // p * to_across
                turned = out, to, (to_across, to_row, to_pixel)
                _turn(scratch, plane, columns, channels, p, turned)


@kernel
def _turn(scratch, plane, columns, channels, p, target):
    """Write planes of channels as patches whose channels are neighbours, four at a time."""
    out, to, (to_across, to_row, to_pixel) = target
    quads = channels // _4 * _4
    for patch in range(columns // p):
        for y in range(p):
            a, line = y * columns + patch * p, to + patch * to_across + y * to_row
            for c in range(_0, quads, _4):
                a0, o = a + c * plane, line + c
                a1, a2, a3 = a0 + plane, a0 + _2 * plane, a0 + _3 * plane
                for x in range(p):
                    v0, v1 = scratch[a0 + x], scratch[a1 + x]
                    v2, v3 = scratch[a2 + x], scratch[a3 + x]
                    out[o], out[o + _1], out[o + _2], out[o + _3] = v0, v1, v2, v3
                    o += to_pixel
            for c in range(quads, channels):
                for x in range(p):
                    out[line + c + x * to_pixel] = scratch[a + c * plane + x]


@kernel
def validity(source, shape, nodata, target):
    """Write 1 where every channel is finite and not nodata, else 0."""
    x, strides = source
    batch, channels, height, width = shape
    out, (to_image, to_row) = target
    for b in range(batch):
        for i in range(height):
            for first in range(_0, width, _PIECE):
                n = min(_PIECE, width - first)
                o = b * to_image + i * to_row + first
                for j in range(n):
                    out[o + j] = 1
                for c in range(channels):
                    a = b * strides[0] + c * strides[1] + i * strides[2] + first
                    for j in range(n):
                        pixel = x[a + j]
                        out[o + j] &= np.uint8((pixel != nodata) & (pixel - pixel == 0))


@kernel
def restore(source, shape, constants, bounds, valid, rounds, target):
    """Write pixels in units, within bounds; `valid` and `rounds` are None or given."""
    x, strides = source
    images, channels, rows, columns = shape
    mean, std = constants
    low, high, nodata = bounds
    out, distances = target
    for n in range(images):
        for c in range(channels):
            factor, addend = std[c], mean[c]
            for i in range(rows):
                a = n * strides[0] + c * strides[1] + i * strides[2]
                o = n * distances[0] + c * distances[1] + i * distances[2]
                for j in range(columns):
                    value = x[a + j] * factor + addend
                    is_valid = not np.isnan(value)
                    if valid is not None:
                        is_valid &= valid[0][i * valid[1][0] + j] != 0
                    value = value if value > low else low
                    value = value if value < high else high
                    if rounds is not None:
                        value = _round(value)
                    out[o + j] = value if is_valid else nodata


@kernel
def quantize(source, shape, levels, target):
    """Write token ids, which int32 can count, of latents (B, L, n)."""
    latent, strides = source
    batch, dimensions, count = shape
    out, (to_image,) = target
    ids = np.empty(_PIECE, np.int32)
    for b in range(batch):
        for first in range(_0, count, _PIECE):
            n = min(_PIECE, count - first)
            for i in range(n):
                ids[i] = 0
            basis = np.int32(1)
            for k in range(dimensions):
                steps = np.float32(levels[k] - 1)
                a = b * strides[0] + k * strides[1] + first
                for i in range(n):
                    logit = latent[a + i]
                    logit = logit if logit > -GREATEST_LOGIT else -GREATEST_LOGIT
                    logit = logit if logit < GREATEST_LOGIT else GREATEST_LOGIT
                    step = np.int32(_round(_ONE / (_ONE + _exp(-logit)) * steps))
                    ids[i] = np.int32(ids[i] + np.int32(step * basis))
                basis = np.int32(basis * levels[k])
            for i in range(n):
                out[b * to_image + first + i] = ids[i]


@kernel
def dequantize(source, shape, levels, target):
    """Write codes (B, L, n) of token ids, which int32 can count.

    Quotients of float64 numbers below 2^53 are never rounded up to the next whole one, and CPUs
    divide several of them at once.
    """
    ids, (stride,) = source
    batch, dimensions, count = shape
    out, distances = target
    rest = np.empty(_PIECE, np.int32)
    for b in range(batch):
        for first in range(_0, count, _PIECE):
            n = min(_PIECE, count - first)
            for i in range(n):
                rest[i] = np.int32(ids[b * stride + first + i])
            for k in range(dimensions):
                level, divisor = np.int32(levels[k]), np.float64(levels[k])
                steps, o = np.float32(level - 1), b * distances[0] + k * distances[1] + first
                for i in range(n):
                    above = np.int32(np.float64(rest[i]) / divisor)
                    step = np.int32(rest[i] - np.int32(above * level))
                    out[o + i] = np.float32(step) / steps
                    rest[i] = above


@kernel
def accumulate(values, weights, place, ring, total, weight):
    """Add a weighted tile to sums in a ring of rows."""
    tile_row, tile_column, row, column, rows, columns = place
    bands, ring_rows = ring
    for i in range(rows):
        w = (tile_row + i) * weights[1][0] + tile_column
        o = (row + i) % ring_rows * weight[1][0] + column
        for j in range(columns):
            weight[0][o + j] += weights[0][w + j]
    for k in range(bands):
        for i in range(rows):
            w = (tile_row + i) * weights[1][0] + tile_column
            a = k * values[1][0] + (tile_row + i) * values[1][1] + tile_column
            o = k * total[1][0] + (row + i) % ring_rows * total[1][1] + column
            for j in range(columns):
                total[0][o + j] += values[0][a + j] * weights[0][w + j]


@kernel
def finish(first_row, ring_rows, total, weight, shape, target):
    """Write means of rows and set their sums to 0."""
    bands, rows, columns = shape
    out, (to_band, to_row) = target
    for k in range(bands):
        for i in range(rows):
            source = (first_row + i) % ring_rows
            w, a = source * weight[1][0], k * total[1][0] + source * total[1][1]
            o = k * to_band + i * to_row
            for j in range(columns):
                out[o + j] = total[0][a + j] / weight[0][w + j]
                total[0][a + j] = _ZERO
    for i in range(rows):
        w = (first_row + i) % ring_rows * weight[1][0]
        for j in range(columns):
            weight[0][w + j] = _ZERO


@kernel
def most_probable(source, shape, classes, confidence):
    """Write the first class of the largest probability."""
    probability, (stride,) = source
    count, pixels = shape
    for first in range(_0, pixels, _PIECE >> _1):
        last = min(first + (_PIECE >> _1), pixels)
        for i in range(first, last):
            classes[i] = 0
            confidence[i] = probability[i]
        for c in range(_1, count):
            for i in range(first, last):
                # Loaded beforehand, so that nothing branches.
                value, greatest, found = probability[c * stride + i], confidence[i], classes[i]
                classes[i] = np.uint8(c) if value > greatest else found
                confidence[i] = value if (value > greatest) | np.isnan(value) else greatest
        for i in range(first, last):
            found, greatest = classes[i], confidence[i]
            classes[i] = np.uint8(0) if np.isnan(greatest) else found


@kernel
def noise(key, rows, cols, count, is_normal, target):
    """Write random numbers (cells, count), in batches of Philox blocks that fit the cache."""
    out, (to_cell,) = target
    indices = np.empty(_BATCH, np.uint64)
    block_rows = np.empty(_BATCH, np.uint64)
    block_cols = np.empty(_BATCH, np.uint64)
    numbers = np.empty((4, _BATCH), np.float32)
    blocks = (count + _3) // _4
    cell, block, to, at = _0, _0, _0, _0
    for first in range(_0, np.uint64(len(rows)) * blocks, _BATCH):
        n = min(_BATCH, np.uint64(len(rows)) * blocks - first)
        for k in range(n):
            indices[k] = block
            block_rows[k] = np.uint64(rows[cell]) & _LOW
            block_cols[k] = np.uint64(cols[cell]) & _LOW
            block += _1
            if block == blocks:
                block, cell = _0, cell + _1
        _philox(key, indices, block_rows, block_cols, n, numbers)
        if is_normal:
            _box_muller(numbers, 0, n)
            _box_muller(numbers, 2, n)
        for k in range(n):
            if count - at >= _4:
                for i in range(4):
                    out[to + at + np.uint64(i)] = numbers[i, k]
                at += _4
            else:
                for i in range(count - at):
                    out[to + at + i] = numbers[i, k]
                at = count
            if at == count:
                at, to = _0, to + to_cell


@kernel
def _philox(key, indices, rows, cols, n, numbers):
    for k in range(n):
        c0, c1, c2, c3 = indices[k], _0, rows[k], cols[k]
        k0, k1 = key
        for _ in range(ROUNDS):
            p0, p1 = _M0 * c0, _M1 * c2
            c0, c2 = (p1 >> _WORD_BITS) ^ c1 ^ k0, (p0 >> _WORD_BITS) ^ c3 ^ k1
            c1, c3 = p1 & _LOW, p0 & _LOW
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        numbers[0, k], numbers[1, k] = _unit(c0), _unit(c1)
        numbers[2, k], numbers[3, k] = _unit(c2), _unit(c3)


@kernel
def _unit(word):
    return (np.float32(np.int32(word >> _DROP)) + _HALF) * _STEP


@kernel
def _box_muller(numbers, pair, n):
    for k in range(n):
        radius, turn = np.sqrt(_MINUS_TWO * _log(numbers[pair, k])), numbers[pair + 1, k]
        numbers[pair, k] = radius * _sin_turn(_QUARTER - turn)
        numbers[pair + 1, k] = radius * _sin_turn(turn)
