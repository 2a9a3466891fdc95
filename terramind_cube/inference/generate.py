"""The plan of a generation, and what it computes for a batch of tiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from terramind_cube.inference.blend import tile_weights
from terramind_cube.inference.collect import CellMean, ClassCollector, ImageCollector, TileTable
from terramind_cube.inference.plan import Cut, TilePlan, check_outputs, plan_inputs, read_as_tokens
from terramind_cube.inference.runtime import Compute, Needs, WeightsChoice, choose_model
from terramind_cube.inference.sequences import SequenceInputs, place_ids, split_sequences
from terramind_cube.inference.trial import with_batch
from terramind_cube.inference.variables import (
    Ensemble,
    confidence_variable,
    coordinate_variables,
    image_variables,
)
from terramind_cube.modalities import MODALITIES, Statistics, find_modality
from terramind_cube.model.conditions import Conditions, Guidance
from terramind_cube.model.decoding import Decoding, generate_grid
from terramind_cube.model.diffusion import SAMPLERS, Sampler, noise_levels
from terramind_cube.model.quantizer import FiniteScalarQuantizer
from terramind_cube.model.sequences import rank_coordinates
from terramind_cube.model.tokenizers import CLAMPS
from terramind_cube.noise import NoiseStream, normal_image, uniform_cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from terramind_cube.cube.layout import CubeLayout
    from terramind_cube.grid import Region
    from terramind_cube.inference.collect import Collector
    from terramind_cube.inference.plan import Batch, TileValues
    from terramind_cube.inference.runtime import LoadedModel
    from terramind_cube.inference.sources import Form
    from terramind_cube.inference.variables import OutputVariable
    from terramind_cube.model.tokenizers import Clamp, Tokenizer
    from terramind_cube.model.variants import ModelDescription

__all__ = [
    "Diffusion",
    "Generation",
    "Options",
    "Target",
    "decode_image",
    "image_noise",
    "plan_generation",
    "plan_target",
]


@dataclass(frozen=True)
class Diffusion:
    """How tokens become images where a diffusion decoder does it."""

    steps: int = 10
    sampler: Sampler = "dpm++"
    clamp: Clamp | None = "physical"

    def __post_init__(self) -> None:
        noise_levels(self.steps, self.sampler)
        if self.clamp not in CLAMPS:
            raise ValueError(f"Unknown clamp {self.clamp!r}: 'physical', 'released' or None.")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"Unknown sampler {self.sampler!r}: {', '.join(SAMPLERS)}.")


@dataclass(frozen=True)
class Options:
    """What a user chooses for a generation; see `accessor.TerraMindAccessor.generate`."""

    weights: WeightsChoice
    compute: Compute
    forms: Mapping[str, Form] = field(default_factory=dict)
    sequences: SequenceInputs = field(default_factory=SequenceInputs)
    seed: int = 0
    decoding: Decoding = field(default_factory=Decoding)
    diffusion: Diffusion = field(default_factory=Diffusion)
    ensemble: Ensemble = field(default_factory=Ensemble)
    guidance: float | Mapping[str, float] | None = None
    is_chained: bool = False
    think: tuple[str, ...] = ()
    token_confidence: bool | None = None
    candidates: int = 5
    overlap_px: int = 32
    chunk_px: int = 896


@dataclass(frozen=True)
class Target:
    """A modality to generate.

    Attributes
    ----------
    name : str
    levels : tuple of int
        Of its quantizer; empty for a sequence.
    statistics : Statistics or None
        Of its images; None for class codes and sequences.
    is_decoded : bool
        Whether its tokens become an output; those that are only thought of do not.
    conditions : bool
        Whether what comes after it sees it.
    """

    name: str
    levels: tuple[int, ...]
    statistics: Statistics | None
    is_decoded: bool
    conditions: bool


@dataclass(frozen=True)
class Generation(TilePlan):
    """A generation over an area, ready to run; further attributes as in `Options`.

    Attributes
    ----------
    targets : tuple of Target
        In the order in which they are generated.
    """

    targets: tuple[Target, ...]
    sequences: SequenceInputs
    seed: int
    decoding: Decoding
    diffusion: Diffusion
    ensemble: Ensemble
    guidance: Guidance
    has_token_confidence: bool
    candidates: int

    @property
    def outputs(self) -> tuple[str, ...]:
        """Modalities of the result."""
        return tuple(target.name for target in self.targets if target.is_decoded)

    def think(
        self, loaded: LoadedModel, batch: Batch, inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the token ids of every target by name, (B, h, w) or (B, L)."""
        conditions = Conditions.of_inputs(loaded.model, inputs, self.guidance)
        steps = _Sample(self, loaded, batch, sample=0).steps(conditions)
        return {target.name: ids for target, ids, _ in steps}

    def stream(self, name: str, time: int, sample: int = 0, step: int = 0) -> NoiseStream:
        """Return the random numbers for a purpose at a time (nanoseconds since 1970)."""
        return NoiseStream(self.seed, name, time, sample, step)

    def variables(self) -> tuple[OutputVariable, ...]:
        """Return the outputs, their spread, their confidence."""
        rows: list[OutputVariable] = []
        for name in self.outputs:
            if MODALITIES[name].kind == "sequence":
                rows += coordinate_variables(self.candidates)
                continue
            rows += image_variables(MODALITIES[name], self.ensemble)
            if self.has_token_confidence:
                rows.append(confidence_variable(name))
        return tuple(rows)

    def collectors(self, region: Region) -> dict[str, Collector]:
        """Return a collector per output, and one per token confidence."""
        grid = self.grid
        place = (region, tile_weights(grid.y.tile_px, grid.y.overlap_px))
        found: dict[str, Collector] = {}
        for target in self.targets:
            modality = MODALITIES[target.name]
            if not target.is_decoded:
                continue
            if modality.kind == "sequence":
                rows = coordinate_variables(self.candidates)
                found[target.name] = TileTable(rows, region, grid)
                continue
            variables = image_variables(modality, self.ensemble)
            if target.statistics is None:
                found[target.name] = ClassCollector(target.name, variables, self.ensemble, place)
            else:
                found[target.name] = ImageCollector(
                    modality, target.statistics, variables, self.ensemble, place,
                    is_bounded=self.diffusion.clamp == "physical",
                )  # fmt: skip
            if self.has_token_confidence:
                row = confidence_variable(target.name)
                found[row.name] = CellMean(row, region, grid, self.ensemble)
        return found

    def run(self, loaded: LoadedModel, batch: Batch) -> Iterator[TileValues]:
        """Generate all targets of a batch, sample by sample."""
        inputs = {
            **batch.buffers.tensors(loaded),
            **self.sequences.tensors(loaded, self.cut, batch.slots),
        }
        conditions = Conditions.of_inputs(loaded.model, inputs, self.guidance)
        found: dict[str, list[NDArray[Any]]] = {}
        for sample in range(self.ensemble.samples):
            run = _Sample(self, loaded, batch, sample)
            for name, values in run.generate(conditions):
                found.setdefault(name, []).append(values)
        for slot in range(len(batch.tiles)):
            yield {
                # Coordinates are a distribution already: one sample says it all.
                name: samples[0][slot]
                if name == "Coordinates"
                else np.stack([sample[slot] for sample in samples])
                for name, samples in found.items()
            }

    def settings(self) -> dict[str, Any]:
        """Return the choices that decide the values."""
        decoding, sampling = self.decoding, self.decoding.sampling
        drawn = (
            f"temperature={sampling.temperature:g}, top_p={sampling.top_p:g}, "
            f"top_k={sampling.top_k}"
        )
        how = "one step"
        if decoding.steps > 1:
            how = (
                f"{decoding.steps} steps of {decoding.scheme}, {decoding.schedule} schedule, "
                f"{decoding.temperature_schedule} temperature"
            )
        text = f"{how}, {drawn}" + (", expected codes" if decoding.is_soft else "")
        chosen: dict[str, Any] = {"terramind_seed": str(self.seed), "terramind_sampler": text}
        diffusion = self.diffusion
        if any(MODALITIES[name].kind == "image" for name in self.outputs):
            chosen["terramind_decoder"] = (
                f"{diffusion.sampler}, {diffusion.steps} steps, clamp={diffusion.clamp}"
            )
        if self.ensemble.samples > 1:
            chosen["terramind_samples"] = self.ensemble.samples
        if self.guidance.groups:
            chosen["terramind_guidance"] = [
                f"{'+'.join(names)}:{weight:g}" for names, weight in self.guidance.groups
            ]
        seen = [target.name for target in self.targets if target.conditions]
        if seen:
            chosen["terramind_chain"] = seen
        return chosen

    def provenance(self) -> dict[str, Any]:
        """Return the attributes that every variable carries."""
        attributes = super().provenance()
        attributes["terramind_inputs"] += self.sequences.names
        return {"terramind_generated": "true", **attributes, **self.settings()}


