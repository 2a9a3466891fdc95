"""What the items and files of a cube say about their grids, looked up once each."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
from odc.geo import CRS as GridCRS
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.errors import RasterioError
from shapely.geometry import mapping

from terramind_cube.cube.agreement import NOWHERE, Fit, fit_of, tells_pixel_size
from terramind_cube.cube.assets import Reading, is_remote, with_dataset
from terramind_cube.cube.failures import AssetError
from terramind_cube.cube.mosaic import ItemSource
from terramind_cube.cube.radiometry import Radiometry
from terramind_cube.cube.reading import (
    BandSource,
    ContradictionError,
    DeclaredGrid,
    check_grid,
    check_place,
    file_geobox,
)
from terramind_cube.stac.areas import item_shape

if TYPE_CHECKING:
    import pystac
    from odc.geo.geobox import GeoBox

    from terramind_cube.stac.bands import BandLocation, ItemBands

__all__ = ["Headers"]

_CRS_FIELDS = ("proj:code", "proj:wkt2", "proj:projjson", "proj:epsg")


class Headers:
    """Grids that items declare, and headers of local files, each read and checked once.

    Parameters
    ----------
    reading : Reading
        How files are read where an item does not say what is needed.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._files: dict[str, tuple[GeoBox, int]] = {}
        self._grids: dict[DeclaredGrid, GeoBox] = {}
        self._fits: dict[tuple[int, DeclaredGrid], Fit] = {}
        self._shapes: dict[int, tuple[pystac.Item, Any]] = {}
        self._opened: dict[str, GeoBox | None] = {}

    def source(
        self, found: ItemBands, radiometry: Radiometry, resampling: str, *, classes: bool = False
    ) -> ItemSource:
        """Return an item as tasks read it.

        Parameters
        ----------
        found : ItemBands
        radiometry : Radiometry
        resampling : str
        classes : bool
            Whether the scene classification is read in place of the bands.

        Raises
        ------
        AssetError
            If a local file is missing, truncated, not a raster, or not georeferenced.
        ValueError
            If a local file has another number of bands than its modality.
        """
        places = found.bands
        if classes and found.scene_classes is not None:
            places = (found.scene_classes,)
        declared = tuple(_declared(found, place) for place in places)
        footprint, outline = self._footprint(found, places, declared)
        return ItemSource(
            found.item.id, places, radiometry, resampling, declared, footprint, outline
        )

    def footprint(self, found: ItemBands) -> GeoBox | dict[str, Any]:
        """Return where an item's pixels lie; its file is opened if the item does not tell.

        Raises
        ------
        AssetError
            If the file cannot be read, or is not where its item says.
        """
        declared = tuple(_declared(found, place) for place in found.bands)
        finest, place, grid = self._finest(found, found.bands, declared)
        if finest is None and found.item.geometry is not None:
            return found.item.geometry
        if finest is not None and self._is_trusted(found, place, grid):
            return finest
        where = self._open(found, place) or found.item.geometry or finest
        if where is None:
            raise AssetError(place.href, "nothing tells where it lies", found.item.id, place.asset)
        return where

    def grid(self, found: ItemBands, place: BandLocation) -> GeoBox | None:
        """Return the grid of one band; its file is opened if the item does not tell.

        Returns
        -------
        GeoBox or None
            None where the file cannot be read and its pixels are to be nodata.

        Raises
        ------
        AssetError
            If the file cannot be read, or is not where its item says.
        """
        if not is_remote(place.href):
            return self._local(found, place)
        declared = _declared(found, place)
        if declared is not None and self._is_trusted(found, place, declared):
            return self._geobox(declared)
        return self._open(found, place)

    def _open(self, found: ItemBands, place: BandLocation) -> GeoBox | None:
        """Return the grid of a remote file; None where its pixels are to be nodata."""
        if place.href not in self._opened:
            declared = _declared(found, place)
            plain = Radiometry("plain", "float32", 0)
            where = self._where(found.item)
            outline = None if where is None else dict(mapping(where))
            source = BandSource(found.item.id, place, plain, "nearest", declared, outline)

            def read(dataset: rasterio.DatasetReader) -> GeoBox:
                own = file_geobox(dataset)
                check_place(own, source)
                return own

            try:
                self._opened[place.href] = with_dataset(source, self.reading, read)
            except AssetError:
                if self.reading.on_error == "raise":
                    raise
                self._opened[place.href] = None
        return self._opened[place.href]

    def _footprint(
        self,
        found: ItemBands,
        places: tuple[BandLocation, ...],
        declared: tuple[DeclaredGrid | None, ...],
    ) -> tuple[GeoBox | dict[str, Any] | None, dict[str, Any] | None]:
        """Return the grid of an item's finest band, else its geometry; and what lies beyond it.

        Where both are told and differ, one is wrong: the file is asked wherever either of them lies.
        """
        finest, place, grid = self._finest(found, places, declared)
        geometry = found.item.geometry
        if finest is None:
            return geometry, None
        if not is_remote(place.href):
            return finest, None
        where = self._where(found.item)
        if where is None:
            return None, None
        fit = self._fit(found.item, grid)
        if fit.is_same:
            return finest, None
        outline = dict(mapping(where))
        return (outline, outline) if fit is NOWHERE else (finest, outline)

    def _finest(
        self,
        found: ItemBands,
        places: tuple[BandLocation, ...],
        declared: tuple[DeclaredGrid | None, ...],
    ) -> tuple[GeoBox | None, BandLocation, DeclaredGrid | None]:
        """Return the finest grid that is known of some bands, whose it is, and what it declares."""
        # Coarser bands may reach beyond it: 60 m pixels rarely fit an area.
        best, owner, told = None, places[0], declared[0]
        for place, own in zip(places, declared, strict=True):
            grid = None if own is None else self._geobox(own)
            if not is_remote(place.href):
                grid = self._local(found, place)
            if grid is None:
                continue
            if best is None or abs(grid.resolution.x) < abs(best.resolution.x):
                best, owner, told = grid, place, own
        return best, owner, told

    def _is_trusted(
        self, found: ItemBands, place: BandLocation, declared: DeclaredGrid | None
    ) -> bool:
        """Whether the grid of a band is known without its file: geometry and pixel size fit."""
        if not is_remote(place.href):
            return True
        fit = self._fit(found.item, declared)
        if declared is None or not fit.is_near:
            return False
        return fit.is_filled or tells_pixel_size(found, place, self._geobox(declared))

    def _fit(self, item: pystac.Item, declared: DeclaredGrid | None) -> Fit:
        """Compare a declared grid to the geometry of its item."""
        where = self._where(item)
        if declared is None or where is None:
            return NOWHERE
        key = (id(item), declared)
        if key not in self._fits:
            self._fits[key] = fit_of(self._geobox(declared), where)
        return self._fits[key]

    def _where(self, item: pystac.Item) -> Any:
        """Return where an item lies, None where it does not tell."""
        if id(item) not in self._shapes:
            self._shapes[id(item)] = (item, item_shape(item))  # kept alive, so that its id stays
        return self._shapes[id(item)][1]

    def _geobox(self, grid: DeclaredGrid) -> GeoBox:
        if grid not in self._grids:
            self._grids[grid] = grid.geobox()
        return self._grids[grid]

    def _local(self, found: ItemBands, place: BandLocation) -> GeoBox | None:
        """Return the grid of a local file, after looking at it; None where it may be missing."""
        try:
            return self._checked(found, place)
        except (AssetError, ValueError):
            if self.reading.on_error == "raise":
                raise
            return None

    def _checked(self, found: ItemBands, place: BandLocation) -> GeoBox:
        if place.href not in self._files:
            self._files[place.href] = _read_header(place, found.item.id)
        geobox, count = self._files[place.href]
        expected = place.file_bands
        if place.index > count or expected not in {None, count}:
            raise ValueError(
                f"{place.href} of item {found.item.id!r} has {count} bands where "
                f"{found.modality.name} needs {', '.join(found.modality.bands)}: list the bands "
                "of the file in eo:bands."
            )
        if (declared := _declared(found, place)) is not None:
            try:
                check_grid(geobox, self._geobox(declared))
            except ContradictionError as error:
                reason = str(error)
                raise AssetError(place.href, reason, found.item.id, place.asset) from error
        return geobox


