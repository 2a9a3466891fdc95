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
import xarray as xr

from terramind_cube.cube.nodata import fill_nodata, find_nodata
from terramind_cube.cube.request import band_label
from terramind_cube.modalities import (
    LULC_CLASSES,
    MODALITIES,
    Modality,
    Statistics,
    find_modality,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

__all__ = ["CubeLayout", "Layer", "find_layers", "read_geobox", "read_layout"]

RESOLUTION_M = 10.0
RESOLUTION_RANGE_M = (8.0, 12.5)
_SPACING_TOLERANCE = 1e-3
_RED_EDGE = ("B05", "B06", "B07", "B8A")
_RADAR_NAMES = ("vv", "vh")


@dataclass(frozen=True)
class Layer:
    """One modality of a cube.

    Attributes
    ----------
    modality : Modality
    data : xarray.DataArray
        Dims (time, band, y, x), or (band, y, x) of a static layer, bands in the model's order.
    bands : tuple of int
        Places of its bands among the modality's; all of them unless fewer were asked for.
    """

    modality: Modality
    data: xr.DataArray
    bands: tuple[int, ...]

    @property
    def is_static(self) -> bool:
        """Whether the layer serves every date."""
        return "time" not in self.data.dims

    @property
    def items(self) -> tuple[str, ...]:
        """STAC ids of the items that it was read from, where they are known."""
        return tuple(self.data.attrs.get("stac_items", ()))


@dataclass(frozen=True)
class CubeLayout:
    """The grid, the dates and the layers of a cube.

    Attributes
    ----------
    geobox : odc.geo.geobox.GeoBox
    times : numpy.ndarray of datetime64[ns], or None
        None where every layer is static.
    layers : tuple of Layer
    read_failures : sequence of str or None
        What could not be read so far, where files may fail; it grows while pixels are computed.
    """

    geobox: GeoBox
    times: NDArray[np.datetime64] | None
    layers: tuple[Layer, ...]
    read_failures: Sequence[str] | None = None


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
        If pixels are far from 10 m.
    """
    if "y" not in cube.dims or "x" not in cube.dims:
        is_geographic = {"latitude", "longitude"} <= {str(dim) for dim in cube.dims}
        hint = (
            " Latitude and longitude are degrees: load it in metres, with odc.stac.load(..., "
            "crs='utm', resolution=10), or reproject it with cube.odc.reproject('utm', "
            "resolution=10)."
        )
        raise ValueError(
            f"A cube has dimensions y and x, in metres; this one has {_names(cube)}."
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
    low, high = RESOLUTION_RANGE_M
    if not low <= affine.a <= high:
        warnings.warn(
            f"Pixels of {affine.a:g} m: TerraMind was trained on {RESOLUTION_M:g} m, "
            "results are of unknown quality.",
            stacklevel=3,
        )
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
        from those dates before (`load_cube` does so by itself).
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
        missing, or nothing usable is there.

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
    rows = {**MODALITIES, **{n: _own_modality(cube, n, s) for n, s in (further or {}).items()}}
    found |= {name: _banded(rows[name], cube[name]) for name in further or ()}
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
            f"The cube has no {', '.join(absent)}; it holds {_names(cube)}.{_hints(cube, found)}"
        )
    if not chosen:
        raise ValueError(
            f"The cube has no usable input: it holds {_names(cube)}; "
            f"TerraMind takes {', '.join(usable)}.{_hints(cube, found)}"
        )
    has_radar = any(name in found for name in ("S1RTC", "S1GRD"))
    if inputs is None and not has_radar and (hint := _radar_hint(cube)):
        warnings.warn(hint, UserWarning, stacklevel=3)
    _warn_of_offsets(cube, chosen)
    subsets = dict(bands or {})
    unread = [name for name in subsets if name not in chosen]
    if unread:
        raise ValueError(f"bands names {', '.join(unread)}; the inputs are {', '.join(chosen)}.")
    layers = tuple(_layer(rows[name], found[name], subsets.get(name)) for name in chosen)
    has_time = any(not layer.is_static for layer in layers)
    times = _times(cube) if has_time else None
    return CubeLayout(geobox, times, layers, cube.attrs.get("read_failures"))


def _warn_of_offsets(cube: xr.Dataset, chosen: Sequence[str]) -> None:
    """Warn of reflectance that was loaded with its offset."""
    for name in chosen:
        left = cube.coords.get(f"{name}_offset_left")
        if left is not None and left.values.any():
            warnings.warn(
                f"{name} holds digital numbers {int(left.values.max())} above reflectance x 10000: "
                'load the cube with s2_offset="remove" unless a model was trained that way.',
                UserWarning,
                stacklevel=3,
            )


def _own_modality(cube: xr.Dataset, name: str, statistics: Statistics) -> Modality:
    """Describe a variable that is no modality of TerraMind's."""
    if name in MODALITIES or name not in cube.data_vars:
        said = "TerraMind knows it" if name in MODALITIES else f"the cube holds {_names(cube)}"
        raise ValueError(f"new_modalities: {name} is no variable of your own: {said}.")
    data = cube[name]
    dims = [str(dim) for dim in data.dims if dim not in ("time", "y", "x")]
    count = data.sizes[dims[0]] if dims else 1
    if count != len(statistics.mean):
        raise ValueError(
            f"new_modalities: {name} has {count} bands, but {len(statistics.mean)} statistics."
        )
    has_labels = bool(dims) and dims[0] in data.coords
    labels = data[dims[0]].values.tolist() if has_labels else range(count)
    default = next(iter(find_nodata(data)), float("nan") if data.dtype.kind == "f" else 0)
    return Modality(
        name, "image", tuple(map(str, labels)), str(data.attrs.get("units", "1")), str(data.dtype),
        float(data.attrs.get("nodata", default)), None, f"untok_{name.lower()}", None, None, None,
    )  # fmt: skip


def _names(cube: xr.Dataset) -> str:
    return ", ".join(f"{name} {tuple(cube[name].dims)}" for name in cube.data_vars) or "nothing"


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
    return cube["time"].values.astype("datetime64[ns]")


def find_layers(
    cube: xr.Dataset, subsets: Mapping[str, Sequence[str]] | None = None
) -> dict[str, xr.DataArray]:
    """Return a (time, band, y, x) or (band, y, x) array per modality, in the table's order."""
    found = {}
    for modality in MODALITIES.values():
        # Generated coordinates stand beside the rasters, on tiles.
        if modality.kind != "sequence" and modality.name in cube.data_vars:
            found[modality.name] = _banded(modality, cube[modality.name])
    if not any(name in found for name in ("S2L2A", "S2L1C")):
        found |= _stacked_bands(cube, subsets or {})
    return {name: found[name] for name in MODALITIES if name in found}


def _banded(modality: Modality, data: xr.DataArray) -> xr.DataArray:
    """Give a modality's variable a band axis and the order (time, band, y, x)."""
    band_dims = [str(dim) for dim in data.dims if dim not in ("time", "y", "x")]
    if len(band_dims) > 1 or "y" not in data.dims or "x" not in data.dims:
        raise ValueError(
            f"{modality.name} has dims {data.dims}; "
            f"expected (time, {modality.name}_band, y, x) on the cube's grid."
        )
    if band_dims:
        data = data.rename({band_dims[0]: "band"})
    elif len(modality.bands) > 1:
        raise ValueError(
            f"{modality.name} has no band dimension; expected the bands "
            f"{', '.join(modality.bands)} along {modality.name}_band."
        )
    else:
        data = data.expand_dims(band=list(modality.bands))
    order = ("time", "band", "y", "x") if "time" in data.dims else ("band", "y", "x")
    return fill_nodata(data, modality.fill_value).transpose(*order)


def _stacked_bands(
    cube: xr.Dataset, subsets: Mapping[str, Sequence[str]]
) -> dict[str, xr.DataArray]:
    """Stack Sentinel-2 variables named by band, as `odc.stac.load` gives them.

    All bands must be there, or those of a subset.
    """
    held = _band_variables(cube)
    for name in ("S2L1C", "S2L2A"):
        modality = MODALITIES[name]
        wanted = [band for band in modality.bands if band in subsets.get(name, modality.bands)]
        missing = {band for band in wanted if band not in held}
        if missing and missing <= set(_RED_EDGE) and "rededge" in cube.data_vars:
            raise ValueError(
                f"The variable rededge may be any of {', '.join(_RED_EDGE)}, which share this "
                f"name: load {', '.join(sorted(missing))} by their own names, as "
                "odc.stac.load(..., bands=['B05', 'B06', ...])."
            )
        if wanted and not missing:
            bands = [fill_nodata(cube[held[band]], 0) for band in wanted]
            stacked = xr.concat(
                bands, dim="band", coords="minimal", compat="override", combine_attrs="drop"
            ).assign_coords(band=wanted)
            return {name: _banded(modality, stacked)}
    return {}


def _band_variables(cube: xr.Dataset) -> dict[str, Hashable]:
    """Return the variables that are named after a band of Sentinel-2, by its label."""
    held: dict[str, Hashable] = {}
    for name, data in cube.data_vars.items():
        label = band_label(str(name))
        is_raster = {"y", "x"} <= set(data.dims) <= {"time", "y", "x"}
        # The label itself goes before a common name of the same band.
        if (
            label in MODALITIES["S2L1C"].bands
            and is_raster
            and (label not in held or name == label)
        ):
            held[label] = name
    return held


def _hints(cube: xr.Dataset, found: Mapping[str, xr.DataArray]) -> str:
    """Say what variables that are no modality could become."""
    hints = []
    held = _band_variables(cube)
    if held and not any(name in found for name in ("S2L2A", "S2L1C")):
        missing = [band for band in MODALITIES["S2L2A"].bands if band not in held]
        hints.append(
            f"S2L2A lacks {', '.join(missing)}: load all bands, or choose some with bands="
            "{'S2L2A': [...]}."
        )
    if hint := _radar_hint(cube):
        hints.append(hint)
    return "".join(f" {hint}" for hint in hints)


def _radar_hint(cube: xr.Dataset) -> str:
    """Say why variables named by polarisation are not taken, and how they would be."""
    held = [str(name) for name in cube.data_vars if str(name).lower() in _RADAR_NAMES]
    if not held:
        return ""
    return (
        f"Whether {', '.join(held)} is linear or in dB, terrain-corrected or not, cannot be seen "
        "from its name. In decibels (10 * np.log10(cube.vv) of linear power) it is taken as "
        "cube['S1RTC'] = xr.concat([vv_db, vh_db], 'S1RTC_band').assign_coords("
        "S1RTC_band=['VV', 'VH']), or 'S1GRD' if it is not radiometrically terrain-corrected."
    )


def _layer(modality: Modality, data: xr.DataArray, bands: Sequence[str] | None) -> Layer:
    """Put the bands into the model's order, those that were asked for."""
    flags = np.atleast_1d(data.attrs.get("flag_values", 0))
    if modality.kind == "classes" and int(np.max(flags)) >= len(LULC_CLASSES):
        raise ValueError(
            f"{modality.name} is coded as another provider codes it, up to {int(np.max(flags))}: "
            "translate it to TerraMind's 0 .. 9 as load_cube does, see LULC_CLASSES."
        )
    wanted = list(modality.bands)
    if isinstance(bands, str):
        raise ValueError(f"bands of {modality.name} is a list: give [{bands!r}].")  # noqa: TRY004
    if bands is not None:
        unknown = [band for band in bands if band not in modality.bands]
        if unknown or not bands:
            raise ValueError(
                f"bands of {modality.name}: {', '.join(unknown) or 'none'} given; "
                f"it has {', '.join(modality.bands)}."
            )
        wanted = [band for band in modality.bands if band in bands]
    places = tuple(modality.bands.index(band) for band in wanted)
    if "band" not in data.coords:
        if data.sizes["band"] != len(wanted):
            raise ValueError(
                f"{modality.name} has {data.sizes['band']} bands without labels; expected "
                f"{len(wanted)}: {', '.join(wanted)}."
            )
        return Layer(modality, data.assign_coords(band=wanted), places)
    labels = [str(label) for label in np.atleast_1d(data["band"].values)]
    if labels == wanted:
        return Layer(modality, data, places)
    missing = [band for band in wanted if band not in labels]
    if missing:
        raise ValueError(
            f"{modality.name} lacks the bands {', '.join(missing)}; it has {', '.join(labels)}."
        )
    return Layer(modality, data.assign_coords(band=labels).sel(band=wanted), places)
