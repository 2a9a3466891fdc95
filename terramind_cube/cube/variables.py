"""Variables and coordinates of a cube, made of the steps of its modalities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
import xarray as xr

from terramind_cube.cube.clouds import CLOUD_DILATION_M, SCENE_CLASSES, mask_finisher
from terramind_cube.cube.mosaic import ItemSource, Mosaic, lazy_mosaic
from terramind_cube.cube.radiometry import Radiometry, added_offset_dn, ndvi, rgb
from terramind_cube.cube.units import describe_units
from terramind_cube.modalities import LULC_CLASSES, MODALITIES
from terramind_cube.stac.acquisitions import processing_age
from terramind_cube.stac.calibration import processing_baseline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from terramind_cube.cube.chunking import ChunkedGrid
    from terramind_cube.cube.headers import Headers
    from terramind_cube.cube.pairing import TimeStep
    from terramind_cube.cube.request import CubeRequest
    from terramind_cube.cube.series import Series
    from terramind_cube.modalities import Modality

__all__ = ["Assembly", "band_labels", "cloud_variables", "derived_variables", "modality_variable",
           "stamps", "step_coords"]  # fmt: skip

da: Any = dask.array  # only partly typed

_RGB_BANDS = ("B04", "B03", "B02")
_UNKNOWN_ORBIT = 0


@dataclass(frozen=True)
class Assembly:
    """What all variables of a cube share.

    Attributes
    ----------
    request : CubeRequest
    grid : ChunkedGrid
    time_chunk : int
        Dates in a chunk; -1 is all.
    headers : Headers
    """

    request: CubeRequest
    grid: ChunkedGrid
    time_chunk: int
    headers: Headers

    def array(
        self,
        series: Series,
        mosaic: Mosaic,
        source: Callable[[Any], ItemSource | None],
        bands: int,
    ) -> Any:
        """Return the lazy mosaics of a series along the time axis."""
        crs = self.grid.geobox.crs
        steps = []
        for step in series.steps:
            found = [item for item in map(source, step.sources) if item is not None]
            # Pixels that lie on the grid as they are come before those that must be warped.
            steps.append(sorted(found, key=lambda item: getattr(item.footprint, "crs", crs) != crs))
        pixels = lazy_mosaic(steps, series.places, bands, self.grid, mosaic)
        if self.time_chunk == 1 or series.modality.temporal == "static":
            return pixels
        return pixels.rechunk({0: self.time_chunk})


def modality_variable(assembly: Assembly, series: Series, labels: Sequence[str]) -> xr.DataArray:
    """Return the variable of a modality that is read from items."""
    modality = series.modality
    has_bands = modality.band_dim is not None
    pixels = _pixels(assembly, series, assembly.request.s2_offset)
    if modality.units == "1e-4":
        # More may be read than was asked for, where something is derived from it.
        pixels = _select(pixels, labels, assembly.request.labels(modality))
    if modality.temporal == "static":
        pixels = pixels[0]
    dims = (*(() if modality.temporal == "static" else ("time",)),
            *((modality.band_dim,) if has_bands else ()), "y", "x")  # fmt: skip
    attrs = _attributes(modality, series)
    if modality.units == "1e-4" and (mixed := _mixed_offsets(series, assembly.request.s2_offset)):
        attrs["dn_offsets"] = mixed
    return xr.DataArray(pixels, dims=dims, attrs=attrs)


def derived_variables(assembly: Assembly, series: Series) -> dict[str, xr.DataArray]:
    """Return NDVI and RGB, as far as they were asked for, from reflectance without offset."""
    request = assembly.request
    wanted = [name for name in ("NDVI", "RGB") if request.has(name)]
    if not wanted:
        return {}
    labels = request.labels(series.modality)
    pixels = _pixels(assembly, series, "remove")
    variables = {}
    if "NDVI" in wanted:
        red, infrared = (pixels[:, labels.index(band)] for band in ("B04", "B08"))
        index = da.map_blocks(ndvi, red, infrared, dtype=np.float32, meta=np.empty((0,) * 3, "f4"))
        attrs = _attributes(MODALITIES["NDVI"], series)
        variables["NDVI"] = xr.DataArray(index, dims=("time", "y", "x"), attrs=attrs)
    if "RGB" in wanted:
        visible = _select(pixels, _RGB_BANDS, labels)
        colours = da.map_blocks(rgb, visible, dtype=np.uint8, meta=np.empty((0,) * 4, "u1"))
        attrs = _attributes(MODALITIES["RGB"], series)
        attrs["comment"] = "reflectance 0 to 0.2 of B04, B03 and B02 as 0 to 255"
        variables["RGB"] = xr.DataArray(colours, dims=("time", "RGB_band", "y", "x"), attrs=attrs)
    return variables


def cloud_variables(
    assembly: Assembly, series: Series
) -> tuple[dict[str, xr.DataArray], dict[str, xr.DataArray]]:
    """Return scene classes and cloud mask, and the clear fraction as a coordinate."""
    sources = [source for step in series.steps for source in step.sources]
    if not assembly.request.clouds or all(source.scene_classes is None for source in sources):
        return {}, {}
    radiometry = Radiometry("plain", "uint8", 0)

    def classes(source: Any) -> ItemSource | None:
        if source.scene_classes is None:
            return None
        return assembly.headers.source(source, radiometry, "nearest", classes=True)

    plain = Mosaic("SCL", "uint8", 0, assembly.headers.reading, band_axis=False)
    finish, margin_px = mask_finisher(assembly.grid.geobox.resolution.x)
    masked = replace(plain, name="cloud_mask", finish=finish, margin_px=margin_px, result="bool")
    mask = assembly.array(series, masked, classes, 1)
    items = _attributes(series.modality, series)
    shared = {key: items[key] for key in ("stac_items", "grid_mapping")}
    variables = {
        "SCL": xr.DataArray(
            assembly.array(series, plain, classes, 1),
            dims=("time", "y", "x"),
            attrs={
                "long_name": "scene classification",
                "flag_values": list(range(len(SCENE_CLASSES))),
                "flag_meanings": " ".join(SCENE_CLASSES),
                "nodata": 0,
                **shared,
            },
        ),
        "cloud_mask": xr.DataArray(
            mask,
            dims=("time", "y", "x"),
            attrs={
                "long_name": "cloud, cloud shadow, cirrus, defective or no data",
                "dilation_m": CLOUD_DILATION_M,
                **shared,
            },
        ),
    }
    is_known = np.array([_is_classified(step) for step in series.chosen])
    clear = da.where(is_known, 1 - mask.mean(axis=(1, 2), dtype=np.float64), np.nan)
    fraction = xr.DataArray(
        clear.astype(np.float32),
        dims="time",
        attrs={
            "long_name": "share of the area that is seen clearly",
            "comment": "of the whole area; not a number where there is no scene classification",
            "units": "1",
        },
    )
    return variables, {"clear_fraction": fraction}


def _is_classified(step: TimeStep | None) -> bool:
    return step is not None and any(source.scene_classes is not None for source in step.sources)


def step_coords(series: Series, s2_offset: str) -> dict[str, xr.DataArray]:
    """Return what is recorded along the time axis for one modality."""
    modality, coords = series.modality, {}
    if modality.temporal != "static":
        ids = [" ".join(s.item.id for s in step.sources) if step else "" for step in series.chosen]
        coords[f"{modality.name}_items"] = xr.DataArray(
            np.array(ids, object),
            dims="time",
            attrs={"long_name": "STAC items of each date, the uppermost first"},
        )
    if modality.units == "1e-4":
        offsets = [_newest_offset(step, s2_offset) for step in series.chosen]
        coords[f"{modality.name}_offset"] = xr.DataArray(
            np.array(offsets, np.int16),
            dims="time",
            attrs={"long_name": "digital numbers that reading added"},
        )
        coords[f"{modality.name}_baseline"] = xr.DataArray(
            np.array([_newest_baseline(step) for step in series.chosen], np.float64),
            dims="time",
            attrs={
                "long_name": "processing baseline, of a mixed date the newest",
                "comment": "not a number where an item tells none; before 4 products have no offset",
            },
        )
        if s2_offset != "remove":
            left = [
                added - (_newest_offset(step, "remove") if step else 0)
                for step, added in zip(series.chosen, offsets, strict=True)
            ]
            coords[f"{modality.name}_offset_left"] = xr.DataArray(
                np.array(left, np.int16),
                dims="time",
                attrs={"long_name": "digital numbers above reflectance x 10000"},
            )
    if not series.leads and modality.temporal == "instant":
        times = stamps([step.time if step else None for step in series.chosen])
        coords[f"{modality.name}_time"] = xr.DataArray(
            times,
            dims="time",
            attrs={"long_name": f"time of the {modality.name} scene of each date, in UTC"},
        )
    if modality.units == "dB":
        orbits = [step.relative_orbit if step else None for step in series.chosen]
        if any(orbits):
            coords[f"{modality.name}_relative_orbit"] = xr.DataArray(
                np.array([orbit or _UNKNOWN_ORBIT for orbit in orbits], np.int16),
                dims="time",
                attrs={"long_name": "relative orbit, 0 where unknown"},
            )
    return coords


def band_labels(modality: Modality, labels: Sequence[str]) -> dict[str, xr.DataArray]:
    """Return the coordinate of a modality's bands, none for a single band."""
    if modality.band_dim is None:
        return {}
    # Variable-length strings: Zarr has no stable layout for fixed-length ones.
    return {modality.band_dim: xr.DataArray(np.array(labels, object), dims=modality.band_dim)}


