"""Pixels of items: headers checked when a cube is built, files read when it is computed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import dask.array
import numpy as np
import odc.stac
import pystac
import rasterio
from affine import Affine
from odc.geo.converters import rio_geobox
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_reproject_roi
from odc.loader import RioDriver
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from terramind_cube.modalities import LULC_CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from odc.loader.types import RasterLoadParams, RasterSource

    from terramind_cube.stac.providers import BandLocation, ItemBands

__all__ = ["AssetDriver", "AssetError", "Headers", "read_bands", "take_steps"]

da: Any = dask.array  # only partly typed

_STEP = "terramind:step"
_PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
_PROJECTION_FIELDS = ("proj:code", "proj:wkt2", "proj:projjson", "proj:shape", "proj:transform")
_WARP_BLOCK_PX = 256
_LINEAR_NODATA = -32768.0
# Grass (3) and scrub (6) of the map's first edition were merged into rangeland later.
_MERGED_CLASSES = {3: 9, 6: 9}


class AssetError(OSError):
    """A file of an item is missing, damaged, or cannot be read.

    Parameters
    ----------
    href : str
        Address of the file.
    reason : str
        What is wrong with it.
    item_id : str, optional
        Item that refers to it, where it is known.
    """

    def __init__(self, href: str, reason: str, item_id: str | None = None) -> None:
        owner = "" if item_id is None else f" of item {item_id!r}"
        super().__init__(f"Cannot read {href}{owner}: {reason}")
        self.href, self.reason, self.item_id = href, reason, item_id

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError would rebuild itself from the message alone.
        return AssetError, (self.href, self.reason, self.item_id)


@dataclass(frozen=True)
class _Header:
    geobox: GeoBox
    band_count: int


class Headers:
    """Headers of the local files that a cube refers to, each read and checked once."""

    def __init__(self) -> None:
        self._known: dict[str, _Header] = {}

    def geobox(self, source: ItemBands) -> GeoBox | None:
        """Return the grid of an item's finest band; None for remote files without ``proj:*``.

        Coarser bands may reach beyond it: 60 m pixels rarely fit an area.
        """
        grids = [_band_geobox(source, band, self) for band in source.bands]
        known = [grid for grid in grids if grid is not None]
        return min(known, key=lambda grid: abs(grid.resolution.x), default=None)

    def read(self, source: ItemBands, band: BandLocation) -> _Header | None:
        """Return the header of a local file, None for a remote one.

        Raises
        ------
        AssetError
            If the file is missing, truncated, not a raster, or not georeferenced.
        ValueError
            If it has another number of bands than its modality.
        """
        href, item_id = band.href, source.item.id
        if urlparse(href).scheme or href.startswith("/vsi"):
            return None
        if href not in self._known:
            self._known[href] = _read_header(href, item_id)
        header, expected = self._known[href], band.file_bands
        if (expected or band.index) > header.band_count or expected not in {
            None,
            header.band_count,
        }:
            raise ValueError(
                f"{href} of item {item_id!r} has {header.band_count} bands where "
                f"{source.modality.name} needs {', '.join(source.modality.bands)}: list the "
                "bands of the file in eo:bands."
            )
        return header


def _read_header(href: str, item_id: str) -> _Header:
    path = Path(href)
    if not path.is_file():
        raise AssetError(href, "there is no such file", item_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(path)
        with dataset:
            end = _last_byte(dataset) if dataset.driver == "GTiff" else 0
            crs, band_count = dataset.crs, dataset.count
            geobox = None if crs is None else GeoBox.from_rio(dataset)
    except RasterioError as error:
        raise AssetError(href, f"it is damaged or no raster ({error})", item_id) from error
    if (size := path.stat().st_size) < end:
        raise AssetError(
            href, f"it is truncated: {size} bytes where its blocks need {end}", item_id
        )
    if geobox is None:
        raise AssetError(href, "it has no coordinate reference system", item_id)
    return _Header(geobox, band_count)


def _last_byte(dataset: rasterio.DatasetReader) -> int:
    """Return where the furthest block of a TIFF ends, in bytes from its start."""
    bands = [1] if dataset.interleaving == rasterio.enums.Interleaving.pixel else dataset.indexes
    block_y, block_x = dataset.block_shapes[0]
    end = 0
    for band in bands:
        for y in range(-(-dataset.height // block_y)):
            for x in range(-(-dataset.width // block_x)):
                start = dataset.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=band)
                if start is not None:  # a sparse block has none
                    size = dataset.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=band)
                    end = max(end, int(start) + int(size))
    return end


def _band_geobox(source: ItemBands, band: BandLocation, headers: Headers) -> GeoBox | None:
    """Return the grid of a band: the file's own where it is local, else what the item says."""
    if (header := headers.read(source, band)) is not None:
        return header.geobox
    fields = source.item.properties | source.item.assets[band.asset].extra_fields
    crs = next((v for k in _PROJECTION_FIELDS[:3] if (v := fields.get(k)) is not None), None)
    shape, transform = fields.get("proj:shape"), fields.get("proj:transform")
    if crs is None or shape is None or transform is None:
        return None
    return GeoBox(tuple(shape), Affine(*transform[:6]), crs)


