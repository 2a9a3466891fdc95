"""Image tokenizers: ViT encoder, finite scalar quantizer, ViT or diffusion decoder.

Layout and numerics are those of the released tokenizers: land cover is decoded by a ViT in one pass,
every other modality by a UNet that walks from noise to the image. The two halves are loaded when
they are first needed, so that generating needs no encoder and tokenizing no decoder.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramind_cube.modalities import MODALITIES, V1_STATISTICS
from terramind_cube.model.diffusion import SAMPLERS, Sampler, noise_levels, sample_image
from terramind_cube.model.layers import (
    NORM_EPSILON,
    EncoderBlock,
    Linear,
    Mlp,
    cast_linear,
    exact_float32,
    interpolate_positions,
    sincos_positions_2d,
)
from terramind_cube.model.quantizer import FiniteScalarQuantizer
from terramind_cube.model.unet import UNet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from terramind_cube.model.variants import TokenizerDescription

__all__ = ["CLAMPS", "PARTS", "PARTS_TENSORS", "Clamp", "Tokenizer"]

Part = Literal["encoder", "decoder"]
PARTS: tuple[Part, Part] = ("encoder", "decoder")
PARTS_TENSORS: Mapping[Part, tuple[str, ...]] = {
    "encoder": ("encoder.", "quant_proj."),
    "decoder": ("decoder.", "post_quant_proj."),
}
"""How the names of each half's tensors begin."""

Clamp = Literal["physical", "released"]
CLAMPS = ("physical", "released", None)
# One for all tokenizers, so that each of them can be copied and pickled.
_PROVIDING = threading.Lock()


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
        """Map a feature grid (B, D, h, w) to tokens (B, h * w, D), float32."""
        rows, cols = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + interpolate_positions(self.pos_emb, rows, cols)
        for block in self.blocks:
            x = block(x)
        return x + self.post_mlp(self.norm_mlp(x))  # type: ignore[no-any-return]

    def cast(self, dtype: torch.dtype) -> None:
        """Let the matrix products compute in a dtype."""
        cast_linear(self, dtype)


class _Encoder(_ViT):
    def __init__(self, description: TokenizerDescription) -> None:
        super().__init__(description, description.encoder_depth)
        patch = description.patch_px
        self.proj = nn.Conv2d(description.channels, description.dim, patch, stride=patch)

    def cast(self, dtype: torch.dtype) -> None:
        # The last layers before the quantizer stay in float32: rounding there changes tokens.
        cast_linear(self.blocks, dtype)

    def forward(self, x: Tensor) -> Tensor:
        features = self.proj(x)
        return self.transform(features).transpose(1, 2).reshape(features.shape)


class _Decoder(_ViT):
    def __init__(self, description: TokenizerDescription) -> None:
        super().__init__(description, description.decoder_depth)
        self.patch_px = description.patch_px
        self.out_proj = Linear(description.dim, description.channels * self.patch_px**2)

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[-2:]
        patch = self.patch_px
        patches = self.out_proj(self.transform(x))  # (B, h*w, C*p*p), order (c, ph, pw)
        image: Tensor = patches.view(len(x), rows, cols, -1, patch, patch)
        image = image.permute(0, 3, 1, 4, 2, 5)  # (B, C, h, p, w, p)
        return image.reshape(len(x), -1, rows * patch, cols * patch).float()


