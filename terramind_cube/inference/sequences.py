"""Sequences as inputs: the coordinates of each tile, and captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyproj import Transformer

from terramind_cube.modalities import CAPTIONS, find_modality

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.inference.plan import Batch, Cut
    from terramind_cube.inference.runtime import LoadedModel
    from terramind_cube.inference.sources import Form
    from terramind_cube.model.text import CoordinateVocabulary

__all__ = ["SequenceInputs", "place_ids", "read_inputs", "split_sequences"]


@dataclass(frozen=True)
class SequenceInputs:
    """Sequences that a model looks at beside the rasters.

    Attributes
    ----------
    has_coordinates : bool
        Whether it sees the quarter-degree cell of each tile's centre.
    caption : str, tuple of (int, str), or None
        Text about the area, or one for each date (nanoseconds since 1970).
    """

    has_coordinates: bool = False
    caption: str | tuple[tuple[int, str], ...] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the sequences."""
        found = ["Coordinates"] if self.has_coordinates else []
        return [*found, CAPTIONS.name] if self.caption is not None else found

    def describe(self) -> dict[str, list[str]]:
        """Return the texts as attributes, nothing where there are none."""
        if self.caption is None:
            return {}
        if isinstance(self.caption, str):
            return {"terramind_caption": [self.caption]}
        return {"terramind_caption": [text for _, text in self.caption]}

    def tensors(self, loaded: LoadedModel, cut: Cut, batch: Batch) -> dict[str, Tensor]:
        """Return token ids (B, L) by name."""
        found, tiles = {}, batch.slots
        if self.has_coordinates:
            vocabulary: Any = loaded.vocabularies["Coordinates"]
            ids = place_ids(vocabulary, *tile_centres(cut, tiles))
            found["Coordinates"] = ids.to(loaded.device)
        if self.caption is not None:
            words: Any = loaded.vocabularies[CAPTIONS.name]
            text = self.caption
            if not isinstance(text, str):
                # A trial has no date of the cube's.
                text = dict(text).get(batch.time, text[0][1])
            ids = words.encode([text])[0]
            # As the released models were fed: a sentinel between the text and its end.
            row = torch.from_numpy(np.insert(ids, -1, words.sentinels[1]))
            found[CAPTIONS.name] = row.expand(len(tiles), -1).to(loaded.device)
        return found


def split_sequences(generated: Sequence[str], inputs: SequenceInputs) -> tuple[str, ...]:
    """Return the sequences that are read or generated, each once."""
    sequences = [name for name in generated if find_modality(name).kind == "sequence"]
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


def read_inputs(
    cube: xr.Dataset, inputs: Sequence[str] | Mapping[str, str] | None, caption: str | None
) -> tuple[list[str] | None, dict[str, Form], SequenceInputs]:
    """Read what a user wants the model to look at.

    Returns
    -------
    rasters : list of str or None
        None for the default ones.
    forms : dict of str to {"pixels", "tokens"}
        Of the rasters that were given one.
    sequences : SequenceInputs

    Raises
    ------
    ValueError
        If `inputs` is no list, or a caption is empty or missing.
    """
    if isinstance(inputs, str):
        raise ValueError(f"inputs is a list of modalities: give [{inputs!r}].")  # noqa: TRY004
    names = None if inputs is None else list(inputs)
    forms: dict[str, Any] = dict(inputs) if isinstance(inputs, Mapping) else {}
    texts: str | tuple[tuple[int, str], ...] | None = caption
    has_coordinates = bool(names) and "Coordinates" in (names or ())
    if caption is not None and not caption.strip():
        raise ValueError("caption is empty: leave it out for none.")
    for name in ("Coordinates", "Captions"):
        forms.pop(name, None)
    if names is not None:
        if "Captions" in names and caption is None:
            texts = _read_captions(cube)
        names = [name for name in names if name not in ("Coordinates", "Captions")]
        if not names:
            raise ValueError("inputs names no raster: give at least one, such as ['S2L2A'].")
    return names, forms, SequenceInputs(has_coordinates, texts)


def _read_captions(cube: xr.Dataset) -> str | tuple[tuple[int, str], ...]:
    """Return the texts that a cube carries as its coordinate `caption`."""
    if "caption" not in cube.coords:
        raise ValueError(
            "inputs names Captions: give the text as caption='...', or the cube a coordinate "
            "caption, of one text or one for each date."
        )
    texts = cube.coords["caption"]
    if texts.dims == ():
        return str(texts.item())
    if texts.dims != ("time",) or "time" not in cube.coords:
        raise ValueError(f"The cube's coordinate caption has dims {texts.dims}: none, or time.")
    times = cube["time"].values.astype("datetime64[ns]").astype(np.int64).tolist()
    return tuple(zip(times, map(str, texts.values), strict=True))
