"""Compiled twins of `reference`: one pass each, without the interpreter's lock."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from terramind_cube.kernels import loops, reference, sampling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from terramind_cube.kernels.rules import Restoration, Standardization

__all__ = [
    "blend",
    "blend_accumulate",
    "blend_finish",
    "class_map",
    "denormalize",
    "fsq_dequantize",
    "fsq_quantize",
    "normalize",
    "philox_normal",
    "philox_uniform",
    "pick",
    "valid_pixels",
]

_MOST_IDS = 2**31 - 1
"""Of a codebook that loops count in int32."""


def _unsigned(numbers: tuple[int, ...]) -> tuple[np.uint64, ...]:
    return tuple([np.uint64(number) for number in numbers])


def _is_lines(x: NDArray[Any]) -> bool:
    """Return whether neighbours along the last axis are neighbours in memory, none backwards."""
    if x.flags.c_contiguous:
        return True
    is_regular = all(stride >= 0 and stride % x.itemsize == 0 for stride in x.strides)
    return is_regular and (x.shape[-1] == 1 or x.strides[-1] == x.itemsize)


def _lines(x: NDArray[Any], writeable: bool = False) -> tuple[NDArray[Any], tuple[np.uint64, ...]]:
    """Return the memory of an array in one dimension and the strides of all axes but the last."""
    if not _is_lines(x):
        x = np.ascontiguousarray(x)
    if x.flags.c_contiguous:
        memory = x.reshape(-1)
    else:
        last = sum((n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True))
        memory = as_strided(x, (last // x.itemsize + 1,), (x.itemsize,))
    if not writeable:
        memory.flags.writeable = False  # Numba compiles once for all that is read
    # A stride less than 0 is left only where nothing is stepped over: one number, or none.
    return memory, _unsigned(tuple([max(stride // x.itemsize, 0) for stride in x.strides[:-1]]))


@contextmanager
def _written(
    out: NDArray[Any],
) -> Iterator[tuple[NDArray[Any], tuple[np.uint64, ...]]]:
    """Give an array to write, as lines, whatever its layout."""
    if _is_lines(out):
        yield _lines(out, writeable=True)
    else:
        copy = np.ascontiguousarray(out)
        yield _lines(copy, writeable=True)
        out[...] = copy


def normalize(
    x: NDArray[np.generic],
    corners: NDArray[np.int64],
    rule: Standardization,
    out: NDArray[np.float32 | np.uint16],
) -> None:
    """Twin of `reference.normalize`."""
    task = loops.MASK if rule.nodata is not None else loops.KEEP_ALL
    task = loops.FROM_POWER if rule.from_power else task
    nodata = np.float32(np.nan if rule.nodata is None else rule.nodata)
    constants = _lines(rule.shift)[0], _lines(rule.scale)[0], nodata, task
    places = _lines(corners)[0].reshape(-1, 3)
    as_bits = True if out.dtype == np.uint16 else None
    with _written(out) as (memory, strides):
        if out.ndim == 4:
            target = memory, strides, _unsigned(out.shape[2:])
            loops.images(_lines(x), places, constants, as_bits, target)
        else:
            p = out.shape[3]
            size = _unsigned((out.shape[1] * p, out.shape[2] * p))
            turned = memory, strides, size, np.uint64(p)
            loops.patches(_lines(x), places, constants, as_bits, turned)


def valid_pixels(x: NDArray[np.generic], nodata: float, out: NDArray[np.bool_]) -> None:
    """Twin of `reference.valid_pixels`."""
    value: Any = np.float32(nodata)
    if x.dtype.kind in "iu":
        value, can_be = _whole(value, x.dtype)
        if not can_be:
            out[...] = True
            return
    with _written(out.view(np.uint8)) as target:
        loops.validity(_lines(x), _unsigned(x.shape), value, target)


def _whole(nodata: np.float32, dtype: np.dtype[Any]) -> tuple[Any, bool]:
    """Return a value as a whole number of a dtype, and whether there is such a one."""
    info = np.iinfo(dtype.name)
    can_be = bool(info.min <= nodata <= info.max and nodata == np.rint(nodata))
    return dtype.type(nodata if can_be else 0), can_be


def denormalize(
    x: NDArray[np.float32],
    first_row: int,
    rule: Restoration,
    valid: NDArray[np.bool_] | None,
    out: NDArray[np.generic],
) -> None:
    """Twin of `reference.denormalize`."""
    bounds = *reference.bounds(rule, out.dtype), np.float32(rule.nodata)
    mask = None if valid is None else _lines(valid.view(np.uint8))
    rounds = True if out.dtype.kind in "iu" else None
    constants = _lines(rule.mean)[0], _lines(rule.std)[0]
    with _written(out[:, :, first_row : first_row + x.shape[2]]) as target:
        loops.restore(_lines(x), _unsigned(x.shape), constants, bounds, mask, rounds, target)


def fsq_quantize(
    latent: NDArray[np.float32], levels: tuple[int, ...], out: NDArray[np.integer[Any]]
) -> None:
    """Twin of `reference.fsq_quantize`."""
    if math.prod(levels) > _MOST_IDS:
        reference.fsq_quantize(latent, levels, out)
        return
    with _written(out) as target:
        loops.quantize(_lines(latent), _unsigned(latent.shape), np.array(levels, np.int64), target)


def fsq_dequantize(
    ids: NDArray[np.integer[Any]], levels: tuple[int, ...], out: NDArray[np.float32]
) -> None:
    """Twin of `reference.fsq_dequantize`."""
    if math.prod(levels) > _MOST_IDS:
        reference.fsq_dequantize(ids, levels, out)
        return
    with _written(out) as target:
        loops.dequantize(_lines(ids), _unsigned(out.shape), np.array(levels, np.int64), target)


def blend_accumulate(
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    place: tuple[int, int, int, int, int, int],
    total: NDArray[np.float32],
    weight: NDArray[np.float32],
) -> None:
    """Twin of `reference.blend_accumulate`."""
    ring = _unsigned(total.shape[:2])
    with _written(total) as totals, _written(weight) as sums:
        loops.accumulate(_lines(values), _lines(weights), _unsigned(place), ring, totals, sums)


def blend_finish(
    total: NDArray[np.float32],
    weight: NDArray[np.float32],
    first_row: int,
    out: NDArray[np.float32],
) -> None:
    """Twin of `reference.blend_finish`."""
    first, ring_rows = _unsigned((first_row, len(weight)))
    with _written(total) as totals, _written(weight) as sums, _written(out) as target:
        loops.finish(first, ring_rows, totals, sums, _unsigned(out.shape), target)


def class_map(
    probability: NDArray[np.float32],
    classes: NDArray[np.uint8],
    confidence: NDArray[np.float32],
) -> None:
    """Twin of `reference.class_map`."""
    with _written(classes) as (numbers, _), _written(confidence) as (greatest, _):
        loops.most_probable(_lines(probability), _unsigned(probability.shape), numbers, greatest)


def philox_uniform(
    key: tuple[int, int],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Twin of `reference.philox_uniform`."""
    _noise(key, rows, cols, False, out)


def philox_normal(
    key: tuple[int, int],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Twin of `reference.philox_normal`."""
    _noise(key, rows, cols, True, out)


def _noise(
    key: tuple[int, int],
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    is_normal: bool,
    out: NDArray[np.float32],
) -> None:
    with _written(out) as target:
        cells = _lines(rows)[0], _lines(cols)[0]
        loops.noise(_unsigned(key), *cells, np.uint64(out.shape[1]), is_normal, target)


def pick(
    pixels: NDArray[np.generic],
    nodes: NDArray[np.floating[Any]],
    is_bent: NDArray[np.bool_],
    frame: tuple[int, ...],
    out: NDArray[np.generic],
) -> None:
    """Twin of `reference.pick`."""
    sampling.sample(pixels, nodes, is_bent, frame, 0.0, False, out)


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
    sampling.sample(pixels, nodes, is_bent, frame, float(fill), True, means)
    if means is not out:
        np.rint(means, out=means)
        out[...] = means
