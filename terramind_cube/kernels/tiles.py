"""Public passes over decoded tiles: sums where they overlap, classes of probabilities.

Arguments are checked before any kernel runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from terramind_cube.kernels.dispatch import (
    engine_of,
    hold,
    input_array,
    numbers,
    output_array,
    refuse_overlap,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terramind_cube.kernels.dispatch import Array, Held

__all__ = ["blend_accumulate", "blend_finish", "class_map"]

_MOST_CLASSES = 256


def blend_accumulate(
    values: Array, weights: Array, place: Sequence[int], total: Array, weight: Array
) -> None:
    """Add a weighted tile to the sums of overlapping tiles.

    Parameters
    ----------
    values : array of float32, shape (K, t, t)
        Of a tile.
    weights : array of float32, shape (t, t)
        Of the tile's pixels.
    place : (int, int, int, int, int, int)
        First row and column of the part of the tile that is added, row of the region and column
        where it goes, number of rows and columns.
    total : array of float32, shape (K, R, W)
        Sums of weighted values, added to. R rows of the region are kept, row r at ``r % R``.
    weight : array of float32, shape (R, W)
        Sums of weights, added to.

    Raises
    ------
    TypeError, ValueError
        If arrays do not fit, or the place is outside of the tile or the sums.
    """
    tile = input_array(values, "values", ("float32",), ndim=3)
    factors = input_array(weights, "weights", ("float32",), tile)
    if factors.shape != tile.shape[1:]:
        raise ValueError(f"weights: expected shape {tile.shape[1:]}, got {factors.shape}.")
    sums = _ring_sums(total, weight, tile)
    if sums[0].shape[0] != tile.shape[0]:
        raise ValueError(f"total: expected {tile.shape[0]} channels, got {sums[0].shape}.")
    refuse_overlap(sums, (tile, factors))
    six = tuple(numbers(place, "place", "6 whole numbers", is_whole=True).tolist())
    if len(six) != 6:
        raise ValueError(f"place: expected 6 whole numbers, got {six}.")
    tile_row, tile_column, _, column, rows, columns = six
    kept, width = sums[1].shape
    if (
        min(six) < 0
        or tile_row + rows > tile.shape[1]
        or tile_column + columns > tile.shape[2]
        or rows > kept
        or column + columns > width
    ):
        raise ValueError(
            f"place: expected a part of a tile {tile.shape[1:]} that goes into {kept} rows "
            f"of {width} columns, got {six} (first row and column in the tile, row, column, "
            "rows, columns)."
        )
    if rows and columns:
        engine_of(tile).blend_accumulate(tile.view, factors.view, six, sums[0].view, sums[1].view)


def blend_finish(total: Array, weight: Array, first_row: int, out: Array) -> Array:
    """Divide sums of overlapping tiles by their weights, and set their rows to 0 for the next ones.

    Parameters
    ----------
    total : array of float32, shape (K, R, W)
        See `blend_accumulate`.
    weight : array of float32, shape (R, W)
    first_row : int
        First row of the region to finish.
    out : array of float32, shape (K, n, W)
        Written to: means of n rows of the region, NaN where no tile was added.

    Returns
    -------
    array of float32, shape (K, n, W)
        `out`.

    Raises
    ------
    TypeError, ValueError
        If arrays do not fit.
    """
    held = hold(out, "out")
    sums = _ring_sums(total, weight, held)
    if len(held.shape) != 3:
        raise ValueError(f"out: expected shape (K, n, W), got {held.shape}.")
    (channels, kept, width), rows = sums[0].shape, held.shape[1]
    output_array(out, "out", (channels, rows, width), ("float32",), sums[0])
    refuse_overlap((*sums, held))
    first = whole(first_row, "first_row")
    if rows > kept or first < 0:
        raise ValueError(
            f"out: expected at most {kept} rows from row 0 on, got {rows} from row {first} on."
        )
    if held.size:
        engine_of(held).blend_finish(sums[0].view, sums[1].view, first, held.view)
    return held.array


def class_map(
    probability: Array, classes: Array | None = None, confidence: Array | None = None
) -> tuple[Array, Array]:
    """Find the most probable class of each pixel, and its probability.

    Parameters
    ----------
    probability : array of float32, shape (C, H, W)
        Of at most 256 classes; C-contiguous on a GPU.
    classes : array of uint8, shape (H, W), optional
        Written to and returned, if given.
    confidence : array of float32, shape (H, W), optional
        Written to and returned, if given.

    Returns
    -------
    classes : array of uint8, shape (H, W)
        The first class of the greatest probability; 0 where any is NaN.
    confidence : array of float32, shape (H, W)
        Its probability, NaN where any is NaN.

    Raises
    ------
    TypeError, ValueError
        If arrays do not fit.
    """
    given = input_array(probability, "probability", ("float32",))
    if len(given.shape) < 2 or not 1 <= given.shape[0] <= _MOST_CLASSES:
        raise ValueError(
            f"probability: expected shape (C, H, W) of 1 .. {_MOST_CLASSES} classes, "
            f"got {given.shape}."
        )
    count, inner = given.shape[0], given.shape[1:]
    codes = output_array(classes, "classes", inner, ("uint8",), given)
    certain = output_array(confidence, "confidence", inner, ("float32",), given)
    refuse_overlap((codes, certain), (given,))
    pixels = math.prod(inner)
    targets = codes.merged_out(pixels), certain.merged_out(pixels)
    if pixels:
        engine_of(given).class_map(given.merged(count, pixels), *targets)
    return codes.array, certain.array


def _ring_sums(total: Any, weight: Any, like: Held) -> tuple[Held, Held]:
    """Check sums (K, R, W) and weights (R, W) of a ring of rows."""
    shape = hold(total, "total").shape
    sums = output_array(total, "total", shape, ("float32",), like)
    if len(shape) != 3 or shape[1] < 1:
        raise ValueError(f"total: expected shape (K, R, W) of at least one row, got {shape}.")
    hold(weight, "weight")  # which None is not
    return sums, output_array(weight, "weight", shape[1:], ("float32",), like)
