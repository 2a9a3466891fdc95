"""TerraMind's encoder-decoder, read top to bottom.

Source: arXiv 2504.11171; layout and numerics of the released v1 checkpoints. Shapes: B batch,
N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from terramind_cube.modalities import nearest_name
from terramind_cube.model.embeddings import (
    PixelEmbedding,
    SequenceEmbedding,
    SequenceTarget,
    TokenEmbedding,
    TokenTarget,
    VisibleTokens,
)
from terramind_cube.model.layers import (
    DecoderBlock,
    EncoderBlock,
    GatedMlp,
    LayerNorm,
    Linear,
    Mlp,
    cast_linear,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terramind_cube.model.variants import ModelDescription

    Input = Tensor | VisibleTokens

__all__ = ["Embedded", "Encoded", "TerraMind"]


@dataclass(frozen=True)
class Embedded:
    """Inputs as vectors, before the encoder.

    Attributes
    ----------
    content : torch.Tensor
        Of pixels and tokens, (B, N, D), modalities in the order given.
    embedding : torch.Tensor
        Position and modality vectors of the same tokens, (1, N, D) or (B, N, D).
    rows, cols : int
        Token grid that every image modality shares.
    """

    content: Tensor
    embedding: Tensor
    rows: int
    cols: int

    def __add__(self, other: Embedded) -> Embedded:
        """Put further inputs behind these."""
        batch = len(self.content)
        if len(other.content) != batch:
            raise ValueError(f"The inputs' batches differ: {[batch, len(other.content)]}.")
        embeddings = (part.expand(batch, -1, -1) for part in (self.embedding, other.embedding))
        return Embedded(
            torch.cat([self.content, other.content], dim=1),
            torch.cat(list(embeddings), dim=1),
            self.rows,
            self.cols,
        )


@dataclass(frozen=True)
class Encoded:
    """What the decoder needs of the inputs.

    Attributes
    ----------
    tokens : torch.Tensor
        Encoder output after the final norm, (B, N, D), modalities in the order given.
    embedding : torch.Tensor
        Position and modality vectors of the same tokens, (1, N, D) or (B, N, D).
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
        self.decoder_proj_context = Linear(dim, dim)
        self.decoder = nn.ModuleList(
            DecoderBlock(dim, heads, bias, self._mlp()) for _ in range(description.decoder_depth)
        )
        self.decoder_norm = LayerNorm(dim)

    def _mlp(self) -> nn.Module:
        kind = GatedMlp if self.description.mlp == "swiglu" else Mlp
        return kind(self.description.dim, self.description.mlp_hidden, self.description.bias)

    def extend(self, description: ModelDescription) -> None:
        """Take on a description with further pixels, whose embeddings are added unfilled."""
        for raw in description.raw_inputs:
            if raw.key not in self.encoder_embeddings:
                self.encoder_embeddings[raw.key] = PixelEmbedding(description, raw.channels)
        self.description = description

    def cast(self, dtype: torch.dtype) -> None:
        """Let the matrix products compute in a dtype; norms, sums and logits stay in float32."""
        for part in (self.encoder_embeddings, self.encoder, self.decoder):
            cast_linear(part, dtype)
        self.decoder_proj_context.to(dtype)

    def encode(self, inputs: Mapping[str, Input]) -> Tensor:
        """Encode inputs to (B, N, D); see `encode_inputs`."""
        return self.encode_inputs(inputs).tokens

    @torch.inference_mode()
    def embed(self, inputs: Mapping[str, Input]) -> Embedded:
        """Turn any set of modalities into vectors; see `encode_inputs` for inputs and errors."""
        if not inputs:
            raise ValueError("No inputs: give at least one modality.")
        grid = self.common_grid(inputs)
        contents, embeddings = [], []
        for name, values in inputs.items():
            module: Any = self.encoder_embeddings[self._input_key(name, values)]
            is_partial = isinstance(values, VisibleTokens)
            content, embedding = module.embed_visible(values) if is_partial else module(values)
            contents.append(content.float())
            embeddings.append(embedding)
        batches = {len(content) for content in contents}
        if len(batches) > 1:
            raise ValueError(f"The inputs' batches differ: {sorted(batches)}.")
        if any(len(embedding) > 1 for embedding in embeddings):
            embeddings = [part.expand(len(contents[0]), -1, -1) for part in embeddings]
        return Embedded(torch.cat(contents, dim=1), torch.cat(embeddings, dim=1), *grid)

    @torch.inference_mode()
    def encode_embedded(self, embedded: Embedded) -> Encoded:
        """Run the encoder."""
        x = embedded.content + embedded.embedding
        for block in self.encoder:
            x = block(x)
        return Encoded(self.encoder_norm(x), embedded.embedding, embedded.rows, embedded.cols)

    def encode_inputs(self, inputs: Mapping[str, Input]) -> Encoded:
        """Encode any set of modalities.

        Parameters
        ----------
        inputs : mapping of str to torch.Tensor or VisibleTokens
            By public name: standardised pixels, float, (B, C, H, W) with H and W multiples of the
            patch, or cut into patches (B, h, w, ph, pw, C); or token ids, integer, (B, h, w) of a
            grid or (B, L) of a sequence; or some tokens of a grid.

        Returns
        -------
        Encoded

        Raises
        ------
        ValueError
            If a modality is unknown or its tensor has the wrong rank, channels or size.
        """
        for name, values in inputs.items():
            ids = values.ids if isinstance(values, VisibleTokens) else values
            space = self.description.token_space(name)
            if space is not None and ids.device.type != "cpu" and not ids.is_floating_point():
                self._check_range(name, ids, space.vocabulary)
        return self.encode_embedded(self.embed(inputs))

    @torch.inference_mode()
    def hidden_states(self, embedded: Embedded) -> list[Tensor]:
        """Return the output of every encoder block, (B, N, D) each, the last one normalised."""
        x = embedded.content + embedded.embedding
        states = []
        for block in self.encoder:
            x = block(x)
            states.append(x)
        states[-1] = self.encoder_norm(x)
        return states

    def unconditional(self, like: Encoded) -> Encoded:
        """Return the encoding of no input at all, for classifier-free guidance."""
        return Encoded(like.tokens[:, :0], like.embedding[:, :0], like.rows, like.cols)

    def context(self, encoded: Encoded) -> Tensor:
        """Return what the decoder attends to, (B, N, D)."""
        return self.decoder_proj_context(encoded.tokens) + encoded.embedding  # type: ignore[no-any-return]

    @torch.inference_mode()
    def decode(self, encoded: Encoded, target: str, positions: Tensor | None = None) -> Tensor:
        """Return the logits of a target's positions in one pass.

        Parameters
        ----------
        encoded : Encoded
        target : str
            Modality of a token grid.
        positions : torch.Tensor, optional
            Row-major places (B, n) to decode, int64; all by default.

        Returns
        -------
        torch.Tensor
            (B, n, V), float32.
        """
        head = self.target(target)
        context = self.context(encoded)
        queries = self.mask_token + head.embedding(encoded.rows, encoded.cols, positions)
        x = queries.expand(len(context), -1, -1)
        for block in self.decoder:
            x = block(x, context)
        logits: Tensor = head.to_logits(self.decoder_norm(x))
        return logits.float()

    def logits(self, inputs: Mapping[str, Input], target: str) -> Tensor:
        """Return logits (B, N, V) of a target modality given inputs; see `encode_inputs`."""
        self.target(target)
        return self.decode(self.encode_inputs(inputs), target)

    def target(self, target: str) -> TokenTarget:
        """Return the decoder side of a token grid.

        Raises
        ------
        ValueError
            If the model generates no such grid; the nearest one is offered.
        """
        spaces = {row.modality: row for row in self.description.token_spaces if row.kind == "grid"}
        space = self.description.token_space(target)
        if space is not None and space.kind == "sequence":
            raise ValueError(
                f"{target!r} is a sequence, whose tokens follow one another: see model.sequences."
            )
        if target not in spaces:
            raise ValueError(f"{target!r} cannot be generated: {nearest_name(target, spaces)}.")
        head = self.decoder_embeddings[spaces[target].key]
        assert isinstance(head, TokenTarget)
        return head

    def _input_key(self, name: str, values: Input) -> str:
        if isinstance(values, VisibleTokens):
            return self._visible_key(name, values)
        if values.is_floating_point():
            raw = self.description.raw_input(name)
            if raw is None:
                known = [row.modality for row in self.description.raw_inputs]
                raise ValueError(
                    f"The model takes no pixels of {name!r}: {nearest_name(name, known)}. "
                    "Integer token ids are taken of every modality that it generates."
                )
            patch = (self.description.patch_px,) * 2
            is_image = values.ndim == 4 and values.shape[1] == raw.channels
            if not is_image and (values.ndim != 6 or values.shape[3:] != (*patch, raw.channels)):
                raise ValueError(
                    f"{name}: expected pixels (B, {raw.channels}, H, W), "
                    f"got shape {tuple(values.shape)}."
                )
            return raw.key
        space = self.description.token_space(name)
        return self._token_key(name, values, rank=2 if space and space.kind == "sequence" else 3)

    def _visible_key(self, name: str, tokens: VisibleTokens) -> str:
        space, key = self.description.token_space(name), self._token_key(name, tokens.ids, rank=2)
        if space and space.kind != "grid":
            raise ValueError(f"{name} is no grid: give all ids of the sequence, (B, L).")
        places, last = tokens.positions, tokens.rows * tokens.cols - 1
        if places.shape != tokens.ids.shape:
            raise ValueError(
                f"{name}: ids {tuple(tokens.ids.shape)} need positions of the same shape, "
                f"got {tuple(places.shape)}."
            )
        is_here = places.device.type == "cpu" and places.numel() > 0
        if is_here and not 0 <= int(places.min()) <= int(places.max()) <= last:
            raise ValueError(
                f"{name}: positions must lie in 0 .. {last}, "
                f"got {int(places.min())} .. {int(places.max())}."
            )
        return key

    def _token_key(self, name: str, ids: Tensor, rank: int) -> str:
        space = self.description.token_space(name)
        if space is None:
            raise ValueError(f"The model knows no tokens of {name!r}; give float pixels.")
        if ids.ndim != rank:
            raise ValueError(f"{name}: expected ids of rank {rank}, got {tuple(ids.shape)}.")
        # Reading ids back from an accelerator would stall it: `encode_inputs` does it all the same.
        if ids.device.type == "cpu":
            self._check_range(name, ids, space.vocabulary)
        return space.key

    @staticmethod
    def _check_range(name: str, ids: Tensor, vocabulary: int) -> None:
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"{name}: token ids must lie in 0 .. {vocabulary - 1}, "
                f"got {int(ids.min())} .. {int(ids.max())}."
            )

    def common_grid(self, inputs: Mapping[str, Input]) -> tuple[int, int]:
        """Return rows and columns of the token grid that all images share.

        It is that of pretraining if there is no image; see `encode_inputs` for errors.
        """
        patch, grids = self.description.patch_px, {}
        for name, values in inputs.items():
            self._input_key(name, values)
            if isinstance(values, VisibleTokens):
                grids[name] = (values.rows, values.cols)
            elif values.ndim == 4:
                height, width = values.shape[-2:]
                if height % patch or width % patch or not height * width:
                    raise ValueError(
                        f"{name}: {height} x {width} pixels are no whole patches of {patch} px."
                    )
                grids[name] = (height // patch, width // patch)
            elif values.ndim == 6:
                grids[name] = (values.shape[1], values.shape[2])
            elif values.ndim == 3:
                grids[name] = (values.shape[-2], values.shape[-1])
        if len(set(grids.values())) > 1:
            raise ValueError(f"The inputs' token grids differ: {grids}.")
        side = self.description.grid
        return next(iter(grids.values()), (side, side))
