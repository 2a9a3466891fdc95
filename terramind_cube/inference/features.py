"""Plans beside generation: embeddings of the encoder, tokens, and a tokenizer's reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from terramind_cube.inference.choice import Needs, WeightsChoice, choose_model
from terramind_cube.inference.collect import FirstCells, raster_collector
from terramind_cube.inference.generate import (
    Diffusion,
    Generation,
    plan_target,
)
from terramind_cube.inference.plan import (
    Cut,
    TilePlan,
    check_outputs,
    plan_inputs,
    read_as_tokens,
)
from terramind_cube.inference.sample import decode_image, image_noise
from terramind_cube.inference.sequences import SequenceInputs, split_sequences
from terramind_cube.inference.sources import any_known
from terramind_cube.inference.trial import with_batch
from terramind_cube.inference.variables import Axis, Ensemble, OutputVariable, image_variables
from terramind_cube.modalities import CAPTIONS, MODALITIES, Statistics
from terramind_cube.model.conditions import Guidance
from terramind_cube.model.decoding import Decoding
from terramind_cube.noise import NoiseStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from terramind_cube.cube.layout import CubeLayout
    from terramind_cube.grid import Region
    from terramind_cube.inference.collect import Collector
    from terramind_cube.inference.plan import Batch, TileValues
    from terramind_cube.inference.runtime import Compute, LoadedModel, ModelSpec
    from terramind_cube.inference.sources import Form, InputLayer
    from terramind_cube.model.variants import ModelDescription

__all__ = [
    "EmbedOptions",
    "Embedding",
    "Reconstruction",
    "Tokenization",
    "plan_embedding",
    "plan_reconstruction",
    "plan_tokenization",
]

Merge = Literal["mean", "max", "concat"]
EMBEDDING = "embedding"


@dataclass(frozen=True)
class EmbedOptions:
    """What a user chooses for embeddings; see `accessor.TerraMindAccessor.embed`."""

    weights: WeightsChoice
    compute: Compute
    forms: Mapping[str, Form] = field(default_factory=dict)
    sequences: SequenceInputs = field(default_factory=SequenceInputs)
    layers: Sequence[int] | Literal["all"] | None = None
    merge: Merge | None = "mean"
    think: Sequence[str] = ()
    decoding: Decoding = field(default_factory=Decoding)
    seed: int = 0
    chunk_px: int = 896


@dataclass(frozen=True)
class Embedding(TilePlan):
    """Features of the encoder on the token grid.

    Attributes
    ----------
    layers : tuple of int
        Encoder blocks, from 0; the last one is normalised.
    has_layer_axis : bool
        Whether the result tells the layers apart.
    merge : {"mean", "max", "concat"} or None
        How the features of several images become one vector per cell.
    width : int
        Of the model.
    sequences : SequenceInputs
        They are looked at, and have no cells of their own.
    thinking : Generation or None
        Generates tokens that are looked at too.
    """

    layers: tuple[int, ...]
    has_layer_axis: bool
    merge: Merge | None
    width: int
    sequences: SequenceInputs
    thinking: Generation | None

    @property
    def images(self) -> tuple[str, ...]:
        """Rasters whose cells are merged: inputs, and what was thought of."""
        thought = () if self.thinking is None else _names(self.thinking)
        thought = tuple(name for name in thought if MODALITIES[name].kind != "sequence")
        seen = tuple(layer.modality for layer in self.inputs)
        return (*seen, *(f"{name} (thought)" if name in seen else name for name in thought))

    def variables(self) -> tuple[OutputVariable, ...]:
        """Return the one variable."""
        width = self.width * (len(self.images) if self.merge == "concat" else 1)
        axes = [Axis("layer", len(self.layers), self.layers)] if self.has_layer_axis else []
        if self.merge is None:
            axes.append(Axis("modality", len(self.images), self.images))
        names = [axis.name for axis in axes]
        dims = ("time", *names, "token_y", "token_x", "feature")
        attrs = {"long_name": "features of TerraMind's encoder", "units": "1"}
        feature = Axis("feature", width)
        return (OutputVariable(EMBEDDING, "cells", "float32", (*axes, feature), dims, attrs),)

    def collectors(self, region: Region, masks: Sequence[Tensor]) -> dict[str, Collector]:
        """Return the one collector."""
        is_valid, patch_px = any_known(masks), self.grid.y.patch_px
        return {EMBEDDING: FirstCells(self.variables()[0], region, is_valid, patch_px)}

    def run(self, loaded: LoadedModel, batch: Batch) -> Iterator[TileValues]:
        """Encode a batch."""
        inputs: dict[str, Tensor] = dict(batch.buffers.tensors(loaded))
        sequences = self.sequences.tensors(loaded, self.cut, batch)
        embedded = loaded.model.embed(inputs)
        if sequences or self.thinking:
            # Fresh embeddings say nothing yet that is worth a thought.
            known = {name: values for name, values in inputs.items() if name in MODALITIES}
            seen = {**known, **sequences}
            thought = {} if self.thinking is None else self.thinking.think(loaded, batch, seen)
            # Sequences last: they have no cells to be merged.
            further = sorted({**thought, **sequences}.items(), key=lambda row: row[1].ndim == 2)
            for name, ids in further:
                embedded += loaded.model.embed({name: ids})
        states = loaded.model.hidden_states(embedded)
        count, cells = len(self.images), embedded.rows * embedded.cols
        features = torch.stack([states[i] for i in self.layers], dim=1)  # (B, layers, N, D)
        features = features[:, :, : count * cells].unflatten(2, (count, cells))
        if self.merge == "mean":
            features = features.mean(dim=2)
        elif self.merge == "max":
            features = features.amax(dim=2)
        elif self.merge == "concat":
            features = features.transpose(2, 3).flatten(3)  # (B, layers, N, count * D)
        grid = (embedded.rows, embedded.cols)
        values = features.transpose(-1, -2).unflatten(-1, grid).float()
        for slot in range(len(batch.tiles)):
            yield {EMBEDDING: values[slot] if self.has_layer_axis else values[slot, 0]}

    def settings(self) -> dict[str, Any]:
        """Return the choices that decide the values."""
        chosen: dict[str, Any] = {
            "terramind_layers": list(self.layers),
            "terramind_merge": str(self.merge),
        }
        chosen |= self.sequences.describe()
        if self.spec.extensions:
            chosen["terramind_new_modalities"] = [
                f"{name}: mean {row.mean}, standard deviation {row.std}"
                for name, row in self.spec.extensions
            ]
        if self.thinking is not None:
            chosen["terramind_think"] = list(_names(self.thinking))
            chosen |= self.thinking.settings()
        return chosen

    def provenance(self) -> dict[str, Any]:
        """Return the attributes that the variable carries."""
        attributes = super().provenance()
        attributes["terramind_inputs"] += self.sequences.names
        return {**attributes, **self.settings()}


def plan_embedding(layout: CubeLayout, options: EmbedOptions) -> Embedding:
    """Check a request for embeddings against cube, model and weights, and plan it.

    Raises
    ------
    ValueError, FileNotFoundError, WeightsError
        If inputs, layers, merging or weights do not fit.
    """
    layers = [layer.modality.name for layer in layout.layers]
    think = check_outputs(options.think, "think") if options.think else ()
    if think and not any(name in MODALITIES for name in layers):
        raise ValueError("think needs an input that the model knows.")
    if CAPTIONS.name in think:
        raise ValueError("Captions condition nothing: do not think them.")
    encoded = read_as_tokens(layers, options.forms)
    # What is there needs no thinking of.
    think = tuple(name for name in think if name not in (*encoded, *options.sequences.names))
    needs = Needs(
        encoded=encoded,
        sequences=split_sequences(think, options.sequences),
    )
    spec, description = choose_model(options.weights, needs, options.compute)
    if options.merge not in ("mean", "max", "concat", None):
        raise ValueError(f"Unknown merge {options.merge!r}: 'mean', 'max', 'concat' or None.")
    depth = description.encoder_depth
    blocks = range(depth) if options.layers == "all" else options.layers
    if isinstance(blocks, str | int):
        raise ValueError(f"layers={blocks!r}: give a list of blocks, such as [0], or 'all'.")  # noqa: TRY004
    chosen = (depth - 1,) if blocks is None else tuple(blocks)
    if not chosen or any(not -depth <= block < depth for block in chosen):
        raise ValueError(f"layers={options.layers!r}: {description.name} has 0 .. {depth - 1}.")
    cut = _cell_cut(layout, description, options.chunk_px)
    inputs = plan_inputs(layout, options.forms, description)
    plan = Embedding(
        spec=spec,
        inputs=inputs,
        cut=cut,
        layers=tuple(block % depth for block in chosen),
        has_layer_axis=options.layers is not None,
        merge=options.merge,
        width=description.dim,
        sequences=options.sequences,
        thinking=_thinking((spec, inputs, cut), think, description, options) if think else None,
    )
    return with_batch(plan)


def _thinking(
    base: tuple[ModelSpec, tuple[InputLayer, ...], Cut],
    think: Sequence[str],
    description: ModelDescription,
    options: EmbedOptions,
) -> Generation:
    """Plan the tokens that are looked at beside the inputs, and never decoded."""
    NoiseStream(options.seed, think[0]).key()
    options.decoding.counts(description.grid**2)
    return Generation(
        *base,
        targets=tuple(
            plan_target(name, description, is_decoded=False, conditions=name != think[-1])
            for name in think
        ),
        sequences=options.sequences,
        seed=options.seed,
        decoding=options.decoding,
        diffusion=Diffusion(),
        ensemble=Ensemble(),
        guidance=Guidance(),
        has_token_confidence=False,
        candidates=1,
    )


def _names(thinking: Generation) -> tuple[str, ...]:
    return tuple(target.name for target in thinking.targets)


def _cell_cut(layout: CubeLayout, description: ModelDescription, chunk_px: int) -> Cut:
    """Cut an area for values per token cell, without overlap."""
    cut = Cut.over(layout, description, 0, chunk_px)
    if not cut.holds_whole_cells:
        raise ValueError(
            f"chunks={chunk_px} cuts token cells: give a multiple of {description.patch_px} px."
        )
    return cut


@dataclass(frozen=True)
class Tokenization(TilePlan):
    """Token ids of rasters, without overlap."""

    def variables(self) -> tuple[OutputVariable, ...]:
        """Return ``X_tokens`` of every input."""
        return tuple(
            OutputVariable(
                f"{layer.modality}_tokens",
                "cells",
                "int32",
                attrs={"long_name": f"token ids of {layer.modality}", "units": "1", "nodata": -1},
            )
            for layer in self.inputs
        )

    def collectors(self, region: Region, masks: Sequence[Tensor]) -> dict[str, Collector]:
        """Return one collector per input, known where the input itself is."""
        patch_px = self.grid.y.patch_px
        return {
            row.name: FirstCells(row, region, mask, patch_px)
            for row, mask in zip(self.variables(), masks, strict=True)
        }

    def run(self, loaded: LoadedModel, batch: Batch) -> Iterator[TileValues]:
        """Tokenize a batch."""
        ids = {
            f"{name}_tokens": loaded.tokenizers[name].tokenize(image)
            for name, image in batch.buffers.images().items()
        }
        for slot in range(len(batch.tiles)):
            yield {name: values[slot] for name, values in ids.items()}


@dataclass(frozen=True)
class Reconstruction(TilePlan):
    """Rasters tokenised and decoded again, for judging a tokenizer.

    Attributes
    ----------
    statistics : tuple of Statistics or None
        Of every input; None for class codes.
    diffusion : Diffusion
    seed : int
    """

    statistics: tuple[Statistics | None, ...]
    diffusion: Diffusion
    seed: int

    def variables(self) -> tuple[OutputVariable, ...]:
        """Return the rasters under the names of the inputs."""
        rows: list[OutputVariable] = []
        for layer in self.inputs:
            rows += image_variables(MODALITIES[layer.modality], Ensemble())
        return tuple(rows)

    def collectors(self, region: Region, masks: Sequence[Tensor]) -> dict[str, Collector]:
        """Return one collector per input, known where the input itself is."""
        found: dict[str, Collector] = {}
        for layer, statistics, mask in zip(self.inputs, self.statistics, masks, strict=True):
            found[layer.modality] = raster_collector(
                MODALITIES[layer.modality],
                statistics,
                Ensemble(),
                self.place(region, (mask,)),
                is_bounded=self.diffusion.clamp == "physical",
            )
        return found

    def run(self, loaded: LoadedModel, batch: Batch) -> Iterator[TileValues]:
        """Tokenize and decode a batch."""
        cells = [self.grid.cells(tile) for tile in batch.slots]
        found = {}
        for name, image in batch.buffers.images().items():
            tokenizer = loaded.tokenizers[name]
            codes = tokenizer.quantizer.dequantize(tokenizer.tokenize(image))
            stream = NoiseStream(self.seed, f"{name}/image", batch.time)
            noise = image_noise(tokenizer, stream, cells, codes.device)
            found[name] = decode_image(tokenizer, codes, self.diffusion, noise)
        for slot in range(len(batch.tiles)):
            yield {name: values[slot][None] for name, values in found.items()}

    def for_trial(self) -> Reconstruction:
        """Return the plan with few diffusion steps."""
        steps = min(self.diffusion.steps, 2)
        return replace(self, diffusion=replace(self.diffusion, steps=steps))

    def provenance(self) -> dict[str, Any]:
        """Return the attributes that every variable carries."""
        return {
            "terramind_generated": "true",
            **super().provenance(),
            "terramind_seed": str(self.seed),
            "terramind_decoder": self.diffusion.describe(),
        }


def plan_tokenization(
    layout: CubeLayout, weights: WeightsChoice, compute: Compute, chunk_px: int
) -> Tokenization:
    """Plan the tokens of every layer of a cube; see `accessor.TerraMindAccessor.tokenize`."""
    names = check_outputs([layer.modality.name for layer in layout.layers], "modalities")
    needs = Needs(encoded=names, transformer=False)
    spec, description = choose_model(weights, needs, compute)
    inputs = plan_inputs(layout, dict.fromkeys(names, "tokens"), description)
    cut = _cell_cut(layout, description, chunk_px)
    return with_batch(Tokenization(spec, inputs, cut))


def plan_reconstruction(
    layout: CubeLayout,
    weights: WeightsChoice,
    compute: Compute,
    diffusion: Diffusion,
    cutting: tuple[int, int],
    seed: int,
) -> Reconstruction:
    """Plan a reconstruction; `cutting` is overlap and chunk in pixels.

    See `accessor.TerraMindAccessor.reconstruct`.
    """
    names = check_outputs([layer.modality.name for layer in layout.layers], "modalities")
    needs = Needs(decoded=names, encoded=names, transformer=False)
    spec, description = choose_model(weights, needs, compute)
    NoiseStream(seed, names[0]).key()
    inputs = plan_inputs(layout, dict.fromkeys(names, "tokens"), description)
    statistics = tuple(layer.statistics for layer in inputs)
    cut = Cut.over(layout, description, *cutting)
    return with_batch(Reconstruction(spec, inputs, cut, statistics, diffusion, seed))
