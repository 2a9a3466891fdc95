"""Image tokenizers: ViT encoder, finite scalar quantizer, ViT decoder.

Layout and numerics are those of the released LULC tokenizer. Finite scalar quantization follows
arXiv 2309.15505 with a sigmoid in place of the tanh, so that codes lie in [0, 1].
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramind_cube.model.layers import (
    NORM_EPSILON,
    EncoderBlock,
    Mlp,
    compute_precision,
    interpolate_positions,
    sincos_positions_2d,
)

if TYPE_CHECKING:
    from terramind_cube.model.variants import TokenizerDescription

__all__ = ["FiniteScalarQuantizer", "Tokenizer"]


class FiniteScalarQuantizer:
    """Mixed-radix numbers of rounded latents; it has no parameters.

    Parameters
    ----------
    levels : tuple of int
        Levels per latent, least significant first.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        self.levels = levels
        self.size = math.prod(levels)
        self.basis = tuple(math.prod(levels[:i]) for i in range(len(levels)))

    def quantize(self, latent: Tensor) -> Tensor:
        """Map latents (B, L, h, w) to token ids (B, h, w), int64; halves round to even."""
        tops = latent.new_tensor([level - 1 for level in self.levels])[:, None, None]
        numbers = torch.round(torch.sigmoid(latent) * tops).long()
        basis = torch.tensor(self.basis, device=latent.device)[:, None, None]
        return (numbers * basis).sum(dim=1)

    def dequantize(self, ids: Tensor) -> Tensor:
        """Map token ids (B, h, w) to codes (B, L, h, w) in [0, 1], float32."""
        basis = torch.tensor(self.basis, device=ids.device)[:, None, None]
        levels = torch.tensor(self.levels, device=ids.device)[:, None, None]
        return (ids[:, None] // basis % levels).float() / (levels - 1).float()


class _ViT(nn.Module):
    """Blocks of a tokenizer with its position table and its closing tanh MLP."""

    pos_emb: Tensor

    def __init__(self, description: TokenizerDescription, depth: int) -> None:
        super().__init__()
        dim, side = description.dim, description.position_grid
        table = sincos_positions_2d(side, side, dim).transpose(1, 2).unflatten(2, (side, side))
        self.register_buffer("pos_emb", table.contiguous())
        norm = partial(nn.LayerNorm, eps=NORM_EPSILON)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                dim,
                description.heads,
                bias=True,
                mlp=Mlp(dim, description.mlp_hidden, bias=True),
                norm=norm,  # type: ignore[arg-type]
            )
            for _ in range(depth)
        )
        self.norm_mlp = norm(dim)
        self.post_mlp = Mlp(dim, description.mlp_hidden, bias=True, activation="tanh")

    def transform(self, x: Tensor) -> Tensor:
        """Map a feature grid (B, D, h, w) to tokens (B, h * w, D)."""
        rows, cols = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + interpolate_positions(self.pos_emb, rows, cols)
        for block in self.blocks:
            x = block(x)
        # The latents' last layers stay in float32 whatever the precision around them.
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return x + self.post_mlp(self.norm_mlp(x))  # type: ignore[no-any-return]