class Tokenizer(nn.Module):
    """Image to token ids and back.

    Parameters
    ----------
    description : TokenizerDescription
    parts : tuple of {"encoder", "decoder"}
        The halves to build now.
    provide : callable, optional
        Called as ``provide(tokenizer, part)`` when a half that was not built is first needed; it
        builds and fills it.
    """

    def __init__(
        self,
        description: TokenizerDescription,
        parts: tuple[Part, ...] = PARTS,
        provide: Callable[[Tokenizer, Part], None] | None = None,
    ) -> None:
        super().__init__()
        self.description = description
        self.quantizer = FiniteScalarQuantizer(description.fsq_levels)
        self._provide = provide
        for part in parts:
            self.build(part)

    def build(self, part: Part) -> None:
        """Add the modules of one half, unfilled."""
        row = self.description
        latents = len(row.fsq_levels)
        if part == "encoder":
            self.quant_proj = nn.Conv2d(row.dim, latents, 1)
            self.encoder = _Encoder(row)
        elif row.unet is None:
            self.post_quant_proj = nn.Conv2d(latents, row.dim, 1)
            self.decoder: nn.Module = _Decoder(row)
        else:
            self.decoder = UNet(row.channels, latents, row.unet)

    def has(self, part: Part) -> bool:
        """Whether a half is in memory."""
        return part in self._modules

    def cast(self, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        """Let a half compute in a dtype on a device; quantization and sums stay in float32."""
        half = self._modules[part]
        if isinstance(half, _ViT):
            half.cast(dtype)
        elif isinstance(half, UNet):
            half.cast(dtype, device)

    def require(self, *parts: Part) -> None:
        """Load halves that are not in memory yet."""
        # Tensors made in inference mode, in which the callers are, could never be trained.
        with _PROVIDING, torch.inference_mode(False):
            for part in parts:
                if self._provide is not None and not self.has(part):
                    try:
                        self._provide(self, part)
                    except BaseException:
                        # An unfilled half must not pass for a loaded one.
                        self._modules.pop(part, None)
                        raise

    @property
    def decodes_by_diffusion(self) -> bool:
        """Whether decoding takes noise and steps."""
        return self.description.unet is not None

    @torch.inference_mode()
    def latent(self, x: Tensor) -> Tensor:
        """Return the latents before quantisation, (B, L, h, w), float32.

        Parameters
        ----------
        x : torch.Tensor
            Standardised image (B, C, H, W); of LULC also class codes (B, H, W) or (B, 1, H, W).
            Sides that are no multiple of the patch are reflected southwards and eastwards to one.

        Raises
        ------
        ValueError
            If channels or classes do not fit.
        """
        x = self._as_channels(x)
        self.require("encoder")
        patch = self.description.patch_px
        rest = [-side % patch for side in x.shape[-2:]]
        if any(rest):
            # Reflection cannot reach further than the image itself.
            is_short = any(more >= side for more, side in zip(rest, x.shape[-2:], strict=True))
            mode = "replicate" if is_short else "reflect"
            x = F.pad(x, (0, rest[1], 0, rest[0]), mode=mode)
        with exact_float32(x.device):
            latent: Tensor = self.quant_proj(self.encoder(x))
        return latent

    def tokenize(self, x: Tensor) -> Tensor:
        """Return token ids (B, h, w), int64; see `latent` for the input.

        Raises
        ------
        ValueError
            If the input does not fit, or so far from what a sensor measures that latents are NaN.
        """
        latent = self.latent(x)
        with self._naming():
            return self.quantizer.quantize(latent)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Say in an error of the quantizer whose it is."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.description.modality}: {error}") from error

    def decode(  # the public signature that all tokenizers share
        self,
        ids: Tensor,
        steps: int = 10,
        noise: Tensor | None = None,
        sampler: Sampler = "dpm++",
        clamp: Clamp | None = "physical",
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Decode token ids.

        Parameters
        ----------
        ids : torch.Tensor
            Integer ids (B, h, w), of any h and w.
        steps, noise, sampler
            Of diffusion decoders, see `decode_codes`; a ViT decoder runs once and ignores them.
        clamp : {"physical", "released"} or None
            Bounds of every predicted image: the modality's valid range, the released models' one
            standard deviation around the mean, or none. Of LULC it is ignored.
        size : tuple of int, optional
            Height and width to crop the result to; all of it by default.

        Returns
        -------
        torch.Tensor
            Standardised image (B, C, H, W), float32; of LULC class logits (B, 10, H, W).

        Raises
        ------
        ValueError
            If ids are outside the codebook, or size, noise, steps or names do not fit.
        """
        if ids.ndim != 3 or ids.is_floating_point():
            raise ValueError(f"Expected integer ids (B, h, w), got {ids.dtype} {tuple(ids.shape)}.")
        full = tuple(side * self.description.patch_px for side in ids.shape[-2:])
        height, width = size or full
        if not (0 < height <= full[0] and 0 < width <= full[1]):
            raise ValueError(f"size {size} does not fit the decoded image of {full} px.")
        with self._naming():
            codes = self.quantizer.dequantize(ids)
        image = self.decode_codes(codes, steps, noise, sampler, clamp)
        return image[..., :height, :width]

    @torch.inference_mode()
    def decode_codes(
        self,
        codes: Tensor,
        steps: int = 10,
        noise: Tensor | None = None,
        sampler: Sampler = "dpm++",
        clamp: Clamp | None = "physical",
    ) -> Tensor:
        """Decode codes (B, L, h, w) in [0, 1], which need not lie on the quantizer's levels.

        Parameters
        ----------
        codes : torch.Tensor
        steps : int
            Evaluations of the denoiser.
        noise : torch.Tensor, optional
            Standard normal (B, C, H, W), where the image starts; by default numbers of a fixed
            seed.
        sampler, clamp
            As in `decode`.

        Returns
        -------
        torch.Tensor
            As of `decode`, (B, C, h * patch, w * patch).
        """
        if clamp not in CLAMPS:
            raise ValueError(f"Unknown clamp {clamp!r}: 'physical', 'released' or None.")
        if sampler not in SAMPLERS:
            raise ValueError(f"Unknown sampler {sampler!r}: give one of {', '.join(SAMPLERS)}.")
        noise_levels(steps, sampler)
        self.require("decoder")
        with exact_float32(codes.device):
            if self.description.unet is not None:
                return self._diffuse(codes, noise, steps, sampler, clamp)
            image: Tensor = self.decoder(self.post_quant_proj(codes))
        bounds = self._bounds(clamp, codes.device)
        return image if bounds is None else image.clamp(*bounds)

    def _diffuse(
        self, codes: Tensor, noise: Tensor | None, steps: int, sampler: Sampler, clamp: Clamp | None
    ) -> Tensor:
        """Walk from noise to the image on a canvas of whole multiples, and crop it."""
        row = self.description
        assert isinstance(self.decoder, UNet)
        height, width = (side * row.patch_px for side in codes.shape[-2:])
        shape = (len(codes), row.channels, height, width)
        if noise is None:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise must be {shape}, got {tuple(noise.shape)}.")
        noise = noise.to(codes.device, torch.float32)
        multiple = self.decoder.description.multiple_px
        bottom, right = -height % multiple, -width % multiple
        if bottom or right:
            # Around the edges, more than once if the image is small.
            noise = noise[..., torch.arange(height + bottom) % height, :]
            noise = noise[..., torch.arange(width + right) % width]
            cells = (0, right // row.patch_px, 0, bottom // row.patch_px)
            codes = F.pad(codes, cells, mode="replicate")
        image: Tensor = sample_image(
            lambda x, step: self.decoder(x, step, codes),
            noise,
            steps=steps,
            sampler=sampler,
            bounds=self._bounds(clamp, codes.device),
        )
        return image[..., :height, :width]

    def _bounds(self, clamp: Clamp | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return least and greatest standardised value per band, (C, 1, 1) each."""
        modality = MODALITIES[self.description.modality]
        if clamp is None or modality.kind == "classes" or modality.valid_range is None:
            return None
        row = self.description.statistics or V1_STATISTICS[modality.name]
        mean = torch.tensor(row.mean, device=device)[:, None, None]
        std = torch.tensor(row.std, device=device)[:, None, None]
        if clamp == "released":
            return -torch.ones_like(mean), torch.ones_like(mean)
        low, high = modality.valid_range
        return (low - mean) / std, (high - mean) / std

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return every tensor of both halves, by the names of a checkpoint."""
        self.require(*PARTS)
        return super().state_dict(*args, **kwargs)

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
