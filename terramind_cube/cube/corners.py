"""Whether the coordinates of a cube are the centres of its pixels, by what the cube says besides.

`odc.stac`, rioxarray and this package give centres. `stackstac.stack` gives the upper-left corners
by default, beside an attribute ``transform`` that tells the truth; taken as centres they would put
everything half a pixel too far north-west.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from odc.geo import CRS
from pyproj.exceptions import CRSError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import xarray as xr
    from odc.geo.geobox import GeoBox

__all__ = ["centred_geobox"]

_TOLERANCE_PX = 0.02
_MOST_PIXELS_IN_ONE = 64


def centred_geobox(cube: xr.Dataset, geobox: GeoBox) -> GeoBox:
    """Return the grid of a cube, whose coordinates may be pixel corners.

    Parameters
    ----------
    cube : xarray.Dataset
        Its attributes and those of its rasters are looked at: ``transform`` (an affine of 6 or 9
        numbers, rows downwards) and stackstac's ``spec``. Only where they lie between pixels counts:
        a crop leaves the corner of the whole in them.
    geobox : odc.geo.geobox.GeoBox
        What its coordinates give if they are centres.

    Returns
    -------
    odc.geo.geobox.GeoBox
        Half a pixel further along an axis of which the coordinates are corners.

    Raises
    ------
    ValueError
        If the rasters' transforms lie half a pixel apart.

    Warns
    -----
    UserWarning
        If coordinates are corners, seem to be, or fit no transform.
    """
    shifts: dict[tuple[float, float], str] = {}
    misfits: list[str] = []
    for name, told in _told_transforms(cube, geobox):
        shift = _shift_px(told, geobox)
        if shift is None:
            misfits.append(name)
        else:
            shifts.setdefault(shift, name)
    if len(shifts) > 1:
        raise ValueError(
            f"By their attribute transform, {' and '.join(shifts.values())} lie half a pixel apart, "
            "though they share the coordinates y and x: load every layer on one grid."
        )
    if misfits:
        _warn(
            f"The attribute transform of {', '.join(misfits)} fits the coordinates y and x neither as "
            "pixel centres nor as corners: they are taken as centres. Drop the attribute if it is old."
        )
    if not shifts:
        if not misfits and _looks_like_corners(cube, geobox):
            _warn(
                "The coordinates y and x look like the pixel corners that stackstac.stack gives by "
                "default, and the attribute transform is gone that would tell: they are taken as "
                "centres. Stack with xy_coords='center', else results lie half a pixel too far "
                "north-west."
            )
        return geobox
    (shift, name), *_ = shifts.items()
    if shift == (0.0, 0.0):
        return geobox
    _warn(
        f"The coordinates y and x are pixel corners, by the attribute transform of {name}: results lie "
        "half a pixel further, at the centres. stackstac.stack(..., xy_coords='center') makes both "
        "alike."
    )
    return geobox.translate_pix(*shift)


def _told_transforms(cube: xr.Dataset, geobox: GeoBox) -> Iterator[tuple[str, Affine]]:
    """Yield who tells a transform in the CRS of the grid, and which."""
    rasters = [(str(name), data) for name, data in cube.data_vars.items()]
    told = [(name, data.attrs) for name, data in rasters if {"y", "x"} <= set(data.dims)]
    for name, attrs in (*told, ("the cube", cube.attrs)):
        transform = _read_transform(attrs)
        if transform is not None and _is_same_crs(attrs, geobox):
            yield name, transform


def _read_transform(attrs: Mapping[str, Any]) -> Affine | None:
    said = attrs.get("transform", getattr(attrs.get("spec"), "transform", None))
    if isinstance(said, str):
        said = re.findall(r"[-+\d.eE]*\d[-+\d.eE]*", said)
    try:
        numbers = [float(number) for number in (() if said is None else said)]
    except (TypeError, ValueError):
        return None
    if len(numbers) not in (6, 9) or not np.isfinite(numbers).all():
        return None
    affine = Affine(*numbers[:6])
    # Rotated ones, and other orders of the numbers, say nothing here.
    return affine if affine.b == affine.d == 0 and affine.a > 0 > affine.e else None


def _is_same_crs(attrs: Mapping[str, Any], geobox: GeoBox) -> bool:
    """Whether a transform can be of the grid's CRS: one of before a reprojection is not."""
    if "crs" not in attrs:
        return True
    try:
        return bool(CRS(attrs["crs"]) == geobox.crs)
    except (CRSError, TypeError, ValueError):
        return True  # it names none


def _shift_px(told: Affine, geobox: GeoBox) -> tuple[float, float] | None:
    """Return by how much of a pixel the truth lies further (x, y), None if the two contradict."""
    own, shift = geobox.affine, []
    for step, start, told_step, told_start in (
        (own.a, own.c, told.a, told.c),
        (own.e, own.f, told.e, told.f),
    ):
        # Of coarser pixels the edges are edges of the finer ones.
        count = step / told_step
        if abs(count - round(count)) > _TOLERANCE_PX or not 1 <= count <= _MOST_PIXELS_IN_ONE:
            return None
        offset = (told_start - start) / told_step % 1
        if min(offset, 1 - offset) <= _TOLERANCE_PX:
            shift.append(0.0)
        elif abs(offset - 0.5) <= _TOLERANCE_PX and round(count) == 1:
            shift.append(0.5)
        else:
            return None
    return shift[0], shift[1]


def _looks_like_corners(cube: xr.Dataset, geobox: GeoBox) -> bool:
    """Whether a cube has the coordinates of stackstac, and y and x on multiples of the pixel size."""
    if not {"epsg", "id"} <= set(cube.coords):
        return False
    places = ((cube["x"].values[0], geobox.affine.a), (cube["y"].values[0], geobox.affine.e))
    return all(abs(place / step - round(place / step)) < _TOLERANCE_PX for place, step in places)


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=5)
