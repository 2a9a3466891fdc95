"""How pixels, tokens and sequences become vectors, and vectors become logits.

Every module yields a content vector and an embedding of position and modality per token; the
network's input is their sum, and the decoder adds the embedding to the context once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from terramind_cube.model.layers import (
    Linear,
    interpolate_positions,
    sincos_positions_1d,
    sincos_positions_2d,
)

if TYPE_CHECKING:
    from terramind_cube.model.variants import ModelDescription, TokenSpace

__all__ = [
    "PixelEmbedding",
    "SequenceEmbedding",
    "SequenceTarget",
    "TokenEmbedding",
    "TokenTarget",
    "VisibleTokens",
    "patchify",
]

SEQUENCE_POSITIONS = 512


def patchify(x: Tensor, patch_px: int) -> Tensor:
    """Cut (B, C, H, W) into row-major patches (B, N, ph * pw * C), channel fastest."""
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // patch_px, patch_px, width // patch_px, patch_px)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_px * patch_px * channels)


@dataclass(frozen=True)
class VisibleTokens:
    """Some tokens of a grid, the others being unknown.

    Attributes
    ----------
    ids : torch.Tensor
        Token ids (B, n), int64.
    positions : torch.Tensor
        Their row-major places (B, n), int64.
    rows, cols : int
        Of the grid.
    """

    ids: Tensor
    positions: Tensor
    rows: int
    cols: int


class _GridEmbedding(nn.Module):
    """Position table of the pretraining grid and one vector for the modality."""

    pos_emb: Tensor

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_emb", sincos_positions_2d(grid, grid, dim))

    def embedding(self, rows: int, cols: int, positions: Tensor | None = None) -> Tensor:
        """Position and modality vectors of a grid, (1, rows * cols, D).

        With row-major positions (B, n), those of these cells only, (B, n, D).
        """
        if (rows, cols) == (self.grid, self.grid):
            table = self.pos_emb
        else:
            grid = self.pos_emb.transpose(1, 2).unflatten(2, (self.grid, self.grid))
            table = interpolate_positions(grid, rows, cols)
        if positions is not None:
            table = table[0][positions]
        return table + self.mod_emb


class PixelEmbedding(_GridEmbedding):
    """Linear embedding of raw patches."""

    def __init__(self, description: ModelDescription, channels: int) -> None:
        super().__init__(description.dim, description.grid)
        self.patch_px = description.patch_px
        self.channels = channels
        self.proj = Linear(channels * self.patch_px**2, description.dim, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map standardised pixels to content (B, N, D) and embedding (1, N, D).

        They are (B, C, H, W), or cut into patches already, (B, h, w, ph, pw, C).
        """
        if x.ndim == 6:
            return self.proj(x.flatten(3).flatten(1, 2)), self.embedding(*x.shape[1:3])
        rows, cols = x.shape[-2] // self.patch_px, x.shape[-1] // self.patch_px
        return self.proj(patchify(x, self.patch_px)), self.embedding(rows, cols)


class TokenEmbedding(_GridEmbedding):
    """Lookup of a grid of token ids."""

    def __init__(self, description: ModelDescription, space: TokenSpace) -> None:
        super().__init__(description.dim, description.grid)
        self.token_emb = nn.Embedding(space.vocabulary, description.dim)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Map ids (B, h, w) to content (B, N, D) and embedding (1, N, D)."""
        return self.token_emb(ids.flatten(1)), self.embedding(*ids.shape[-2:])

    def embed_visible(self, tokens: VisibleTokens) -> tuple[Tensor, Tensor]:
        """Map some tokens of a grid to content (B, n, D) and embedding (B, n, D)."""
        embedding = self.embedding(tokens.rows, tokens.cols, tokens.positions)
        return self.token_emb(tokens.ids), embedding


class SequenceEmbedding(nn.Module):
    """Lookup of a sequence of token ids."""

    pos_emb: Tensor

    def __init__(self, description: ModelDescription, space: TokenSpace) -> None:
        super().__init__()
        dim = description.dim
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos_emb", sincos_positions_1d(SEQUENCE_POSITIONS, dim))
        self.token_emb = nn.Embedding(space.vocabulary, dim)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Map ids (B, L), none of them padding, to content (B, L, D), embedding (1, L, D)."""
        return self.token_emb(ids), self.pos_emb[:, : ids.shape[1]] + self.mod_emb


class TokenTarget(_GridEmbedding):
    """Decoder side of a grid of tokens: the queries' embedding and the logits head.

    The head is tied to the token table, as in the released models; where a file holds different
    values for the two, `to_logits` counts.
    """

    def __init__(self, description: ModelDescription, space: TokenSpace) -> None:
        super().__init__(description.dim, description.grid)
        self.token_emb = nn.Embedding(space.vocabulary, description.dim)
        self.to_logits = Linear(description.dim, space.vocabulary, bias=False)
        self.token_emb.weight = self.to_logits.weight


class SequenceTarget(SequenceEmbedding):
    """Decoder side of a sequence, with the logits head tied to its token table."""

    def __init__(self, description: ModelDescription, space: TokenSpace) -> None:
        super().__init__(description, space)
        self.to_logits = Linear(description.dim, space.vocabulary, bias=False)
        self.token_emb.weight = self.to_logits.weight
