"""The modalities of a Dataset: found by name or band by band, their bands in the model's order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from terramind_cube.cube.nodata import fill_nodata, find_nodata
from terramind_cube.cube.request import band_label
from terramind_cube.modalities import LULC_CLASSES, MODALITIES, Modality

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from numpy.typing import NDArray

    from terramind_cube.modalities import Statistics

__all__ = [
    "Layer",
    "banded_variable",
    "describe_variables",
    "find_layers",
    "missing_hints",
    "noted_values",
    "ordered_layer",
    "own_modality",
    "radar_hint",
]

_RED_EDGE = ("B05", "B06", "B07", "B8A")
_RADAR_NAMES = ("vv", "vh")
_ITEMS_OF = {"NDVI": "S2L2A", "RGB": "S2L2A"}  # what they are computed from


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
        """STAC ids of the items that it was read from, where they are known.

        Of the dates that it has: a selection keeps the attribute of all, while the ids along time,
        ``X_items``, follow it.
        """
        told = tuple(map(str, np.atleast_1d(self.data.attrs.get("stac_items", ()))))
        coordinate = self.data.coords.get(
            f"{_ITEMS_OF.get(self.modality.name, self.modality.name)}_items"
        )
        if coordinate is None or not set(coordinate.dims) <= {"time"}:
            return told
        dates = list(map(str, np.atleast_1d(noted_values(coordinate))))
        held = dict.fromkeys(item for date in dates for item in date.split())
        # An id may hold blanks, which part the ids of a date.
        spaced = [item for item in told if " " in item and any(item in date for date in dates)]
        return tuple(item for item in told if item in held or item in spaced) or tuple(held)


def noted_values(coordinate: xr.DataArray) -> NDArray[Any]:
    """Return the values of a small coordinate, which a store that was opened may hold lazily.

    They are read here and now: no pixel is computed for them, and no cluster asked.
    """
    return np.asarray(coordinate.compute(scheduler="synchronous").values)


def find_layers(
    cube: xr.Dataset, subsets: Mapping[str, Sequence[str]] | None = None
) -> dict[str, xr.DataArray]:
    """Return a (time, band, y, x) or (band, y, x) array per modality, in the table's order."""
    found = {}
    for modality in MODALITIES.values():
        # Generated coordinates stand beside the rasters, on tiles.
        if modality.kind != "sequence" and modality.name in cube.data_vars:
            found[modality.name] = banded_variable(modality, cube[modality.name])
    if not any(name in found for name in ("S2L2A", "S2L1C")):
        found |= _stacked_bands(cube, subsets or {})
    return {name: found[name] for name in MODALITIES if name in found}


def banded_variable(modality: Modality, data: xr.DataArray) -> xr.DataArray:
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
            return {name: banded_variable(modality, stacked)}
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


def missing_hints(cube: xr.Dataset, found: Mapping[str, xr.DataArray]) -> str:
    """Say what variables that are no modality could become."""
    hints = []
    held = _band_variables(cube)
    if held and not any(name in found for name in ("S2L2A", "S2L1C")):
        missing = [band for band in MODALITIES["S2L2A"].bands if band not in held]
        hints.append(
            f"S2L2A lacks {', '.join(missing)}: load all bands, or choose some with bands="
            "{'S2L2A': [...]}."
        )
    if hint := radar_hint(cube):
        hints.append(hint)
    return "".join(f" {hint}" for hint in hints)


def radar_hint(cube: xr.Dataset) -> str:
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


def ordered_layer(modality: Modality, data: xr.DataArray, bands: Sequence[str] | None) -> Layer:
    """Put the bands into the model's order, those that were asked for."""
    if data.dtype.kind not in "iuf":
        advice = "give the level of its power, 10 * np.log10(abs(x) ** 2)"
        advice = advice if data.dtype.kind == "c" else "give integers or floating-point numbers"
        raise ValueError(f"{modality.name} is {data.dtype}, not {modality.units}: {advice}.")
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


def own_modality(cube: xr.Dataset, name: str, statistics: Statistics) -> Modality:
    """Describe a variable that is no modality of TerraMind's."""
    if name in MODALITIES or name not in cube.data_vars:
        said = (
            "TerraMind knows it"
            if name in MODALITIES
            else f"the cube holds {describe_variables(cube)}"
        )
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


def describe_variables(cube: xr.Dataset) -> str:
    """Name the variables of a cube and their dimensions, for messages."""
    return ", ".join(f"{name} {tuple(cube[name].dims)}" for name in cube.data_vars) or "nothing"
