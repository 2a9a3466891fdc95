"""Run one tile group: read, standardise, compute batch by batch, put the region together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from terramind_cube.inference.plan import Batch
from terramind_cube.inference.runtime import acquire
from terramind_cube.inference.sources import InputBuffers, Source, touches_data
from terramind_cube.inference.trial import explain_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

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
    windows : sequence of numpy.ndarray, shape (C, h, w)
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
    window, tile_px = plan.grid.window(region), plan.grid.y.tile_px
    sources = [Source(row, part) for row, part in zip(plan.inputs, windows, strict=True)]
    inner = (
        slice(region.y0 - window.y0, region.y1 - window.y0),
        slice(region.x0 - window.x0, region.x1 - window.x0),
    )
    masks = [source.is_valid[inner] for source in sources]
    tiles = plan.grid.tiles(region)
    for source in sources:
        source.pad(tiles[-1][0] + tile_px - window.y0, tiles[-1][1] + tile_px - window.x0)
    usable = [tile for tile in tiles if touches_data(sources, window, tile, tile_px)]
    size = plan.spec.compute.batch
    # One task at a time holds the model, its buffers and the sums of its tiles.
    with acquire(plan.spec, loads=bool(usable)) as loaded:
        collectors = plan.collectors(region)
        buffers = InputBuffers(sources, (window.y0, window.x0), size, tile_px)
        for first in range(0, len(usable), size):
            batch = Batch(buffers, tuple(usable[first : first + size]), size, time)
            for slot, tile in enumerate(batch.tiles):
                buffers.fill(slot, tile)
            try:
                for tile, values in zip(batch.tiles, plan.run(loaded, batch), strict=True):
                    for name, collector in collectors.items():
                        collector.add(tile, values[name])
            except torch.OutOfMemoryError as error:
                raise explain_memory(error, plan) from error
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, collector in collectors.items():
        is_valid = np.any([masks[i] for i in plan.sources_of(name)], axis=0)
        arrays |= collector.finish(is_valid)
    return arrays