def stamps(times: Sequence[datetime | None]) -> NDArray[np.datetime64]:
    """Return times as datetime64[ns] in UTC, NaT for None."""
    naive = [None if t is None else t.astimezone(UTC).replace(tzinfo=None) for t in times]
    return np.array(naive, "datetime64[ns]")


def _pixels(assembly: Assembly, series: Series, s2_offset: str) -> Any:
    """Return the pixels of all bands that are read, as a lazy array (time, band, y, x)."""
    modality, request = series.modality, assembly.request

    def source(found: Any) -> ItemSource:
        radiometry = Radiometry.of(found, s2_offset)
        return assembly.headers.source(found, radiometry, request.method(found))

    mosaic = Mosaic(
        modality.name,
        modality.dtype,
        modality.fill_value,
        assembly.headers.reading,
        band_axis=modality.band_dim is not None,
    )
    return assembly.array(series, mosaic, source, len(request.labels(modality)))


def _select(pixels: Any, wanted: Sequence[str], labels: Sequence[str]) -> Any:
    if tuple(wanted) == tuple(labels):
        return pixels
    return pixels[:, [labels.index(label) for label in wanted]]


def _newest_offset(step: TimeStep | None, s2_offset: str) -> int:
    if step is None:
        return 0
    newest = max(step.sources, key=processing_age)
    return added_offset_dn(newest.offset_dn, s2_offset)


