"""What there is to say about a grid, about dates and about a store, in short lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from terramind_cube.store.conventions import find_geobox
from terramind_cube.store.ledger import noted_failures, read_receipts, read_run
from terramind_cube.store.places import store_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from odc.geo.geobox import GeoBox

    from terramind_cube.cube.layout import CubeLayout
    from terramind_cube.inference.generate import Generation

__all__ = [
    "describe_dates",
    "describe_grid",
    "describe_plan",
    "describe_store",
    "describe_training",
    "name_crs",
]

_SHOWN_FAILURES = 5
_RUN_ROWS = {
    "terramind_model": "Model",
    "terramind_weights_sha256": "Weights",
    "terramind_tokenizer_sha256": "Tokenizers",
    "terramind_inputs": "Inputs",
    "terramind_stac_items": "Items",
    "terramind_seed": "Seed",
    "terramind_sampler": "Sampler",
}


def describe_grid(geobox: GeoBox) -> str:
    """Say in one line how large a grid is, and where it lies in degrees."""
    height, width = geobox.shape
    metres = geobox.resolution.x
    box = geobox.extent.to_crs("EPSG:4326").boundingbox
    return (
        f"{width * metres / 1000:.4g} x {height * metres / 1000:.4g} km, {width} x {height} px of "
        f"{metres:g} m, {name_crs(geobox)}, "
        f"bbox {box.left:.4f} {box.bottom:.4f} {box.right:.4f} {box.top:.4f}"
    )


def describe_dates(times: Any) -> str:
    """Say in one line how many dates there are, and which; `times` are datetime64."""
    dates = [str(moment)[:10] for moment in times]
    shown = dates if len(dates) < 8 else [*dates[:3], "...", *dates[-3:]]
    return f"{len(dates)}: {', '.join(shown)}"


def describe_training(attrs: Mapping[str, Any]) -> str:
    """Return a warning where a generated variable comes from untrained weights, else nothing."""
    hashes = [attrs["terramind_weights_sha256"], *attrs["terramind_tokenizer_sha256"]]
    if any(text.endswith("untrained") for text in hashes):
        return "Untrained weights: the values mean nothing yet."
    return ""


def describe_plan(layout: CubeLayout, plan: Generation) -> list[tuple[str, str]]:
    """Say what a generation is about to do, as (label, text) lines."""
    compute, times = plan.spec.compute, layout.times
    dates = 1 if times is None else len(times)
    items = {item for layer in layout.layers for item in layer.items}
    training = describe_training(plan.provenance())
    work = (
        f"{plan.grid.tile_count * dates} tiles of {plan.grid.y.tile_px} px in "
        f"{len(plan.groups()) * dates} tile groups; {compute.device}, {compute.precision}, "
        f"batches of {compute.batch}, {compute.threads} threads"
    )
    return [
        ("Area", describe_grid(layout.geobox)),
        ("Dates", "none: static layers" if times is None else describe_dates(times)),
        ("Inputs", f"{', '.join(row.modality for row in plan.inputs)} of {len(items)} items"),
        ("Outputs", ", ".join(plan.outputs)),
        ("Model", f"{plan.spec.name}, seed {plan.seed}. {training}".rstrip()),
        ("Work", work),
    ]


def describe_store(path: str | PathLike[str]) -> list[tuple[str, str]]:
    """Say what a store holds, how it was made, and whether it is complete.

    Returns
    -------
    list of (label, text)

    Raises
    ------
    FileNotFoundError
        If nothing exists at `path`.
    ValueError
        If it is not a store of this package.
    """
    path = store_path(path)
    run, receipts = read_run(path), read_receipts(path)
    state = "complete" if run.status == "complete" else "unfinished, resume goes on"
    status = (
        f"{state}: {len(receipts)} of {run.regions} tile groups in "
        f"{sum(receipt.seconds for receipt in receipts):.1f} s, started {run.started_at}"
    )
    if run.finished_at:
        status += f", finished {run.finished_at}"
    rows = [("Store", str(Path(path).absolute())), ("Status", status)]
    if failures := noted_failures(path):
        rows.append(("Not read", f"{len(failures)} assets, their pixels are nodata"))
        rows += [("", failure) for failure in failures[:_SHOWN_FAILURES]]
    remarks = list(dict.fromkeys(text for receipt in receipts for text in receipt.remarks))
    if remarks:
        rows.append(("Inputs", f"{len(remarks)} things look wrong, see find_implausible()"))
        rows += [("", text) for text in remarks[:_SHOWN_FAILURES]]
    with xr.open_zarr(path) as content:
        rows += _describe_content(content)
    for key, label in _RUN_ROWS.items():
        value = run.fingerprint.get(key, "not recorded")
        rows.append((label, ", ".join(value) if isinstance(value, list) else str(value)))
    return [*rows, ("Version", f"terramind-cube {run.package_version}")]


def _describe_content(content: xr.Dataset) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, variable in content.data_vars.items():
        shape = ", ".join(f"{dim} {size}" for dim, size in variable.sizes.items())
        chunks = " x ".join(map(str, variable.encoding["chunks"]))
        text = f"{name} ({shape}) {variable.dtype}, chunks of {chunks}"
        rows.append(("" if rows else "Variables", text))
    rows.append(("Grid", describe_grid(find_geobox(content))))
    if "time" in content.coords:
        rows.append(("Dates", describe_dates(content["time"].values)))
    return rows


def name_crs(geobox: GeoBox) -> str:
    """Return the EPSG code of a grid, else the name of its CRS."""
    assert geobox.crs is not None
    return f"EPSG:{geobox.crs.epsg}" if geobox.crs.epsg else str(geobox.crs.proj.name)
