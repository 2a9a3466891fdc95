"""Everything about a run but the pixels: small, frozen, picklable, checked beforehand."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from terramind_cube.grid import Region, TileGrid, regions
from terramind_cube.inference.blend import tile_weights
from terramind_cube.inference.collect import Place
from terramind_cube.inference.sources import InputLayer, TileShape, any_known
from terramind_cube.modalities import MODALITIES, find_modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from terramind_cube.cube.layout import CubeLayout
    from terramind_cube.inference.collect import Collector
    from terramind_cube.inference.runtime import LoadedModel, ModelSpec
    from terramind_cube.inference.sources import Form, InputBuffers
    from terramind_cube.inference.variables import OutputVariable
    from terramind_cube.model.variants import ModelDescription

    Tile = tuple[int, int]
    TileValues = dict[str, Any]

__all__ = [
    "Batch",
    "Cut",
    "TilePlan",
    "check_chunk",
    "check_outputs",
    "plan_inputs",
    "read_as_tokens",
]

CHUNK_PX = 896
GROUP_PX = 1792
GROUP_BYTES = 768 << 20


@dataclass(frozen=True)
class Cut:
    """How an area is cut into tiles, chunks and groups.

    Attributes
    ----------
    grid : TileGrid
    chunk_px : int
        Side of the chunks of the result.
    crs : str
        Of the area.
    transform : tuple of float
        Pixel size and origin of the area: (a, c, e, f) of its affine.
    """

    grid: TileGrid
    chunk_px: int
    crs: str
    transform: tuple[float, float, float, float]

    @classmethod
    def over(
        cls, layout: CubeLayout, description: ModelDescription, overlap_px: int, chunk_px: int
    ) -> Cut:
        """Cut a cube's area for a model.

        Raises
        ------
        ValueError
            If overlap or chunk do not fit the model.
        """
        if chunk_px < description.patch_px:
            raise ValueError(
                f"chunks={chunk_px}: give at least a patch of {description.patch_px} px."
            )
        grid = TileGrid.over(
            layout.geobox,
            tile_px=description.tile_px,
            patch_px=description.patch_px,
            overlap_px=overlap_px,
        )
        affine = layout.geobox.affine
        transform = (affine.a, affine.c, affine.e, affine.f)
        return cls(grid, chunk_px, str(layout.geobox.crs), transform)

    @property
    def holds_whole_cells(self) -> bool:
        """Whether chunks consist of whole token cells, so that cells can be chunked alike."""
        return self.chunk_px % self.grid.y.patch_px == 0


@dataclass(frozen=True)
class Batch:
    """A batch of tiles.

    Attributes
    ----------
    buffers : InputBuffers
        Its inputs; slots beyond the tiles hold others, or nothing.
    tiles : tuple of (int, int)
        First pixels (y, x) in the area.
    size : int
        Slots.
    time : int
        Nanoseconds since 1970, 0 for a static cube.
    """

    buffers: InputBuffers
    tiles: tuple[Tile, ...]
    size: int
    time: int

    @property
    def slots(self) -> tuple[Tile, ...]:
        """A tile for every slot: the last one stands in for those that are missing."""
        return self.tiles + (self.tiles[-1],) * (self.size - len(self.tiles))


@dataclass(frozen=True)
class TilePlan(ABC):
    """A run over the tiles of an area.

    Attributes
    ----------
    spec : ModelSpec
    inputs : tuple of InputLayer
        In the order in which the model sees them.
    cut : Cut
    """

    spec: ModelSpec
    inputs: tuple[InputLayer, ...]
    cut: Cut

    @property
    def grid(self) -> TileGrid:
        """Tiles of the area."""
        return self.cut.grid

    @property
    def group_px(self) -> int:
        """Side of a tile group: whole chunks, enough of them that few tiles are run twice.

        Of chunks below 896 px it is the fewest that reach 896 px, so that progress and receipts come
        early: of an area of 1344 px, groups of 896 px run 64 tiles of 224 px where one group runs
        49. Many variables, as of a large ensemble, make it smaller, so that memory stays bounded.
        """
        chunk = self.cut.chunk_px
        count = max(1, GROUP_PX // chunk)
        if chunk < CHUNK_PX:
            count = min(count, -(-CHUNK_PX // chunk))
        per_px = self._bytes_per_px()
        while count > 1 and per_px * (count * chunk) ** 2 > GROUP_BYTES:
            count -= 1
        return count * chunk

    def _bytes_per_px(self) -> float:
        per_px = sum(variable.bytes_per_px(self.grid.y.patch_px) for variable in self.variables())
        return per_px + self.sums_per_row_px() * self.grid.y.tile_px / max(1, GROUP_PX)

    @property
    def group_bytes(self) -> int:
        """What lies on the device beside a batch: inputs and results of two groups, and sums."""
        axis = self.grid.y
        side = min(self.group_px, max(self.grid.shape)) + 2 * axis.tile_px
        inputs = sum(4 * len(layer.bands) + 1 for layer in self.inputs)
        return int(2 * (self._bytes_per_px() + inputs) * side**2)

    def for_trial(self) -> TilePlan:
        """Return a shorter run that takes as much memory on the device."""
        return self

    def sums_per_row_px(self) -> int:
        """Return the bytes, per pixel of a row of tiles, that blending takes."""
        return 0

    def groups(self) -> tuple[Region, ...]:
        """Return the regions that are computed as one task each."""
        return tuple(regions(self.grid.shape, self.group_px))

    @abstractmethod
    def variables(self) -> tuple[OutputVariable, ...]:
        """Return what the result consists of."""

    @abstractmethod
    def collectors(self, region: Region, masks: Sequence[Tensor]) -> dict[str, Collector]:
        """Return what puts a region together, by the names of what `run` yields.

        `masks` says where each input knows the region's pixels.
        """

    @abstractmethod
    def run(self, loaded: LoadedModel, batch: Batch) -> Iterator[TileValues]:
        """Compute a batch; yield for each tile its values by collector."""

    def tile_shape(self) -> TileShape:
        """Return the sizes and the dtype of what the model sees."""
        axis = self.grid.y
        return TileShape(axis.tile_px, axis.patch_px, self.spec.compute.precision)

    def place(self, region: Region, masks: Sequence[Tensor]) -> Place:
        """Return where rasters that are known where any of the masks is are put together."""
        axis, is_valid = self.grid.y, any_known(masks)
        weights = torch.from_numpy(tile_weights(axis.tile_px, axis.overlap_px))
        return Place(region, weights.to(is_valid.device), is_valid)

    def settings(self) -> dict[str, Any]:
        """Return the choices that decide the values, as JSON values."""
        return {}

    def provenance(self) -> dict[str, Any]:
        """Return the attributes that every variable carries."""
        files = {
            kind: [f"{name}:{file.sha256}" for name, file in rows]
            for kind, rows in (
                ("tokenizer", self.spec.tokenizers),
                ("vocabulary", self.spec.vocabularies),
            )
            if rows or kind == "tokenizer"
        }
        weights = {}
        if self.spec.weights is not None:
            weights = {"terramind_weights_sha256": self.spec.weights.sha256}
        return {
            "terramind_model": self.spec.name,
            **weights,
            **{f"terramind_{kind}_sha256": rows for kind, rows in files.items()},
            "terramind_inputs": [_spell(layer) for layer in self.inputs],
            "terramind_version": version("terramind-cube"),
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be equal for two runs to give the same bytes, as JSON values."""
        compute = dataclasses.asdict(self.spec.compute)
        return {
            **self.provenance(),
            **self.settings(),
            "outputs": [variable.name for variable in self.variables()],
            "group_px": self.group_px,
            "chunk_px": self.cut.chunk_px,
            "overlap_px": self.grid.y.overlap_px,
            "torch": torch.__version__,
            **{f"compute_{name}": value for name, value in compute.items()},
        }


