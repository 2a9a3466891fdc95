"""Run one tile group: read, standardise, compute batch by batch, put the region together."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

import torch

from terramind_cube.inference.plan import Batch
from terramind_cube.inference.runtime import acquire
from terramind_cube.inference.sources import InputBuffers, Source, usable_tiles
from terramind_cube.inference.staging import (
    copying,
    download,
    keep_alive,
    record,
    room_on,
)
from terramind_cube.inference.trial import explain_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.grid import Region
    from terramind_cube.inference.collect import Arrays
    from terramind_cube.inference.plan import TilePlan

    Tile = tuple[int, int]

__all__ = ["run_group"]


def run_group(
    plan: TilePlan, region: Region, time: int, windows: Sequence[NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    """Compute the variables of a region.

    Parameters
    ----------
    plan : TilePlan
    region : Region
        Part of the area.
    time : int
        Nanoseconds since 1970, 0 for a static cube.
    windows : sequence of numpy.ndarray or cupy.ndarray, shape (C, h, w)
        Pixels of each input over ``plan.grid.window(region)``.

    Returns
    -------
    dict of str to numpy.ndarray
        By variable, further axes before the region's two.

    Raises
    ------
    MemoryError
        If the device has not enough memory for the compute batch.
    """
    device = torch.device(plan.spec.compute.device)
    try:
        with room_on(device):
            sources, usable = _stage(plan, region, windows, device)
            arrays, done = _compute(plan, region, time, (sources, usable))
            del sources
            with copying(device, after=done):
                return download(arrays)
    except torch.OutOfMemoryError as error:
        told = explain_memory(error, plan)
        # What the frames of a failed run hold lies on the device.
        traceback.clear_frames(error.__traceback__)
        raise told from error


def _stage(
    plan: TilePlan, region: Region, windows: Sequence[NDArray[np.generic]], device: torch.device
) -> tuple[list[Source], list[Tile]]:
    """Bring the inputs to the device; return them, and the tiles that know any pixel."""
    window, shape, tiles = plan.grid.window(region), plan.tile_shape(), plan.grid.tiles(region)
    last = tiles[-1]
    sides = (last[0] + shape.tile_px - window.y0, last[1] + shape.tile_px - window.x0)
    with copying(device):
        sources = [
            Source(row, part, sides, device) for row, part in zip(plan.inputs, windows, strict=True)
        ]
        return sources, usable_tiles(sources, (window.y0, window.x0), tiles, shape.tile_px)


def _compute(
    plan: TilePlan, region: Region, time: int, staged: tuple[list[Source], list[Tile]]
) -> tuple[Arrays, Any]:
    """Return the region's arrays, and the event of their being there."""
    (sources, usable), window = staged, plan.grid.window(region)
    size = plan.spec.compute.batch
    # One task at a time holds the model, its buffers and the sums of its tiles.
    with acquire(plan.spec, loads=bool(usable)) as loaded:
        for source in sources:
            keep_alive(source.pixels, source.is_valid)
        collectors = plan.collectors(region, _masks(sources, region, window))
        buffers = InputBuffers(sources, (window.y0, window.x0), size, plan.tile_shape())
        for first in range(0, len(usable), size):
            batch = Batch(buffers, tuple(usable[first : first + size]), size, time)
            buffers.fill(batch.tiles)
            try:
                for tile, values in zip(batch.tiles, plan.run(loaded, batch), strict=True):
                    for name, collector in collectors.items():
                        collector.add(tile, values[name])
            except ValueError as error:
                error.add_note(f"In the tiles that start at pixels (y, x) {batch.tiles}.")
                raise
        arrays: Arrays = {}
        for collector in collectors.values():
            arrays |= collector.finish()
        return arrays, record(loaded.device)


def _masks(sources: Sequence[Source], region: Region, window: Region) -> tuple[Tensor, ...]:
    """Return where each source knows the region's pixels."""
    rows = slice(region.y0 - window.y0, region.y1 - window.y0)
    columns = slice(region.x0 - window.x0, region.x1 - window.x0)
    return tuple(source.is_valid[rows, columns] for source in sources)
