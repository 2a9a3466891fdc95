"""From the values of tiles to the variables of a region.

A collector takes the tiles of a region row by row and gives the region's arrays, axes before the
lattice's, filled where nothing is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from terramind_cube.grid import Region
from terramind_cube.inference.blend import Blend, tile_weights
from terramind_cube.inference.variables import image_variables
from terramind_cube.modalities import LULC_CLASSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from terramind_cube.grid import TileGrid
    from terramind_cube.inference.variables import Ensemble, OutputVariable
    from terramind_cube.modalities import Modality, Statistics

    Arrays = dict[str, NDArray[np.generic]]
    Place = tuple[Region, NDArray[np.float32]]
    Tile = tuple[int, int]

__all__ = [
    "CellMean",
    "ClassCollector",
    "Collector",
    "FirstCells",
    "ImageCollector",
    "TileTable",
    "cell_region",
    "raster_collector",
    "tile_range",
]


class Collector(Protocol):
    """Turns tiles into the arrays of a region."""

    def add(self, tile: Tile, values: NDArray[np.generic]) -> None:
        """Add what was computed for the tile that starts at pixel (y, x) of the area."""
        ...

    def finish(self, is_valid: NDArray[np.bool_]) -> Arrays:
        """Return the arrays by variable; `is_valid` says where the region's pixels are known."""
        ...