class _Encoder(_ViT):
    def __init__(self, description: TokenizerDescription) -> None:
        super().__init__(description, description.encoder_depth)
        patch = description.patch_px
        self.proj = nn.Conv2d(description.channels, description.dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        features = self.proj(x)
        return self.transform(features).transpose(1, 2).reshape(features.shape)


class _Decoder(_ViT):
    def __init__(self, description: TokenizerDescription) -> None:
        super().__init__(description, description.decoder_depth)
        self.patch_px = description.patch_px
        self.out_proj = nn.Linear(description.dim, description.channels * self.patch_px**2)

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[-2:]
        patches = self.out_proj(self.transform(x))  # (B, h*w, C*p*p), order (c, ph, pw)
        return F.fold(
            patches.transpose(1, 2),
            (rows * self.patch_px, cols * self.patch_px),
            self.patch_px,
            stride=self.patch_px,
        )


class Tokenizer(nn.Module):
    """Image to token ids and back.

    Parameters
    ----------
    description : TokenizerDescription
    """

    def __init__(self, description: TokenizerDescription) -> None:
        super().__init__()
        self.description = description
        self.compute_dtype = torch.float32
        self.quantizer = FiniteScalarQuantizer(description.fsq_levels)
        latents = len(description.fsq_levels)
        self.encoder = _Encoder(description)
        self.quant_proj = nn.Conv2d(description.dim, latents, 1)
        self.post_quant_proj = nn.Conv2d(latents, description.dim, 1)
        self.decoder = _Decoder(description)

    @torch.inference_mode()
    def latent(self, x: Tensor) -> Tensor:
        """Return the latents before quantisation, (B, L, h, w), float32.

        Parameters
        ----------
        x : torch.Tensor
            Standardised image (B, C, H, W); of LULC also class codes (B, H, W) or (B, 1, H, W).
            H and W are multiples of the patch.

        Raises
        ------
        ValueError
            If channels, classes or size do not fit.
        """
        x = self._as_channels(x)
        height, width = x.shape[-2:]
        patch = self.description.patch_px
        if height % patch or width % patch:
            raise ValueError(f"{height} x {width} pixels are no whole patches of {patch} px.")
        with compute_precision(self.compute_dtype, x.device):
            features = self.encoder(x)
        return self.quant_proj(features.float())  # type: ignore[no-any-return]

    def tokenize(self, x: Tensor) -> Tensor:
        """Return token ids (B, h, w), int64; see `latent` for the input."""
        return self.quantizer.quantize(self.latent(x))

    @torch.inference_mode()
    def decode(  # the public signature that all tokenizers share
        self,
        ids: Tensor,
        steps: int = 10,
        noise: Tensor | None = None,
        sampler: str = "dpm++",
        clamp: str | None = "physical",
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Decode token ids.

        Parameters
        ----------
        ids : torch.Tensor
            Integer ids (B, h, w).
        steps, noise, sampler, clamp
            Of diffusion decoders; a ViT decoder runs once, without noise, and ignores them.
        size : tuple of int, optional
            Height and width to crop the result to; all of it by default.

        Returns
        -------
        torch.Tensor
            LULC: class logits (B, 10, H, W), float32.

        Raises
        ------
        ValueError
            If ids are outside the codebook or the size does not fit the grid.
        """
        if ids.ndim != 3 or ids.is_floating_point():
            raise ValueError(f"Expected integer ids (B, h, w), got {ids.dtype} {tuple(ids.shape)}.")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.quantizer.size:
            raise ValueError(
                f"{self.description.modality}: token ids must lie in 0 .. {self.quantizer.size - 1}"
                f", got {int(ids.min())} .. {int(ids.max())}."
            )
        full = tuple(side * self.description.patch_px for side in ids.shape[-2:])
        height, width = size or full
        if not (0 < height <= full[0] and 0 < width <= full[1]):
            raise ValueError(f"size {size} does not fit the decoded image of {full} px.")
        codes = self.quantizer.dequantize(ids)
        with compute_precision(self.compute_dtype, codes.device):
            image = self.decoder(self.post_quant_proj(codes)).float()
        return image[..., :height, :width]  # type: ignore[no-any-return]

    def _as_channels(self, x: Tensor) -> Tensor:
        channels = self.description.channels
        if x.ndim == 4 and x.shape[1] == channels:
            return x.float()
        if self.description.modality == "LULC" and (x.ndim == 3 or x.shape[1] == 1):
            classes = x.reshape(len(x), *x.shape[-2:]).long()
            if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < channels:
                raise ValueError(f"LULC class codes must lie in 0 .. {channels - 1}.")
            return F.one_hot(classes, channels).movedim(-1, 1).float()
        raise ValueError(
            f"{self.description.modality}: expected (B, {channels}, H, W), got {tuple(x.shape)}."
        )
