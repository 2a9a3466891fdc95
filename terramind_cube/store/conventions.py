"""What a result must carry so that every reader of its Zarr store finds the grid.

Two generations of metadata stand side by side: CF (``grid_mapping`` and ``spatial_ref``, read by
rioxarray, odc-geo, QGIS) and the Zarr conventions ``proj:`` and ``spatial:`` at v0.1. GDAL before
3.11 knows only a draft of Zarr 3 and refuses every final Zarr 3 array ("Unsupported codec:
bytes"), so `legacy_metadata` describes the same chunk files once more in Zarr 2 terms.

Sources: CF-1.11 section 5.6; github.com/zarr-conventions/proj and /spatial, tag v0.1; Zarr 3 core
specification, chunk key encoding "v2".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import odc.geo.xr  # noqa: F401  (registers the .odc accessor)
import xarray as xr
from odc.geo.geobox import GeoBox

from terramind_cube.cube.encodings import fill_encoding, time_encoding

if TYPE_CHECKING:
    from collections.abc import Hashable

    import zarr

__all__ = ["CF_VERSION", "GRID_MAPPING", "find_geobox", "legacy_metadata", "prepare"]

CF_VERSION = "CF-1.11"
GRID_MAPPING = "spatial_ref"

_V01 = "https://raw.githubusercontent.com/zarr-conventions/{0}/refs/tags/v0.1/schema.json"
_V01_SPEC = "https://github.com/zarr-conventions/{0}/blob/v0.1/README.md"
_ZARR_CONVENTIONS = tuple(
    {
        "schema_url": _V01.format(name),
        "spec_url": _V01_SPEC.format(name),
        "uuid": uuid,
        "name": name,
        "description": description,
    }
    for name, uuid, description in (
        (
            "proj",
            "f17cb550-5864-4468-aeb7-f3180cfb622f",
            "Coordinate reference system information for geospatial data",
        ),
        ("spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
    )
)

# Chunk files at LULC/0/0/0 instead of LULC/c/0/0/0: the only place where Zarr 2 can find them too.
_CHUNK_KEYS = {"name": "v2", "configuration": {"separator": "/"}}
_NUMERIC = "biuf"
_TEXT = "T"  # numpy.dtypes.StringDType


def find_geobox(result: xr.Dataset) -> GeoBox:
    """Return the grid of a result.

    Parameters
    ----------
    result : xarray.Dataset
        Dataset with 1-D coordinates ``y``, ``x`` and the CRS in ``spatial_ref``.

    Raises
    ------
    ValueError
        If the dimensions, the coordinate or the CRS are missing.
    """
    geobox = result.odc.geobox if {"y", "x"} <= set(result.sizes) else None
    if not isinstance(geobox, GeoBox) or geobox.crs is None or GRID_MAPPING not in result.coords:
        raise ValueError(
            f"The result has no grid: it needs dimensions y and x with coordinates and the CRS in "
            f"{GRID_MAPPING!r}; it has dimensions {dict(result.sizes)} and coordinates "
            f"{sorted(map(str, result.coords))}. Add them with "
            f"result.assign_coords(odc.geo.xr.xr_coords(geobox))."
        )
    return geobox


def prepare(result: xr.Dataset) -> xr.Dataset:
    """Return `result` with the attributes and encodings that its store needs.

    Nothing of the data variables is computed; lazy coordinates are loaded. After
    ``prepare(result).to_zarr(path, zarr_format=3)``, a plain ``xr.open_zarr(path)`` gives the CRS
    to rioxarray and odc-geo. Arrays are unsharded with one Zarr chunk per dask chunk; fill values
    are NaN for floats, ``""`` for texts and ``nodata`` (else 0) for integers, which stay integers.

    Parameters
    ----------
    result : xarray.Dataset
        Dask-backed variables, numbers or StringDType, on a projected grid, any leading
        dimensions before ``y, x``, uniform chunks (the last one of a dimension may be shorter).

    Returns
    -------
    xarray.Dataset
        The same lazy data, for writing: its coordinates have no indexes.

    Raises
    ------
    ValueError
        If the grid is missing, chunks are uneven or a variable is of another type.
    """
    geobox = find_geobox(result)
    georeference = _describe_grid(geobox)
    coords = {name: _prepare_coordinate(result, name, geobox) for name in result.coords}
    variables = {
        name: _prepare_variable(name, array, georeference)
        for name, array in result.data_vars.items()
    }
    attrs = {
        **result.attrs,
        "Conventions": CF_VERSION,
        # Makes a plain xr.open_zarr promote spatial_ref to a coordinate.
        "coordinates": GRID_MAPPING,
        **georeference,
    }
    return xr.Dataset(
        variables, coords=xr.Coordinates(coords, indexes=result.xindexes), attrs=attrs
    )


def legacy_metadata(group: zarr.Group) -> dict[str, Any]:
    """Describe the numeric arrays of a prepared store as Zarr 2 consolidated metadata.

    Parameters
    ----------
    group : zarr.Group
        Root of a store whose arrays come from `prepare`.

    Returns
    -------
    dict
        Content of ``.zmetadata``. zarr-python and xarray ignore it beside ``zarr.json``.
    """
    entries: dict[str, Any] = {
        ".zgroup": {"zarr_format": 2},
        ".zattrs": dict(group.attrs),
    }
    arrays = {name: array for name, array in group.arrays() if array.dtype.kind in _NUMERIC}
    # GDAL resolves a grid_mapping only if it has met that variable before.
    for name in sorted(arrays, key=lambda name: (name != GRID_MAPPING, name)):
        metadata: Any = arrays[name].metadata
        declared = metadata.to_dict()
        entries[f"{name}/.zarray"] = {
            "zarr_format": 2,
            "shape": list(metadata.shape),
            "chunks": list(metadata.chunk_grid.chunk_shape),
            "dtype": arrays[name].dtype.newbyteorder("<").str,
            "compressor": {"id": "zstd", **declared["codecs"][1]["configuration"]},
            "fill_value": declared["fill_value"],
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
        }
        # Zarr 2 says fill_value instead, and Zarr 3 stores this one in base64.
        attrs = {key: value for key, value in arrays[name].attrs.items() if key != "_FillValue"}
        dims = list(metadata.dimension_names or ())
        entries[f"{name}/.zattrs"] = {**attrs, "_ARRAY_DIMENSIONS": dims}
    return {"zarr_consolidated_format": 1, "metadata": entries}


def _describe_grid(geobox: GeoBox) -> dict[str, Any]:
    """Return the attributes of the `proj:` and `spatial:` conventions."""
    crs = geobox.crs
    assert crs is not None
    authority, code = crs.authority
    bounds = geobox.boundingbox
    return {
        "zarr_conventions": [dict(row) for row in _ZARR_CONVENTIONS],
        **({"proj:code": f"{authority}:{code}"} if code else {}),
        "proj:wkt2": crs.to_wkt(),
        "spatial:dimensions": ["y", "x"],
        "spatial:shape": [int(size) for size in geobox.shape.yx],
        "spatial:transform": [float(value) for value in tuple(geobox.transform)[:6]],
        "spatial:bbox": [bounds.left, bounds.bottom, bounds.right, bounds.top],
        "spatial:registration": "pixel",
    }


def _prepare_coordinate(result: xr.Dataset, name: Hashable, geobox: GeoBox) -> xr.Variable:
    variable = result[name].variable.compute()
    attrs = dict(variable.attrs)
    encoding: dict[str, Any] = {"chunk_key_encoding": _CHUNK_KEYS}
    if name == GRID_MAPPING:
        # A crop leaves the old corner here, and rioxarray trusts it more than y and x.
        attrs["GeoTransform"] = " ".join(repr(float(v)) for v in geobox.transform.to_gdal())
    elif name in ("y", "x"):
        attrs.update(standard_name=f"projection_{name}_coordinate", axis=str(name).upper())
        encoding["_FillValue"] = None
    elif variable.dtype.kind == "M":
        encoding.update(time_encoding(is_index=name in result.dims))
        for key in ("units", "calendar"):
            attrs.pop(key, None)
    elif variable.dtype.kind == "U":
        # Fixed-length text has no Zarr 3 specification; variable-length text has one.
        variable = variable.astype(object)
    return xr.Variable(variable.dims, variable.data, attrs, encoding)


def _prepare_variable(
    name: Hashable, array: xr.DataArray, georeference: dict[str, Any]
) -> xr.Variable:
    if array.dtype.kind not in _NUMERIC + _TEXT:
        raise ValueError(
            f"{name} has dtype {array.dtype}: a store takes numbers and numpy.dtypes.StringDType. "
            f"Drop it or convert it."
        )
    attrs = {
        key: value
        for key, value in array.attrs.items()
        if key not in ("grid_mapping", "coordinates", "_FillValue")
    }
    encoding: dict[str, Any] = {"chunk_key_encoding": _CHUNK_KEYS, "chunks": _chunk_shape(array)}
    encoding.update(fill_encoding(array.dtype, attrs.get("nodata")))
    if {"y", "x"} <= set(array.dims):
        encoding["grid_mapping"] = GRID_MAPPING
        attrs.update(georeference)
    return xr.Variable(array.dims, array.data, attrs, encoding)


def _chunk_shape(array: xr.DataArray) -> tuple[int, ...]:
    """Return the chunk shape in pixels of uniformly chunked data."""
    chunks = array.variable.chunks or tuple((size,) for size in array.shape)
    for dim, sizes in zip(array.dims, chunks, strict=True):
        if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
            raise ValueError(
                f"{array.name} has uneven chunks along {dim}: {sizes}. Only the last one may be "
                f"shorter; rechunk the result, for instance .chunk({{{str(dim)!r}: {sizes[0]}}})."
            )
    return tuple(sizes[0] for sizes in chunks)