def cell_region(region: Region, patch_px: int) -> Region:
    """Return the cells whose first pixel lies in a region that starts on whole cells."""
    return Region(
        region.y0 // patch_px,
        -(-region.y1 // patch_px),
        region.x0 // patch_px,
        -(-region.x1 // patch_px),
    )


def tile_range(grid: TileGrid, region: Region) -> Region:
    """Return the numbers of the tiles, by row and column, that start in a region."""
    return Region(
        *np.searchsorted(grid.y.starts, (region.y0, region.y1)).tolist(),
        *np.searchsorted(grid.x.starts, (region.x0, region.x1)).tolist(),
    )


def _empty(variable: OutputVariable, shape: tuple[int, int]) -> NDArray[np.generic]:
    sizes = tuple(axis.size for axis in variable.axes)
    return np.full((*sizes, *shape), variable.fill_value, variable.dtype)


class _Raster:
    """What rasters have in common: arrays by variable, filled from a blend as rows are settled."""

    def __init__(self, modality: Modality, ensemble: Ensemble, place: Place, channels: int) -> None:
        region, weights = place
        variables = image_variables(modality, ensemble)
        self.modality = modality
        self.arrays = {row.name: _empty(row, region.shape) for row in variables}
        self.fill = {row.name: row.fill_value for row in variables}
        self.blend = Blend(region, weights, (ensemble.samples, channels), self._settle)

    def add(self, tile: Tile, values: NDArray[np.generic]) -> None:
        """Add a tile; see `Collector`."""
        self.blend.add(tile, values)  # type: ignore[arg-type]

    def _settle(self, rows: slice, values: NDArray[np.float32]) -> None:
        raise AssertionError("each kind of raster settles its own way")

    def finish(self, is_valid: NDArray[np.bool_]) -> Arrays:
        """Return the arrays; see `Collector`."""
        self.blend.finish()
        for name, array in self.arrays.items():
            array[..., ~is_valid] = self.fill[name]
        return self.arrays


class ImageCollector(_Raster):
    """A continuous raster: the blended mean over samples, its spread, the samples.

    Tiles are standardised images (samples, C, H, W); with `is_bounded` the values stay within the
    modality's valid range, as integers do anyhow.
    """

    def __init__(
        self,
        modality: Modality,
        statistics: Statistics,
        ensemble: Ensemble,
        place: Place,
        *,
        is_bounded: bool,
    ) -> None:
        super().__init__(modality, ensemble, place, len(modality.bands))
        self.bounds = modality.valid_range if is_bounded else None
        self.mean = np.array(statistics.mean, np.float32)[:, None, None]
        self.std = np.array(statistics.std, np.float32)[:, None, None]

    def _settle(self, rows: slice, values: NDArray[np.float32]) -> None:
        name = self.modality.name
        values = values * self.std + self.mean  # (samples, C, rows, width), in units
        self._write(name, rows, values.mean(axis=0) if len(values) > 1 else values[0])
        if f"{name}_std" in self.arrays:
            self._write(f"{name}_std", rows, values.std(axis=0))
        if f"{name}_samples" in self.arrays:
            self._write(f"{name}_samples", rows, values)

    def _write(self, name: str, rows: slice, values: NDArray[np.float32]) -> None:
        array = self.arrays[name]
        if self.bounds and not name.endswith("_std"):
            # Rounding of the bounds in standardised units can pass them by a hair.
            values = values.clip(*self.bounds)
        if array.dtype.kind != "f":
            limits = self.modality.valid_range or (0, 65535)
            values = np.nan_to_num(np.rint(values).clip(*limits), nan=self.fill[name])
        array[..., rows, :] = values.reshape(*array.shape[:-2], *values.shape[-2:])


class ClassCollector(_Raster):
    """Class codes with their probability, of an ensemble also all probabilities and the entropy.

    Tiles are class probabilities (samples, classes, H, W).
    """

    def __init__(self, modality: Modality, ensemble: Ensemble, place: Place) -> None:
        super().__init__(modality, ensemble, place, len(LULC_CLASSES))

    def _settle(self, rows: slice, values: NDArray[np.float32]) -> None:
        name = self.modality.name
        mean = values.mean(axis=0) if len(values) > 1 else values[0]
        best = mean.argmax(axis=0)
        found = {
            name: best,
            f"{name}_confidence": np.take_along_axis(mean, best[None], axis=0)[0],
            f"{name}_probability": mean,
        }
        if f"{name}_entropy" in self.arrays:
            with np.errstate(divide="ignore", invalid="ignore"):
                surprise = np.where(mean > 0, mean * -np.log(mean), np.where(mean == 0, 0, np.nan))
            found[f"{name}_entropy"] = surprise.sum(axis=0)
        if f"{name}_samples" in self.arrays:
            found[f"{name}_samples"] = values.argmax(axis=1)
        for variable, array in self.arrays.items():
            array[..., rows, :] = found[variable]


def raster_collector(
    modality: Modality,
    statistics: Statistics | None,
    ensemble: Ensemble,
    place: Place,
    *,
    is_bounded: bool,
) -> Collector:
    """Return the collector of a raster: of class codes where there are no statistics.

    `place` is the region and the weights of a tile.
    """
    if statistics is None:
        return ClassCollector(modality, ensemble, place)
    return ImageCollector(modality, statistics, ensemble, place, is_bounded=is_bounded)


def _known_cells(is_valid: NDArray[np.bool_], patch_px: int) -> NDArray[np.bool_]:
    """Whether any pixel of each cell is known."""
    height, width = is_valid.shape
    padded = np.pad(is_valid, ((0, -height % patch_px), (0, -width % patch_px)))
    rows, cols = padded.shape[0] // patch_px, padded.shape[1] // patch_px
    cells = padded.reshape(rows, patch_px, cols, patch_px)
    return np.asarray(cells.any(axis=(1, 3)))


class CellMean:
    """One number per token cell, blended like the pixels. Tiles are (samples, h, w)."""

    def __init__(
        self, variable: OutputVariable, region: Region, grid: TileGrid, ensemble: Ensemble
    ) -> None:
        self.patch_px = grid.y.patch_px
        cells = cell_region(region, self.patch_px)
        tile = grid.y.tile_px // self.patch_px
        weights = tile_weights(tile, grid.y.overlap_px // self.patch_px)
        self.name = variable.name
        self.array = _empty(variable, cells.shape)
        self.blend = Blend(cells, weights, (ensemble.samples,), self._settle)

    def add(self, tile: Tile, values: NDArray[np.generic]) -> None:
        """Add a tile; see `Collector`."""
        y, x = tile
        self.blend.add((y // self.patch_px, x // self.patch_px), values)  # type: ignore[arg-type]

    def _settle(self, rows: slice, values: NDArray[np.float32]) -> None:
        self.array[..., rows, :] = values.mean(axis=0)

    def finish(self, is_valid: NDArray[np.bool_]) -> Arrays:
        """Return the arrays; see `Collector`."""
        self.blend.finish()
        self.array[..., ~_known_cells(is_valid, self.patch_px)] = np.nan
        return {self.name: self.array}


class FirstCells:
    """Values per token cell, each from the first tile that has it. Tiles are (..., h, w)."""

    def __init__(self, variable: OutputVariable, region: Region, patch_px: int) -> None:
        self.patch_px = patch_px
        self.region = cell_region(region, patch_px)
        self.name, self.fill = variable.name, variable.fill_value
        self.array = _empty(variable, self.region.shape)
        self.is_free = np.ones(self.region.shape, np.bool_)

    def add(self, tile: Tile, values: NDArray[np.generic]) -> None:
        """Add a tile; see `Collector`."""
        y, x = (start // self.patch_px for start in tile)
        rows, cols = values.shape[-2:]
        area = self.region
        y0, y1 = max(y, area.y0), min(y + rows, area.y1)
        x0, x1 = max(x, area.x0), min(x + cols, area.x1)
        target = (slice(y0 - area.y0, y1 - area.y0), slice(x0 - area.x0, x1 - area.x0))
        free = self.is_free[target]
        part = values[..., y0 - y : y1 - y, x0 - x : x1 - x]
        self.array[(..., *target)] = np.where(free, part, self.array[(..., *target)])
        self.is_free[target] = False

    def finish(self, is_valid: NDArray[np.bool_]) -> Arrays:
        """Return the arrays; see `Collector`."""
        self.array[..., ~_known_cells(is_valid, self.patch_px)] = self.fill
        return {self.name: self.array}


class TileTable:
    """Values per tile. Tiles are (variables, n); a tile counts where it starts in the region."""

    def __init__(self, variables: Sequence[OutputVariable], region: Region, grid: TileGrid) -> None:
        self.grid, self.range = grid, tile_range(grid, region)
        self.names = [row.name for row in variables]
        self.arrays: Arrays = {row.name: _empty(row, self.range.shape) for row in variables}

    def add(self, tile: Tile, values: NDArray[np.generic]) -> None:
        """Add a tile; see `Collector`."""
        row = int(np.searchsorted(self.grid.y.starts, tile[0])) - self.range.y0
        col = int(np.searchsorted(self.grid.x.starts, tile[1])) - self.range.x0
        if 0 <= row < self.range.shape[0] and 0 <= col < self.range.shape[1]:
            for name, part in zip(self.names, values, strict=True):
                self.arrays[name][..., row, col] = part

    def finish(self, is_valid: NDArray[np.bool_]) -> Arrays:
        """Return the arrays; see `Collector`."""
        del is_valid  # a tile without a known pixel was not run
        return self.arrays
