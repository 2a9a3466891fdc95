"""The plan of a generation, and what it computes for a batch of tiles."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from terramind_cube.inference.choice import Needs, WeightsChoice, choose_model
from terramind_cube.inference.collect import CellMean, TileTable, raster_collector
from terramind_cube.inference.plan import Cut, TilePlan, check_outputs, plan_inputs, read_as_tokens
from terramind_cube.inference.sample import Sample
from terramind_cube.inference.sequences import SequenceInputs, split_sequences
from terramind_cube.inference.trial import with_batch
from terramind_cube.inference.variables import (
    Ensemble,
    confidence_variable,
    image_variables,
    sequence_variables,
)
from terramind_cube.modalities import (
    CAPTIONS,
    LULC_CLASSES,
    MODALITIES,
    Statistics,
    find_modality,
)
from terramind_cube.model.conditions import Conditions, Guidance
from terramind_cube.model.decoding import Decoding
from terramind_cube.model.diffusion import Sampler, noise_levels
from terramind_cube.model.tokenizers import CLAMPS
from terramind_cube.noise import NoiseStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from terramind_cube.cube.layout import CubeLayout
    from terramind_cube.grid import Region
    from terramind_cube.inference.collect import Collector
    from terramind_cube.inference.plan import Batch, TileValues
    from terramind_cube.inference.runtime import Compute, LoadedModel
    from terramind_cube.inference.sources import Form
    from terramind_cube.inference.variables import OutputVariable
    from terramind_cube.model.tokenizers import Clamp
    from terramind_cube.model.variants import ModelDescription

__all__ = [
    "Diffusion",
    "Generation",
    "Options",
    "Target",
    "plan_generation",
    "plan_target",
]

MOST_CANDIDATES = 1000


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

    def describe(self) -> str:
        """Return the choices in one line."""
        return f"{self.sampler}, {self.steps} steps, clamp={self.clamp}"


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
    think: Sequence[str] = ()
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
        steps = Sample(self, loaded, batch, sample=0).steps(conditions)
        return {target.name: ids for target, ids, _ in steps}

    def stream(self, name: str, time: int, sample: int = 0, step: int = 0) -> NoiseStream:
        """Return the random numbers for a purpose at a time (nanoseconds since 1970)."""
        return NoiseStream(self.seed, name, time, sample, step)

    def variables(self) -> tuple[OutputVariable, ...]:
        """Return the outputs, their spread, their confidence."""
        rows: list[OutputVariable] = []
        for name in self.outputs:
            if find_modality(name).kind == "sequence":
                rows += sequence_variables(name, self.candidates)
                continue
            rows += image_variables(MODALITIES[name], self.ensemble)
            if self.has_token_confidence:
                rows.append(confidence_variable(name))
        return tuple(rows)

    def for_trial(self) -> Generation:
        """Return the plan with one sample and few diffusion steps."""
        diffusion = replace(self.diffusion, steps=min(self.diffusion.steps, 2))
        return replace(self, ensemble=Ensemble(), diffusion=diffusion)

    def sums_per_row_px(self) -> int:
        """Return the bytes of the sums of all samples, and of two copies while they settle."""
        bands = sum(
            len(LULC_CLASSES) if target.statistics is None else len(target.statistics.mean)
            for target in self.targets
            if target.is_decoded and target.levels
        )
        return 3 * 4 * self.ensemble.samples * bands

    def collectors(self, region: Region, masks: Sequence[Tensor]) -> dict[str, Collector]:
        """Return a collector per output, and one per token confidence."""
        grid, place = self.grid, self.place(region, masks)
        found: dict[str, Collector] = {}
        for target in self.targets:
            modality = find_modality(target.name)
            if not target.is_decoded:
                continue
            if modality.kind == "sequence":
                rows = sequence_variables(target.name, self.candidates)
                found[target.name] = TileTable(rows, region, grid)
                continue
            found[target.name] = raster_collector(
                modality,
                target.statistics,
                self.ensemble,
                place,
                is_bounded=self.diffusion.clamp == "physical",
            )
            if self.has_token_confidence:
                row = confidence_variable(target.name)
                found[row.name] = CellMean(row, place, grid, self.ensemble)
        return found

    def run(self, loaded: LoadedModel, batch: Batch) -> Iterator[TileValues]:
        """Generate all targets of a batch, sample by sample."""
        inputs = {
            **batch.buffers.tensors(loaded),
            **self.sequences.tensors(loaded, self.cut, batch),
        }
        conditions = Conditions.of_inputs(loaded.model, inputs, self.guidance)
        conditions.keeps_logits = self.ensemble.samples > 1
        found: dict[str, list[Any]] = {}
        for sample in range(self.ensemble.samples):
            run = Sample(self, loaded, batch, sample)
            for name, values in run.generate(conditions):
                found.setdefault(name, []).append(values)
        for slot in range(len(batch.tiles)):
            yield {
                # Coordinates are a distribution already; of captions the first sample is kept.
                name: samples[0][slot]
                if find_modality(name.partition("_")[0]).kind == "sequence"
                else torch.stack([sample[slot] for sample in samples])
                for name, samples in found.items()
            }

    def settings(self) -> dict[str, Any]:
        """Return the choices that decide the values."""
        decoding, sampling = self.decoding, self.decoding.sampling
        drawn = (
            f"temperature={_exact(sampling.temperature)}, top_p={_exact(sampling.top_p)}, "
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
        if any(find_modality(name).kind == "image" for name in self.outputs):
            chosen["terramind_decoder"] = self.diffusion.describe()
        if self.ensemble.samples > 1:
            chosen["terramind_samples"] = self.ensemble.samples
        if self.guidance.groups:
            chosen["terramind_guidance"] = [
                f"{'+'.join(names)}:{_exact(weight)}" for names, weight in self.guidance.groups
            ]
        chosen |= self.sequences.describe()
        seen = [target.name for target in self.targets if target.conditions]
        if seen:
            chosen["terramind_run_chain"] = seen
        return chosen

    def provenance(self) -> dict[str, Any]:
        """Return the attributes that every variable carries."""
        attributes = super().provenance()
        attributes["terramind_inputs"] += self.sequences.names
        return {"terramind_generated": "true", **attributes, **self.settings()}


def _exact(number: float) -> str:
    """Spell a number so that no other one is spelt alike."""
    return repr(float(number)).removesuffix(".0")


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
    if CAPTIONS.name in think or (options.is_chained and CAPTIONS.name in names[:-1]):
        raise ValueError("Captions condition nothing: generate them last, and do not think them.")
    layers = [layer.modality.name for layer in layout.layers]
    encoded = read_as_tokens(layers, options.forms)
    # What is there needs no thinking of.
    think = tuple(name for name in think if name not in (*encoded, *options.sequences.names))
    generated = (*think, *names)
    needs = Needs(
        decoded=tuple(name for name in names if find_modality(name).kind != "sequence"),
        encoded=encoded,
        sequences=split_sequences(generated, options.sequences),
    )
    spec, description = choose_model(options.weights, needs, options.compute)
    cut = Cut.over(layout, description, options.overlap_px, options.chunk_px)
    NoiseStream(options.seed, names[0]).key()
    options.decoding.counts(description.grid**2)
    inputs = plan_inputs(layout, options.forms, description)
    if not 1 <= options.candidates <= MOST_CANDIDATES:
        raise ValueError(f"candidates must lie in 1 .. {MOST_CANDIDATES}: {options.candidates}.")
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
