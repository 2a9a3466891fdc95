"""Sequences as inputs: the coordinates of each tile, and captions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyproj import Transformer

from terramind_cube.modalities import CAPTIONS, MODALITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.inference.plan import Cut
    from terramind_cube.inference.runtime import LoadedModel
    from terramind_cube.model.text import CoordinateVocabulary

__all__ = ["SequenceInputs", "place_ids", "split_sequences"]


@dataclass(frozen=True)
class SequenceInputs:
    """Sequences that a model looks at beside the rasters.

    Attributes
    ----------
    has_coordinates : bool
        Whether it sees the quarter-degree cell of each tile's centre.
    caption : str or None
        Text about the area.
    """

    has_coordinates: bool = False
    caption: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of the sequences."""
        found = ["Coordinates"] if self.has_coordinates else []
        return [*found, CAPTIONS.name] if self.caption is not None else found

    def tensors(
        self, loaded: LoadedModel, cut: Cut, tiles: Sequence[tuple[int, int]]
    ) -> dict[str, Tensor]:
        """Return token ids (B, L) by name."""
        found = {}
        if self.has_coordinates:
            vocabulary: Any = loaded.vocabularies["Coordinates"]
            ids = place_ids(vocabulary, *tile_centres(cut, tiles))
            found["Coordinates"] = ids.to(loaded.device)
        if self.caption is not None:
            words: Any = loaded.vocabularies[CAPTIONS.name]
            row = torch.from_numpy(words.encode([self.caption])[0])
            found[CAPTIONS.name] = row.expand(len(tiles), -1).to(loaded.device)
        return found


def split_sequences(generated: Sequence[str], inputs: SequenceInputs) -> tuple[str, ...]:
    """Return the sequences that are read or generated, each once."""
    wanted = [name for name in generated if name in MODALITIES]
    sequences = [name for name in wanted if MODALITIES[name].kind == "sequence"]
    return tuple(dict.fromkeys((*sequences, *inputs.names)))


def place_ids(
    vocabulary: CoordinateVocabulary, longitude: NDArray[Any], latitude: NDArray[Any]
) -> Tensor:
    """Return the token ids (n, 3) of places in degrees."""
    return torch.from_numpy(vocabulary.encode(longitude, latitude))


def tile_centres(
    cut: Cut, tiles: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return longitude and latitude of the tiles' centres, degrees."""
    half = cut.grid.y.tile_px / 2
    width, left, height, top = cut.transform
    y, x = np.asarray(tiles, np.float64).T + half
    longitude, latitude = _to_degrees(cut.crs).transform(left + x * width, top + y * height)
    return np.asarray(longitude), np.asarray(latitude)


@lru_cache(maxsize=8)
def _to_degrees(crs: str) -> Transformer:
    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
