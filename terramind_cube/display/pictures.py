"""What of a cube and its result can be drawn, thinned, computed once and turned into colours."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from terramind_cube.cube.layout import read_geobox
from terramind_cube.display.figure import DPI, NODATA_GREY, Panel, lay_out
from terramind_cube.display.report import name_crs
from terramind_cube.modalities import LULC_CLASSES, MODALITIES
from terramind_cube.store.ledger import UNFINISHED

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["quicklook", "save_quicklook", "true_colour"]

_TRUE_COLOUR = ("B04", "B03", "B02")
_OPTICAL = ("S2L2A", "S2L1C")
_RADAR = ("S1RTC", "S1GRD")
_STRETCH_PERCENTILES = (1.0, 99.0)
_GAMMA = 1.3
_LONGEST_SIDE_PX = 1024


def quicklook(cube: xr.Dataset, result: xr.Dataset | None = None, *, time: int = 0) -> Figure:
    """Draw one date: true colour, generated classes, true classes, confidence, whatever is there.

    Scenes longer than 1024 px are thinned before anything is computed. A lazy `result` is computed
    for this date.

    Parameters
    ----------
    cube : xarray.Dataset
        Optical bands are shown in true colour, or else radar in false colour; its own LULC is
        shown as the truth.
    result : xarray.Dataset, optional
        What was generated from the cube: its rasters and ``LULC_confidence`` are shown. The date
        is looked up in its time axis.
    time : int
        Position along the cube's time.

    Returns
    -------
    matplotlib.figure.Figure
        Axes in km from the lower left corner of the scene.

    Raises
    ------
    ValueError
        If there is nothing to draw, no such date, or `result` lies on another grid.
    """
    return _compose(cube, result, time, note=None)


def save_quicklook(
    path: str | PathLike[str],
    cube: xr.Dataset,
    result: xr.Dataset | None = None,
    *,
    time: int = 0,
    note: str | None = None,
) -> Path:
    """Write the picture that `quicklook` draws; the format follows the path's suffix.

    Parameters
    ----------
    path : path
        Is overwritten.
    cube, result, time
        See `quicklook`.
    note : str, optional
        A line under the picture.

    Returns
    -------
    pathlib.Path
        Of the picture.

    Raises
    ------
    ValueError
        See `quicklook`; nothing is written then.
    """
    figure = _compose(cube, result, time, note)
    figure.savefig(path, dpi=DPI)
    return Path(path)


def true_colour(cube: xr.Dataset, *, time: int = 0) -> xr.DataArray:
    """Return red, green and blue of one date, stretched for the eye.

    One stretch serves the three bands, so that grey stays grey.

    Parameters
    ----------
    cube : xarray.Dataset
        With S2L2A, S2L1C, or a variable for each of B04, B03 and B02. All of it is computed: thin
        a large one first, as in ``cube.isel(y=slice(None, None, 4), x=slice(None, None, 4))``.
    time : int
        Position along time.

    Returns
    -------
    xarray.DataArray
        (y, x, band) uint8; pixels without data are grey.

    Raises
    ------
    ValueError
        If the cube has no such bands or no such date.
    """
    bands = _optical_bands(cube)
    if bands is None:
        raise ValueError(
            f"The cube has no true colour: it needs {' or '.join(_OPTICAL)} with the bands "
            f"{', '.join(_TRUE_COLOUR)}; it holds {_names(cube)}."
        )
    chosen = _at_time(bands, time).transpose("band", "y", "x")
    colour = _stretch_reflectance(chosen.values)
    return xr.DataArray(
        colour,
        dims=("y", "x", "band"),
        coords={"y": chosen["y"], "x": chosen["x"], "band": ["red", "green", "blue"]},
        name="true_colour",
    )


def _compose(cube: xr.Dataset, result: xr.Dataset | None, time: int, note: str | None) -> Figure:
    """Compute the panels of one date and lay them out."""
    with warnings.catch_warnings():
        # Of pixels that are coarser than the model's: a thinned cube is a fine picture.
        warnings.simplefilter("ignore", UserWarning)
        geobox = read_geobox(cube)
    for unfinished in {row.attrs.get(UNFINISHED) for row in (cube, result) if row is not None}:
        if unfinished:
            note = unfinished if note is None else f"{note} {unfinished}"
            warnings.warn(unfinished, UserWarning, stacklevel=4)
    date = _find_date(cube, time)
    layers = _select_layers(cube, result, time)
    step = math.ceil(max(geobox.shape) / _LONGEST_SIDE_PX)
    thin = {"y": slice(None, None, step), "x": slice(None, None, step)}
    # Together, so that a lazy result runs its model once for classes and confidence.
    pixels = xr.Dataset({name: layer.isel(thin) for name, layer in layers.items()}).compute()
    size_km = tuple(length * geobox.resolution.x / 1000 for length in geobox.shape)
    subtitle = f"{size_km[1]:.3g} x {size_km[0]:.3g} km, {name_crs(geobox)}"
    return lay_out(_make_panels(pixels), (size_km[0], size_km[1]), (date or "", subtitle), note)


def _select_layers(
    cube: xr.Dataset, result: xr.Dataset | None, time: int
) -> dict[str, xr.DataArray]:
    """Return what can be drawn, lazy, without coordinates, of one date."""
    layers = {}
    optical = _optical_bands(cube)
    radar = next((cube[name] for name in _RADAR if name in cube.data_vars), None)
    if optical is not None:
        layers["optical"] = _at_time(optical, time)
    elif radar is not None:
        layers["radar"] = _at_time(_band_first(radar), time).isel(band=slice(0, 2))
    if result is not None:
        _check_same_grid(cube, result)
        moment = _find_moment(cube, result, time)
        for name in ("LULC", "LULC_confidence", "DEM", "NDVI"):
            if name in result.data_vars:
                layers[name] = _at_time(result[name], moment)
        generated = {name: result[name] for name in _RADAR if name in result.data_vars}
        layers |= {
            f"generated {name}": _at_time(_band_first(data), moment)
            for name, data in generated.items()
        }
        if (colour := _optical_bands(result)) is not None:
            layers["generated S2L2A"] = _at_time(colour, moment)
    if "LULC" in cube.data_vars:
        truth = _at_time(cube["LULC"], time)
        layers["truth"] = truth.squeeze([dim for dim in truth.dims if dim not in ("y", "x")])
    if not layers:
        raise ValueError(
            f"There is nothing to draw: the cube holds {_names(cube)}; a picture needs "
            f"{', '.join((*_OPTICAL, *_RADAR))} or LULC, or a generated result."
        )
    return {
        name: layer.transpose(..., "y", "x")
        .drop_vars(list(layer.coords))
        # Layers of two or three bands stand in one Dataset.
        .rename({"band": f"{name} band"} if "band" in layer.dims else {})
        for name, layer in layers.items()
    }


def _make_panels(pixels: xr.Dataset) -> list[Panel]:
    panels = []
    if "optical" in pixels:
        colour = _stretch_reflectance(pixels["optical"].values)
        panels.append(Panel("Sentinel-2, true colour", colour))
    if "radar" in pixels:
        panels.append(Panel("Sentinel-1, false colour", _false_colour(pixels["radar"])))
    if "LULC" in pixels:
        panels.append(_class_panel("Land cover, generated", pixels["LULC"].values))
    if "truth" in pixels:
        title = "Land cover, truth" if "LULC" in pixels else "Land cover"
        panels.append(_class_panel(title, pixels["truth"].values))
    for name, title in (
        ("S2L2A", "Sentinel-2, generated"), ("S1RTC", "Sentinel-1 RTC, generated"),
        ("S1GRD", "Sentinel-1 GRD, generated"),
    ):  # fmt: skip
        if f"generated {name}" in pixels:
            image = pixels[f"generated {name}"]
            is_optical = name in _OPTICAL
            colour = _stretch_reflectance(image.values) if is_optical else _false_colour(image)
            panels.append(Panel(title, colour))
    for name, title, palette in (
        ("DEM", "Elevation, generated", "terrain"), ("NDVI", "NDVI, generated", "RdYlGn"),
    ):  # fmt: skip
        if name in pixels:
            limits = (-1.0, 1.0) if name == "NDVI" else None
            panels.append(Panel(title, _coloured(pixels[name].values, palette, limits)))
    if "LULC_confidence" in pixels:
        panels.append(Panel("Confidence in the class", pixels["LULC_confidence"].values))
    return panels


def _optical_bands(cube: xr.Dataset) -> xr.DataArray | None:
    """Return red, green and blue as (time, band, y, x), None where they are not there."""
    for name in _OPTICAL:
        if name in cube.data_vars:
            data = _band_first(cube[name])
            labels = [str(label) for label in data["band"].values] if "band" in data.coords else []
            known = labels or list(MODALITIES[name].bands)
            if len(known) == data.sizes["band"] and set(_TRUE_COLOUR) <= set(known):
                return data.isel(band=[known.index(band) for band in _TRUE_COLOUR])
    if all(band in cube.data_vars for band in _TRUE_COLOUR):
        return xr.concat(
            [cube[band] for band in _TRUE_COLOUR],
            dim="band",
            coords="minimal",
            compat="override",
            combine_attrs="drop",
        )
    return None


def _band_first(data: xr.DataArray) -> xr.DataArray:
    """Give the band dimension its plain name."""
    dims = [dim for dim in data.dims if dim not in ("time", "y", "x")]
    if len(dims) != 1:
        raise ValueError(f"{data.name} has dims {data.dims}; expected one dimension of bands.")
    return data.rename({dims[0]: "band"})


def _at_time(data: xr.DataArray, time: int) -> xr.DataArray:
    return data.isel(time=time) if "time" in data.dims else data


def _find_date(cube: xr.Dataset, time: int) -> str | None:
    """Return the date at a position, after checking that there is one."""
    count = cube.sizes.get("time", 1)
    if "time" in cube.dims and not -count <= time < count:
        raise ValueError(f"time={time}: the cube has {count} dates, 0 to {count - 1}.")
    if "time" not in cube.coords or cube["time"].dtype.kind != "M":
        return None
    return str(_at_time(cube["time"], time).dt.strftime("%d %B %Y").item())


def _find_moment(cube: xr.Dataset, result: xr.Dataset, time: int) -> int:
    """Return the position in the result of the cube's date."""
    if "time" not in cube.coords or "time" not in result.coords:
        return time
    wanted = _at_time(cube["time"], time).values
    found = np.flatnonzero(np.atleast_1d(result["time"].values) == wanted)
    if not len(found):
        raise ValueError(f"The result holds nothing of {str(wanted)[:10]}, the cube's date {time}.")
    return int(found[0])