def _spell(layer: InputLayer) -> str:
    """Name an input as the attributes do."""
    bands = layer.names
    text = layer.modality if layer.form == "pixels" else f"{layer.modality} as tokens"
    if len(layer.bands) < len(bands):
        text += f" ({' '.join(bands[band] for band in layer.bands)})"
    return text


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


def check_outputs(outputs: Sequence[str], what: str = "outputs") -> tuple[str, ...]:
    """Return the names of modalities without repetition.

    Raises
    ------
    ValueError
        If there is none, one is unknown, or one has no tokens.
    """
    if isinstance(outputs, str):
        raise ValueError(f"{what} is a list of modalities: give [{outputs!r}].")  # noqa: TRY004
    if not outputs:
        raise ValueError(f"No {what}: give at least one modality, such as ['LULC'].")
    for name in outputs:
        if not find_modality(name).is_output:
            can = [row.name for row in MODALITIES.values() if row.is_output]
            raise ValueError(f"{name} cannot be generated; TerraMind generates {', '.join(can)}.")
    return tuple(dict.fromkeys(outputs))


def read_as_tokens(names: Sequence[str], forms: Mapping[str, Form]) -> tuple[str, ...]:
    """Return the inputs that a tokenizer has to encode."""
    return tuple(
        name
        for name in names
        if forms.get(name) == "tokens" or (name in MODALITIES and not MODALITIES[name].is_raw_input)
    )


def plan_inputs(
    layout: CubeLayout, forms: Mapping[str, Form], description: ModelDescription
) -> tuple[InputLayer, ...]:
    """Return how the layers of a cube become inputs of a model.

    Parameters
    ----------
    layout : CubeLayout
    forms : mapping of str to {"pixels", "tokens"}
        By modality; the others are pixels where the model takes them, else tokens.
    description : ModelDescription

    Raises
    ------
    ValueError
        If the model takes a modality in no form, or not in the one that is asked for.
    """
    layers = []
    for layer in layout.layers:
        name = layer.modality.name
        takes = {
            "pixels": description.raw_input(name) is not None,
            "tokens": description.token_space(name) is not None,
        }
        form: Form = forms.get(name) or ("pixels" if takes["pixels"] else "tokens")
        if form not in takes:
            raise ValueError(f"inputs: {name} is read as 'pixels' or as 'tokens', not as {form!r}.")
        if not takes[form]:
            raw = ", ".join(row.modality for row in description.raw_inputs)
            tokens = ", ".join(row.modality for row in description.token_spaces)
            raise ValueError(
                f"{description.name} takes no {form} of {name}: it takes the pixels of {raw} and "
                f"the tokens of {tokens}."
            )
        is_classes = layer.modality.kind == "classes"
        statistics = None if is_classes else description.statistics[name]
        nodata = layer.modality.fill_value
        names = layer.modality.bands
        layers.append(InputLayer(name, form, nodata, statistics, layer.bands, names))
    return tuple(layers)
