"""A small study area on disk, in the style of Planetary Computer: scenes, radar, heights, classes.

The files are real Cloud-Optimized GeoTIFFs, with tiles and overviews, so that a server can tell who
reads only what is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pystac
import rasterio
from odc.geo.geobox import GeoBox

from terramind_cube.modalities import LULC_CLASSES, MODALITIES
from tests.cube.scenes import CRS, LEFT, TOP, write_tiff

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SCL", "SIZE_PX", "Study", "write_study"]

SIZE_PX = 480
"""Pixels of 10 m on each side of a scene."""
SCL = "SCL"

_TILE_PX = 128
_RESOLUTION_M = {
    "B01": 60, "B09": 60, "B05": 20, "B06": 20, "B07": 20, "B8A": 20, "B11": 20, "B12": 20, SCL: 20,
}  # fmt: skip
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
# North-west corner in degrees; the scenes lie within.
_DEM_LEFT_DEG, _DEM_TOP_DEG, _DEM_STEP_DEG = 8.999, 48.092, 1 / 3600


@dataclass(frozen=True)
class Study:
    """Files of a folder, and the items that refer to them.

    Attributes
    ----------
    folder : Path
    documents : tuple of dict
        Items whose assets are referred to by the names of their files.
    """

    folder: Path
    documents: tuple[dict[str, Any], ...]

    def items(self, base: str | None = None, *collections: str) -> list[pystac.Item]:
        """Return items whose files lie under an address, or in the folder itself."""
        made = []
        for document in self.documents:
            if collections and document["collection"] not in collections:
                continue
            item = pystac.Item.from_dict(document)
            for asset in item.assets.values():
                asset.href = f"{self.folder if base is None else base}/{asset.href}"
            made.append(item)
        return made

    def file(self, item_id: str, asset: str) -> str:
        """Return the name of a file."""
        found = next(document for document in self.documents if document["id"] == item_id)
        name: str = found["assets"][asset]["href"]
        return name


def write_study(folder: Path) -> Study:
    """Write two Sentinel-2 scenes of one day and one of another, radar of a day, DEM and classes.

    The two scenes of a day overlap by half: "S2A-west" lies west of "S2A-east".
    """
    rng = np.random.default_rng(0)
    documents = [
        _scene(folder, rng, "S2A-west", "2024-05-01T10:10:00Z", baseline="05.10"),
        _scene(folder, rng, "S2A-east", "2024-05-01T10:10:00Z", baseline="05.10",
               left=LEFT + 10.0 * SIZE_PX // 2),
        _scene(folder, rng, "S2B-before", "2021-06-10T10:10:00Z", baseline="03.00"),
        _radar(folder, rng),
        _heights(folder, rng),
        *(_classes(folder, rng, year) for year in (2021, 2024)),
    ]  # fmt: skip
    return Study(folder, tuple(documents))


def _scene(
    folder: Path,
    rng: np.random.Generator,
    name: str,
    when: str,
    *,
    baseline: str,
    left: float = LEFT,
) -> dict[str, Any]:
    item = _Item(folder, name, "sentinel-2-l2a")
    for band in (*MODALITIES["S2L2A"].bands, SCL):
        resolution_m = _RESOLUTION_M.get(band, 10)
        size = SIZE_PX * 10 // resolution_m
        low, high, dtype = (1, 12, "uint8") if band == SCL else (1001, 9000, "uint16")
        pixels = rng.integers(low, high, (size, size)).astype(dtype)
        item.add(band, pixels, left=left, resolution_m=resolution_m, nodata=0)
    properties = {
        "eo:cloud_cover": 12.5,
        "s2:processing_baseline": baseline,
        "s2:mgrs_tile": "32UNU",
        "platform": "Sentinel-2A",
    }
    return item.document(when, properties, per_asset=True)


def _radar(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    item = _Item(folder, "S1A-rtc", "sentinel-1-rtc")
    for key in ("vv", "vh"):
        power = rng.gamma(2.0, 0.05, (SIZE_PX, SIZE_PX * 3 // 2)).astype("float32")
        power[:, :20] = -32768
        item.add(key, power, nodata=-32768)
    properties = {"sat:orbit_state": "ascending", "sat:relative_orbit": 44}
    return item.document("2024-05-02T17:20:00Z", properties)


def _heights(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    item = _Item(folder, "COP30-N48-E008", "cop-dem-glo-30")
    heights = rng.normal(500, 100, (200, 420)).astype("float32")
    item.add("data", heights, left=_DEM_LEFT_DEG, top=_DEM_TOP_DEG, resolution_m=_DEM_STEP_DEG,
             crs="EPSG:4326")  # fmt: skip
    return item.document("2021-04-22T00:00:00Z", {})


def _classes(folder: Path, rng: np.random.Generator, year: int) -> dict[str, Any]:
    item = _Item(folder, f"32U-{year}", "io-lulc-annual-v02")
    codes = np.array([row.provider_value for row in LULC_CLASSES], "uint8")
    item.add("data", rng.choice(codes, (SIZE_PX, SIZE_PX * 3 // 2)), nodata=0)
    span = {
        "start_datetime": f"{year}-01-01T00:00:00Z",
        "end_datetime": f"{year + 1}-01-01T00:00:00Z",
    }
    return item.document(None, span)


class _Item:
    """An item that grows file by file."""

    def __init__(self, folder: Path, name: str, collection: str) -> None:
        self.folder, self.name, self.collection = folder, name, collection
        self.grids: dict[str, GeoBox] = {}

    def add(self, key: str, pixels: np.ndarray, **where: Any) -> None:
        path = self.folder / f"{self.name}_{key}.tif"
        write_tiff(path, pixels, driver="COG", compress="deflate", blocksize=_TILE_PX,
                   overviews="AUTO", **({"crs": CRS, "top": TOP} | where))  # fmt: skip
        with rasterio.open(path) as dataset:
            self.grids[key] = GeoBox.from_rio(dataset)

    def document(
        self, when: str | None, properties: dict[str, Any], *, per_asset: bool = False
    ) -> dict[str, Any]:
        """Return the item; a scene's grids stand in its assets, those of others in the item."""
        first = next(iter(self.grids.values()))
        footprint = first.extent.to_crs("EPSG:4326")
        item = pystac.Item(
            self.name,
            footprint.json,
            list(footprint.boundingbox),
            None if when is None else datetime.fromisoformat(when).astimezone(UTC),
            properties | {"proj:code": f"EPSG:{first.crs.epsg}"},
            start_datetime=_moment(properties.get("start_datetime")),
            end_datetime=_moment(properties.get("end_datetime")),
            collection=self.collection,
        )
        for key, grid in self.grids.items():
            fields = {"proj:shape": list(grid.shape.yx), "proj:transform": list(grid.affine[:6])}
            if not per_asset:
                item.properties |= fields
            item.add_asset(key, pystac.Asset(
                f"{self.name}_{key}.tif", media_type=_COG, roles=["data"],
                extra_fields=fields if per_asset else {},
            ))  # fmt: skip
        return item.to_dict(include_self_link=False, transform_hrefs=False)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
