"""Sentinel-2 items as two providers describe them, of tiles and days that nobody needs to have.

The addresses are never read: building a cube needs no pixels. Four tiles meet in the area, so that
a day has four items, and an output chunk up to four files.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from odc.geo.geobox import GeoBox
from odc.geo.geom import box

__all__ = ["BANDS", "PROVIDERS", "Provider", "area_grid", "make_items"]

CRS = "EPSG:32632"
TILE_M = 109_800
# Upper-left corners, the published lattice; neighbours overlap by about 10 km.
TILES = {
    "32TPS": (600_000, 5_100_000),
    "32TQS": (699_960, 5_100_000),
    "32TPT": (600_000, 5_200_020),
    "32TQT": (699_960, 5_200_020),
}
CENTRE = (704_880, 5_095_120)

# Band, its asset key in Earth Search, central wavelength in micrometres, resolution in metres.
BANDS = {
    "B01": ("coastal", 0.443, 60),
    "B02": ("blue", 0.49, 10),
    "B03": ("green", 0.56, 10),
    "B04": ("red", 0.665, 10),
    "B05": ("rededge1", 0.704, 20),
    "B06": ("rededge2", 0.74, 20),
    "B07": ("rededge3", 0.783, 20),
    "B08": ("nir", 0.842, 10),
    "B8A": ("nir08", 0.865, 20),
    "B09": ("nir09", 0.945, 60),
    "B11": ("swir16", 1.61, 20),
    "B12": ("swir22", 2.19, 20),
}
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_EXTENSIONS = [
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("eo/v1.1.0", "projection/v1.1.0", "raster/v1.1.0", "view/v1.0.0", "grid/v1.1.0")
]


@dataclass(frozen=True)
class Provider:
    """How a provider names what a benchmark reads: assets in the order of BANDS, and the SCL."""

    collection: str
    assets: tuple[str, ...]
    scl: str


PROVIDERS = {
    "planetary-computer": Provider("sentinel-2-l2a", tuple(BANDS), "SCL"),
    "earth-search": Provider("sentinel-2-l2a", tuple(row[0] for row in BANDS.values()), "scl"),
}


def area_grid(side_px: int) -> GeoBox:
    """Return a 10 m grid around the point where the four tiles meet, on the lattice of 10 m."""
    half_m = side_px * 5
    left, top = CENTRE[0] - half_m, CENTRE[1] + half_m
    bounds = (left, top - side_px * 10, left + side_px * 10, top)
    return GeoBox.from_bbox(bounds, CRS, shape=(side_px, side_px), tight=True)


def make_items(provider: str, days: int) -> list[dict[str, Any]]:
    """Return items of a provider, four a day, every fifth day, as it sends them."""
    describe = {"planetary-computer": _planetary_computer, "earth-search": _earth_search}[provider]
    first = dt.datetime(2022, 3, 1, 10, 15, 59, tzinfo=dt.UTC)
    items = []
    for day in range(days):
        for place, tile in enumerate(TILES):
            moment = first + dt.timedelta(days=5 * day, seconds=4 * place)
            items.append(describe(_Scene(tile, moment)))
    return items


@dataclass(frozen=True)
class _Scene:
    tile: str
    moment: dt.datetime

    @property
    def stamp(self) -> str:
        return self.moment.strftime("%Y%m%dT%H%M%S")

    @property
    def cloud_cover(self) -> float:
        return round((self.moment.toordinal() * 37 + ord(self.tile[3])) % 1000 / 10, 2)

    def raster(self, resolution_m: int) -> dict[str, Any]:
        left, top = TILES[self.tile]
        side_px = TILE_M // resolution_m
        return {
            "gsd": resolution_m,
            "proj:bbox": [left, top - TILE_M, left + TILE_M, top],
            "proj:shape": [side_px, side_px],
            "proj:transform": [resolution_m, 0, left, 0, -resolution_m, top],
        }

    def item(self, item_id: str, properties: dict[str, Any], assets: dict[str, Any], url: str):
        """Return an item with what both providers say alike."""
        left, top = TILES[self.tile]
        outline = box(left, top - TILE_M, left + TILE_M, top, CRS).to_crs("EPSG:4326")
        common = {
            "datetime": self.moment.strftime("%Y-%m-%dT%H:%M:%S.024000Z"),
            "platform": "sentinel-2b",
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            "eo:cloud_cover": self.cloud_cover,
            "proj:epsg": int(CRS.removeprefix("EPSG:")),
            "grid:code": f"MGRS-{self.tile}",
            "view:sun_azimuth": 159.7,
            "view:sun_elevation": 38.4,
            "sat:orbit_state": "descending",
            "sat:relative_orbit": 65,
            "s2:processing_baseline": "05.10",
            "s2:product_type": "S2MSI2A",
            "s2:datatake_id": f"GS2B_{self.stamp}_026093_N05.10",
            "s2:generation_time": self.moment.strftime("%Y-%m-%dT15:00:00.000000Z"),
            **{f"s2:{name}_percentage": 12.5 for name in _PERCENTAGES},
        }
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "stac_extensions": list(_EXTENSIONS),
            "id": item_id,
            "collection": "sentinel-2-l2a",
            "geometry": outline.json,
            "bbox": list(outline.boundingbox.bbox),
            "properties": common | properties,
            "links": [
                {"rel": rel, "href": url, "type": "application/json"}
                for rel in ("collection", "parent", "root")
            ],
            "assets": assets,
        }


_PERCENTAGES = (
    "vegetation", "not_vegetated", "water", "unclassified", "snow_ice", "cloud_shadow",
    "thin_cirrus", "medium_proba_clouds", "high_proba_clouds", "nodata_pixel",
    "saturated_defective_pixel", "degraded_msi_data", "dark_features",
)  # fmt: skip
_MAPS = {"AOT": 10, "SCL": 20, "WVP": 10, "visual": 10}


def _planetary_computer(scene: _Scene) -> dict[str, Any]:
    """Describe a scene without any ``raster:bands``."""
    product = f"S2B_MSIL2A_{scene.stamp}_N0510_R065_T{scene.tile}_20240101T000000"
    url = f"https://planetary-computer.invalid/sentinel2-l2/{product}.SAFE"
    assets = {
        name: {
            "href": f"{url}/R{resolution_m}m/T{scene.tile}_{scene.stamp}_{name}.tif",
            "type": COG,
            "title": f"{name} - {resolution_m}m",
            "roles": ["data"],
            "eo:bands": [{"name": name, "common_name": key, "center_wavelength": centre}],
            **scene.raster(resolution_m),
        }
        for name, (key, centre, resolution_m) in BANDS.items()
    }
    for name, resolution_m in _MAPS.items():
        address = {"href": f"{url}/T{scene.tile}_{name}.tif", "type": COG, "roles": ["data"]}
        assets[name] = address | scene.raster(resolution_m)
    for name in ("safe-manifest", "granule", "inspire", "product", "datastrip"):
        href = f"{url}/{name}.xml"
        assets[name] = {"href": href, "type": "application/xml", "roles": ["metadata"]}
    for name in ("preview", "tilejson", "rendered_preview"):
        assets[name] = {"href": f"{url}/{name}", "roles": ["overview"]}
    identity = product.replace("_N0510", "")
    return scene.item(identity, {"s2:product_uri": f"{product}.SAFE"}, assets, url)


def _earth_search(scene: _Scene) -> dict[str, Any]:
    """Describe a scene with every raster twice, as COG and as JPEG 2000."""
    identity = f"S2B_{scene.tile}_{scene.moment:%Y%m%d}_0_L2A"
    url = f"https://sentinel-cogs.invalid/sentinel-s2-l2a-cogs/{scene.tile}/{identity}"
    assets: dict[str, Any] = {}
    for name, (key, centre, resolution_m) in BANDS.items():
        values = {"nodata": 0, "data_type": "uint16", "spatial_resolution": resolution_m}
        assets[key] = {
            "href": f"{url}/{name}.tif",
            "type": COG,
            "title": f"{key} - {resolution_m}m",
            "roles": ["data", "reflectance"],
            "eo:bands": [{"name": name, "common_name": key, "center_wavelength": centre}],
            "raster:bands": [{**values, "scale": 1e-4, "offset": -0.1}],
            **scene.raster(resolution_m),
        }
    for name, resolution_m in _MAPS.items():
        values = {"nodata": 0, "data_type": "uint8", "spatial_resolution": resolution_m}
        assets[name.lower()] = {
            "href": f"{url}/{name}.tif",
            "type": COG,
            "roles": ["data"],
            "raster:bands": [values],
            **scene.raster(resolution_m),
        }
    source = f"s3://sentinel-s2-l2a.invalid/tiles/{scene.tile}/{identity}"
    for name, row in tuple(assets.items()):
        assets[f"{name}-jp2"] = {**row, "href": f"{source}/{name}.jp2", "type": "image/jp2"}
    for name in ("granule_metadata", "product_metadata", "tileinfo_metadata", "thumbnail"):
        assets[name] = {"href": f"{url}/{name}", "roles": ["metadata"]}
    properties = {
        "earthsearch:boa_offset_applied": True,
        "earthsearch:payload_id": f"roda-sentinel2/workflow/{identity}",
        "processing:software": {"sentinel2-to-stac": "2025.03.06"},
    }
    return scene.item(identity, properties, assets, url)
