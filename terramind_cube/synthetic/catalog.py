"""A synthetic place on disk: Cloud-Optimized GeoTIFFs and a static STAC catalog."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pystac
import rasterio
from odc.geo.geobox import GeoBox

from terramind_cube.synthetic.land import Place, make_place
from terramind_cube.synthetic.scene import (
    Observation,
    classify,
    draw_latitude,
    locate,
    observe,
    parse_date,
    require_seed,
    require_shape,
)
from terramind_cube.synthetic.sensors import BAND_RESOLUTION_M

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

__all__ = ["write_catalog"]

_BLOCK_PX = 256
_EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
]
_COLLECTIONS = {
    "sentinel-2-l2a": "Synthetic surface reflectance in Sentinel-2's twelve L2A bands",
    "sentinel-1-rtc": "Synthetic terrain-corrected backscatter (gamma nought, dB)",
    "cop-dem-glo-30": "Synthetic elevation",
    "lulc": "True land cover of the synthetic place, one map per year, TerraMind's classes",
}
_DEM_TIME = np.datetime64("2021-04-22")


@dataclass(frozen=True)
class _Raster:
    """One asset: pixels, where they start to lie, and what they mean.

    `nodata` and `band` go both into the file and into the item.
    """

    pixels: npt.NDArray[Any]
    resolution_m: int
    nodata: float
    band: Mapping[str, Any]
    eo_name: str | None = None
    overview: str = "AVERAGE"


def write_catalog(
    directory: str | Path,
    *,
    size_px: int = 896,
    seed: int = 900_001,
    dates: Sequence[str | dt.date | np.datetime64] = ("2024-05-14", "2024-08-22"),
) -> Path:
    """Write a synthetic place as COGs with a self-contained static STAC catalog.

    The pixels are those of ``make_scene(seed, (size_px, size_px), date=...)`` for each date.
    Collections: ``sentinel-2-l2a`` (an asset per band at its native 10, 20 or 60 m),
    ``sentinel-1-rtc`` (``vv``, ``vh``, dB, one or two days off), ``cop-dem-glo-30`` (``data``, m)
    and ``lulc`` (``data``, the true classes, an item per year).

    Parameters
    ----------
    directory : str or pathlib.Path
        Where to write; must be absent or empty.
    size_px : int
        Height and width, in pixels of 10 m.
    seed : int
        Identity of the place. Seeds of 900 000 and more are never trained on.
    dates : sequence of str, datetime.date or numpy.datetime64
        Days of the Sentinel-2 items, ascending.

    Returns
    -------
    pathlib.Path
        Path of ``catalog.json``.

    Raises
    ------
    ValueError
        If the size is not positive, the seed negative, or the dates are empty, unreadable,
        repeated or not ascending.
    FileExistsError
        If the directory holds something, or is a file.
    """
    shape = require_shape((size_px, size_px))
    require_seed(seed)
    days = [parse_date(date) for date in dates]
    if not days or any(later <= earlier for earlier, later in itertools.pairwise(days)):
        raise ValueError(f"dates must be one or more days in ascending order, got {dates}.")
    root = Path(directory).resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not an empty directory; name another one.")

    latitude = draw_latitude(seed)
    place, geobox = make_place(seed, shape, latitude), locate(seed, shape, latitude)
    library = _Library(root, geobox, f"synthetic-{seed}")
    for day in days:
        _add_observation(library, observe(place, day))
    _add_maps(library, place, sorted({day.year for day in days}))
    return library.save()


class _Library:
    """The catalog while it is written."""

    def __init__(self, root: Path, geobox: GeoBox, name: str) -> None:
        self._root, self._geobox, self._name = root, geobox, name
        self._items: dict[str, list[pystac.Item]] = {key: [] for key in _COLLECTIONS}
        self._spans: dict[str, list[tuple[dt.datetime, dt.datetime]]]
        self._spans = {key: [] for key in _COLLECTIONS}

    def add(
        self,
        collection: str,
        when: tuple[dt.datetime, dt.datetime],
        rasters: Mapping[str, _Raster],
        properties: Mapping[str, Any],
    ) -> None:
        """Write the rasters of one item and describe them."""
        start, end = when
        moment = start if start == end else None
        stamp = f"{start:%Y%m%d}" if moment else f"{start:%Y}"
        extent = self._geobox.boundingbox.polygon.to_crs("EPSG:4326")
        item = pystac.Item(
            f"{collection}-{self._name}-{stamp}",
            extent.json,
            list(extent.boundingbox.bbox),
            moment,
            {**properties, "proj:code": str(self._geobox.crs)},
            None if moment else start,
            None if moment else end,
            stac_extensions=list(_EXTENSIONS),
        )
        folder = self._root / collection / item.id
        folder.mkdir(parents=True)
        for key, raster in rasters.items():
            path = folder / f"{key}.tif"
            grid = _coarsen(self._geobox, raster)
            _write_cog(path, raster, grid)
            item.add_asset(key, _describe(path, raster, grid))
        self._items[collection].append(item)
        self._spans[collection].append(when)

    def save(self) -> Path:
        """Write the JSON files, the catalog's own last, and return its path."""
        title = "A synthetic place: every pixel is computed, none was measured"
        catalog = pystac.Catalog(self._name, title)
        for key, items in self._items.items():
            spatial = pystac.SpatialExtent([items[0].bbox or []])
            first, last = (pick(self._spans[key]) for pick in (min, max))
            temporal = pystac.TemporalExtent([[first[0], last[1]]])
            extent = pystac.Extent(spatial, temporal)
            collection = pystac.Collection(key, _COLLECTIONS[key], extent, license="CC0-1.0")
            collection.add_items(items)
            catalog.add_child(collection)
        catalog.normalize_hrefs(str(self._root))
        catalog.make_all_asset_hrefs_relative()
        catalog.save(pystac.CatalogType.SELF_CONTAINED)
        return self._root / "catalog.json"


