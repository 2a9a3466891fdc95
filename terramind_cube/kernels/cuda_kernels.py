"""Numba CUDA kernels of `cuda`, and the device functions that they are made of.

A multiplication whose result is added to something is written `product`: compilers for GPUs would
fuse the two into one operation that rounds once, and results would be others than on CPUs. The
functions of `scalars` are compiled from their own source with the same replacement. Numbers are
float32 throughout; every loop strides over the grid, so any grid is right.
"""

# Numba's types are not Python's; its module is the simulator's, or fills itself.
# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="attr-defined"
# ruff: noqa: ANN001, ANN202
# `max` and `min` say nothing of NaN.
# ruff: noqa: FURB136

from __future__ import annotations

import ast
import inspect
import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import config, cuda

from terramind_cube.kernels import scalars
from terramind_cube.kernels.reference import GREATEST_LOGIT, KEY_STEPS, MULTIPLIERS, ROUNDS
from terramind_cube.kernels.rules import DECIBELS_PER_NEPER, LEAST_POWER

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IS_SIMULATED"]

IS_SIMULATED = bool(config.ENABLE_CUDASIM)
"""Whether kernels run in Numba's simulator, on NumPy arrays: no streams, no libdevice."""

if IS_SIMULATED:
    product = operator.mul
else:
    from numba.cuda import libdevice

    product = libdevice.fmul_rn

_INFINITY = np.float32(np.inf)
_ZERO, _ONE, _HALF, _QUARTER = (np.float32(number) for number in (0, 1, 0.5, 0.25))
_MINUS_TWO, _STEP = np.float32(-2), np.float32(2.0**-23)
_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint64(KEY_STEPS[0]), np.uint64(KEY_STEPS[1])
_LOW, _WORD_BITS, _DROPPED_BITS = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(9)


class _Products(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Mult):
            return node
        return ast.Call(ast.Name("product", ast.Load()), [node.left, node.right], [])


