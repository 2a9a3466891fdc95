"""The one place that asks what kind of array it holds, and checks it before any kernel runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from terramind_cube.kernels import cpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["normalize"]

Number = TypeVar("Number", bound=np.generic)
_DTYPES = ("uint8", "uint16", "int16", "float32", "float64")


def normalize(  # fixed public signature
    x: NDArray[np.generic],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    nodata: float | None = None,
    offset: float = 0,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Standardise pixels in one pass: ``(x + offset - mean) / std``, masked pixels 0.

    Parameters
    ----------
    x : numpy.ndarray, shape (..., C, H, W)
        Pixels, uint8, uint16, int16, float32 or float64.
    mean, std : sequence of float, length C
        Statistics of each channel, in the unit of ``x + offset``.
    nodata : float, optional
        A pixel is masked where any of its channels has this value (is NaN, for NaN). None masks
        nothing.
    offset : float
        Added to the pixels, such as -1000 for Sentinel-2 digital numbers since baseline 04.00.
    out : numpy.ndarray, float32, optional
        Written to and returned, if given; of the shape of `x`.

    Returns
    -------
    numpy.ndarray, float32
        Standardised pixels; a masked pixel is 0, the mean of its band, in every channel.

    Raises
    ------
    TypeError
        If `x` is no NumPy array.
    ValueError
        If shapes, dtypes or the lengths of the statistics do not fit.
    """
    if not isinstance(x, np.ndarray):
        raise TypeError(f"normalize takes a numpy.ndarray, got {type(x).__name__}.")
    if x.dtype.name not in _DTYPES:
        raise ValueError(f"normalize takes {', '.join(_DTYPES)}, got {x.dtype.name}.")
    if x.ndim < 3:
        raise ValueError(f"normalize takes (..., C, H, W), got shape {x.shape}.")
    channels = x.shape[-3]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"The pixels have {channels} channels, but there are {len(mean)} means "
            f"and {len(std)} standard deviations."
        )
    if any(not value > 0 for value in std):
        raise ValueError(f"Standard deviations must be positive, got {tuple(std)}.")
    if out is None:
        out = np.empty(x.shape, np.float32)
    elif out.shape != x.shape or out.dtype != np.float32:
        raise ValueError(f"out must be float32 {x.shape}, got {out.dtype} {out.shape}.")
    shift = (np.asarray(mean, np.float64) - offset).astype(np.float32)
    scale = (1.0 / np.asarray(std, np.float64)).astype(np.float32)
    pixels, target = _four_axes(x), _four_axes(out)
    if not np.shares_memory(target, out):
        raise ValueError("out must be laid out so that its leading axes can be merged.")
    cpu.normalize(pixels, shift, scale, nodata, target)
    return out


def _four_axes(x: NDArray[Number]) -> NDArray[Number]:
    return x[None] if x.ndim == 3 else x.reshape(-1, *x.shape[-3:])
