"""TerraMind's encoder-decoder, read top to bottom.

Source: arXiv 2504.11171; layout and numerics of the released v1 checkpoints. Shapes: B batch,
N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from terramind_cube.modalities import nearest_name
from terramind_cube.model.embeddings import (
    PixelEmbedding,
    SequenceEmbedding,
    SequenceTarget,
    TokenEmbedding,
    TokenTarget,
)
from terramind_cube.model.layers import (
    DecoderBlock,
    EncoderBlock,
    GatedMlp,
    LayerNorm,
    Mlp,
    compute_precision,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terramind_cube.model.variants import ModelDescription

__all__ = ["Encoded", "TerraMind"]


@dataclass(frozen=True)
class Encoded:
    """What the decoder needs of the inputs.

    Attributes
    ----------
    tokens : torch.Tensor
        Encoder output after the final norm, (B, N, D), modalities in the order given.
    embedding : torch.Tensor
        Position and modality vectors of the same tokens, (1, N, D).
    rows, cols : int
        Token grid that every image modality shares.
    """

    tokens: Tensor
    embedding: Tensor
    rows: int
    cols: int


class TerraMind(nn.Module):
    """The transformer; `description` says of what size.

    Parameters
    ----------
    description : ModelDescription
        Sizes, keys and vocabularies. Statistics are not applied here: inputs are standardised.
    """

    def __init__(self, description: ModelDescription) -> None:
        super().__init__()
        self.description = description
        self.compute_dtype = torch.float32
        dim, heads, bias = description.dim, description.heads, description.bias
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder_embeddings = nn.ModuleDict()
        self.decoder_embeddings = nn.ModuleDict()
        for raw in description.raw_inputs:
            self.encoder_embeddings[raw.key] = PixelEmbedding(description, raw.channels)
        for space in description.token_spaces:
            is_grid = space.kind == "grid"
            into = TokenEmbedding if is_grid else SequenceEmbedding
            target = TokenTarget if is_grid else SequenceTarget
            self.encoder_embeddings[space.key] = into(description, space)
            self.decoder_embeddings[space.key] = target(description, space)
        self.encoder = nn.ModuleList(
            EncoderBlock(dim, heads, bias, self._mlp()) for _ in range(description.encoder_depth)
        )
        self.encoder_norm = LayerNorm(dim)
        self.decoder_proj_context = nn.Linear(dim, dim)
        self.decoder = nn.ModuleList(
            DecoderBlock(dim, heads, bias, self._mlp()) for _ in range(description.decoder_depth)
        )
        self.decoder_norm = LayerNorm(dim)

    def _mlp(self) -> nn.Module:
        kind = GatedMlp if self.description.mlp == "swiglu" else Mlp
        return kind(self.description.dim, self.description.mlp_hidden, self.description.bias)

    def encode(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode inputs to (B, N, D); see `encode_inputs`."""
        return self.encode_inputs(inputs).tokens

    @torch.inference_mode()
    def encode_inputs(self, inputs: Mapping[str, Tensor]) -> Encoded:
        """Encode any set of modalities.

        Parameters
        ----------
        inputs : mapping of str to torch.Tensor
            By public name: standardised pixels (B, C, H, W), float, or token ids, (B, h, w) of a
            grid or (B, L) of a sequence, integer. H and W are multiples of the patch.

        Returns
        -------
        Encoded

        Raises
        ------
        ValueError
            If a modality is unknown or its tensor has the wrong rank, channels or size.
        """
        if not inputs:
            raise ValueError("No inputs: give at least one modality.")
        grid = self._common_grid(inputs)
        contents, embeddings = [], []
        with compute_precision(self.compute_dtype, self.mask_token.device):
            for name, values in inputs.items():
                content, embedding = self.encoder_embeddings[self._input_key(name, values)](values)
                contents.append(content)
                embeddings.append(embedding)
            embedding = torch.cat(embeddings, dim=1)  # (1, N, D)
            x = torch.cat(contents, dim=1) + embedding  # (B, N, D)
            for block in self.encoder:
                x = block(x)
            return Encoded(self.encoder_norm(x), embedding, *grid)

    @torch.inference_mode()
    def decode(self, encoded: Encoded, target: str) -> Tensor:
        """Return logits (B, N, V), float32, of every position of a target in one pass."""
        head = self._target(target)
        with compute_precision(self.compute_dtype, self.mask_token.device):
            context = self.decoder_proj_context(encoded.tokens) + encoded.embedding
            queries = self.mask_token + head.embedding(encoded.rows, encoded.cols)
            x = queries.expand(len(context), -1, -1)
            for block in self.decoder:
                x = block(x, context)
            logits: Tensor = head.to_logits(self.decoder_norm(x))
        return logits.float()

    def logits(self, inputs: Mapping[str, Tensor], target: str) -> Tensor:
        """Return logits (B, N, V) of a target modality given inputs; see `encode_inputs`."""
        self._target(target)
        return self.decode(self.encode_inputs(inputs), target)

    def _target(self, target: str) -> TokenTarget:
        spaces = {row.modality: row for row in self.description.token_spaces if row.kind == "grid"}
        if target not in spaces:
            raise ValueError(f"{target!r} cannot be generated: {nearest_name(target, spaces)}.")
        head = self.decoder_embeddings[spaces[target].key]
        assert isinstance(head, TokenTarget)
        return head

    def _input_key(self, name: str, values: Tensor) -> str:
        if values.is_floating_point():
            raw = self.description.raw_input(name)
            if raw is None:
                known = [row.modality for row in self.description.raw_inputs]
                raise ValueError(
                    f"The model takes no pixels of {name!r}: {nearest_name(name, known)}. "
                    "Integer token ids are taken of every modality that it generates."
                )
            if values.ndim != 4 or values.shape[1] != raw.channels:
                raise ValueError(
                    f"{name}: expected pixels (B, {raw.channels}, H, W), "
                    f"got shape {tuple(values.shape)}."
                )
            return raw.key
        space = self.description.token_space(name)
        if space is None:
            raise ValueError(f"The model knows no tokens of {name!r}; give float pixels.")
        rank = 3 if space.kind == "grid" else 2
        if values.ndim != rank:
            raise ValueError(f"{name}: expected ids of rank {rank}, got {tuple(values.shape)}.")
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < space.vocabulary:
            raise ValueError(
                f"{name}: token ids must lie in 0 .. {space.vocabulary - 1}, "
                f"got {int(values.min())} .. {int(values.max())}."
            )
        return space.key

    def _common_grid(self, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return the token grid shared by all images, that of pretraining if there is none."""
        patch, grids = self.description.patch_px, {}
        for name, values in inputs.items():
            self._input_key(name, values)
            if values.ndim == 4:
                height, width = values.shape[-2:]
                if height % patch or width % patch or not height * width:
                    raise ValueError(
                        f"{name}: {height} x {width} pixels are no whole patches of {patch} px."
                    )
                grids[name] = (height // patch, width // patch)
            elif values.ndim == 3:
                grids[name] = (values.shape[-2], values.shape[-1])
        if len(set(grids.values())) > 1:
            raise ValueError(f"The inputs' token grids differ: {grids}.")
        side = self.description.grid
        return next(iter(grids.values()), (side, side))
