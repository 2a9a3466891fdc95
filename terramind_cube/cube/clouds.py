"""Clouds and their shadows, from the scene classification that comes with Sentinel-2 L2A.

Classes of the scene classification (Sen2Cor, L2A Product Definition Document): 0 no data,
1 saturated or defective, 2 topographic shadow, 3 cloud shadow, 4 vegetation, 5 bare, 6 water,
7 unclassified, 8 and 9 cloud of medium and high probability, 10 thin cirrus, 11 snow or ice.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import distance_transform_edt

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = [
    "CLOUD_DILATION_M",
    "DROPPED_CLASSES",
    "SCENE_CLASSES",
    "cloud_mask",
    "mask_finisher",
]

SCENE_CLASSES = (
    "no_data", "saturated_or_defective", "topographic_shadow", "cloud_shadow", "vegetation",
    "not_vegetated", "water", "unclassified", "cloud_medium_probability", "cloud_high_probability",
    "thin_cirrus", "snow_or_ice",
)  # fmt: skip
"""Names of the classes 0 to 11."""

DROPPED_CLASSES = (0, 1, 3, 8, 9, 10)
"""Classes whose pixels do not show the land."""

CLOUD_DILATION_M = 60.0
"""How far dropped classes are extended: the classification has 20 m and misses thin edges."""


def cloud_mask(classes: NDArray[np.uint8], resolution_m: float) -> NDArray[np.bool_]:
    """Return where the land is not seen.

    Parameters
    ----------
    classes : numpy.ndarray of uint8, shape (y, x)
        Scene classification.
    resolution_m : float
        Size of its pixels.

    Returns
    -------
    numpy.ndarray of bool, shape (y, x)
        True where a class is dropped, or one other than "no data" lies within
        `CLOUD_DILATION_M` (of pixel centres); the border of a swath is not extended.
    """
    dropped = np.isin(classes, DROPPED_CLASSES)
    extended = dropped & (classes != 0)
    if not extended.any():
        return dropped
    distance_px = distance_transform_edt(~extended)
    return np.asarray(dropped | (distance_px * resolution_m <= CLOUD_DILATION_M), np.bool_)


def mask_finisher(
    resolution_m: float,
) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], int]:
    """Return what turns a chunk of classes into a mask, and the margin in pixels that it needs."""
    margin_px = math.floor(CLOUD_DILATION_M / resolution_m)
    return functools.partial(cloud_mask, resolution_m=resolution_m), margin_px
