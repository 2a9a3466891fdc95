"""Looks at pixels in passing: what cannot be right is refused, what looks wrong is told once.

At no measurable cost: a sample of each window is judged, and its extremes tell whether single pixels
can be nothing and become nodata.
"""

from __future__ import annotations

import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from terramind_cube.cube.plausibility import POSSIBLE, judge, list_scenes
from terramind_cube.modalities import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from terramind_cube.cube.layers import Layer
    from terramind_cube.cube.plausibility import Finding, Scene

__all__ = ["blank_impossible", "look_at", "refuse_units", "sample", "tell_once"]

_SAMPLE_PX = 64
_RUNS_REMEMBERED = 100
_TOLD: dict[str, set[tuple[str, str]]] = {}
_LOCK = threading.Lock()


def sample(pixels: Any) -> NDArray[Any]:
    """Return every n-th pixel of an array (..., y, x) of NumPy or CuPy, about 64 x 64 of them."""
    rows, columns = (max(1, size // _SAMPLE_PX) for size in pixels.shape[-2:])
    part = pixels[..., ::rows, ::columns]
    return np.asarray(part.get() if hasattr(part, "get") else part)


def refuse_units(layer: Layer) -> None:
    """Refuse a layer in memory whose numbers can have no unit of a cube.

    Raises
    ------
    ValueError
        With the factor to apply.
    """
    for place, scene in enumerate(list_scenes(layer)):
        data = layer.data.isel(time=place) if not layer.is_static else layer.data
        _refuse(judge(scene, sample(data.data)))


def _refuse(findings: Sequence[Finding]) -> None:
    """Raise what cannot be right.

    Raises
    ------
    ValueError
        With the first finding that is certain.
    """
    for finding in findings:
        if finding.is_certain:
            raise ValueError(finding.text)


def look_at(scenes: Sequence[Scene], windows: Sequence[Any]) -> list[Finding]:
    """Return what looks wrong in a sample of windows, (band, y, x) of NumPy or CuPy.

    Raises
    ------
    ValueError
        If anything cannot be right; the message says by what to multiply.
    """
    # Another provider's classes are refused pixel by pixel where they become an input.
    rows = [
        (scene, pixels)
        for scene, pixels in zip(scenes, windows, strict=True)
        if scene.modality not in MODALITIES or MODALITIES[scene.modality].kind != "classes"
    ]
    found = [finding for scene, pixels in rows for finding in judge(scene, sample(pixels))]
    _refuse(found)
    return found


def tell_once(run: str, findings: Sequence[Finding]) -> None:
    """Warn of findings, of each kind in a modality once in a run; from a worker, at its client."""
    for finding in findings:
        key = (finding.scene.modality, finding.kind)
        with _LOCK:
            told = _TOLD.setdefault(run, set())
            is_new = key not in told
            told.add(key)
            while len(_TOLD) > _RUNS_REMEMBERED:
                _TOLD.pop(next(iter(_TOLD)))
        if is_new:
            text = f"{finding.text} See cube.terramind.find_implausible()."
            distributed = sys.modules.get("distributed")
            warn = warnings.warn if distributed is None else distributed.worker.warn
            warn(text, UserWarning, stacklevel=2)


def blank_impossible(name: str, pixels: Any) -> Any:
    """Return pixels of a modality, (..., y, x), in which those that can be nothing are nodata.

    Parameters
    ----------
    name : str
    pixels : numpy.ndarray or cupy.ndarray

    Returns
    -------
    numpy.ndarray or cupy.ndarray
        Itself where there is none; integers become float32 where nodata is NaN.
    """
    if name not in POSSIBLE or not pixels.size:
        return pixels
    low, high = POSSIBLE[name]
    if isinstance(pixels, np.ndarray):
        # One look at the extremes is all that most windows take.
        largest, smallest = np.fmax.reduce(pixels, axis=None), np.fmin.reduce(pixels, axis=None)
        if not (largest > high or smallest < low):
            return pixels
    wrong = (pixels < low) | (pixels > high)
    if not np.any(wrong):
        return pixels
    fill = MODALITIES[name].fill_value
    if np.isnan(fill) and pixels.dtype.kind != "f":
        pixels = pixels.astype(np.float32)
    return np.where(wrong, pixels.dtype.type(fill), pixels)
