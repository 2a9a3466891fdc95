"""What a cube is, and the checks that a Dataset is one.

A cube is an `xarray.Dataset` on one projected grid of about 10 m with a variable per modality; this
module finds the modalities in any Dataset of that shape, also one with a variable per band as
`odc.stac.load` gives, and refuses what cannot be right before any pixel is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import odc.geo.xr  # noqa: F401  # registers the `odc` accessor

from terramind_cube.cube.corners import centred_geobox
from terramind_cube.cube.grids import describe_pixel_size
from terramind_cube.cube.inspection import refuse_units
from terramind_cube.cube.layers import (
    Layer,
    banded_variable,
    describe_variables,
    find_layers,
    missing_hints,
    noted_values,
    ordered_layer,
    own_modality,
    radar_hint,
)
from terramind_cube.modalities import MODALITIES, Statistics, find_modality

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

__all__ = ["CubeLayout", "read_geobox", "read_layout"]

_SPACING_TOLERANCE = 1e-3
_DEGREES = ({"latitude", "lat"}, {"longitude", "lon", "lng", "long"})


@dataclass(frozen=True)
class CubeLayout:
    """The grid, the dates and the layers of a cube.

    Attributes
    ----------
    geobox : odc.geo.geobox.GeoBox
    times : numpy.ndarray of datetime64[ns], or None
        None where every layer is static, or the cube knows no time.
    layers : tuple of Layer
    read_failures : sequence of str or None
        What could not be read so far, where files may fail; it grows while pixels are computed.
    has_time_axis : bool
        Whether time is a dimension; of ``cube.isel(time=0)`` it is one date, of which all layers are.
    """

    geobox: GeoBox
    times: NDArray[np.datetime64] | None
    layers: tuple[Layer, ...]
    read_failures: Sequence[str] | None = None
    has_time_axis: bool = True


def read_geobox(cube: xr.Dataset) -> GeoBox:
    """Return the grid of a cube after checking that the model can work on it.

    Raises
    ------
    ValueError
        If there are no y and x, no CRS, a geographic CRS, an uneven or rotated grid, or rows that
        run northwards.

    Warns
    -----
    UserWarning
        If pixels are far from 10 m, or coordinates are pixel corners, see
        `terramind_cube.cube.corners`.
    """
    if "y" not in cube.dims or "x" not in cube.dims:
        dims = {str(dim).lower() for dim in cube.dims}
        is_geographic = all(dims & names for names in _DEGREES)
        hint = (
            " Latitude and longitude are degrees: load it in metres, with odc.stac.load(..., "
            "crs='utm', resolution=10), or reproject it with cube.odc.reproject('utm', "
            "resolution=10)."
        )
        raise ValueError(
            f"A cube has dimensions y and x, in metres; this one has {describe_variables(cube)}."
            f"{hint if is_geographic else ''}"
        )
    for dim in ("y", "x"):
        _check_spacing(cube, dim)
    geobox: GeoBox | None = cube.odc.geobox
    if geobox is None or geobox.crs is None:
        raise ValueError(
            "The cube has no coordinate reference system: "
            "assign it with cube.odc.assign_crs('EPSG:326xx')."
        )
    if geobox.crs.geographic:
        raise ValueError(
            f"The cube is in degrees ({geobox.crs}); TerraMind needs a projected grid of 10 m. "
            "Load it in UTM, or reproject it with cube.odc.reproject."
        )
    affine = geobox.affine
    if affine.b or affine.d or affine.a <= 0:
        raise ValueError(f"The cube's grid is rotated or mirrored ({affine!r}).")
    if affine.e >= 0:
        raise ValueError("Rows run northwards: turn them with cube.sortby('y', ascending=False).")
    if abs(abs(affine.e) - affine.a) > _SPACING_TOLERANCE * affine.a:
        raise ValueError(f"Pixels must be square, these are {affine.a} m x {-affine.e} m.")
    geobox = centred_geobox(cube, geobox)
    if remark := describe_pixel_size(geobox):
        warnings.warn(remark, stacklevel=3)
    return geobox


def read_layout(
    cube: xr.Dataset,
    inputs: Sequence[str] | None = None,
    *,
    bands: Mapping[str, Sequence[str]] | None = None,
    besides: Sequence[str] = (),
    further: Mapping[str, Statistics] | None = None,
) -> CubeLayout:
    """Find the modalities of a cube.

    Parameters
    ----------
    cube : xarray.Dataset
        A variable per modality. Sentinel-2 may also be a variable per band, named "B04" or "red",
        as `odc.stac.load` gives it: in digital numbers, of any dtype. Pixels are invalid where they
        are not finite, have the modality's fill value, or the one that the variable's attribute
        ``nodata`` or ``_FillValue`` names; the latter get the modality's, lazily, which makes
        integers float32 where it is NaN. `odc.stac.load` leaves the offset in the pixels that
        products of processing baseline 04.00 and later have, and nothing in its result tells: subtract 1000
        from those dates before (`load_cube` does so by itself). Of one date, as ``cube.isel(time=0)``,
        time may be a coordinate alone: it decides the values as it does in the whole cube.
    inputs : sequence of str, optional
        Modalities that must be there; by default every modality of the cube whose pixels
        TerraMind takes.
    bands : mapping of str to sequence of str, optional
        Bands to look at, by modality, by name; by default all, which must be there.
    besides : sequence of str
        Modalities that are no input by default, unless there is no other.
    further : mapping of str to Statistics, optional
        Modalities that TerraMind does not know, which are inputs too.

    Returns
    -------
    CubeLayout

    Raises
    ------
    ValueError
        If the grid does not fit (see `read_geobox`), a modality is unknown or absent, bands are
        missing, pixels are no real numbers or, in memory, in another unit (see
        `terramind_cube.cube.plausibility`), dates are missing or repeated, or nothing usable is there.

    Warns
    -----
    UserWarning
        If variables ``vv`` and ``vh`` are not looked at, or reflectance has an offset left.
    """
    geobox = read_geobox(cube)
    if bands is not None and not isinstance(bands, Mapping):
        raise ValueError(
            f"bands={bands!r}: give the bands of each modality, as in {{'S2L2A': ['B02', 'B03']}}."
        )
    found = find_layers(cube, bands or {})
    rows = {**MODALITIES, **{n: own_modality(cube, n, s) for n, s in (further or {}).items()}}
    found |= {name: banded_variable(rows[name], cube[name]) for name in further or ()}
    if inputs is None:
        raw = [name for name in found if rows[name].is_raw_input]
        chosen = [name for name in raw if name not in besides] or raw
    else:
        names = [name if name in rows else find_modality(name).name for name in inputs]
        chosen = list(dict.fromkeys((*names, *(further or ()))))
    usable = [row.name for row in MODALITIES.values() if row.is_raw_input]
    absent = [name for name in chosen if name not in found]
    if absent:
        raise ValueError(
            f"The cube has no {', '.join(absent)}; it holds {describe_variables(cube)}.{missing_hints(cube, found)}"
        )
    if not chosen:
        raise ValueError(
            f"The cube has no usable input: it holds {describe_variables(cube)}; "
            f"TerraMind takes {', '.join(usable)}.{missing_hints(cube, found)}"
        )
    has_radar = any(name in found for name in ("S1RTC", "S1GRD"))
    if inputs is None and not has_radar and (hint := radar_hint(cube)):
        warnings.warn(hint, UserWarning, stacklevel=3)
    _warn_of_offsets(cube, chosen)
    subsets = dict(bands or {})
    unread = [name for name in subsets if name not in chosen]
    if unread:
        raise ValueError(f"bands names {', '.join(unread)}; the inputs are {', '.join(chosen)}.")
    layers = tuple(ordered_layer(rows[name], found[name], subsets.get(name)) for name in chosen)
    has_axis = any(not layer.is_static for layer in layers)
    # A selected date is a coordinate without a dimension, of every layer but those without a date.
    has_date = "time" in cube.coords and "time" not in cube.dims
    is_dated = has_axis or (has_date and any(row.modality.temporal != "static" for row in layers))
    times = _times(cube) if is_dated else None
    for layer in layers:
        if layer.data.chunks is None:  # lazy ones are looked at when they are computed
            refuse_units(layer)
    return CubeLayout(geobox, times, layers, cube.attrs.get("read_failures"), has_axis)


def _warn_of_offsets(cube: xr.Dataset, chosen: Sequence[str]) -> None:
    """Warn of reflectance that was loaded with its offset."""
    for name in chosen:
        left = cube.coords.get(f"{name}_offset_left")
        if left is not None and (added := noted_values(left)).any():
            warnings.warn(
                f"{name} holds digital numbers {int(added.max())} above reflectance x 10000: "
                'load the cube with s2_offset="remove" unless a model was trained that way.',
                UserWarning,
                stacklevel=3,
            )


def _check_spacing(cube: xr.Dataset, dim: str) -> None:
    if dim not in cube.coords:
        raise ValueError(f"The cube has no coordinate {dim}: it needs pixel centres in metres.")
    steps = np.diff(cube[dim].values)
    if len(steps) and not np.allclose(steps, steps[0], rtol=_SPACING_TOLERANCE, atol=0):
        raise ValueError(
            f"The coordinate {dim} is not evenly spaced: layers of different grids have been "
            "merged. Load every layer on one geobox."
        )


def _times(cube: xr.Dataset) -> NDArray[np.datetime64]:
    if "time" not in cube.coords or cube["time"].dtype.kind != "M":
        raise ValueError("The cube's dimension time needs a coordinate of dates (datetime64).")
    times = np.atleast_1d(noted_values(cube["time"])).astype("datetime64[ns]")
    if np.isnat(times).any():
        raise ValueError(
            f"The cube's time is NaT at {np.flatnonzero(np.isnat(times)).tolist()}: leave those dates "
            "out with cube.sel(time=cube.time.notnull())."
        )
    dates, counts = np.unique(times, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"The cube's time repeats {', '.join(map(str, dates[counts > 1][:3]))}: several scenes of "
            "a date are one mosaic, as load_cube and odc.stac.load(..., groupby='solar_day') make it; "
            "cube.drop_duplicates('time') keeps the first of each."
        )
    return times