class AssetDriver(RioDriver):
    """odc-loader's rasterio driver, whose errors name the file and whose warps know no chunks.

    Parameters
    ----------
    src_nodata : float or None
        Fill value of files that do not declare one.
    """

    def __init__(self, src_nodata: float | None = None) -> None:
        super().__init__()
        self._src_nodata = src_nodata

    def open(self, src: RasterSource, ctx: Any) -> Any:
        """Return a reader of one band of one file."""
        return _AssetReader(super().open(src, ctx), src.uri, self._src_nodata)


@dataclass(frozen=True)
class _AssetReader:
    reader: Any
    href: str
    src_nodata: float | None

    def read(
        self,
        cfg: RasterLoadParams,
        dst_geobox: GeoBox,
        *,
        dst: Any = None,
        selection: Any = None,
    ) -> tuple[tuple[slice, slice], Any]:
        """Read the part of a file that lies in a grid.

        Raises
        ------
        AssetError
            Whatever goes wrong, naming the file.
        """
        # Without a source nodata GDAL takes fill values for data and moves them to 1.
        cfg = cfg.patch(src_nodata_fallback=self.src_nodata)
        try:
            if dst is not None or self._is_aligned(cfg, dst_geobox):
                result: tuple[tuple[slice, slice], Any] = self.reader.read(
                    cfg, dst_geobox, dst=dst, selection=selection
                )
                return result
            return self._warp(cfg, dst_geobox)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it concerns this file
            reason = str(error.__cause__ or error) or type(error).__name__
        # Outside the handler: rasterio's errors do not pickle, and would travel as the context.
        raise AssetError(self.href, reason)

    def _is_aligned(self, cfg: RasterLoadParams, dst_geobox: GeoBox) -> bool:
        with rasterio.open(self.href, sharing=False) as dataset:
            overlap = compute_reproject_roi(
                rio_geobox(dataset), dst_geobox, ttol=0.9 if cfg.nearest else 0.05
            )
        return overlap.paste_ok and overlap.read_shrink == 1

    def _warp(self, cfg: RasterLoadParams, dst_geobox: GeoBox) -> tuple[tuple[slice, slice], Any]:
        """Warp whole blocks of the world's pixel lattice.

        GDAL interpolates a warp between the edges of what it is asked for, so that a pixel would
        depend on the chunk around it.
        """
        out = np.full(dst_geobox.shape.yx, cfg.fill_value, cfg.dtype)
        size, step, origin = _WARP_BLOCK_PX, dst_geobox.resolution.x, dst_geobox.affine
        x0, y0 = (math.floor(v / step + 0.5) for v in (origin.c, -origin.f))
        height, width = out.shape
        for y in range(y0 - y0 % size, y0 + height, size):
            for x in range(x0 - x0 % size, x0 + width, size):
                corner = (origin.c + (x - x0) * step, origin.f - (y - y0) * step)
                # Rounded, so that a block has the same corner whichever chunk it is seen from.
                left, top = (round(v, 6) for v in corner)
                grid = GeoBox((size, size), Affine(step, 0, left, 0, -step, top), dst_geobox.crs)
                block = np.full((size, size), cfg.fill_value, cfg.dtype)
                roi, pixels = self.reader.read(cfg, grid)
                block[roi] = pixels
                rows = slice(max(y - y0, 0), min(y - y0 + size, height))
                columns = slice(max(x - x0, 0), min(x - x0 + size, width))
                out[rows, columns] = block[
                    rows.start - (y - y0) : rows.stop - (y - y0),
                    columns.start - (x - x0) : columns.stop - (x - x0),
                ]
        return np.s_[0:height, 0:width], out


