"""Run one tile group: standardise, encode, sample, decode, blend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from terramind_cube.inference.blend import BlendedClasses
from terramind_cube.inference.runtime import LoadedModel, acquire
from terramind_cube.kernels import normalize
from terramind_cube.model.generation import sample_tokens
from terramind_cube.noise import uniform_cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from terramind_cube.grid import Region
    from terramind_cube.inference.plan import Generation

__all__ = ["run_group"]

Tile = tuple[int, int]


class _Source:
    """The pixels of one input over the window of a group, padded to whole tiles."""

    def __init__(self, plan: Generation, index: int, pixels: NDArray[np.generic]) -> None:
        self.bands = plan.inputs[index]
        nodata = self.bands.nodata
        is_nodata = np.isnan(pixels) if np.isnan(nodata) else pixels == nodata
        if pixels.dtype.kind == "f":
            is_nodata |= ~np.isfinite(pixels)
        self.is_valid: NDArray[np.bool_] = ~is_nodata.any(axis=0)
        # One value for every invalid pixel, so that none reaches the model: NaN or infinity in one
        # of them would spread over the whole tile.
        self.pixels = np.where(self.is_valid, pixels, np.asarray(nodata, pixels.dtype))

    def pad(self, height: int, width: int) -> None:
        """Reflect the pixels southwards and eastwards up to a height and width."""
        rest = (height - self.pixels.shape[1], width - self.pixels.shape[2])
        if any(rest):
            edges = ((0, rest[0]), (0, rest[1]))
            self.pixels = np.pad(self.pixels, ((0, 0), *edges), mode="reflect")
            self.is_valid = np.pad(self.is_valid, edges, mode="reflect")


def run_group(
    plan: Generation, region: Region, time: int, windows: Sequence[NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    """Generate the outputs of a region.

    Parameters
    ----------
    plan : Generation
    region : Region
        Part of the area.
    time : int
        Nanoseconds since 1970, 0 for a static cube.
    windows : sequence of numpy.ndarray, shape (C, h, w)
        Pixels of each input over ``plan.grid.window(region)``.

    Returns
    -------
    dict of str to numpy.ndarray
        ``LULC`` uint8 and ``LULC_confidence`` float32, both of the region's shape.
    """
    window = plan.grid.window(region)
    sources = [_Source(plan, i, pixels) for i, pixels in enumerate(windows)]
    inner = (
        slice(region.y0 - window.y0, region.y1 - window.y0),
        slice(region.x0 - window.x0, region.x1 - window.x0),
    )
    is_valid = np.any([source.is_valid[inner] for source in sources], axis=0)
    tiles = plan.grid.tiles(region)
    corner = (window.y0, window.x0)
    for source in sources:
        source.pad(tiles[-1][0] + plan.tile_px - corner[0], tiles[-1][1] + plan.tile_px - corner[1])
    usable = [tile for tile in tiles if _touches_data(sources, plan, tile, corner)]
    blend: BlendedClasses | None = None
    if usable:
        with acquire(plan.spec) as loaded:
            for tile, probability in _class_probabilities(
                plan, loaded, sources, usable, corner, time
            ):
                blend = blend or BlendedClasses(
                    region, len(probability), plan.tile_px, plan.overlap_px
                )
                blend.add(tile, probability)
    blend = blend or BlendedClasses(region, 1, plan.tile_px, plan.overlap_px)
    classes, confidence = blend.finish(is_valid)
    return {"LULC": classes, "LULC_confidence": confidence}


def _place(plan: Generation, tile: Tile, corner: Tile) -> tuple[slice, slice]:
    y, x = tile[0] - corner[0], tile[1] - corner[1]
    return slice(y, y + plan.tile_px), slice(x, x + plan.tile_px)


def _touches_data(sources: Sequence[_Source], plan: Generation, tile: Tile, corner: Tile) -> bool:
    place = _place(plan, tile, corner)
    return any(bool(source.is_valid[place].any()) for source in sources)


def _class_probabilities(
    plan: Generation,
    loaded: LoadedModel,
    sources: Sequence[_Source],
    tiles: Sequence[Tile],
    corner: Tile,
    time: int,
) -> Iterator[tuple[Tile, NDArray[np.float32]]]:
    """Yield each tile with its class probabilities (classes, tile_px, tile_px)."""
    size = plan.spec.compute.batch
    buffers = {
        source.bands.modality: np.zeros(
            (size, len(source.pixels), plan.tile_px, plan.tile_px), np.float32
        )
        for source in sources
    }
    space = loaded.model.description.token_space("LULC")
    assert space is not None
    side = loaded.model.description.grid
    uniform = None
    if plan.sampling.is_random:
        uniform = np.empty((size, side * side, space.vocabulary), np.float32)
    for first in range(0, len(tiles), size):
        batch = tiles[first : first + size]
        for slot, tile in enumerate(batch):
            place = _place(plan, tile, corner)
            for source in sources:
                normalize(
                    source.pixels[(slice(None), *place)],
                    mean=source.bands.statistics.mean,
                    std=source.bands.statistics.std,
                    nodata=source.bands.nodata,
                    out=buffers[source.bands.modality][slot],
                )
            if uniform is not None:
                cells = plan.grid.cells(tile)
                uniform_cells(plan.stream("LULC", time), *cells, uniform[slot])
        if uniform is not None:
            # Sampling overwrote the numbers: the slots of a short batch need harmless ones.
            uniform[len(batch) :] = 0.5
        probability = _forward(plan, loaded, buffers, uniform)
        yield from zip(batch, probability, strict=False)


@torch.inference_mode()
def _forward(
    plan: Generation,
    loaded: LoadedModel,
    buffers: Mapping[str, NDArray[np.float32]],
    uniform: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Map a batch of standardised tiles to class probabilities (B, classes, H, W)."""
    inputs = {name: torch.from_numpy(x).to(loaded.device) for name, x in buffers.items()}
    encoded = loaded.model.encode_inputs(inputs)
    logits = loaded.model.decode(encoded, "LULC")
    noise = None if uniform is None else torch.from_numpy(uniform).to(loaded.device)
    tokens = sample_tokens(logits, plan.sampling, noise)
    decoded = loaded.tokenizers["LULC"].decode(tokens.view(-1, encoded.rows, encoded.cols))
    probability: NDArray[np.float32] = decoded.softmax(dim=1).cpu().numpy()
    return probability