def _add_observation(library: _Library, seen: Observation) -> None:
    """Add the Sentinel-2 and the Sentinel-1 item of one date."""
    optical = {
        name: _Raster(
            pixels,
            BAND_RESOLUTION_M[name],
            0,
            {"data_type": "uint16", "nodata": 0, "scale": 1e-4, "offset": 0},
            name,
        )
        for name, pixels in seen.reflectance.items()
    }
    cover_percent = round(100 * float(seen.clouds.mask.mean()), 2)
    library.add(
        "sentinel-2-l2a",
        _instant(seen.optical_time),
        optical,
        {"s2:processing_baseline": "05.10", "eo:cloud_cover": cover_percent, "gsd": 10},
    )
    decibel = {"data_type": "float32", "nodata": "nan", "unit": "dB"}
    radar = {
        name.lower(): _Raster(pixels, 10, float("nan"), decibel, name)
        for name, pixels in zip(("VV", "VH"), seen.backscatter.rtc, strict=True)
    }
    state = "ascending" if seen.ascending else "descending"
    properties = {"sat:orbit_state": state, "sar:instrument_mode": "IW", "gsd": 10}
    library.add("sentinel-1-rtc", _instant(seen.radar_time), radar, properties)


def _add_maps(library: _Library, place: Place, years: Sequence[int]) -> None:
    """Add the elevation and the land cover of each year."""
    metres = {"data_type": "float32", "nodata": "nan", "unit": "m"}
    dem = _Raster(place.terrain.elevation_m, 10, float("nan"), metres)
    library.add("cop-dem-glo-30", _instant(_DEM_TIME), {"data": dem}, {"gsd": 10})
    cover = _Raster(classify(place), 10, 0, {"data_type": "uint8", "nodata": 0}, None, "MODE")
    for year in years:
        start = dt.datetime(year, 1, 1, tzinfo=dt.UTC)
        end = dt.datetime(year, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
        library.add("lulc", (start, end), {"data": cover}, {"gsd": 10})


def _coarsen(geobox: GeoBox, raster: _Raster) -> GeoBox:
    """Return the grid of a raster: it shares the scene's upper-left corner."""
    left, top = geobox.boundingbox.left, geobox.boundingbox.top
    height_m, width_m = (length * raster.resolution_m for length in raster.pixels.shape)
    bounds = (left, top - height_m, left + width_m, top)
    return GeoBox.from_bbox(bounds, geobox.crs, shape=raster.pixels.shape, tight=True)


def _write_cog(path: Path, raster: _Raster, grid: GeoBox) -> None:
    height, width = raster.pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="COG",
        height=height,
        width=width,
        count=1,
        dtype=raster.pixels.dtype,
        crs=str(grid.crs),
        transform=grid.transform,
        nodata=raster.nodata,
        compress="DEFLATE",
        predictor="YES",
        level=4,
        blocksize=_BLOCK_PX,
        overview_resampling=raster.overview,
    ) as file:
        file.write(raster.pixels, 1)


def _describe(path: Path, raster: _Raster, grid: GeoBox) -> pystac.Asset:
    fields: dict[str, Any] = {
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform)[:6],
        "raster:bands": [{**raster.band, "spatial_resolution": raster.resolution_m}],
    }
    if raster.eo_name is not None:
        fields["eo:bands"] = [{"name": raster.eo_name}]
    return pystac.Asset(
        str(path), media_type=pystac.MediaType.COG, roles=["data"], extra_fields=fields
    )


def _instant(moment: np.datetime64) -> tuple[dt.datetime, dt.datetime]:
    """Return a time as a span without length."""
    time = dt.datetime.fromisoformat(str(moment.astype("datetime64[s]"))).replace(tzinfo=dt.UTC)
    return time, time
