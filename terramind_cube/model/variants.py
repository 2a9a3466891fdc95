"""Descriptions of models and tokenizers: all that is needed to build one, and nothing in code.

The four released sizes are rows here; our own models carry their description, as JSON, in the
metadata of their weights file. Sizes: facts of the released v1 checkpoints (arXiv 2504.11171).
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from terramind_cube.modalities import (
    LULC_CLASSES,
    MODALITIES,
    V1_STATISTICS,
    Modality,
    Statistics,
    nearest_name,
)
from terramind_cube.model.unet import UNetDescription
from terramind_cube.model.weights import PretrainedFile, WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DESCRIPTION_KEY",
    "MODELS",
    "TOKENIZERS",
    "ModelDescription",
    "RawInput",
    "TokenSpace",
    "TokenizerDescription",
    "describe_model",
    "describe_tokenizer",
]

DESCRIPTION_KEY = "terramind_cube"
"""Metadata key of a safetensors file under which a description stands as JSON."""


@dataclass(frozen=True)
class RawInput:
    """Pixels that a model takes: modality, checkpoint key, number of channels."""

    modality: str
    key: str
    channels: int


@dataclass(frozen=True)
class TokenSpace:
    """Tokens that a model takes and generates: modality, checkpoint key, vocabulary, kind."""

    modality: str
    key: str
    vocabulary: int
    kind: Literal["grid", "sequence"] = "grid"


def _v1_raw_inputs() -> tuple[RawInput, ...]:
    rows = [row for row in MODALITIES.values() if row.raw_key is not None]
    return tuple(RawInput(row.name, row.raw_key or "", len(row.bands)) for row in rows)


def _v1_token_spaces() -> tuple[TokenSpace, ...]:
    return tuple(
        TokenSpace(
            row.name,
            row.token_key,
            row.vocabulary or 0,
            "sequence" if row.kind == "sequence" else "grid",
        )
        for row in MODALITIES.values()
        if row.token_key is not None
    )


@dataclass(frozen=True)
class ModelDescription:
    """A TerraMind encoder-decoder.

    Attributes
    ----------
    name : str
        Public name.
    dim, heads, encoder_depth, decoder_depth, mlp_hidden : int
        Width, attention heads, blocks, and width inside the MLP.
    mlp : {"gelu", "swiglu"}
        Kind of the MLP.
    bias : bool
        Whether attention and MLP have biases.
    tokenizers : str
        Family of tokenizers (key of `TOKENIZERS`) that speaks its tokens.
    tile_px, patch_px : int
        Size of the pretraining tile and of a patch.
    raw_inputs : tuple of RawInput
    token_spaces : tuple of TokenSpace
    statistics : mapping of str to Statistics
        Mean and standard deviation with which pixels are standardised.
    pretrained : PretrainedFile or None
        Where the released weights are.
    """

    name: str
    dim: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    mlp_hidden: int
    mlp: Literal["gelu", "swiglu"] = "gelu"
    bias: bool = True
    tokenizers: str = "v1"
    tile_px: int = 224
    patch_px: int = 16
    raw_inputs: tuple[RawInput, ...] = dataclasses.field(default_factory=_v1_raw_inputs)
    token_spaces: tuple[TokenSpace, ...] = dataclasses.field(default_factory=_v1_token_spaces)
    statistics: Mapping[str, Statistics] = dataclasses.field(
        default_factory=lambda: dict(V1_STATISTICS)
    )
    pretrained: PretrainedFile | None = None

    @property
    def grid(self) -> int:
        """Patches along one side of the pretraining tile."""
        return self.tile_px // self.patch_px

    def raw_input(self, modality: str) -> RawInput | None:
        """Return how the model takes the pixels of a modality, None if it does not."""
        return next((row for row in self.raw_inputs if row.modality == modality), None)

    def token_space(self, modality: str) -> TokenSpace | None:
        """Return the tokens of a modality, None if the model knows none."""
        return next((row for row in self.token_spaces if row.modality == modality), None)

    def with_modality(self, modality: str, statistics: Statistics) -> ModelDescription:
        """Return the description of a model that also takes pixels of a modality of its own.

        Raises
        ------
        ValueError
            If the name is taken.
        """
        key = f"untok_{modality.lower()}@{self.tile_px}"
        is_taken = modality in MODALITIES or any(key == row.key for row in self.raw_inputs)
        if is_taken or "." in modality:
            raise ValueError(
                f"{modality!r} is a name of the model's own, or holds a dot: choose another one."
            )
        raw = RawInput(modality, key, len(statistics.mean))
        return dataclasses.replace(
            self,
            raw_inputs=(*self.raw_inputs, raw),
            statistics={**self.statistics, modality: statistics},
        )

    def to_json(self) -> str:
        """Return the description for the metadata of a weights file."""
        return json.dumps({"model": dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> ModelDescription:
        """Build a description from the fields that `to_json` wrote."""
        values = dict(fields)
        values["raw_inputs"] = tuple(RawInput(**row) for row in values["raw_inputs"])
        values["token_spaces"] = tuple(TokenSpace(**row) for row in values["token_spaces"])
        values["statistics"] = {
            name: Statistics(tuple(row["mean"]), tuple(row["std"]))
            for name, row in values["statistics"].items()
        }
        values["pretrained"] = None
        return cls(**values)


@dataclass(frozen=True)
class TokenizerDescription:
    """A tokenizer of ViT encoder, finite scalar quantizer, and ViT or diffusion decoder.

    Attributes
    ----------
    modality : str
    family : str
        Models with the same `ModelDescription.tokenizers` speak its tokens.
    channels : int
        Channels of an image (LULC: one per class).
    fsq_levels : tuple of int
        Levels per latent, least significant first.
    dim, heads, encoder_depth, decoder_depth, mlp_hidden : int
    patch_px : int
        Pixels along one side of a token.
    position_grid : int
        Side of the stored position table, interpolated to the actual grid.
    unet : UNetDescription or None
        Denoiser of a diffusion decoder; None for a ViT decoder.
    statistics : Statistics or None
        Mean and standard deviation of its images; None for those of the released v1 models.
    pretrained : PretrainedFile or None
    """

    modality: str
    family: str
    channels: int
    fsq_levels: tuple[int, ...]
    dim: int = 768
    heads: int = 12
    encoder_depth: int = 12
    decoder_depth: int = 12
    mlp_hidden: int = 3072
    patch_px: int = 16
    position_grid: int = 16
    unet: UNetDescription | None = None
    statistics: Statistics | None = None
    pretrained: PretrainedFile | None = None

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return math.prod(self.fsq_levels)

    def to_json(self) -> str:
        """Return the description for the metadata of a weights file."""
        return json.dumps({"tokenizer": dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> TokenizerDescription:
        """Build a description from the fields that `to_json` wrote."""
        values = {**fields, "fsq_levels": tuple(fields["fsq_levels"]), "pretrained": None}
        if values.get("unet"):
            values["unet"] = UNetDescription.from_fields(values["unet"])
        if values.get("statistics"):
            row = values["statistics"]
            values["statistics"] = Statistics(tuple(row["mean"]), tuple(row["std"]))
        return cls(**values)


# Commits that publications of these weights name. Of large and of the tokenizers none is known for
# certain: the branch stands there, and the file's SHA-256 is recorded with every result.
_REVISIONS = {
    "tiny": "2b5ac0a3ed7dd7e922ccfd595b56607f342df343",
    "small": "960f7549bfe9d7a08946860042f83badd604c779",
    "base": "fb96c70d0a5f68dcc44030b89cbfd8ec3fb0c67a",
}


def _released(size: str, dim: int, depths: tuple[int, int], hidden: int) -> ModelDescription:
    gated = size in ("base", "large")
    return ModelDescription(
        name=f"terramind_v1_{size}",
        dim=dim,
        heads=dim // 64,
        encoder_depth=depths[0],
        decoder_depth=depths[1],
        mlp_hidden=hidden,
        mlp="swiglu" if gated else "gelu",
        bias=not gated,
        pretrained=PretrainedFile(
            f"ibm-esa-geospatial/TerraMind-1.0-{size}",
            f"TerraMind_v1_{size}.pt",
            _REVISIONS.get(size, "main"),
        ),
    )


_MODEL_ROWS = (
    _released("tiny", 192, (12, 4), 768),
    _released("small", 384, (12, 6), 1536),
    _released("base", 768, (12, 12), 2048),
    _released("large", 1024, (24, 24), 2730),
    ModelDescription("terramind_nano", 192, 3, 4, 3, 768, tokenizers="nano"),
)

MODELS: Mapping[str, ModelDescription] = {row.name: row for row in _MODEL_ROWS}
"""The models that `load_model` knows by name."""


def _released_tokenizer(row: Modality) -> TokenizerDescription:
    channels = len(LULC_CLASSES) if row.kind == "classes" else len(row.bands)
    return TokenizerDescription(
        row.name,
        "v1",
        channels,
        row.fsq_levels or (),
        unet=None if row.kind == "classes" else UNetDescription(),
        pretrained=PretrainedFile(
            f"ibm-esa-geospatial/TerraMind-1.0-Tokenizer-{row.name}",
            f"TerraMind_Tokenizer_{row.name}.pt",
            "main",
        ),
    )


def _nano_tokenizer(row: Modality) -> TokenizerDescription:
    channels = len(LULC_CLASSES) if row.kind == "classes" else len(row.bands)
    return TokenizerDescription(
        row.name, "nano", channels, row.fsq_levels or (), 128, 2, 2, 2, mlp_hidden=512
    )


TOKENIZERS: Mapping[tuple[str, str], TokenizerDescription] = {
    (described.family, described.modality): described
    for row in MODALITIES.values()
    if row.fsq_levels is not None
    for described in (_released_tokenizer(row), _nano_tokenizer(row))
}
"""The tokenizers that `load_tokenizer` knows, by family and modality."""


def _from_metadata(metadata: Mapping[str, str], kind: str, source: str) -> dict[str, Any] | None:
    if DESCRIPTION_KEY not in metadata:
        return None
    try:
        content = json.loads(metadata[DESCRIPTION_KEY])
        return dict(content[kind])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{source}: its metadata describes no {kind} ({error!r}); give the weights of a {kind}."
        ) from error


def describe_model(
    name: str, metadata: Mapping[str, str] | None = None, source: str = "weights"
) -> ModelDescription:
    """Return the description of a model: the weights' own where they carry one, else by name.

    Raises
    ------
    ValueError
        If the name is unknown; the nearest one is offered.
    WeightsError
        If the metadata describe something else, or a model of another name.
    """
    if name not in MODELS:
        raise ValueError(f"Unknown model {name!r}: {nearest_name(name, MODELS)}.")
    fields = _from_metadata(metadata or {}, "model", source)
    if fields is None:
        return MODELS[name]
    if fields.get("name") != name:
        raise WeightsError(f"{source} holds {fields.get('name')!r}, not {name!r}: load it as that.")
    return ModelDescription.from_fields(fields)


def describe_tokenizer(
    modality: str,
    family: str = "v1",
    metadata: Mapping[str, str] | None = None,
    source: str = "weights",
) -> TokenizerDescription:
    """Return the description of a tokenizer; see `describe_model`."""
    fields = _from_metadata(metadata or {}, "tokenizer", source)
    if fields is not None:
        if fields.get("modality") != modality:
            raise WeightsError(
                f"{source} holds the tokenizer of {fields.get('modality')!r}, not of {modality!r}."
            )
        return TokenizerDescription.from_fields(fields)
    try:
        return TOKENIZERS[family, modality]
    except KeyError:
        known = [name for group, name in TOKENIZERS if group == family]
        raise ValueError(
            f"No tokenizer of {modality!r} in the family {family!r}: "
            f"{nearest_name(modality, known)}."
        ) from None
