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

from terramind_cube.modalities import LULC_CLASSES
from terramind_cube.synthetic.land import Place, Surface, make_place
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
from terramind_cube.synthetic.terrain import stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

__all__ = ["write_catalog"]

_BLOCK_PX = 256
_EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
]
_EXTENSIONS_OF = {
    "sat": "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
    "grid": "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
}
"""Extensions that an item names only where it has properties of them."""
_COLLECTIONS = {
    "sentinel-2-l2a": "Synthetic surface reflectance in Sentinel-2's twelve L2A bands",
    "sentinel-1-rtc": "Synthetic terrain-corrected backscatter (gamma nought, dB)",
    "cop-dem-glo-30": "Synthetic elevation",
    "lulc": "True land cover of the synthetic place, one map per year, TerraMind's classes",
}
_DEM_TIME = np.datetime64("2021-04-22")
_ORBITS = ("ascending", "descending")
_RELATIVE_ORBITS = 175

# Scene classes of Sen2Cor (L2A Product Definition Document) that a synthetic scene has, and where
# they begin: vegetation in NDVI, snow and the denser cloud in shares of the ground that they hide,
# shadow in the share of the light that it leaves.
_SHADOW, _VEGETATION, _BARE, _WATER, _CLOUD, _DENSE_CLOUD, _SNOW = 3, 4, 5, 6, 8, 9, 11
_SCENE_CLASS_M = 20
_VEGETATION_NDVI, _SNOW_SHARE, _DENSE_SHARE, _SHADOW_LIGHT = 0.4, 0.5, 0.8, 0.85


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
    clouds: float | Sequence[float] = 0.0,
    orbits: Sequence[str] | None = None,
) -> Path:
    """Write a synthetic place as COGs with a self-contained static STAC catalog.

    The pixels are those of ``make_scene(seed, (size_px, size_px), date=...)`` for each date.
    Collections: ``sentinel-2-l2a`` (an asset per band at its native 10, 20 or 60 m, and the scene
    classification ``scl`` at 20 m), ``sentinel-1-rtc`` (``vv``, ``vh``, dB, one or two days off),
    ``cop-dem-glo-30`` (``data``, m) and ``lulc`` (``data``, the true classes, an item per year).

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
    clouds : float or sequence of float
        Fraction of cloud-covered pixels, 0 to 1, of all dates or of each; see `make_scene`.
    orbits : sequence of {"ascending", "descending"}, optional
        Passes of Sentinel-1 around each date; by default one, drawn from the seed.

    Returns
    -------
    pathlib.Path
        Path of ``catalog.json``.

    Raises
    ------
    ValueError
        If the size is not positive, the seed negative, the dates are empty, unreadable, repeated
        or not ascending, a cloud fraction lies outside of 0..1 or is missing, or an orbit is
        unknown or repeated.
    FileExistsError
        If the directory holds something, or is a file.
    """
    shape = require_shape((size_px, size_px))
    require_seed(seed)
    days = [parse_date(date) for date in dates]
    if not days or any(later <= earlier for earlier, later in itertools.pairwise(days)):
        raise ValueError(f"dates must be one or more days in ascending order, got {dates}.")
    covers, passes = _check_clouds(clouds, len(days)), _check_orbits(orbits)
    root = Path(directory).resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not an empty directory; name another one.")

    latitude = draw_latitude(seed)
    place, geobox = make_place(seed, shape, latitude), locate(seed, shape, latitude)
    library = _Library(root, geobox, f"synthetic-{seed}")
    for day, cover in zip(days, covers, strict=True):
        seen = [observe(place, day, clouds=cover, orbit=orbit) for orbit in passes]
        _add_optical(library, place, seen[0])
        for radar in seen:
            _add_radar(library, place, radar)
    _add_maps(library, place, sorted({day.year for day in days}))
    return library.save()


class _Library:
    """The catalog while it is written."""

    def __init__(self, root: Path, geobox: GeoBox, name: str) -> None:
        self.geobox = geobox
        self._root, self._name = root, name
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
        extent = self.geobox.boundingbox.polygon.to_crs("EPSG:4326")
        name = f"{collection}-{self._name}-{stamp}"
        # Two passes of a radar may share a day.
        same = sum(item.id.startswith(name) for item in self._items[collection])
        item = pystac.Item(
            f"{name}-{same + 1}" if same else name,
            extent.json,
            list(extent.boundingbox.bbox),
            moment,
            {**properties, "proj:code": str(self.geobox.crs)},
            None if moment else start,
            None if moment else end,
            stac_extensions=[*_EXTENSIONS, *_extensions_of(properties)],
        )
        folder = self._root / collection / item.id
        folder.mkdir(parents=True)
        for key, raster in rasters.items():
            path = folder / f"{key}.tif"
            grid = _coarsen(self.geobox, raster)
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


def _add_optical(library: _Library, place: Place, seen: Observation) -> None:
    """Add the Sentinel-2 item of one date."""
    rasters = {
        name: _Raster(
            pixels,
            BAND_RESOLUTION_M[name],
            0,
            {"data_type": "uint16", "nodata": 0, "scale": 1e-4, "offset": 0},
            name,
        )
        for name, pixels in seen.reflectance.items()
    }
    classes = _classify_scene(place, seen)
    byte = {"data_type": "uint8", "nodata": 0}
    rasters["scl"] = _Raster(classes, _SCENE_CLASS_M, 0, byte, overview="NEAREST")
    properties = {
        "s2:processing_baseline": "05.10",
        "eo:cloud_cover": round(100 * float(seen.clouds.mask.mean()), 2),
        "grid:code": f"MGRS-{_mgrs_square(library.geobox)}",
        "gsd": 10,
    }
    library.add("sentinel-2-l2a", _instant(seen.optical_time), rasters, properties)


