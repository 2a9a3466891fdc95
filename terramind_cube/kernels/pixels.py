"""Public passes over pixels: from a sensor's numbers to the model's and back.

Arguments are checked before any kernel runs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from terramind_cube.kernels.dispatch import (
    Held,
    dtype_name,
    engine_of,
    hold,
    input_array,
    number,
    numbers,
    output_array,
    refuse_overlap,
    whole,
)
from terramind_cube.kernels.rules import PIXEL_DTYPES, Restoration, Standardization

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from terramind_cube.kernels.dispatch import Array

__all__ = ["denormalize", "normalize", "valid_pixels"]


def normalize(  # noqa: PLR0913  # the public surface
    x: Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    nodata: float | None = None,
    offset: float = 0,
    from_power: bool = False,
    dtype: Literal["float32", "bfloat16"] | DTypeLike = "float32",
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
        A pixel is masked where any of its channels has this value or is no finite number. NaN, or
        a value that the dtype of `x` cannot hold, such as -9999 of uint16, masks nothing but what
        is no finite number. None masks nothing: NaN and infinities flow through.
    offset : float
        Added to the pixels, such as -1000 for Sentinel-2 digital numbers since baseline 04.00; not
        together with `from_power`.
    from_power : bool
        Whether pixels are linear power, such as radar backscatter, and become decibels first. Less
        than 1.2e-38, such as zero, and what is no finite number is masked, whatever `nodata` is.
    dtype : {"float32", "bfloat16"}
        Of the result, or a dtype of NumPy or torch of that name. NumPy and CuPy have no bfloat16:
        theirs is uint16 that holds the bits.
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
    added = _offset(offset, from_power)
    statistics = _statistics(mean, std, channels, added)
    masked = None if nodata is None else _masked_value(nodata)
    rule = Standardization.of(*statistics, masked, added, bool(from_power))
    name = dtype_name(dtype, ("float32", "bfloat16"))
    if (corners is None) != (tile_px is None):
        raise ValueError("corners, tile_px: expected both or none, got one of them.")
    images = math.prod(lead)
    places = np.zeros((images, 3), np.int64)
    places[:, 0] = np.arange(images)
    if corners is not None and tile_px is not None:
        places = _tile_corners(corners, tile_px, pixels)
        lead, height, width = (len(places),), int(tile_px), int(tile_px)
    inner = _inner_shape(channels, height, width, patch_px)
    held = output_array(out, "out", (*lead, *inner), (name,), pixels)
    refuse_overlap((held,), (pixels,))
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
    dtype: Literal["uint8", "uint16", "int16", "float32"] | DTypeLike | None = None,
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
        Of the result, or a dtype of NumPy or torch of that name; by default that of `out`, or
        float32. Whole numbers are rounded half to even.
    limits : (float, float), optional
        Least and greatest value; by default those that the dtype holds. For whole numbers, those
        between them.
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
    given = input_array(x, "x", ("float32",))
    _check_image(given)
    channels, rows, width = given.shape[-3:]
    known = None
    if valid is not None:
        known = input_array(valid, "valid", ("bool",), given)
        if known.shape != (rows, width):
            raise ValueError(f"valid: expected shape {(rows, width)}, got {known.shape}.")
    height = rows if out is None else (0, 0, *hold(out, "out").shape)[-2]
    if height < rows:
        raise ValueError(f"out: expected at least {rows} rows, got {height}.")
    first = whole(first_row, "first_row")
    if not 0 <= first <= height - rows:
        raise ValueError(
            f"first_row: expected 0 .. {height - rows} for {rows} of {height} rows, got {first}."
        )
    lead = given.shape[:-3]
    dtypes: tuple[str, ...] = PIXEL_DTYPES
    if dtype is not None or out is None:
        dtypes = (dtype_name("float32" if dtype is None else dtype, PIXEL_DTYPES),)
    held = output_array(out, "out", (*lead, channels, height, width), dtypes, given)
    refuse_overlap((held,), (given, known))
    means, deviations = (np.asarray(row, np.float32) for row in _statistics(mean, std, channels))
    rule = Restoration(
        means,
        deviations,
        _value_limits(limits, held.dtype),
        _fill_value(nodata, held.dtype),
    )
    images = math.prod(lead)
    target = held.merged_out(images, channels, height, width)
    if given.size:
        source = given.merged(images, channels, rows, width)
        mask = None if known is None else known.view
        engine_of(held).denormalize(source, first, rule, mask, target)
    return held.array


def valid_pixels(x: Array, *, nodata: float | None, out: Array | None = None) -> Array:
    """Find the pixels whose every channel is finite and differs from nodata.

    Parameters
    ----------
    x : array, shape (..., C, H, W)
        As for `normalize`.
    nodata : float or None
        With None, as with NaN or another value that the dtype of `x` cannot hold, being finite is
        enough. (`normalize` with None masks nothing at all.)
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
    value = math.nan if nodata is None else _masked_value(nodata)
    lead, (height, width) = pixels.shape[:-3], pixels.shape[-2:]
    held = output_array(out, "out", (*lead, height, width), ("bool",), pixels)
    refuse_overlap((held,), (pixels,))
    images = math.prod(lead)
    target = held.merged_out(images, height, width)
    if held.size:
        source = pixels.merged(images, *pixels.shape[-3:])
        engine_of(held).valid_pixels(source, value, target)
    return held.array


