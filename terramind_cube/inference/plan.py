"""Everything about a generation but the pixels: small, frozen, picklable, checked beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from terramind_cube.grid import Region, TileGrid, regions
from terramind_cube.inference.runtime import Compute, ModelSpec, choose_model
from terramind_cube.modalities import MODALITIES, Statistics, find_modality, nearest_name
from terramind_cube.model.generation import Sampling  # noqa: TC001  # annotates a dataclass
from terramind_cube.model.variants import TOKENIZERS
from terramind_cube.noise import NoiseStream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from terramind_cube.cube.layout import CubeLayout
    from terramind_cube.model.variants import ModelDescription

__all__ = ["Generation", "InputBands", "Options", "check_chunk", "plan_generation"]

CHUNK_PX = 896
GROUP_PX = 1792


@dataclass(frozen=True)
class Options:
    """What a user chooses for a generation; see `accessor.TerraMindAccessor.generate`."""

    model: str
    weights: str | PathLike[str] | None
    tokenizer_weights: Mapping[str, str | PathLike[str]] | None
    seed: int
    sampling: Sampling
    overlap_px: int
    chunk_px: int
    compute: Compute


@dataclass(frozen=True)
class InputBands:
    """How the pixels of one input are read and standardised."""

    modality: str
    nodata: float
    statistics: Statistics


@dataclass(frozen=True)
class Generation:
    """A generation over an area, ready to run.

    Attributes
    ----------
    spec : ModelSpec
    inputs : tuple of InputBands
        In the order in which the encoder sees them.
    outputs : tuple of str
        Modalities.
    grid : TileGrid
    sampling : Sampling
    seed : int
    chunk_px : int
        Side of the chunks of the result.
    tile_px, overlap_px : int
    """

    spec: ModelSpec
    inputs: tuple[InputBands, ...]
    outputs: tuple[str, ...]
    grid: TileGrid
    sampling: Sampling
    seed: int
    chunk_px: int
    tile_px: int
    overlap_px: int

    @property
    def group_px(self) -> int:
        """Side of a tile group: whole chunks, enough of them that few tiles are run twice."""
        return max(1, GROUP_PX // self.chunk_px) * self.chunk_px

    def groups(self) -> tuple[Region, ...]:
        """Return the regions that are computed as one task each."""
        return tuple(regions(self.grid.shape, self.group_px))

    def stream(self, output: str, time: int) -> NoiseStream:
        """Return the random numbers of an output at a time (nanoseconds since 1970)."""
        return NoiseStream(self.seed, output, time)

    def provenance(self) -> dict[str, Any]:
        """Return the attributes that every generated variable carries."""
        sampling = self.sampling
        return {
            "terramind_generated": "true",
            "terramind_model": self.spec.name,
            "terramind_weights_sha256": self.spec.weights.sha256,
            "terramind_tokenizer_sha256": [
                f"{modality}:{file.sha256}" for modality, file in self.spec.tokenizers
            ],
            "terramind_inputs": [row.modality for row in self.inputs],
            "terramind_seed": str(self.seed),
            "terramind_sampler": (
                f"one step, temperature={sampling.temperature:g}, top_p={sampling.top_p:g}, "
                f"top_k={sampling.top_k}"
            ),
            "terramind_version": version("terramind-cube"),
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be equal for two runs to give the same bytes, as JSON values."""
        compute = dataclasses.asdict(self.spec.compute)
        return {
            **self.provenance(),
            "outputs": list(self.outputs),
            "group_px": self.group_px,
            "chunk_px": self.chunk_px,
            "overlap_px": self.overlap_px,
            "torch": torch.__version__,
            **{f"compute_{name}": value for name, value in compute.items()},
        }


def plan_generation(layout: CubeLayout, outputs: Sequence[str], options: Options) -> Generation:
    """Check a request against cube, model and weights, and plan it.

    Raises
    ------
    ValueError, FileNotFoundError, WeightsError
        If an output cannot be generated, an input is none of the model's, the overlap or the chunk
        does not fit, or weights are wrong.
    """
    names = check_outputs(outputs)
    spec, description = choose_model(
        options.model,
        names,
        weights=options.weights,
        tokenizer_weights=options.tokenizer_weights,
        compute=options.compute,
    )
    grid = TileGrid.over(
        layout.geobox,
        tile_px=description.tile_px,
        patch_px=description.patch_px,
        overlap_px=options.overlap_px,
    )
    if options.chunk_px < description.patch_px:
        raise ValueError(
            f"chunks={options.chunk_px}: give at least a patch of {description.patch_px} px."
        )
    NoiseStream(options.seed, names[0]).key()
    inputs = tuple(_input_bands(layer.modality.name, description) for layer in layout.layers)
    return Generation(
        spec=spec,
        inputs=inputs,
        outputs=names,
        grid=grid,
        sampling=options.sampling,
        seed=options.seed,
        chunk_px=options.chunk_px,
        tile_px=description.tile_px,
        overlap_px=options.overlap_px,
    )


def check_chunk(chunks: int | Mapping[str, int] | None) -> int:
    """Return the side of the result's chunks in pixels.

    Raises
    ------
    ValueError
        If it is no positive number, or differs between y and x.
    """
    sides = (chunks,) if not isinstance(chunks, Mapping) else (chunks.get("y"), chunks.get("x"))
    side = CHUNK_PX if sides == (None,) else sides[0]
    if len(set(sides)) > 1 or not isinstance(side, int) or side < 1:
        raise ValueError(f"chunks={chunks!r}: give one side in pixels for y and x, such as 896.")
    return side


def check_outputs(outputs: Sequence[str]) -> tuple[str, ...]:
    """Return the outputs' names without repetition.

    Raises
    ------
    ValueError
        If there is none, one is unknown, or one cannot be generated.
    """
    if isinstance(outputs, str):
        raise ValueError(f"outputs is a list of modalities: give [{outputs!r}].")  # noqa: TRY004
    if not outputs:
        raise ValueError("No outputs: give at least one modality, such as ['LULC'].")
    possible = list(dict.fromkeys(modality for _, modality in TOKENIZERS))
    for name in outputs:
        if not find_modality(name).is_output:
            can = [row.name for row in MODALITIES.values() if row.is_output]
            raise ValueError(f"{name} cannot be generated; TerraMind generates {', '.join(can)}.")
        if name not in possible:
            raise ValueError(
                f"{name} cannot be generated yet: this version decodes "
                f"{nearest_name(name, possible)}."
            )
    return tuple(dict.fromkeys(outputs))


def _input_bands(name: str, description: ModelDescription) -> InputBands:
    if description.raw_input(name) is None:
        takes = ", ".join(row.modality for row in description.raw_inputs)
        raise ValueError(f"{name} is no pixel input of {description.name}, which takes {takes}.")
    return InputBands(name, MODALITIES[name].fill_value, description.statistics[name])