def _unfused(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function whose multiplications are calls of `product`."""
    if IS_SIMULATED:
        return function
    tree = ast.fix_missing_locations(_Products().visit(ast.parse(inspect.getsource(function))))
    names: dict[str, Any] = {**function.__globals__, "product": product}
    exec(compile(tree, function.__code__.co_filename, "exec"), names)  # noqa: S102  # ours
    unfused: Callable[[Any], Any] = names[function.__name__]
    return unfused


_log, _exp, _sin_turn = (
    cuda.jit(device=True)(_unfused(function))
    for function in (scalars.log, scalars.exp, scalars.sin_turn)
)
_round_half_even = cuda.jit(device=True)(scalars.round_half_even)
_bfloat16_bits = cuda.jit(device=True)(scalars.bfloat16_bits)


@cuda.jit(device=True)
def _as_float32(value):
    return value


@cuda.jit(device=True)
def _as_bfloat16(value):
    return np.uint16(_bfloat16_bits(value))


@cuda.jit(device=True)
def _is_masked(value, nodata, from_power):
    # Neither NaN nor an infinity is below infinity; a NaN nodata equals nothing.
    return (
        not abs(value) < _INFINITY or value == nodata or (from_power and not value >= LEAST_POWER)
    )


@cuda.jit(device=True)
def _decibels(power):
    """Return decibels, of what has none those of the least power."""
    return product(_log(power if power >= LEAST_POWER else LEAST_POWER), DECIBELS_PER_NEPER)


@cuda.jit(device=True)
def _patched(line, column, width, patch_px):
    """Return how many pixels precede one in the patch layout; lines count on from tile to tile."""
    # Divisions of 32 bits take a quarter of the time.
    down = np.int64(np.uint32(line) // np.uint32(patch_px))
    across = np.int64(np.uint32(column) // np.uint32(patch_px))
    patch = down * (width // patch_px) + across
    inner = (line - down * patch_px) * patch_px + column - across * patch_px
    return patch * patch_px * patch_px + inner


def _normalizer(encode: Any) -> Any:
    @cuda.jit
    def normalize(x, corners, constants, rule, patch_px, tile, out):
        """`out` is flat; `tile` its height and width; `patch_px` is 0 for the image layout."""
        nodata, is_masking, from_power = rule
        height, width = tile
        channels = x.shape[1]
        for line in range(
            cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y,
            out.size // (channels * width),
            cuda.gridDim.x * cuda.blockDim.y,
        ):
            t = line // height
            y = line - t * height
            image, row, left = corners[3 * t], corners[3 * t + 1] + y, corners[3 * t + 2]
            for column in range(cuda.threadIdx.x, width, cuda.blockDim.x):
                place, step = (t * channels * height + y) * width + column, height * width
                if patch_px > 0:
                    place, step = _patched(line, column, width, patch_px) * channels, 1
                has_masked = False
                for c in range(channels):
                    value = np.float32(x[image, c, row, left + column])
                    if is_masking and _is_masked(value, nodata, from_power):
                        has_masked = True
                    if from_power:
                        value = _decibels(value)
                    value = product(value - constants[0, c], constants[1, c])
                    out[place + c * step] = encode(value)
                if has_masked:
                    for c in range(channels):
                        out[place + c * step] = encode(_ZERO)

    return normalize


normalize_to_float32 = _normalizer(_as_float32)
normalize_to_bfloat16 = _normalizer(_as_bfloat16)


@cuda.jit
def valid_pixels(x, nodata, out):
    channels, height, width = x.shape[1], x.shape[2], x.shape[3]
    for line in range(
        cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y,
        x.shape[0] * height,
        cuda.gridDim.x * cuda.blockDim.y,
    ):
        image = line // height
        row = line - image * height
        for column in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            is_valid = True
            for c in range(channels):
                if _is_masked(np.float32(x[image, c, row, column]), nodata, False):
                    is_valid = False
            out[image, row, column] = is_valid


@cuda.jit
def denormalize(x, first_row, constants, rule, valid, out):
    """`constants` are std and mean; `valid` has a single pixel where all of them are."""
    low, high, nodata, is_whole, has_valid = rule
    images, channels, rows, width = x.shape
    for line in range(
        cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y,
        images * channels * rows,
        cuda.gridDim.x * cuda.blockDim.y,
    ):
        plane = line // rows
        row = line - plane * rows
        image = plane // channels
        c = plane - image * channels
        for column in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            value = product(x[image, c, row, column], constants[0, c]) + constants[1, c]
            is_nodata = value != value  # noqa: PLR0124  # NaN
            if has_valid and not valid[row, column]:
                is_nodata = True
            value = value if value > low else low
            value = value if value < high else high
            if is_whole:
                value = _round_half_even(value)
            out[image, c, first_row + row, column] = nodata if is_nodata else value


@cuda.jit
def fsq_quantize(latent, levels, out):
    """`levels` holds the levels, and below them the ids that one step of each is worth."""
    width = out.shape[1]
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        b = i // width
        n = i - b * width
        token = np.int64(0)
        for k in range(levels.shape[1]):
            logit = latent[b, k, n]
            logit = logit if logit > -GREATEST_LOGIT else -GREATEST_LOGIT
            logit = logit if logit < GREATEST_LOGIT else GREATEST_LOGIT
            squeezed = _ONE / (_ONE + _exp(-logit))
            step = _round_half_even(product(squeezed, np.float32(levels[0, k] - 1)))
            token += np.int64(step) * levels[1, k]
        out[b, n] = token


@cuda.jit
def fsq_dequantize(ids, levels, out):
    width = ids.shape[1]
    for i in range(cuda.grid(1), ids.size, cuda.gridsize(1)):
        b = i // width
        n = i - b * width
        token = np.int64(ids[b, n])
        for k in range(levels.shape[1]):
            step = token // levels[1, k] % levels[0, k]
            out[b, k, n] = np.float32(step) / np.float32(levels[0, k] - 1)


@cuda.jit
def blend_accumulate(values, weights, place, total, weight):
    tile_row, tile_column, first_row, first_column, rows, columns = place
    for i in range(
        cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y,
        rows,
        cuda.gridDim.x * cuda.blockDim.y,
    ):
        row = (first_row + i) % weight.shape[0]
        for j in range(cuda.threadIdx.x, columns, cuda.blockDim.x):
            share = weights[tile_row + i, tile_column + j]
            weight[row, first_column + j] += share
            for k in range(values.shape[0]):
                addend = product(values[k, tile_row + i, tile_column + j], share)
                total[k, row, first_column + j] += addend


@cuda.jit
def blend_finish(total, weight, first_row, out):
    for i in range(
        cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y,
        out.shape[1],
        cuda.gridDim.x * cuda.blockDim.y,
    ):
        row = (first_row + i) % weight.shape[0]
        for j in range(cuda.threadIdx.x, out.shape[2], cuda.blockDim.x):
            for k in range(out.shape[0]):
                out[k, i, j] = total[k, row, j] / weight[row, j]
                total[k, row, j] = _ZERO
            weight[row, j] = _ZERO


@cuda.jit
def class_map(probability, classes, confidence):
    for i in range(cuda.grid(1), classes.size, cuda.gridsize(1)):
        best, most = 0, probability[0, i]
        for c in range(1, probability.shape[0]):
            value = probability[c, i]
            # NaN stays, once it came.
            if value > most or value != value:  # noqa: PLR0124
                best, most = c, value
        is_unknown = most != most  # noqa: PLR0124
        classes[i] = 0 if is_unknown else best
        confidence[i] = most


@cuda.jit(device=True)
def _philox(block, row, column, key):
    """Return the four words of `reference.philox` for the counter (block, 0, row, column)."""
    c0, c1, c2, c3 = np.uint64(block), np.uint64(0), np.uint64(row), np.uint64(column)
    for i in range(ROUNDS):
        k0 = (np.uint64(key[0]) + np.uint64(i) * _W0) & _LOW
        k1 = (np.uint64(key[1]) + np.uint64(i) * _W1) & _LOW
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c2 = (p1 >> _WORD_BITS) ^ c1 ^ k0, (p0 >> _WORD_BITS) ^ c3 ^ k1
        c1, c3 = p1 & _LOW, p0 & _LOW
    return c0, c1, c2, c3


@cuda.jit(device=True)
def _uniform(word):
    return product(np.float32(np.uint32(word >> _DROPPED_BITS)) + _HALF, _STEP)


@cuda.jit(device=True)
def _normal(first, second):
    radius = np.float32(math.sqrt(product(_MINUS_TWO, _log(first))))
    return product(radius, _sin_turn(_QUARTER - second)), product(radius, _sin_turn(second))


def _filler(is_normal: bool) -> Any:
    @cuda.jit
    def fill(key, cells, out):
        """`cells` are rows and then columns, modulo 2^32; a thread makes four numbers."""
        count, numbers = out.shape
        blocks = (numbers + 3) // 4
        for i in range(cuda.grid(1), count * blocks, cuda.gridsize(1)):
            cell = i // blocks
            block = i - cell * blocks
            w0, w1, w2, w3 = _philox(block, cells[cell], cells[count + cell], key)
            u0, u1, u2, u3 = _uniform(w0), _uniform(w1), _uniform(w2), _uniform(w3)
            if is_normal:
                u0, u1 = _normal(u0, u1)
                u2, u3 = _normal(u2, u3)
            first = 4 * block
            out[cell, first] = u0
            if first + 1 < numbers:
                out[cell, first + 1] = u1
            if first + 2 < numbers:
                out[cell, first + 2] = u2
            if first + 3 < numbers:
                out[cell, first + 3] = u3

    return fill


philox_uniform = _filler(False)
philox_normal = _filler(True)
