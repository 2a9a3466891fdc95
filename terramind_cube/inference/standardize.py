"""A cube as the model sees it: every band less its mean, over its standard deviation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from odc.geo.xr import xr_coords

from terramind_cube import kernels
from terramind_cube.cube.inspection import blank_impossible, look_at
from terramind_cube.cube.plausibility import Scene
from terramind_cube.inference.choice import Needs, choose_model
from terramind_cube.inference.plan import plan_inputs
from terramind_cube.inference.runtime import Compute
from terramind_cube.kernels.rules import PIXEL_DTYPES

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from terramind_cube.cube.layers import Layer
    from terramind_cube.cube.layout import CubeLayout
    from terramind_cube.inference.choice import WeightsChoice
    from terramind_cube.inference.sources import InputLayer

__all__ = ["check_standardized", "standardize_layers"]

_CRS_ATTRIBUTES = {"crs_wkt", "spatial_ref", "grid_mapping_name"}


def check_standardized(modalities: Sequence[str] | None, dtype: str) -> Sequence[str] | None:
    """Return the modalities to standardise, None for every one whose pixels TerraMind takes.

    Raises
    ------
    ValueError
        If they are no names or none at all, or class codes, or the dtype is none that arrays of a
        Dataset have.
    """
    if isinstance(modalities, str):
        raise ValueError(f"modalities is a list: give [{modalities!r}].")  # noqa: TRY004
    if modalities is not None:
        is_list = isinstance(modalities, Iterable)
        if not is_list or not all(isinstance(name, str) for name in modalities):
            raise ValueError(f"modalities={modalities!r}: give a list of names, as in ['S2L2A'].")
        if not list(modalities):
            raise ValueError("No modalities: give at least one modality, such as ['S2L2A'].")
    if dtype != "float32":
        hint = (
            " NumPy and CuPy have no bfloat16; terramind_cube.kernels.normalize gives it as torch "
            "tensors."
            if dtype == "bfloat16"
            else ""
        )
        raise ValueError(f"dtype: expected 'float32', got {dtype!r}.{hint}")
    if "LULC" in (modalities or ()):
        raise ValueError(
            "modalities: LULC cannot be standardised: its numbers are codes of classes, which the "
            "model sees as tokens; use cube.terramind.tokenize(['LULC'])."
        )
    return modalities


def standardize_layers(layout: CubeLayout, choice: WeightsChoice, cube: xr.Dataset) -> xr.Dataset:
    """Return the layers of a cube, standardised; see `accessor.TerraMindAccessor.normalize`.

    Parameters
    ----------
    layout : CubeLayout
    choice : WeightsChoice
        Whose statistics to take.
    cube : xarray.Dataset
        Where the layers come from, whose names and order of dimensions are kept.

    Raises
    ------
    ValueError, FileNotFoundError
        If the model takes a modality in no form, or there are no such weights.
    """
    spec, description = choose_model(choice, Needs(), Compute("cpu", "float32", 1, 1))
    attrs: dict[str, Any] = {"terramind_model": spec.name}
    if choice.weights is not None and spec.weights is not None:
        attrs["terramind_weights_sha256"] = spec.weights.sha256
    attrs["terramind_version"] = version("terramind-cube")
    rows = zip(layout.layers, plan_inputs(layout, {}, description), strict=True)
    found = {
        layer.modality.name: _standardized(layer, how, attrs, _dims(layer, cube))
        for layer, how in rows
    }
    result = _on_grid(xr.Dataset(found), layout.geobox)
    # Makes the CRS a coordinate again when xarray opens what `to_zarr` wrote.
    result.attrs["coordinates"] = "spatial_ref"
    if layout.read_failures is not None:
        result.attrs["read_failures"] = layout.read_failures
    return result


def _on_grid(result: xr.Dataset, geobox: GeoBox) -> xr.Dataset:
    """Give a result the CRS as `spatial_ref` and under no other name, whatever the cube calls it."""
    others = [
        name
        for name, coordinate in result.coords.items()
        if not coordinate.dims and _CRS_ATTRIBUTES & set(coordinate.attrs)
    ]
    coords = xr_coords(geobox)
    result = result.drop_vars(others).assign_coords(spatial_ref=coords["spatial_ref"])
    if np.allclose(
        result["x"].values[:1], coords["x"].values[:1], rtol=0, atol=0.1 * geobox.affine.a
    ):
        return result
    return result.assign_coords(y=coords["y"], x=coords["x"])  # those of the cube are pixel corners


def _dims(layer: Layer, cube: xr.Dataset) -> tuple[Hashable, ...]:
    """Return the dimensions that the result has: those of the cube's variable, if it is one."""
    row = layer.modality
    if row.name in cube.data_vars:
        return cube[row.name].dims
    time = () if layer.is_static else ("time",)
    return (*time, *((row.band_dim,) if row.band_dim else ()), "y", "x")


def _standardized(
    layer: Layer, how: InputLayer, attrs: dict[str, Any], dims: tuple[Hashable, ...]
) -> xr.DataArray:
    assert how.statistics is not None  # class codes have none, and are refused
    mean = [how.statistics.mean[band] for band in how.bands]
    std = [how.statistics.std[band] for band in how.bands]
    # The bands of a pixel are masked together, so that they must lie in one chunk.
    scene = Scene(layer.modality.name)
    function = partial(_standardize, scene=scene, mean=mean, std=std, nodata=how.nodata)
    pixels = layer.data.data
    if isinstance(pixels, da.Array):
        pixels = pixels.rechunk({pixels.ndim - 3: -1})
        meta = pixels._meta.astype(np.float32)  # of NumPy, or of CuPy
        values = da.map_blocks(function, pixels, dtype=np.float32, meta=meta)
    else:
        values = function(pixels)
    data = layer.data.copy(data=values)
    bands = [dim for dim in dims if dim not in ("time", "y", "x")]
    data = data.rename(band=bands[0]) if bands else data.squeeze("band", drop=True)
    data = data.transpose(*dims)
    nodata = "not finite" if np.isnan(how.nodata) else f"{how.nodata:g} or not finite"
    data.attrs = {
        "long_name": f"{how.modality}, standardised",
        "units": "1",
        "terramind_mean": mean,
        "terramind_std": std,
        "terramind_statistics_units": layer.modality.units,
        "terramind_nodata": f"0 in every band where any band is {nodata}",
        **attrs,
        "terramind_stac_items": list(layer.items),
    }
    data.encoding = {"grid_mapping": "spatial_ref"}
    return data


def _standardize(
    pixels: NDArray[np.generic], scene: Scene, mean: list[float], std: list[float], nodata: float
) -> NDArray[np.float32]:
    """Standardise a chunk (..., C, H, W), of NumPy or CuPy."""
    for date in pixels if pixels.ndim > 3 else (pixels,):
        look_at([scene], [date])
    pixels = blank_impossible(scene.modality, pixels)
    name = pixels.dtype.name
    # Any other number is read as float32, and kernels on a GPU take contiguous arrays alone.
    known = pixels.astype(name if name in PIXEL_DTYPES else "float32", order="C", copy=False)
    values: NDArray[np.float32] = kernels.normalize(known, mean=mean, std=std, nodata=nodata)
    return values
