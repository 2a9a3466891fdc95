"""Whether the pixels of a cube can be what their metadata say; never asked while a cube is built.

Providers' metadata are wrong at times: flags of an offset that was not taken off, or backscatter in
another unit. A window of each date tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from terramind_cube.cube.layers import find_layers
from terramind_cube.modalities import LULC_CLASSES, MODALITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["find_implausible"]

# Water and shade are nearly black in the short-wave infrared: a scene in which no pixel of any band
# is darker than this still has the offset of 1000.
_DARKEST_DN = 950
# An offset that is taken off twice leaves most of the visible bands at the smallest valid number.
_CLAMPED_SHARE = 0.05
_BACKSCATTER_DB = (-40.0, 10.0)
_ENOUGH_PX = 1000


def find_implausible(cube: xr.Dataset, *, window_px: int = 512) -> list[str]:
    """Return what looks wrong in a window in the middle of each date.

    Parameters
    ----------
    cube : xarray.Dataset
        See `load_cube`; only what lies in the windows is computed.
    window_px : int
        Side of the window.

    Returns
    -------
    list of str
        One sentence for each variable and date that looks wrong; empty where all is plausible.
        Pixels under a ``cloud_mask`` do not count; without one, a scene of clouds or snow alone may
        look as if it had an offset.

    Raises
    ------
    ValueError
        If the window is not positive.
    """
    if window_px < 1:
        raise ValueError(f"window_px is a number of pixels, at least 1, got {window_px}.")
    middle = {dim: _middle(cube.sizes[dim], window_px) for dim in ("y", "x")}
    layers, found = find_layers(cube), []
    if "cloud_mask" in cube.data_vars:
        for name in {"S2L2A", "S2L1C"} & set(layers):
            # Clouds are bright in all bands, as an offset is.
            seen = ~cube["cloud_mask"]
            layers[name] = layers[name].where(seen, np.zeros((), layers[name].dtype))
    for name, test in _TESTS.items():
        if name not in layers:
            continue
        for when, pixels in _dates(layers[name].isel(middle)):
            valid = _valid(name, pixels)
            if valid.size >= min(_ENOUGH_PX, pixels.size) and (problem := test(valid)):
                found.append(f"{name}{when}: {problem}")
    return found


def _middle(size: int, length: int) -> slice:
    start = max((size - length) // 2, 0)
    return slice(start, min(start + length, size))


def _dates(variable: xr.DataArray) -> Iterator[tuple[str, NDArray[Any]]]:
    if "time" not in variable.dims:
        yield "", variable.values
        return
    for place in range(variable.sizes["time"]):
        one = variable.isel(time=place)
        yield f" of {str(one['time'].values)[:10]}", one.values


def _valid(name: str, pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the values of pixels that are valid in all bands: (band, pixel)."""
    planes = pixels.reshape(-1, *pixels.shape[-2:])
    fill = MODALITIES[name].fill_value
    is_valid = np.isfinite(planes) if np.isnan(fill) else planes != fill
    return np.asarray(planes[:, is_valid.all(axis=0)])


def _reflectance(values: NDArray[Any]) -> str:
    darkest = int(np.quantile(values, 0.001))
    if darkest >= _DARKEST_DN:
        return (
            f"no band has pixels darker than {darkest / 1e4:.3f}: the offset of 1000 DN seems to be "
            'still there. Its metadata may be wrong; see s2_offset="keep" and "remove".'
        )
    clamped = float((values == 1).mean(axis=1).max())
    if clamped > _CLAMPED_SHARE:
        return (
            f"{clamped:.0%} of the pixels of a band are at the smallest valid number: the offset "
            'of 1000 DN seems to be taken off twice. Its metadata may be wrong; see s2_offset="keep".'
        )
    return ""


def _backscatter(values: NDArray[Any]) -> str:
    low, high = _BACKSCATTER_DB
    middle = float(np.median(values))
    if not low <= middle <= high or not (values < 0).any():
        return (
            f"the median is {middle:.3g} dB: it seems to be linear power or digital numbers. Declare "
            'the unit in raster:bands ("linear"), or calibrate it.'
        )
    return ""


def _range(name: str) -> Callable[[NDArray[Any]], str]:
    low, high = MODALITIES[name].valid_range or (-np.inf, np.inf)

    def test(values: NDArray[Any]) -> str:
        smallest, largest = float(values.min()), float(values.max())
        if low <= smallest <= largest <= high:
            return ""
        return f"values from {smallest:g} to {largest:g}, where {low:g} to {high:g} are possible."

    return test


def _classes(values: NDArray[Any]) -> str:
    top = len(LULC_CLASSES) - 1
    largest = int(values.max(initial=0))
    if largest <= top:
        return ""
    return f"class {largest}, where TerraMind has 0 to {top}: another provider's legend?"


_TESTS: dict[str, Callable[[NDArray[Any]], str]] = {
    "S2L2A": _reflectance,
    "S2L1C": _reflectance,
    "S1RTC": _backscatter,
    "S1GRD": _backscatter,
    "DEM": _range("DEM"),
    "NDVI": _range("NDVI"),
    "LULC": _classes,
}
