"""From the values of tiles to the variables of a region.

A collector takes the tiles of a region row by row and gives the region's arrays, axes before the
lattice's, filled where nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from terramind_cube import kernels
from terramind_cube.grid import Region
from terramind_cube.inference.blend import Blend, tile_weights
from terramind_cube.inference.variables import image_variables
from terramind_cube.modalities import LULC_CLASSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.grid import TileGrid
    from terramind_cube.inference.variables import Ensemble, OutputVariable
    from terramind_cube.modalities import Modality, Statistics

    Arrays = dict[str, Tensor | NDArray[Any]]
    Tile = tuple[int, int]

__all__ = [
    "CellMean",
    "ClassCollector",
    "Collector",
    "FirstCells",
    "ImageCollector",
    "Place",
    "TileTable",
    "cell_region",
    "raster_collector",
    "tile_range",
]


class Collector(Protocol):
    """Turns tiles into the arrays of a region, on the device on which they are computed."""

    def add(self, tile: Tile, values: Any) -> None:
        """Add what was computed for the tile that starts at pixel (y, x) of the area."""
        ...

    def finish(self) -> Arrays:
        """Return the arrays by variable, filled where the region's pixels are not known."""
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


def _empty(variable: OutputVariable, shape: tuple[int, int], device: torch.device) -> Tensor:
    sizes = tuple(axis.size for axis in variable.axes)
    dtype = getattr(torch, variable.dtype)
    return torch.full((*sizes, *shape), variable.fill_value, dtype=dtype, device=device)


def _mean(members: Tensor) -> Tensor:
    """Return the mean over the first axis, summed in its order whatever the shape."""
    if len(members) == 1:
        return members[0]
    total = members[0].clone()
    for member in members[1:]:
        total += member
    return total / len(members)


@dataclass(frozen=True)
class Place:
    """Where a collector works.

    Attributes
    ----------
    region : Region
    weights : torch.Tensor, float32
        Of a tile, on the device of the values.
    is_valid : torch.Tensor of bool
        Where the region's pixels are known.
    """

    region: Region
    weights: Tensor
    is_valid: Tensor


class _Raster:
    """What rasters have in common: arrays by variable, filled from a blend as rows are settled."""

    def __init__(self, modality: Modality, ensemble: Ensemble, place: Place, channels: int) -> None:
        region = place.region
        self.modality = modality
        self.is_valid = place.is_valid
        self.variables = {row.name: row for row in image_variables(modality, ensemble)}
        self.arrays = {
            name: _empty(row, region.shape, place.weights.device)
            for name, row in self.variables.items()
        }
        self.blend = Blend(region, place.weights, (ensemble.samples, channels), self._settle)

    def add(self, tile: Tile, values: Tensor) -> None:
        """Add a tile; see `Collector`."""
        self.blend.add(tile, values)

    def _settle(self, rows: slice, values: Tensor) -> None:
        raise AssertionError("each kind of raster settles its own way")

    def finish(self) -> Arrays:
        """Return the arrays; see `Collector`."""
        self.blend.finish()
        return dict(self.arrays)


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
        self.is_bounded = is_bounded
        self.statistics = statistics

    def _settle(self, rows: slice, values: Tensor) -> None:
        name = self.modality.name
        if len(values) == 1:
            self._write(name, rows, values, self.statistics)
            return
        values = kernels.denormalize(values, mean=self.statistics.mean, std=self.statistics.std)
        if f"{name}_samples" in self.arrays:
            self._write(f"{name}_samples", rows, values)
        mean = _mean(values)
        self._write(name, rows, mean[None])
        if f"{name}_std" in self.arrays:
            spread = _mean(values.sub_(mean).square_()).sqrt_()
            self._write(f"{name}_std", rows, spread[None])

    def _write(
        self, name: str, rows: slice, values: Tensor, statistics: Statistics | None = None
    ) -> None:
        """Write what is standardised by the statistics, or in units already."""
        array, channels = self.arrays[name], values.shape[1]
        # Rounding of the bounds in standardised units can pass them by a hair.
        has_limits = self.is_bounded or not array.dtype.is_floating_point
        is_spread = name.endswith("_std")
        kernels.denormalize(
            values,
            mean=(0.0,) * channels if statistics is None else statistics.mean,
            std=(1.0,) * channels if statistics is None else statistics.std,
            limits=self.modality.valid_range if has_limits and not is_spread else None,
            nodata=self.variables[name].fill_value,
            valid=self.is_valid[rows],
            first_row=rows.start,
            out=array.view(len(values), channels, *array.shape[-2:]),
        )


class ClassCollector(_Raster):
    """Class codes with their probability, of an ensemble also all probabilities and the entropy.

    Tiles are class probabilities (samples, classes, H, W).
    """

    def __init__(self, modality: Modality, ensemble: Ensemble, place: Place) -> None:
        super().__init__(modality, ensemble, place, len(LULC_CLASSES))

    def _settle(self, rows: slice, values: Tensor) -> None:
        name = self.modality.name
        mean = _mean(values)
        confidence = self.arrays[f"{name}_confidence"][rows]
        kernels.class_map(mean, self.arrays[name][rows], confidence)
        if f"{name}_probability" in self.arrays:
            self.arrays[f"{name}_probability"][:, rows] = mean
        if f"{name}_entropy" in self.arrays:
            # Of a class without probability 0; NaN stays NaN.
            surprise = torch.where(mean == 0, 0.0, mean * -mean.log())
            self.arrays[f"{name}_entropy"][rows] = _mean(surprise) * len(surprise)
        if f"{name}_samples" in self.arrays:
            for member, codes in zip(values, self.arrays[f"{name}_samples"], strict=True):
                kernels.class_map(member, codes[rows])

    def finish(self) -> Arrays:
        """Return the arrays; see `Collector`."""
        arrays = super().finish()
        for name, array in self.arrays.items():
            array.masked_fill_(~self.is_valid, self.variables[name].fill_value)
        return arrays