def _check_same_grid(cube: xr.Dataset, result: xr.Dataset) -> None:
    for dim in ("y", "x"):
        is_same = dim in result.coords and cube.sizes[dim] == result.sizes[dim]
        if is_same and not np.array_equal(cube[dim].values, result[dim].values):
            # Of a cube whose coordinates are pixel corners, results have the centres.
            steps = (result[dim].values - cube[dim].values) / np.diff(cube[dim].values[:2])
            is_same = bool(np.allclose(steps, 0.5, atol=1e-3))
        if not is_same:
            raise ValueError(f"The result lies on another grid than the cube: their {dim} differ.")


def _names(cube: xr.Dataset) -> str:
    return ", ".join(map(str, cube.data_vars)) or "nothing"


def _stretch(bands: NDArray[np.float32], is_nodata: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Map (3, y, x) reflectance to (y, x, 3) between two percentiles of what is valid."""
    valid = bands[:, ~is_nodata]
    low, high = np.percentile(valid, _STRETCH_PERCENTILES) if valid.size else (0.0, 1.0)
    share = np.clip((bands - low) / max(high - low, 1e-6), 0, 1) ** (1 / _GAMMA)
    colour = np.moveaxis(np.round(share * 255).astype(np.uint8), 0, -1)
    colour[is_nodata] = NODATA_GREY
    return colour


def _stretch_reflectance(bands: NDArray[Any]) -> NDArray[np.uint8]:
    is_nodata: NDArray[np.bool_] = np.any(bands == 0, axis=0)
    return _stretch(bands.astype(np.float32), is_nodata)


def _false_colour(radar: xr.DataArray) -> NDArray[np.uint8]:
    """Show VV, VH and VV - VH (dB), each between its own percentiles, as red, green and blue."""
    vv, vh = radar.values.astype(np.float32)
    is_nodata = ~np.isfinite(vv + vh)
    channels = [
        _stretch(np.nan_to_num(band)[None], is_nodata)[..., 0] for band in (vv, vh, vv - vh)
    ]
    return np.stack(channels, axis=-1)


def _coloured(
    values: NDArray[Any], palette: str, limits: tuple[float, float] | None
) -> NDArray[np.uint8]:
    """Show one band through a palette, between its extremes where there are no limits."""
    valid = values[np.isfinite(values)]
    low, high = limits or ((valid.min(), valid.max()) if valid.size else (0.0, 1.0))
    share = (np.nan_to_num(values) - low) / max(high - low, 1e-6)
    colour = np.round(255 * np.asarray(colormaps[palette](share))[..., :3]).astype(np.uint8)
    colour[~np.isfinite(values)] = NODATA_GREY
    return colour


def _class_panel(title: str, classes: NDArray[Any]) -> Panel:
    palette = np.full((256, 3), NODATA_GREY, np.uint8)
    for row in LULC_CLASSES:
        palette[row.value] = np.round(np.array(to_rgb(row.color)) * 255)
    # A store that was opened with masks gives floats, NaN where there is no data.
    codes = np.nan_to_num(classes).astype(np.uint8)
    return Panel(title, palette[codes], tuple(np.unique(codes).tolist()))
