"""What a tile's inputs are and how they become tensors: pixels, tokens, coordinates, captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from terramind_cube.kernels import normalize
from terramind_cube.modalities import LULC_CLASSES, Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.grid import Region
    from terramind_cube.inference.runtime import LoadedModel

__all__ = ["Form", "InputBuffers", "InputLayer", "Source", "touches_data"]

Form = Literal["pixels", "tokens"]
KERNEL_DTYPES = ("uint8", "uint16", "int16", "float32", "float64")
"""What `normalize` takes; any other number is read as float32."""


@dataclass(frozen=True)
class InputLayer:
    """How one raster of a cube becomes an input.

    Attributes
    ----------
    modality : str
    form : {"pixels", "tokens"}
        Whether the model gets its standardised pixels, or the tokens of its tokenizer.
    nodata : float
        Value of invalid pixels.
    statistics : Statistics or None
        Mean and standard deviation per band; None for class codes, which are not standardised.
    bands : tuple of int
        Places of the cube's bands among the modality's; absent ones count as their mean.
    names : tuple of str
        All bands of the modality.
    """

    modality: str
    form: Form
    nodata: float
    statistics: Statistics | None
    bands: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Number of the modality's bands."""
        return len(self.names)


class Source:
    """The pixels of one input over the window of a group, padded to whole tiles.

    Parameters
    ----------
    layer : InputLayer
    pixels : numpy.ndarray, shape (C, h, w)

    Raises
    ------
    ValueError
        If class codes are none of TerraMind's.
    """

    def __init__(self, layer: InputLayer, pixels: NDArray[np.generic]) -> None:
        self.layer = layer
        if pixels.dtype.name not in KERNEL_DTYPES:
            pixels = pixels.astype(np.float32)
        self.is_valid = np.ones(pixels.shape[1:], np.bool_)
        for band in pixels:  # one at a time: a mask of all of them would be half as large as they
            self.is_valid &= ~np.isnan(band) if np.isnan(layer.nodata) else band != layer.nodata
            if band.dtype.kind == "f":
                self.is_valid &= np.isfinite(band)
        self.pixels = pixels
        if not self.is_valid.all():
            # One value for every invalid pixel, so that none reaches the model: NaN or infinity in
            # one of them would spread over the whole tile.
            nodata = np.asarray(layer.nodata, pixels.dtype)
            self.pixels = np.where(self.is_valid, pixels, nodata)
        if layer.statistics is None:
            _check_classes(layer.modality, self.pixels)

    def pad(self, height: int, width: int) -> None:
        """Reflect the pixels southwards and eastwards up to a height and width."""
        rest = (height - self.pixels.shape[1], width - self.pixels.shape[2])
        if any(rest):
            edges = ((0, rest[0]), (0, rest[1]))
            self.pixels = np.pad(self.pixels, ((0, 0), *edges), mode="reflect")
            self.is_valid = np.pad(self.is_valid, edges, mode="reflect")


def _check_classes(name: str, pixels: NDArray[np.generic]) -> None:
    top = len(LULC_CLASSES) - 1
    codes = pixels.astype(np.int64)
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) <= top:
        raise ValueError(
            f"{name} holds the code {int(codes.max() if codes.max() > top else codes.min())}; "
            f"TerraMind's classes are 0 .. {top}. Another provider's map must be translated, as "
            "load_cube does (terramind_cube.LULC_CLASSES lists both codings)."
        )


class InputBuffers:
    """The inputs of a batch of tiles, in arrays that are used again for every batch.

    Parameters
    ----------
    sources : sequence of Source
    corner : tuple of int
        First pixel of the sources' window in the area.
    batch, tile_px : int
        Tiles of a batch, pixels along a side.
    """

    def __init__(
        self, sources: Sequence[Source], corner: tuple[int, int], batch: int, tile_px: int
    ) -> None:
        self.sources, self.corner, self.tile_px = sources, corner, tile_px
        self.arrays = [
            np.zeros((batch, source.layer.channels, tile_px, tile_px), np.float32)
            for source in sources
        ]

    def fill(self, slot: int, tile: tuple[int, int]) -> None:
        """Standardise the pixels of a tile into a slot."""
        y, x = tile[0] - self.corner[0], tile[1] - self.corner[1]
        place = (slice(None), slice(y, y + self.tile_px), slice(x, x + self.tile_px))
        for source, array in zip(self.sources, self.arrays, strict=True):
            layer, pixels = source.layer, source.pixels[place]
            if layer.statistics is None:
                array[slot] = pixels
                continue
            is_whole = layer.bands == tuple(range(layer.channels))
            standardised = normalize(
                pixels,
                mean=[layer.statistics.mean[band] for band in layer.bands],
                std=[layer.statistics.std[band] for band in layer.bands],
                nodata=layer.nodata,
                out=array[slot] if is_whole else None,
            )
            if not is_whole:
                array[slot, list(layer.bands)] = standardised

    def images(self, loaded: LoadedModel) -> dict[str, Tensor]:
        """Return the standardised images by modality, class codes as integers (B, H, W)."""
        images = {}
        for source, array in zip(self.sources, self.arrays, strict=True):
            image = torch.from_numpy(array).to(loaded.device)
            is_classes = source.layer.statistics is None
            images[source.layer.modality] = image[:, 0].long() if is_classes else image
        return images

    def tensors(self, loaded: LoadedModel) -> Mapping[str, Tensor]:
        """Return what the model takes, by modality: pixels or token ids."""
        images = self.images(loaded)
        return {
            source.layer.modality: images[source.layer.modality]
            if source.layer.form == "pixels"
            else loaded.tokenizers[source.layer.modality].tokenize(images[source.layer.modality])
            for source in self.sources
        }


def touches_data(
    sources: Sequence[Source], window: Region, tile: tuple[int, int], tile_px: int
) -> bool:
    """Whether any input knows a pixel of a tile."""
    y, x = tile[0] - window.y0, tile[1] - window.x0
    place = (slice(y, y + tile_px), slice(x, x + tile_px))
    return any(bool(source.is_valid[place].any()) for source in sources)
