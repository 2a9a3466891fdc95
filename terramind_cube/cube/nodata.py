"""What a variable's attributes say about its invalid pixels, and how those get the value of a cube."""

from __future__ import annotations

from contextlib import suppress
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["fill_nodata", "find_nodata"]

_ATTRIBUTES = ("nodata", "_FillValue")


def find_nodata(data: xr.DataArray) -> tuple[float, ...]:
    """Return the values that stand for invalid pixels in a variable, by its attributes.

    Parameters
    ----------
    data : xarray.DataArray
        With the attribute ``nodata``, as odc.stac gives it, or ``_FillValue``, as rioxarray does, or
        with ``_FillValue`` in its encoding, unless xarray replaced that by NaN when it read a file.

    Returns
    -------
    tuple of float
        Those that the variable's dtype can hold, without NaN and infinities.
    """
    said = [data.attrs.get(name) for name in _ATTRIBUTES]
    encoding = data.encoding
    is_packed = "scale_factor" in encoding or "add_offset" in encoding
    is_masked = data.dtype.kind == "f" and "dtype" in encoding
    if not is_packed and not is_masked:
        said.append(encoding.get("_FillValue"))
    found = (value for one in said for value in _numbers(one) if _holds(data.dtype, value))
    return tuple(dict.fromkeys(found))


def fill_nodata(data: xr.DataArray, fill_value: float) -> xr.DataArray:
    """Return a variable whose invalid pixels have another value; itself where they have it already.

    Parameters
    ----------
    data : xarray.DataArray
    fill_value : float
        NaN turns integers into float32.

    Returns
    -------
    xarray.DataArray
        Lazy if the variable is, without the attributes of its former value.
    """
    wrong = [value for value in find_nodata(data) if value != fill_value]
    if not wrong:
        return data
    attrs = {name: value for name, value in data.attrs.items() if name not in _ATTRIBUTES}
    is_valid = ~reduce(or_, (data == data.dtype.type(value) for value in wrong))
    if np.isnan(fill_value) and data.dtype.kind != "f":
        data = data.astype(np.float32)
    filled = data.where(is_valid, data.dtype.type(fill_value))
    filled.attrs = attrs
    return filled


def _numbers(said: Any) -> list[float]:
    """Return an attribute's numbers, which may be one, several, or a text."""
    found = []
    for one in np.ravel(said).tolist():
        with suppress(TypeError, ValueError):
            found.append(float(one))
    return found


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Return whether a pixel of this dtype can have the value."""
    if dtype.kind == "f":
        # The nearest number counts, which is how GDAL writes the lowest of float32.
        with np.errstate(over="ignore"):
            return bool(np.isfinite(dtype.type(value)))
    if dtype.kind not in "iu" or not value.is_integer():
        return False
    return bool(np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
