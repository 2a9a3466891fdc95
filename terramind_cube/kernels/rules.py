"""What the kernels that turn pixels into numbers of the model and back are told, and by whom.

`dispatch` makes them from what a user gives; every engine takes them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "DECIBELS_PER_NEPER",
    "LEAST_POWER",
    "PIXEL_DTYPES",
    "Restoration",
    "Standardization",
]

PIXEL_DTYPES = ("uint8", "uint16", "int16", "float32")
"""Pixels that every engine takes and gives."""

DECIBELS_PER_NEPER = np.float32(10 / np.log(10))
"""``10 log10(x)`` is the natural logarithm times this."""
LEAST_POWER = np.finfo(np.float32).tiny
"""Smallest power that has a level in decibels; 1e-38 is far below any radar's noise."""


@dataclass(frozen=True, eq=False)
class Standardization:
    """How pixels become standardised: ``(float32(x) - shift) * scale``.

    Attributes
    ----------
    shift, scale : numpy.ndarray of float32, shape (C,)
        Mean less the offset, and the inverse of the standard deviation, rounded once from float64.
    nodata : float or None
        A pixel is masked where any of its channels has this value or is no finite number; None
        masks nothing, unless `from_power`.
    from_power : bool
        Whether pixels are linear power and become decibels before; what is below `LEAST_POWER`, or
        no finite number, is masked.
    """

    shift: NDArray[np.float32]
    scale: NDArray[np.float32]
    nodata: float | None
    from_power: bool = False

    @classmethod
    def of(
        cls,
        mean: Sequence[float],
        std: Sequence[float],
        nodata: float | None = None,
        offset: float = 0,
        from_power: bool = False,
    ) -> Standardization:
        """Return the rule of means and standard deviations in the unit of ``x + offset``."""
        shift = (np.asarray(mean, np.float64) - offset).astype(np.float32)
        scale = (1.0 / np.asarray(std, np.float64)).astype(np.float32)
        return cls(shift, scale, None if nodata is None else float(nodata), from_power)


@dataclass(frozen=True, eq=False)
class Restoration:
    """How standardised numbers become pixels in units: ``x * std + mean``, within limits.

    Attributes
    ----------
    mean, std : numpy.ndarray of float32, shape (C,)
    limits : tuple of float
        Least and greatest value; infinite ones bound nothing.
    nodata : float
        What is written where a pixel is invalid or a number is NaN.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    limits: tuple[float, float]
    nodata: float