def read_bands(
    steps: Sequence[Sequence[ItemBands]],
    geobox: GeoBox,
    chunks_px: Mapping[str, int],
    headers: Headers,
) -> Any:
    """Return the mosaics of some steps as a lazy array in the unit of a cube.

    Parameters
    ----------
    steps : sequence of sequences of ItemBands
        The items of each step, all of one modality; earlier ones cover later ones.
    geobox : GeoBox
        Grid to read on.
    chunks_px : mapping
        Chunk lengths of ``"y"`` and ``"x"``.
    headers : Headers
        Headers read so far.

    Returns
    -------
    dask.array.Array, shape (step, band, y, x) or (step, y, x)
        Of the modality's dtype and fill value; one chunk per step and band.

    Raises
    ------
    AssetError
        If a local file is missing or damaged.
    """
    # What a mosaic cannot mix: the pixels of one call to odc are fused as they are in the files.
    groups: dict[tuple[Any, ...], list[tuple[int, ItemBands]]] = {}
    for number, sources in enumerate(steps):
        for source in sources:
            groups.setdefault(_kind(source), []).append((number, source))
    layers = [
        _read_group(group, len(steps), geobox, chunks_px, headers) for group in groups.values()
    ]
    fill = steps[0][0].modality.fill_value
    mosaic = layers[0]
    for layer in layers[1:]:
        mosaic = _map(_cover, mosaic, layer, fill=fill)
    return mosaic


def _kind(source: ItemBands) -> tuple[Any, ...]:
    return (
        source.offset_dn,
        source.is_linear_power,
        source.has_provider_classes,
        source.nodata,
        tuple(band.index for band in source.bands),
    )


def _read_group(
    group: Sequence[tuple[int, ItemBands]],
    step_count: int,
    geobox: GeoBox,
    chunks_px: Mapping[str, int],
    headers: Headers,
) -> Any:
    """Load items that may be fused as they are, and spread them over all steps."""
    first = group[0][1]
    modality = first.modality
    src_nodata = first.nodata if first.nodata is not None else modality.fill_value
    if first.is_linear_power and first.nodata is None:
        src_nodata = _LINEAR_NODATA
    queries = [
        band if place.index == 1 else f"{band}.{place.index}"
        for band, place in zip(modality.bands, first.bands, strict=True)
    ]
    dataset = odc.stac.load(
        [_plain_item(source, number, headers) for number, source in group],
        bands=queries,
        geobox=geobox,
        groupby=_STEP,
        resampling="bilinear" if modality.dtype == "float32" else "nearest",
        chunks={"time": 1, "y": chunks_px["y"], "x": chunks_px["x"]},
        driver=AssetDriver(src_nodata),
        dtype=modality.dtype,
    )
    bands = [dataset[query].data for query in queries]
    pixels = _in_cube_unit(
        bands[0] if modality.band_dim is None else da.stack(bands, axis=1), first
    )
    loaded = sorted({number for number, _ in group})
    if len(loaded) == step_count:
        return pixels
    places = {number: place for place, number in enumerate(loaded)}
    return take_steps(pixels, [places.get(n) for n in range(step_count)], modality.fill_value)


