"""Public passes over pixels: from a sensor's numbers to the model's and back.

Arguments are checked before any kernel runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from terramind_cube.kernels.dispatch import (
    Held,
    engine_of,
    hold,
    input_array,
    output_array,
    refuse_overlap,
)
from terramind_cube.kernels.rules import Restoration, Standardization

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from terramind_cube.kernels.dispatch import Array

__all__ = ["denormalize", "normalize", "valid_pixels"]

_DTYPES = ("uint8", "uint16", "int16", "float32")


def normalize(  # noqa: PLR0913  # the public surface
    x: Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    nodata: float | None = None,
    offset: float = 0,
    from_power: bool = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
    patch_px: int | None = None,
    corners: ArrayLike | None = None,
    tile_px: int | None = None,
    out: Array | None = None,
) -> Array:
    """Standardise pixels in one pass: ``(x + offset - mean) / std``, masked pixels 0.

    Parameters
    ----------
    x : array, shape (..., C, H, W)
        Pixels: uint8, uint16, int16 or float32; on the CPU also float64, which is read as float32.
        Arrays on a GPU are C-contiguous.
    mean, std : sequence of float, length C
        Statistics of each channel, in the unit of ``x + offset``, or in dB with `from_power`.
    nodata : float, optional
        A pixel is masked where any of its channels has this value or is no finite number. None
        masks nothing: NaN and infinities flow through.
    offset : float
        Added to the pixels, such as -1000 for Sentinel-2 digital numbers since baseline 04.00.
    from_power : bool
        Whether pixels are linear power, such as radar backscatter, and become decibels first. What
        has no level in decibels (zero, less, no finite number) is masked.
    dtype : {"float32", "bfloat16"}
        Of the result. NumPy and CuPy have no bfloat16: theirs is uint16 that holds the bits.
    patch_px : int, optional
        Side of the model's patches: the result is cut into them.
    corners : array_like of int, shape (T, 3), optional
        Image, first row and first column of tiles to cut out of `x`, which has shape (B, C, H, W)
        or (C, H, W).
    tile_px : int, optional
        Side of these tiles.
    out : array, optional
        Written to and returned, if given; of the kind and on the device of `x`.

    Returns
    -------
    array, shape (..., C, H, W), or (..., H / p, W / p, p, p, C) with patches of p pixels
        Standardised pixels, in the order of TerraMind's patch embedding if they are cut into
        patches. With `corners`, T tiles stand in place of the leading axes and the image's sides.
        A masked pixel is 0, the mean of its band, in every channel.

    Raises
    ------
    TypeError
        If `x` or `out` is no array.
    ValueError
        If shapes, dtypes, devices, statistics or corners do not fit; nothing is written then.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[1000, 0], [1500, 3000]]], "uint16")
    >>> normalize(x, mean=[1000], std=[500], nodata=0)
    array([[[0., 0.],
            [1., 4.]]], dtype=float32)
    """
    pixels = _pixel_array(x)
    channels, height, width = pixels.shape[-3:]
    lead = pixels.shape[:-3]
    if not math.isfinite(offset):
        raise ValueError(f"offset: expected a finite number, got {offset!r}.")
    statistics = _statistics(mean, std, channels)
    rule = Standardization.of(*statistics, nodata, offset, from_power)
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: expected 'float32' or 'bfloat16', got {dtype!r}.")
    if (corners is None) != (tile_px is None):
        raise ValueError("corners, tile_px: expected both or none, got one of them.")
    images = math.prod(lead)
    places = np.zeros((images, 3), np.int64)
    places[:, 0] = np.arange(images)
    if corners is not None and tile_px is not None:
        places = _tile_corners(corners, tile_px, pixels)
        lead, height, width = (len(places),), tile_px, tile_px
    inner = _inner_shape(channels, height, width, patch_px)
    held = output_array(out, "out", (*lead, *inner), (dtype,), pixels)
    refuse_overlap(pixels, held)
    target = held.merged_out(len(places), *inner)
    if held.size:
        source = pixels.merged(images, *pixels.shape[-3:])
        engine_of(held).normalize(source, places, rule, target)
    return held.array


def denormalize(  # noqa: PLR0913  # the public surface
    x: Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: Literal["uint8", "uint16", "int16", "float32"] | None = None,
    limits: tuple[float, float] | None = None,
    nodata: float | None = None,
    valid: Array | None = None,
    first_row: int = 0,
    out: Array | None = None,
) -> Array:
    """Turn standardised numbers into pixels in units, in one pass: ``x * std + mean``.

    Parameters
    ----------
    x : array of float32, shape (..., C, n, W)
        Standardised numbers; C-contiguous on a GPU.
    mean, std : sequence of float, length C
        Statistics of each channel, in the unit of the result.
    dtype : {"uint8", "uint16", "int16", "float32"}, optional
        Of the result, by default that of `out`, or float32; whole numbers are rounded half to even.
    limits : (float, float), optional
        Least and greatest value; by default those that the dtype holds.
    nodata : float, optional
        What is written where `valid` is False or a number is NaN; by default NaN, or 0 for whole
        numbers.
    valid : array of bool, shape (n, W), optional
        Pixels that are known.
    first_row : int
        Row of the result at which the n rows go.
    out : array, shape (..., C, H, W), optional
        Written to and returned, if given; its other rows stay as they are.

    Returns
    -------
    array, shape (..., C, n, W)
        Or `out`.

    Raises
    ------
    TypeError, ValueError
        As those of `normalize`.
    """
    numbers = input_array(x, "x", ("float32",))
    _check_image(numbers)
    channels, rows, width = numbers.shape[-3:]
    known = None
    if valid is not None:
        known = input_array(valid, "valid", ("bool",), numbers)
        if known.shape != (rows, width):
            raise ValueError(f"valid: expected shape {(rows, width)}, got {known.shape}.")
    height = rows if out is None else (0, 0, *hold(out, "out").shape)[-2]
    if height < rows:
        raise ValueError(f"out: expected at least {rows} rows, got {height}.")
    if not 0 <= first_row <= height - rows:
        raise ValueError(
            f"first_row: expected 0 .. {height - rows} for {rows} of {height} rows, "
            f"got {first_row}."
        )
    lead = numbers.shape[:-3]
    dtypes = _DTYPES if dtype is None and out is not None else (dtype or "float32",)
    if dtypes[0] not in _DTYPES:
        raise ValueError(f"dtype: expected {', '.join(_DTYPES)}, got {dtype!r}.")
    held = output_array(out, "out", (*lead, channels, height, width), dtypes, numbers)
    refuse_overlap(numbers, held)
    means, deviations = (np.asarray(row, np.float32) for row in _statistics(mean, std, channels))
    rule = Restoration(
        means,
        deviations,
        _value_limits(limits, held.dtype),
        _fill_value(nodata, held.dtype),
    )
    images = math.prod(lead)
    target = held.merged_out(images, channels, height, width)
    if numbers.size:
        source = numbers.merged(images, channels, rows, width)
        mask = None if known is None else known.view
        engine_of(held).denormalize(source, int(first_row), rule, mask, target)
    return held.array


def valid_pixels(x: Array, *, nodata: float | None, out: Array | None = None) -> Array:
    """Find the pixels whose every channel is finite and differs from nodata.

    Parameters
    ----------
    x : array, shape (..., C, H, W)
        As for `normalize`.
    nodata : float or None
        NaN and None: being finite is enough.
    out : array of bool, shape (..., H, W), optional
        Written to and returned, if given.

    Returns
    -------
    array of bool, shape (..., H, W)

    Raises
    ------
    TypeError, ValueError
        As those of `normalize`.
    """
    pixels = _pixel_array(x)
    value = math.nan if nodata is None else float(nodata)
    lead, (height, width) = pixels.shape[:-3], pixels.shape[-2:]
    held = output_array(out, "out", (*lead, height, width), ("bool",), pixels)
    images = math.prod(lead)
    target = held.merged_out(images, height, width)
    if held.size:
        source = pixels.merged(images, *pixels.shape[-3:])
        engine_of(held).valid_pixels(source, value, target)
    return held.array


def _pixel_array(x: Any) -> Held:
    """Check pixels (..., C, H, W); on the CPU, float64 becomes float32."""
    held = input_array(x, "x", (*_DTYPES, "float64"))
    _check_image(held)
    if held.dtype != "float64":
        return held
    if not held.is_on_host:
        raise ValueError(
            f"x: expected {', '.join(_DTYPES)} on a GPU, got float64: convert it to float32."
        )
    with np.errstate(over="ignore"):
        pixels = held.view.astype(np.float32)
    return Held("x", held.array, held.kind, held.device, "float32", held.shape, pixels)


def _check_image(held: Held) -> None:
    """Refuse what has no channels, rows and columns."""
    if len(held.shape) < 3:
        raise ValueError(f"{held.name}: expected shape (..., C, H, W), got {held.shape}.")


def _statistics(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[list[float], list[float]]:
    """Return means and standard deviations, one of each for every channel."""
    found = []
    for name, values in (("mean", mean), ("std", std)):
        numbers = np.asarray(values, np.float64)
        if numbers.shape != (channels,):
            raise ValueError(
                f"{name}: expected {channels} numbers for the {channels} channels of x, "
                f"got shape {numbers.shape}."
            )
        if not np.isfinite(numbers).all():
            raise ValueError(f"{name}: expected finite numbers, got {numbers.tolist()}.")
        found.append(numbers)
    tiny = np.finfo(np.float32).tiny
    if not (found[1] >= tiny).all():
        raise ValueError(f"std: expected positive numbers, got {found[1].tolist()}.")
    return found[0].tolist(), found[1].tolist()


def _tile_corners(corners: ArrayLike, tile_px: int | None, x: Held) -> NDArray[np.int64]:
    """Return image, first row and first column of tiles that lie inside of x."""
    if len(x.shape) not in (3, 4):
        raise ValueError(f"x: expected shape (B, C, H, W) or (C, H, W) for tiles, got {x.shape}.")
    places = np.asarray(corners)
    if places.ndim != 2 or places.shape[1] != 3 or places.dtype.kind not in "iu":
        raise ValueError(
            f"corners: expected whole numbers of shape (T, 3), got {places.dtype} {places.shape}."
        )
    side = _positive(tile_px, "tile_px")
    images = x.shape[0] if len(x.shape) == 4 else 1
    last = np.array([images - 1, x.shape[-2] - side, x.shape[-1] - side])
    is_out = ((places < 0) | (places > last)).any(axis=1)
    if is_out.any():
        raise ValueError(
            f"corners: expected tiles of {side} px inside of x {x.shape}, "
            f"got {tuple(places[is_out][0].tolist())} (image, row, column)."
        )
    return np.ascontiguousarray(places, np.int64)


def _inner_shape(channels: int, height: int, width: int, patch_px: int | None) -> tuple[int, ...]:
    """Return the shape of an image, or of its patches, channels last."""
    if patch_px is None:
        return channels, height, width
    side = _positive(patch_px, "patch_px")
    if height % side or width % side:
        raise ValueError(
            f"patch_px: expected a divisor of {height} and {width} pixels, got {patch_px}."
        )
    return height // side, width // side, side, side, channels


def _positive(number: int | None, name: str) -> int:
    if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{name}: expected a positive whole number, got {number!r}.")
    return int(number)


def _value_limits(limits: tuple[float, float] | None, dtype: str) -> tuple[float, float]:
    """Return the least and the greatest value of a result."""
    if limits is None:
        if dtype == "float32":
            return -math.inf, math.inf
        return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    found = tuple(float(limit) for limit in limits)
    if len(found) != 2 or not found[0] <= found[1]:
        raise ValueError(f"limits: expected a least and a greatest value, got {limits!r}.")
    return found[0], found[1]


def _fill_value(nodata: float | None, dtype: str) -> float:
    """Return what stands for no value, by default NaN or 0."""
    if nodata is None:
        return math.nan if dtype == "float32" else 0.0
    value = float(nodata)
    if dtype == "float32":
        fits = not math.isfinite(value) or abs(value) <= float(np.finfo(np.float32).max)
    else:
        fits = value.is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    if not fits:
        raise ValueError(f"nodata: expected a value that {dtype} holds, got {nodata!r}.")
    return value
