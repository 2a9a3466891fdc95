"""The cube as stackstac builds it; runs in an environment of its own.

Needs ``requirements-stackstac.txt`` and, of this folder's parent, only ``cube_contest``. stackstac
stacks every item; the day's mosaic is its own `stackstac.mosaic` over a group per day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import stackstac
from cube_contest import Job, run

if TYPE_CHECKING:
    import xarray as xr


def parse(items: list[dict]) -> list[dict]:
    """Return items that say ``proj:epsg``, the only spelling that stackstac knows."""
    known = []
    for item in items:
        properties = dict(item["properties"])
        code = properties.pop("proj:code", None)
        if code is not None:
            properties["proj:epsg"] = int(code.removeprefix("EPSG:"))
        known.append({**item, "properties": properties})
    return known


def build(job: Job, items: list[dict]) -> xr.DataArray:
    stack = stackstac.stack(
        items,
        assets=job.assets,
        epsg=int(job.crs.removeprefix("EPSG:")),
        bounds=job.bounds,
        resolution=job.transform[0],
        snap_bounds=False,
        chunksize=(1, 1, job.chunk_px, job.chunk_px),
        dtype=np.dtype("uint16"),
        fill_value=np.uint16(0),
        rescale=False,
        xy_coords="center",
        # Neither coordinates of properties nor of bands, which the others do not build.
        properties=False,
        band_coords=False,
    )
    days = stack.groupby("time.date").map(stackstac.mosaic, dim="time", nodata=0)
    return days.rename(date="time").transpose("time", "band", "y", "x")


if __name__ == "__main__":
    run("stackstac", parse, build, ("stackstac", "pandas", "dask", "rasterio", "xarray"))
