"""The cube as odc-stac builds it, with what its users must add for providers without dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import odc.stac
import pystac
from affine import Affine
from cube_contest import Job, run
from odc.geo.geobox import GeoBox

if TYPE_CHECKING:
    import xarray as xr


def parse(items: list[dict]) -> list[pystac.Item]:
    return [pystac.Item.from_dict(item) for item in items]


def build(job: Job, items: list[pystac.Item]) -> xr.Dataset:
    known: dict[str, dict] = {"*": {"data_type": "uint16", "nodata": 0}}
    bands = list(job.assets)
    if job.scl is not None:
        known[job.scl] = {"data_type": "uint8", "nodata": 0}
        bands.append(job.scl)
    return odc.stac.load(
        items,
        bands=bands,
        geobox=GeoBox(tuple(job.shape), Affine(*job.transform), job.crs),
        chunks={"y": job.chunk_px, "x": job.chunk_px},
        groupby="solar_day",
        stac_cfg={job.items[0]["collection"]: {"assets": known}},
    )


if __name__ == "__main__":
    run("odc-stac", parse, build, ("odc-stac", "odc-loader", "dask", "rasterio", "xarray"))