def _newest_baseline(step: TimeStep | None) -> float:
    """Return the newest baseline of a step, not a number where any item tells none."""
    found = [processing_baseline(source.item) for source in step.sources] if step else []
    told = [baseline for baseline in found if baseline is not None]
    return max(told) if told and len(told) == len(found) else math.nan


def _mixed_offsets(series: Series, s2_offset: str) -> list[str]:
    """Describe the steps whose items had different offsets."""
    described = []
    for step in series.steps:
        offsets = {source.item.id: added_offset_dn(source.offset_dn, s2_offset)
                   for source in step.sources}  # fmt: skip
        if len(set(offsets.values())) > 1:
            said = ", ".join(f"{name} {offset:+d}" for name, offset in offsets.items())
            described.append(f"{step.time.date().isoformat()}: {said}")
    return described


def _attributes(modality: Modality, series: Series) -> dict[str, Any]:
    sources = [source for step in series.steps for source in step.sources]
    items = list(dict.fromkeys(source.item.id for source in sources))
    attrs: dict[str, Any] = {"units": modality.units, "stac_items": items}
    for name in ("license", "attribution"):
        told = [getattr(s.row, name, "") or _told(s.item, name) for s in sources]
        if said := list(dict.fromkeys(text for text in told if text)):
            attrs[name] = "; ".join(said)
    if modality.kind == "classes":
        attrs["flag_values"] = [row.value for row in LULC_CLASSES]
        attrs["flag_meanings"] = " ".join(row.name for row in LULC_CLASSES)
    if units := describe_units(sources):
        attrs["source_unit" if modality.units == "dB" else "source_legend"] = units
    if not math.isnan(modality.fill_value):
        attrs["nodata"] = int(modality.fill_value)
    # An attribute outlives arithmetic, which drops the encoding.
    attrs["grid_mapping"] = "spatial_ref"
    return attrs


def _told(item: Any, name: str) -> str:
    """Return the licence or the providers that an item itself names."""
    properties: Mapping[str, Any] = item.properties
    if name == "license":
        return str(properties.get("license") or "")
    providers = properties.get("providers") or ()
    return ", ".join(str(row.get("name")) for row in providers if row.get("name"))