def _add_radar(library: _Library, place: Place, seen: Observation) -> None:
    """Add the Sentinel-1 item of one pass."""
    decibel = {"data_type": "float32", "nodata": "nan", "unit": "dB"}
    rasters = {
        name.lower(): _Raster(pixels, 10, float("nan"), decibel, name)
        for name, pixels in zip(("VV", "VH"), seen.backscatter.rtc, strict=True)
    }
    # A place is seen from the same two orbits again and again.
    pair = stream(place.seed, "orbits").choice(_RELATIVE_ORBITS, 2, replace=False) + 1
    number = 0 if seen.ascending else 1
    properties = {
        "sat:orbit_state": _ORBITS[number],
        "sat:relative_orbit": int(pair[number]),
        "sar:instrument_mode": "IW",
        "gsd": 10,
    }
    library.add("sentinel-1-rtc", _instant(seen.radar_time), rasters, properties)


def _classify_scene(place: Place, seen: Observation) -> npt.NDArray[np.uint8]:
    """Return the scene classification of one date at 20 m.

    A pixel of 20 m is cloud or shadow if any of its four pixels of 10 m is; else it is what the
    upper-left one is.
    """
    red, infrared = (seen.reflectance[name].astype(np.float32) for name in ("B04", "B08"))
    is_green = (infrared - red) / (infrared + red) > _VEGETATION_NDVI
    ground = np.where(is_green, np.uint8(_VEGETATION), np.uint8(_BARE))
    ground[place.surface == Surface.WATER] = _WATER
    ground[seen.season.snow > _SNOW_SHARE] = _SNOW
    step = _SCENE_CLASS_M // 10
    classes: npt.NDArray[np.uint8] = ground[::step, ::step]
    classes[_any_of_block(seen.clouds.shadow < _SHADOW_LIGHT, step)] = _SHADOW
    classes[_any_of_block(seen.clouds.mask, step)] = _CLOUD
    classes[_any_of_block(seen.clouds.opacity > _DENSE_SHARE, step)] = _DENSE_CLOUD
    return classes


def _any_of_block(mask: npt.NDArray[np.bool_], step: int) -> npt.NDArray[np.bool_]:
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % step), (0, -width % step)))
    rows, columns = padded.shape[0] // step, padded.shape[1] // step
    return np.asarray(padded.reshape(rows, step, columns, step).any(axis=(1, 3)))


def _add_maps(library: _Library, place: Place, years: Sequence[int]) -> None:
    """Add the elevation and the land cover of each year."""
    metres = {"data_type": "float32", "nodata": "nan", "unit": "m"}
    dem = _Raster(place.terrain.elevation_m, 10, float("nan"), metres)
    library.add("cop-dem-glo-30", _instant(_DEM_TIME), {"data": dem}, {"gsd": 10})
    classes = [{"value": row.value, "name": row.name} for row in LULC_CLASSES]
    byte = {"data_type": "uint8", "nodata": 0, "classification:classes": classes}
    cover = _Raster(classify(place), 10, 0, byte, None, "MODE")
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


def _extensions_of(properties: Mapping[str, Any]) -> list[str]:
    prefixes = {name.partition(":")[0] for name in properties}
    return [schema for prefix, schema in _EXTENSIONS_OF.items() if prefix in prefixes]


def _mgrs_square(geobox: GeoBox) -> str:
    """Return the 100 km square of the military grid in which the middle of a UTM grid lies.

    NGA.STND.0037: columns repeat every three zones and rows every 2000 km, from F in even zones.
    """
    middle = geobox.boundingbox.polygon.centroid
    [(east_m, north_m)] = middle.coords
    [(_, latitude)] = middle.to_crs("EPSG:4326").coords
    assert geobox.crs is not None
    zone = (geobox.crs.epsg or 0) % 100
    band = "CDEFGHJKLMNPQRSTUVWX"[min(int(latitude + 80) // 8, 19)]
    column = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")[(zone - 1) % 3][int(east_m // 100_000) - 1]
    row = "ABCDEFGHJKLMNPQRSTUV"[(int(north_m // 100_000) + (5 if zone % 2 == 0 else 0)) % 20]
    return f"{zone:02d}{band}{column}{row}"


def _check_clouds(clouds: float | Sequence[float], count: int) -> list[float]:
    """Return the cloud fraction of each date."""
    fractions = [clouds] * count if isinstance(clouds, (int, float)) else list(clouds)
    if len(fractions) != count or not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(
            f"clouds is a fraction of the pixels, 0 to 1, of all {count} dates or of each, "
            f"got {clouds}."
        )
    return fractions


def _check_orbits(orbits: Sequence[str] | None) -> list[str | None]:
    """Return the passes of Sentinel-1 around each date, None for one that the seed draws."""
    if orbits is None:
        return [None]
    names: list[str | None] = list(orbits)
    if not names or len(set(names)) < len(names) or not set(names) <= set(_ORBITS):
        raise ValueError(f"orbits are one or both of {', '.join(_ORBITS)}, got {orbits!r}.")
    return names
