"""How variables stand in a file, whoever writes it: xarray alone, or the room ``store``.

xarray's own choice fits what is there and nothing else: one date becomes "days since" itself, so
that a date appended later does not fit. An encoding is kept by selections of dates, by ``concat``
and by an appended part of a store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["encode_times", "fill_encoding", "time_encoding"]

_NAT = np.iinfo(np.int64).min


def encode_times(data: xr.Dataset) -> xr.Dataset:
    """Give every time coordinate of a Dataset an encoding that any other time fits.

    Parameters
    ----------
    data : xarray.Dataset
        Changed in place; values and chunks stay.

    Returns
    -------
    xarray.Dataset
        `data`.
    """
    for name, coord in data.coords.items():
        if coord.dtype.kind == "M":
            coord.encoding.update(time_encoding(is_index=name in data.dims))
    return data


def time_encoding(*, is_index: bool) -> dict[str, Any]:
    """Return the encoding of times: whole nanoseconds since 1970, as datetime64 itself counts.

    Parameters
    ----------
    is_index : bool
        Whether the times label a dimension, whose values CF never lets be missing. Others may be
        NaT, today or in what is appended.
    """
    encoding: dict[str, Any] = {
        "units": "nanoseconds since 1970-01-01",
        "calendar": "proleptic_gregorian",
        "dtype": "int64",
    }
    return encoding if is_index else {**encoding, "_FillValue": _NAT}


def fill_encoding(dtype: np.dtype[Any], nodata: Any) -> dict[str, Any]:
    """Return the encoding that says in a store which value stands for nothing.

    Zarr's ``fill_value`` is where GDAL reads nodata, and what chunks without a file hold; CF's
    ``_FillValue`` would make xarray turn integers into floats.

    Parameters
    ----------
    dtype : numpy.dtype
    nodata : int, str or None
        Of integers and texts; zero and no text where there is none. Floats have NaN.
    """
    if dtype.kind == "f":
        return {"_FillValue": np.nan, "fill_value": np.nan}
    if dtype.kind == "T":
        return {"fill_value": ""}
    return {} if dtype.kind == "b" else {"fill_value": int(nodata or 0)}