def _plain_item(source: ItemBands, step: int, headers: Headers) -> pystac.Item:
    """Return an item of our own: one asset per band, with the metadata that odc-stac needs."""
    item, modality = source.item, source.modality
    grids = [_band_geobox(source, band, headers) for band in source.bands]
    has_grids = all(grid is not None for grid in grids)
    if not has_grids and item.geometry is None:
        raise ValueError(f"Item {item.id!r} has neither a geometry nor proj:shape and transform.")
    plain = pystac.Item(
        id=item.id,
        geometry=item.geometry,
        bbox=item.bbox,
        # The step alone orders and groups items; within a step the earlier item comes first.
        datetime=item.datetime or item.common_metadata.start_datetime,
        properties={_STEP: step},
        collection=modality.name,
        stac_extensions=[_PROJECTION] if has_grids else [],
    )
    for name, band, grid in zip(modality.bands, source.bands, grids, strict=True):
        raster = {"data_type": modality.dtype, "nodata": modality.fill_value}
        fields: dict[str, Any] = {"raster:bands": [raster] * band.index}
        if has_grids and grid is not None:
            fields |= {
                "proj:wkt2": str(grid.crs.to_wkt()) if grid.crs else None,
                "proj:shape": list(grid.shape.yx),
                "proj:transform": list(grid.affine[:6]),
            }
        plain.add_asset(name, pystac.Asset(band.href, media_type="image/tiff", extra_fields=fields))
    return plain


def take_steps(pixels: Any, places: Sequence[int | None], fill: float) -> Any:
    """Return an array whose steps are those at some places of another, empty ones for None."""
    if list(places) == list(range(pixels.shape[0])):
        return pixels
    missing = pixels.shape[0]
    if None in places:
        empty = _map(np.full_like, pixels[:1], fill_value=fill)
        pixels = da.concatenate([pixels, empty], axis=0)
    taken = pixels[[missing if place is None else place for place in places]]
    return taken.rechunk({0: 1})


def _in_cube_unit(pixels: Any, source: ItemBands) -> Any:
    if source.offset_dn:
        return _map(_shift_dn, pixels, offset_dn=source.offset_dn)
    if source.is_linear_power:
        return _map(_to_decibel, pixels)
    if source.has_provider_classes:
        return _map(_to_classes, pixels)
    return pixels


def _map(function: Any, first: Any, *others: Any, **settings: Any) -> Any:
    return da.map_blocks(function, first, *others, dtype=first.dtype, **settings)


def _shift_dn(pixels: NDArray[Any], *, offset_dn: int) -> NDArray[Any]:
    """Add an offset to digital numbers; 0 stays nodata, and a valid pixel never becomes it."""
    shifted = np.clip(pixels.astype(np.int32) + offset_dn, 1, np.iinfo(pixels.dtype).max)
    return np.where(pixels == 0, 0, shifted).astype(pixels.dtype)


def _to_decibel(pixels: NDArray[Any]) -> NDArray[Any]:
    """Turn linear power into dB; what is not positive is nodata."""
    power = np.where(pixels > 0, pixels, np.nan)
    return np.asarray(10 * np.log10(power), pixels.dtype)


def _to_classes(pixels: NDArray[Any]) -> NDArray[Any]:
    """Turn the annual map's codes into TerraMind's classes, unknown codes into nodata."""
    table = np.zeros(256, pixels.dtype)
    for code, value in _MERGED_CLASSES.items():
        table[code] = value
    for row in LULC_CLASSES:
        table[row.provider_value] = row.value
    classes: NDArray[Any] = table[pixels]
    return classes


def _cover(upper: NDArray[Any], lower: NDArray[Any], *, fill: float) -> NDArray[Any]:
    """Fill the invalid pixels of one mosaic from another."""
    invalid = np.isnan(upper) if math.isnan(fill) else upper == fill
    return np.where(invalid, lower, upper)
