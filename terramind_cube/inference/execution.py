"""Run one tile group: read, standardise, compute batch by batch, put the region together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from terramind_cube.inference.plan import Batch
from terramind_cube.inference.runtime import acquire
from terramind_cube.inference.sources import InputBuffers, Source, usable_tiles
from terramind_cube.inference.staging import copying, download, keep_alive, record
from terramind_cube.inference.trial import explain_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.grid import Region
    from terramind_cube.inference.plan import TilePlan

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
    try:
        return _run_group(plan, region, time, windows)
    except torch.OutOfMemoryError as error:
        raise explain_memory(error, plan) from error


def _run_group(
    plan: TilePlan, region: Region, time: int, windows: Sequence[NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    window, device = plan.grid.window(region), torch.device(plan.spec.compute.device)
    shape, tiles = plan.tile_shape(), plan.grid.tiles(region)
    corner = (window.y0, window.x0)
    last = tiles[-1]
    sides = (last[0] + shape.tile_px - window.y0, last[1] + shape.tile_px - window.x0)
    with copying(device):
        sources = [
            Source(row, part, sides, device) for row, part in zip(plan.inputs, windows, strict=True)
        ]
        usable = usable_tiles(sources, corner, tiles, shape.tile_px)
    # One task at a time holds the model, its buffers and the sums of its tiles.
    with acquire(plan.spec, loads=bool(usable)) as loaded:
        for source in sources:
            keep_alive(source.pixels, source.is_valid)
        collectors = plan.collectors(region, _masks(sources, region, window))
        size = plan.spec.compute.batch
        buffers = InputBuffers(sources, corner, size, shape)
        for first in range(0, len(usable), size):
            batch = Batch(buffers, tuple(usable[first : first + size]), size, time)
            buffers.fill(batch.tiles)
            for tile, values in zip(batch.tiles, plan.run(loaded, batch), strict=True):
                for name, collector in collectors.items():
                    collector.add(tile, values[name])
        arrays = {
            name: array
            for collector in collectors.values()
            for name, array in collector.finish().items()
        }
        done = record(device)
    with copying(device, after=done):
        return download(arrays)


def _masks(sources: Sequence[Source], region: Region, window: Region) -> tuple[Tensor, ...]:
    """Return where each source knows the region's pixels."""
    rows = slice(region.y0 - window.y0, region.y1 - window.y0)
    columns = slice(region.x0 - window.x0, region.x1 - window.x0)
    return tuple(source.is_valid[rows, columns] for source in sources)