class _Sample:
    """One sample of a batch: draws, decodes, and chains what it generates."""

    def __init__(self, plan: Generation, loaded: LoadedModel, batch: Batch, sample: int) -> None:
        self.plan, self.loaded, self.batch, self.sample = plan, loaded, batch, sample
        self.cells = [plan.grid.cells(tile) for tile in batch.slots]

    def generate(self, conditions: Conditions) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the values of each collector, (B, ...)."""
        for target, _, values in self.steps(conditions):
            if target.is_decoded:
                yield from values.items()

    def steps(
        self, conditions: Conditions
    ) -> Iterator[tuple[Target, Tensor, dict[str, NDArray[Any]]]]:
        """Yield each target with its token ids and, if it is decoded, its values."""
        for target in self.plan.targets:
            if not target.levels:
                values, ids = self._coordinates(conditions)
                yield target, ids, {target.name: values}
            else:
                quantizer = FiniteScalarQuantizer(target.levels)
                draw = _CellDraw(self, target.name)
                grid = generate_grid(conditions, target.name, self.plan.decoding, draw, quantizer)
                ids, found = grid.ids, {}
                if target.is_decoded:
                    found[target.name] = self._decode(target, grid.codes)
                if target.is_decoded and self.plan.has_token_confidence:
                    found[f"{target.name}_token_confidence"] = grid.confidence.cpu().numpy()
                yield target, ids, found
            if target.conditions:
                conditions = conditions.joined(conditions.model.embed({target.name: ids}))

    def _decode(self, target: Target, codes: Tensor) -> NDArray[np.float32]:
        """Return standardised images, or class probabilities, (B, C, H, W)."""
        how = self.plan.diffusion
        stream = self.plan.stream(f"{target.name}/image", self.batch.time, self.sample)
        noise = image_noise(self.loaded.tokenizers[target.name], stream, self.cells)
        return decode_image(self.loaded.tokenizers[target.name], codes, how, noise)

    def _coordinates(self, conditions: Conditions) -> tuple[NDArray[np.float32], Tensor]:
        """Return probability, latitude, longitude (B, 3, k) and the ids of the best cell (B, 3)."""
        vocabulary: Any = self.loaded.vocabularies["Coordinates"]
        tables = (vocabulary.latitude_ids, vocabulary.longitude_ids)
        cells = rank_coordinates(conditions, tables, count=self.plan.candidates)
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
) -> Tensor | None:
    """Return where the images of tiles start, (B, C, H, W), by their world cells; None for a ViT."""
    row = tokenizer.description
    if row.unet is None:
        return None
    height, width = (len(axis) * row.patch_px for axis in cells[0])
    start = np.empty((len(cells), row.channels, height, width), np.float32)
    for slot, place in enumerate(cells):
        normal_image(stream, *place, start[slot])
    return torch.from_numpy(start)


def decode_image(
    tokenizer: Tokenizer, codes: Tensor, how: Diffusion, noise: Tensor | None
) -> NDArray[np.float32]:
    """Return standardised images, or class probabilities, (B, C, H, W)."""
    image = tokenizer.decode_codes(codes, how.steps, noise, how.sampler, how.clamp)
    if MODALITIES[tokenizer.description.modality].kind == "classes":
        image = image.softmax(dim=1)
    values: NDArray[np.float32] = image.cpu().numpy()
    return values


class _CellDraw:
    """Random numbers of a batch for one target; see `model.decoding.Draw`."""

    def __init__(self, run: _Sample, name: str) -> None:
        self.run, self.name = run, name

    def _stream(self, name: str, step: int) -> NoiseStream:
        return self.run.plan.stream(name, self.run.batch.time, self.run.sample, step)

    def tokens(self, step: int, width: int, positions: NDArray[np.int64] | None) -> Tensor:
        cells = self.run.cells
        count = len(cells[0][0]) * len(cells[0][1]) if positions is None else positions.shape[1]
        out = np.empty((len(cells), count, width), np.float32)
        for slot, (rows, cols) in enumerate(cells):
            places = None if positions is None else positions[slot]
            uniform_cells(self._stream(self.name, step), rows, cols, out[slot], places)
        return torch.from_numpy(out).to(self.run.loaded.device)

    def order(self) -> NDArray[np.float32]:
        cells = self.run.cells
        out = np.empty((len(cells), len(cells[0][0]) * len(cells[0][1]), 1), np.float32)
        for slot, (rows, cols) in enumerate(cells):
            uniform_cells(self._stream(f"{self.name}/order", 0), rows, cols, out[slot])
        return out[..., 0]


def plan_generation(layout: CubeLayout, outputs: Sequence[str], options: Options) -> Generation:
    """Check a request against cube, model and weights, and plan it.

    Raises
    ------
    ValueError, FileNotFoundError, WeightsError
        If an output cannot be generated, an input is none of the model's, numbers do not fit, or
        weights are wrong.
    """
    names = check_outputs(outputs)
    think = check_outputs(options.think, "think") if options.think else ()
    twice = sorted(set(think) & set(names))
    if twice:
        raise ValueError(f"{', '.join(twice)} is both an output and thought of: choose one.")
    layers = [layer.modality.name for layer in layout.layers]
    generated = (*think, *names)
    needs = Needs(
        decoded=tuple(name for name in names if find_modality(name).kind != "sequence"),
        encoded=read_as_tokens(layers, options.forms),
        sequences=split_sequences(generated, options.sequences),
    )
    spec, description = choose_model(options.weights, needs, options.compute)
    cut = Cut.over(layout, description, options.overlap_px, options.chunk_px)
    NoiseStream(options.seed, names[0]).key()
    options.decoding.counts(description.grid**2)
    inputs = plan_inputs(layout, options.forms, description)
    if options.candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {options.candidates}.")
    plan = Generation(
        spec=spec,
        inputs=inputs,
        cut=cut,
        targets=tuple(
            # What is only thought of has no other use; nothing comes after the last one.
            plan_target(
                name,
                description,
                is_decoded=name in names,
                conditions=name in think or (options.is_chained and name != names[-1]),
            )
            for name in generated
        ),
        sequences=options.sequences,
        seed=options.seed,
        decoding=options.decoding,
        diffusion=options.diffusion,
        ensemble=options.ensemble,
        guidance=Guidance.parse(options.guidance, [*layers, *options.sequences.names]),
        has_token_confidence=_has_confidence(options, cut, description),
        candidates=options.candidates,
    )
    return with_batch(plan)


def plan_target(
    name: str, description: ModelDescription, *, is_decoded: bool, conditions: bool
) -> Target:
    """Return how a model generates a modality.

    Raises
    ------
    ValueError
        If it does not.
    """
    modality = find_modality(name)
    if description.token_space(name) is None:
        can = ", ".join(row.modality for row in description.token_spaces)
        raise ValueError(f"{description.name} does not generate {name}; it generates {can}.")
    if modality.kind == "sequence":
        return Target(name, (), None, is_decoded, conditions)
    is_classes = modality.kind == "classes"
    statistics = None if is_classes else description.statistics[name]
    return Target(name, modality.fsq_levels or (), statistics, is_decoded, conditions)


def _has_confidence(options: Options, cut: Cut, description: ModelDescription) -> bool:
    if options.token_confidence and not cut.holds_whole_cells:
        raise ValueError(
            f"token_confidence lies on token cells of {description.patch_px} px, which chunks="
            f"{cut.chunk_px} would cut: give chunks that are a multiple of "
            f"{description.patch_px}, or token_confidence=False."
        )
    wanted = options.token_confidence
    return cut.holds_whole_cells if wanted is None else wanted