def raster_collector(
    modality: Modality,
    statistics: Statistics | None,
    ensemble: Ensemble,
    place: Place,
    *,
    is_bounded: bool,
) -> Collector:
    """Return the collector of a raster: of class codes where there are no statistics."""
    if statistics is None:
        return ClassCollector(modality, ensemble, place)
    return ImageCollector(modality, statistics, ensemble, place, is_bounded=is_bounded)


def _known_cells(is_valid: Tensor, patch_px: int) -> Tensor:
    """Whether any pixel of each cell is known."""
    height, width = is_valid.shape
    rows, cols = -(-height // patch_px), -(-width // patch_px)
    padded = is_valid.new_zeros((rows * patch_px, cols * patch_px))
    padded[:height, :width] = is_valid
    return padded.view(rows, patch_px, cols, patch_px).any(3).any(1)


class CellMean:
    """One number per token cell, blended like the pixels. Tiles are (samples, h, w)."""

    def __init__(
        self, variable: OutputVariable, place: Place, grid: TileGrid, ensemble: Ensemble
    ) -> None:
        self.patch_px = grid.y.patch_px
        device = place.is_valid.device
        cells = cell_region(place.region, self.patch_px)
        tile = grid.y.tile_px // self.patch_px
        weights = tile_weights(tile, grid.y.overlap_px // self.patch_px)
        self.name = variable.name
        self.is_known = _known_cells(place.is_valid, self.patch_px)
        self.array = _empty(variable, cells.shape, device)
        on_device = torch.from_numpy(weights).to(device)
        self.blend = Blend(cells, on_device, (ensemble.samples,), self._settle)

    def add(self, tile: Tile, values: Tensor) -> None:
        """Add a tile; see `Collector`."""
        y, x = tile
        self.blend.add((y // self.patch_px, x // self.patch_px), values)

    def _settle(self, rows: slice, values: Tensor) -> None:
        self.array[..., rows, :] = _mean(values)

    def finish(self) -> Arrays:
        """Return the arrays; see `Collector`."""
        self.blend.finish()
        return {self.name: self.array.masked_fill_(~self.is_known, np.nan)}


class FirstCells:
    """Values per token cell, each from the first tile that has it. Tiles are (..., h, w)."""

    def __init__(
        self, variable: OutputVariable, region: Region, is_valid: Tensor, patch_px: int
    ) -> None:
        self.patch_px = patch_px
        self.region = cell_region(region, patch_px)
        self.name, self.fill = variable.name, variable.fill_value
        self.is_known = _known_cells(is_valid, patch_px)
        self.array = _empty(variable, self.region.shape, is_valid.device)
        self.is_free = torch.ones_like(self.is_known)

    def add(self, tile: Tile, values: Tensor) -> None:
        """Add a tile; see `Collector`."""
        y, x = (start // self.patch_px for start in tile)
        rows, cols = values.shape[-2:]
        area = self.region
        y0, y1 = max(y, area.y0), min(y + rows, area.y1)
        x0, x1 = max(x, area.x0), min(x + cols, area.x1)
        target = (slice(y0 - area.y0, y1 - area.y0), slice(x0 - area.x0, x1 - area.x0))
        free, former = self.is_free[target], self.array[(..., *target)]
        part = values[..., y0 - y : y1 - y, x0 - x : x1 - x]
        former.copy_(torch.where(free, part.to(former.dtype), former))
        free.fill_(False)

    def finish(self) -> Arrays:
        """Return the arrays; see `Collector`."""
        return {self.name: self.array.masked_fill_(~self.is_known, self.fill)}


class TileTable:
    """Values per tile. Tiles are (variables, n); a tile counts where it starts in the region."""

    def __init__(self, variables: Sequence[OutputVariable], region: Region, grid: TileGrid) -> None:
        self.grid, self.range = grid, tile_range(grid, region)
        self.arrays: dict[str, NDArray[Any]] = {
            row.name: np.full(
                (*(axis.size for axis in row.axes), *self.range.shape), row.fill_value, row.dtype
            )
            for row in variables
        }

    def add(self, tile: Tile, values: NDArray[Any]) -> None:
        """Add a tile; see `Collector`."""
        row = int(np.searchsorted(self.grid.y.starts, tile[0])) - self.range.y0
        col = int(np.searchsorted(self.grid.x.starts, tile[1])) - self.range.x0
        if 0 <= row < self.range.shape[0] and 0 <= col < self.range.shape[1]:
            for array, part in zip(self.arrays.values(), values, strict=True):
                array[..., row, col] = part

    def finish(self) -> Arrays:
        """Return the arrays; see `Collector`."""
        return dict(self.arrays)  # a tile without a known pixel was not run