def _pixel_array(x: Any) -> Held:
    """Check pixels (..., C, H, W); on the CPU, float64 becomes float32."""
    held = input_array(x, "x", (*PIXEL_DTYPES, "float64"))
    _check_image(held)
    if held.dtype != "float64":
        return held
    if not held.is_on_host:
        raise ValueError(
            f"x: expected {', '.join(PIXEL_DTYPES)} on a GPU, got float64: convert it to float32."
        )
    with np.errstate(over="ignore"):
        pixels = held.view.astype(np.float32)
    return replace(held, dtype="float32", view=pixels)


def _check_image(held: Held) -> None:
    """Refuse what has no channels, rows and columns."""
    if len(held.shape) < 3:
        raise ValueError(f"{held.name}: expected shape (..., C, H, W), got {held.shape}.")


def _offset(offset: float, from_power: bool) -> float:
    """Return what is added to pixels; to decibels nothing is."""
    if not isinstance(from_power, (bool, np.bool_)):
        raise ValueError(f"from_power: expected True or False, got {from_power!r}.")  # noqa: TRY004
    added = number(offset, "offset")
    if not math.isfinite(added):
        raise ValueError(f"offset: expected a finite number, got {offset!r}.")
    if from_power and added:
        raise ValueError(
            f"offset: expected 0 with from_power, got {offset!r}: add it to the power before, or "
            "take it from the mean, if it is in decibels."
        )
    return added


def _masked_value(nodata: float) -> float:
    """Return the number of float32, maybe infinite, that stands for no value."""
    with np.errstate(over="ignore"):
        return float(np.float32(number(nodata, "nodata")))


def _statistics(
    mean: Sequence[float], std: Sequence[float], channels: int, offset: float = 0
) -> tuple[list[float], list[float]]:
    """Return means and standard deviations, one of each for every channel.

    All that kernels make of them in float32 is finite, and no scale is 0.
    """
    found = []
    for name, values in (("mean", mean), ("std", std)):
        row = numbers(values, name, f"{channels} numbers").astype(np.float64)
        if row.shape != (channels,):
            raise ValueError(
                f"{name}: expected {channels} numbers for the {channels} channels of x, "
                f"got {len(row)}."
            )
        if not np.isfinite(row).all():
            raise ValueError(f"{name}: expected finite numbers, got {row.tolist()}.")
        found.append(row)
    info = np.finfo(np.float32)
    least, greatest, most = float(info.tiny), 1 / float(info.tiny), float(info.max)
    if not ((found[1] >= least) & (found[1] <= greatest)).all():
        raise ValueError(
            f"std: expected positive numbers in {least:.3g} .. {greatest:.3g}, whose inverse "
            f"float32 holds, got {found[1].tolist()}."
        )
    # Halves, so that nothing overflows here.
    if not (np.abs(found[0] / 2 - offset / 2) <= most / 2).all():
        raise ValueError(
            f"mean: expected mean - offset in -{most:.3g} .. {most:.3g}, which float32 holds, "
            f"got {found[0].tolist()} and offset {offset:g}."
        )
    return found[0].tolist(), found[1].tolist()


def _tile_corners(corners: ArrayLike, tile_px: int | None, x: Held) -> NDArray[np.int64]:
    """Return image, first row and first column of tiles that lie inside of x."""
    if len(x.shape) not in (3, 4):
        raise ValueError(f"x: expected shape (B, C, H, W) or (C, H, W) for tiles, got {x.shape}.")
    places = numbers(corners, "corners", "whole numbers of shape (T, 3)", 2, is_whole=True)
    if places.shape[1] != 3:
        raise ValueError(f"corners: expected whole numbers of shape (T, 3), got {places.shape}.")
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


def _positive(value: int | None, name: str) -> int:
    expected = "a positive whole number"
    if (found := whole(value, name, expected)) < 1:
        raise ValueError(f"{name}: expected {expected}, got {found}.")
    return found


def _value_limits(limits: tuple[float, float] | None, dtype: str) -> tuple[float, float]:
    """Return the least and the greatest value of a result, which its dtype holds."""
    least, most = -math.inf, math.inf
    if dtype != "float32":
        least, most = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if limits is None:
        return least, most
    expected = "a least and a greatest value"
    given = numbers(limits, "limits", expected)
    if given.shape != (2,) or not given[0] <= given[1]:
        raise ValueError(f"limits: expected {expected}, got {limits!r}.")
    low, high = given.astype(np.float64)
    if dtype != "float32":
        low, high = max(np.ceil(low), least), min(np.floor(high), most)
    if not low <= high:
        raise ValueError(f"limits: expected some {dtype} between them, got {limits!r}.")
    with np.errstate(over="ignore"):  # what float32 does not hold bounds nothing
        return float(np.float32(low)), float(np.float32(high))


def _fill_value(nodata: float | None, dtype: str) -> float:
    """Return what stands for no value, by default NaN or 0."""
    if nodata is None:
        return math.nan if dtype == "float32" else 0.0
    value = number(nodata, "nodata")
    if dtype == "float32":
        fits = not math.isfinite(value) or abs(value) <= float(np.finfo(np.float32).max)
    else:
        fits = value.is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    if not fits:
        raise ValueError(f"nodata: expected a value that {dtype} holds, got {nodata!r}.")
    return value
