"""One sample of a batch of tiles: tokens drawn by world cell, decoded, chained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from terramind_cube.inference.sequences import place_ids
from terramind_cube.modalities import CAPTIONS, MODALITIES
from terramind_cube.model.decoding import generate_grid
from terramind_cube.model.quantizer import FiniteScalarQuantizer
from terramind_cube.model.sequences import generate_sequence, rank_coordinates
from terramind_cube.noise import NoiseStream, normal_batch, uniform_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.inference.generate import Diffusion, Generation, Target
    from terramind_cube.inference.plan import Batch
    from terramind_cube.inference.runtime import LoadedModel
    from terramind_cube.model.conditions import Conditions
    from terramind_cube.model.tokenizers import Tokenizer

__all__ = ["Sample", "decode_image", "image_noise"]


class Sample:
    """One sample of a batch: draws, decodes, and chains what it generates.

    Parameters
    ----------
    plan : Generation
    loaded : LoadedModel
    batch : Batch
    sample : int
        Its place in the ensemble.
    """

    def __init__(self, plan: Generation, loaded: LoadedModel, batch: Batch, sample: int) -> None:
        self.plan, self.loaded, self.batch, self.sample = plan, loaded, batch, sample
        self.cells = [plan.grid.cells(tile) for tile in batch.slots]

    def generate(self, conditions: Conditions) -> Iterator[tuple[str, Any]]:
        """Yield the values of each collector, (B, ...): tensors, of sequences NumPy arrays."""
        for target, _, values in self.steps(conditions):
            if target.is_decoded:
                yield from values.items()

    def steps(self, conditions: Conditions) -> Iterator[tuple[Target, Tensor, dict[str, Any]]]:
        """Yield each target with its token ids and, if it is decoded, its values."""
        for target in self.plan.targets:
            if not target.levels and self.sample and not target.conditions:
                continue  # of sequences the first sample is kept
            if not target.levels:
                is_text = target.name == CAPTIONS.name
                values, ids = (self._captions if is_text else self._coordinates)(conditions)
                yield target, ids, {target.name: values}
            else:
                quantizer = FiniteScalarQuantizer(target.levels)
                draw = _CellDraw(self, target.name)
                is_soft = self.plan.decoding.is_soft and target.statistics is not None
                how = replace(self.plan.decoding, is_soft=is_soft)
                grid = generate_grid(conditions, target.name, how, draw, quantizer)
                ids, found = grid.ids, {}
                if target.is_decoded:
                    found[target.name] = self._decode(target, grid.codes)
                if target.is_decoded and self.plan.has_token_confidence:
                    found[f"{target.name}_token_confidence"] = grid.confidence
                yield target, ids, found
            if target.conditions:
                conditions = conditions.joined(conditions.model.embed({target.name: ids}))

    def _decode(self, target: Target, codes: Tensor) -> Tensor:
        """Return standardised images, or class probabilities, (B, C, H, W)."""
        how = self.plan.diffusion
        stream = self.plan.stream(f"{target.name}/image", self.batch.time, self.sample)
        noise = image_noise(self.loaded.tokenizers[target.name], stream, self.cells, codes.device)
        return decode_image(self.loaded.tokenizers[target.name], codes, how, noise)

    def _captions(self, conditions: Conditions) -> tuple[NDArray[np.object_], Tensor]:
        """Return texts (B, 1) and their ids (B, L)."""
        words: Any = self.loaded.vocabularies[CAPTIONS.name]

        def draw(step: int, width: int) -> Tensor:
            out = torch.empty((len(self.cells), 1, width), device=self.loaded.device)
            stream = self.plan.stream(CAPTIONS.name, self.batch.time, self.sample, step)
            uniform_batch(stream, [(rows[:1], cols[:1]) for rows, cols in self.cells], out)
            return out[:, 0]

        ids = generate_sequence(
            conditions, CAPTIONS.name, self.plan.decoding.sampling, draw,
            max_length=CAPTIONS.max_length or 1, start=words.sentinels[1],
            stops=(words.sentinels[2], words.eos),
        )  # fmt: skip
        texts = np.array([[words.decode(row)] for row in ids.cpu().numpy()], object)
        return texts, ids

    def _coordinates(self, conditions: Conditions) -> tuple[NDArray[np.float32], Tensor]:
        """Return probability, latitude, longitude (B, 3, k) and the ids of the best cell (B, 3)."""
        vocabulary: Any = self.loaded.vocabularies["Coordinates"]
        tables = (vocabulary.latitude_ids, vocabulary.longitude_ids)
        cells = rank_coordinates(
            conditions, tables, count=self.plan.candidates, start=vocabulary.start
        )
        rows, cols = cells.latitude.cpu().numpy(), cells.longitude.cpu().numpy()
        values = np.stack(
            [cells.probability.cpu().numpy(), vocabulary.latitudes[rows],
             vocabulary.longitudes[cols]], axis=1,
        )  # fmt: skip
        ids = place_ids(vocabulary, values[:, 2, 0], values[:, 1, 0])
        return values.astype(np.float32), ids.to(self.loaded.device)


def image_noise(
    tokenizer: Tokenizer,
    stream: NoiseStream,
    cells: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    device: torch.device,
) -> Tensor | None:
    """Return where the images of tiles start, (B, C, H, W), by their world cells; None for a ViT."""
    row = tokenizer.description
    if row.unet is None:
        return None
    height, width = (len(axis) * row.patch_px for axis in cells[0])
    start = torch.empty((len(cells), row.channels, height, width), device=device)
    normal_batch(stream, cells, start)
    return start


def decode_image(
    tokenizer: Tokenizer, codes: Tensor, how: Diffusion, noise: Tensor | None
) -> Tensor:
    """Return standardised images, or class probabilities, (B, C, H, W)."""
    image = tokenizer.decode_codes(codes, how.steps, noise, how.sampler, how.clamp)
    if MODALITIES[tokenizer.description.modality].kind == "classes":
        image = image.softmax(dim=1)
    return image


class _CellDraw:
    """Random numbers of a batch for one target; see `model.decoding.Draw`."""

    def __init__(self, run: Sample, name: str) -> None:
        self.run, self.name = run, name

    def _stream(self, name: str, step: int) -> NoiseStream:
        return self.run.plan.stream(name, self.run.batch.time, self.run.sample, step)

    def tokens(self, step: int, width: int, positions: NDArray[np.int64] | None) -> Tensor:
        cells = self.run.cells
        count = len(cells[0][0]) * len(cells[0][1]) if positions is None else positions.shape[1]
        out = torch.empty((len(cells), count, width), device=self.run.loaded.device)
        uniform_batch(self._stream(self.name, step), cells, out, positions)
        return out

    def order(self) -> NDArray[np.float32]:
        cells = self.run.cells
        out = np.empty((len(cells), len(cells[0][0]) * len(cells[0][1]), 1), np.float32)
        uniform_batch(self._stream(f"{self.name}/order", 0), cells, out)
        return out[..., 0]