def _declared(found: ItemBands, place: BandLocation) -> DeclaredGrid | None:
    """Return the grid that an item declares for a band."""
    own, shared = found.item.assets[place.asset].extra_fields, found.item.properties

    # Shape and transform describe one raster: both from the asset, or both from the item.
    level = own if own.get("proj:transform") or own.get("proj:shape") else shared
    size, transform = level.get("proj:shape"), level.get("proj:transform")
    told = (fields.get(name) for fields in (own, shared) for name in _CRS_FIELDS)
    crs = next((value for value in told if value is not None), None)
    if crs is None or not size or not transform:
        return None
    try:
        six = tuple(map(float, transform[:6]))
        if not all(map(math.isfinite, six)):
            return None
        return DeclaredGrid(_text(crs), (int(size[0]), int(size[1])), six)
    except (TypeError, ValueError, IndexError, CRSError):
        return None  # what cannot be understood is read from the file


@functools.cache
def _known_crs(text: str) -> str:
    """Return the text of a CRS that PROJ knows.

    Raises
    ------
    pyproj.exceptions.CRSError
        If it does not.
    """
    try:
        GridCRS(text)  # what grids are made of understands less than PROJ
    except Exception as error:
        raise CRSError(str(error)) from error
    return text


def _text(crs: Any) -> str:
    if isinstance(crs, int | float):
        return _known_crs(f"EPSG:{int(crs)}")
    if isinstance(crs, str):
        return _known_crs(crs)
    return str(CRS.from_json_dict(dict(crs)).to_wkt())


def _read_header(place: BandLocation, item_id: str) -> tuple[GeoBox, int]:
    """Return grid and number of bands of a local file."""
    path = Path(place.href)
    if not path.is_file():
        raise AssetError(place.href, "there is no such file", item_id, place.asset)
    try:
        with rasterio.open(path) as dataset:
            end = _last_byte(dataset) if dataset.driver == "GTiff" else 0
            geobox = None if dataset.crs is None else file_geobox(dataset)
            count = dataset.count
    except RasterioError as error:
        reason = f"it is damaged or no raster ({error})"
        raise AssetError(place.href, reason, item_id, place.asset) from error
    if (size := path.stat().st_size) < end:
        reason = f"it is truncated: {size} bytes where its blocks need {end}"
        raise AssetError(place.href, reason, item_id, place.asset)
    if geobox is None:
        raise AssetError(place.href, "it has no coordinate reference system", item_id, place.asset)
    return geobox, count


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
