"""What a tile's inputs are and how they become tensors: pixels, tokens, coordinates, captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from terramind_cube import kernels
from terramind_cube.inference.staging import upload
from terramind_cube.kernels.rules import PIXEL_DTYPES
from terramind_cube.modalities import LULC_CLASSES, MODALITIES, Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.inference.runtime import LoadedModel

__all__ = ["Form", "InputBuffers", "InputLayer", "Source", "TileShape", "any_known", "usable_tiles"]

Form = Literal["pixels", "tokens"]
Tile = tuple[int, int]


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
    """The pixels of one input over the window of a group, as they came, on the device.

    Parameters
    ----------
    layer : InputLayer
    pixels : numpy.ndarray or cupy.ndarray, shape (C, h, w)
    shape : tuple of int
        Height and width up to which they are reflected southwards and eastwards.
    device : torch.device

    Attributes
    ----------
    pixels : torch.Tensor, shape (C, height, width)
        Of class codes (height, width), 0 where invalid.
    is_valid : torch.Tensor of bool, shape (height, width)

    Raises
    ------
    ValueError
        If class codes are none of TerraMind's.
    """

    def __init__(
        self,
        layer: InputLayer,
        pixels: NDArray[np.generic],
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.layer = layer
        if pixels.dtype.name not in PIXEL_DTYPES or not pixels.dtype.isnative:
            pixels = pixels.astype(np.float32)
        rest = (shape[0] - pixels.shape[1], shape[1] - pixels.shape[2])
        if any(rest):
            pixels = np.pad(pixels, ((0, 0), (0, rest[0]), (0, rest[1])), mode="reflect")
        self.pixels = upload(pixels, device)
        self.is_valid = kernels.valid_pixels(self.pixels, nodata=layer.nodata)
        if layer.statistics is None:
            self.pixels = _classes(layer, self.pixels[0], self.is_valid)


def _classes(layer: InputLayer, codes: Tensor, is_valid: Tensor) -> Tensor:
    """Return class codes, 0 where they are invalid."""
    codes = torch.where(is_valid, codes.float(), 0.0)
    top = len(LULC_CLASSES) - 1
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= top:
        wrong = int(codes.max() if codes.max() > top else codes.min())
        raise ValueError(
            f"{layer.modality} holds the code {wrong}; "
            f"TerraMind's classes are 0 .. {top}. Another provider's map must be translated, as "
            "load_cube does (terramind_cube.LULC_CLASSES lists both codings)."
        )
    return codes.to(torch.uint8)


@dataclass(frozen=True)
class TileShape:
    """Tiles and patches in pixels, and the dtype in which a model takes its patches."""

    tile_px: int
    patch_px: int
    dtype: Literal["float32", "bfloat16"]


class InputBuffers:
    """The inputs of a batch of tiles, in tensors that are used again for every batch.

    What the model sees as pixels is standardised and cut into its patches at once, in the dtype of
    its first layer.

    Parameters
    ----------
    sources : sequence of Source
    corner : tuple of int
        First pixel of the sources' window in the area.
    batch : int
        Slots for tiles.
    shape : TileShape
    """

    def __init__(
        self, sources: Sequence[Source], corner: Tile, batch: int, shape: TileShape
    ) -> None:
        self.sources, self.corner, self.shape = sources, corner, shape
        self.tensors_by_source = [self._empty(source, batch) for source in sources]

    def _empty(self, source: Source, batch: int) -> Tensor:
        layer, tile, patch = source.layer, self.shape.tile_px, self.shape.patch_px
        cells, device = tile // patch, source.pixels.device
        if layer.statistics is None:
            return torch.zeros((batch, tile, tile), dtype=torch.int64, device=device)
        if layer.form == "tokens":
            return torch.zeros((batch, layer.channels, tile, tile), device=device)
        dtype: torch.dtype = getattr(torch, self._dtype(layer))
        patches = (batch, cells, cells, patch, patch, layer.channels)
        return torch.zeros(patches, dtype=dtype, device=device)

    def _dtype(self, layer: InputLayer) -> Literal["float32", "bfloat16"]:
        """Return the dtype of the first layer that sees an input; fresh embeddings stay float32."""
        is_cast = layer.form == "pixels" and layer.modality in MODALITIES
        return self.shape.dtype if is_cast else "float32"

    def fill(self, tiles: Sequence[Tile]) -> None:
        """Standardise the pixels of tiles into the first slots."""
        top, left = self.corner
        corners = np.array([(0, y - top, x - left) for y, x in tiles], np.int64)
        tile = self.shape.tile_px
        for source, tensor in zip(self.sources, self.tensors_by_source, strict=True):
            layer, slots = source.layer, tensor[: len(tiles)]
            if layer.statistics is None:
                for slot, (_, y, x) in zip(slots, corners.tolist(), strict=True):
                    slot[:] = source.pixels[y : y + tile, x : x + tile]
                continue
            is_whole = layer.bands == tuple(range(layer.channels))
            bands = list(layer.bands)
            made = kernels.normalize(
                source.pixels[None],
                mean=[layer.statistics.mean[band] for band in bands],
                std=[layer.statistics.std[band] for band in bands],
                nodata=layer.nodata,
                dtype=self._dtype(layer),
                patch_px=self.shape.patch_px if layer.form == "pixels" else None,
                corners=corners,
                tile_px=tile,
                out=slots if is_whole else None,
            )
            if not is_whole and layer.form == "pixels":
                slots[..., bands] = made
            elif not is_whole:
                slots[:, bands] = made

    def images(self) -> dict[str, Tensor]:
        """Return standardised pixels by modality.

        Of those that the model sees as pixels its patches, see `model.PixelEmbedding`; of the others
        (B, C, H, W), class codes (B, H, W).
        """
        rows = zip(self.sources, self.tensors_by_source, strict=True)
        return {source.layer.modality: tensor for source, tensor in rows}

    def tensors(self, loaded: LoadedModel) -> Mapping[str, Tensor]:
        """Return what the model takes, by modality: patches of pixels, or token ids."""
        forms = {source.layer.modality: source.layer.form for source in self.sources}
        return {
            name: image if forms[name] == "pixels" else loaded.tokenizers[name].tokenize(image)
            for name, image in self.images().items()
        }


def any_known(masks: Sequence[Tensor]) -> Tensor:
    """Return where any of some masks of one shape is true."""
    return torch.stack(list(masks)).any(dim=0)


def usable_tiles(
    sources: Sequence[Source], corner: Tile, tiles: Sequence[Tile], tile_px: int
) -> list[Tile]:
    """Return the tiles of which any input knows a pixel; `corner` is where the sources begin."""
    known = any_known([source.is_valid for source in sources])
    places = [(y - corner[0], x - corner[1]) for y, x in tiles]
    has_any = [known[y : y + tile_px, x : x + tile_px].any() for y, x in places]
    # All answers at once: each would make a GPU wait.
    return [
        tile
        for tile, is_usable in zip(tiles, torch.stack(has_any).tolist(), strict=True)
        if is_usable
    ]
