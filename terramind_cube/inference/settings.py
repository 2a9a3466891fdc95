"""The keyword arguments of a generation, for the functions that pass them on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from typing import TypeAlias

    from terramind_cube.model.diffusion import Sampler
    from terramind_cube.model.loading import Precision
    from terramind_cube.model.tokenizers import Clamp

    Weights: TypeAlias = str | PathLike[str]
    TokenizerWeights: TypeAlias = Literal["pretrained", "untrained"] | Mapping[str, Weights]

__all__ = ["GenerateSettings"]


class GenerateSettings(TypedDict, total=False):
    """Keyword arguments of `accessor.TerraMindAccessor.generate`, where each is described."""

    inputs: Sequence[str] | Mapping[str, str] | None
    model: str
    weights: Weights | None
    tokenizer_weights: TokenizerWeights | None
    vocabularies: Mapping[str, Weights] | None
    seed: int
    n_samples: int
    keep_samples: bool
    chain: bool
    think: Sequence[str]
    temperature: float
    top_p: float
    top_k: int
    decoding_steps: int
    scheme: Literal["roar", "maskgit"]
    schedule: Literal["cosine", "linear"]
    temperature_schedule: str
    guidance: float | Mapping[str, float] | None
    soft: bool
    steps: int
    sampler: Sampler
    clamp: Clamp | None
    bands: Mapping[str, Sequence[str]] | None
    caption: str | None
    candidates: int
    token_confidence: bool | None
    overlap: int
    chunks: int | Mapping[str, int] | None
    precision: Precision
    device: str | None
    compute_batch: int | None
    threads: int | None
