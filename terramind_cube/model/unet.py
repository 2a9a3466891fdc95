"""The denoiser of the diffusion tokenizers: a UNet conditioned on a grid of codes.

Source: the guided-diffusion UNet (arXiv 2105.05233) in a space-to-depth of 4, with the layout of the
released TerraMind tokenizers. Shapes in comments: B batch, C image channels, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramind_cube.model.layers import attend

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["UNet", "UNetDescription"]

_GROUPS = 32
_MAX_PERIOD = 10_000.0


@dataclass(frozen=True)
class UNetDescription:
    """Sizes of a denoiser.

    Attributes
    ----------
    features : int
        Of the finest level.
    multipliers : tuple of int
        Features of each level, finest first, in multiples of `features`; a level halves the grid.
    blocks : int
        Residual blocks of a level, one more on the way up.
    attention_levels : tuple of int
        Levels whose blocks are followed by self-attention.
    patch_px : int
        Pixels along one side that are folded into channels before the first level.
    groups : int
        Of the group normalisations.
    """

    features: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 3
    attention_levels: tuple[int, ...] = (2, 3)
    patch_px: int = 4
    groups: int = _GROUPS

    @property
    def multiple_px(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.patch_px << (len(self.multipliers) - 1)

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> UNetDescription:
        """Build a description from the fields that JSON kept."""
        tupled = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**tupled)  # type: ignore[arg-type]


class _Residual(nn.Module):
    """Two convolutions around the time embedding, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, time: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs))
        # The released layout counts a dropout, which is none at inference.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, outputs),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention of one head over the positions of a grid."""

    def __init__(self, features: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, features)
        self.qkv = nn.Conv1d(features, 3 * features, 1)
        self.proj_out = nn.Conv1d(features, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, h*w, F)
        # The 1-D convolutions of the checkpoint are linear maps of the features.
        qkv = F.linear(tokens, self.qkv.weight[..., 0], self.qkv.bias)
        q, k, v = (part[:, None] for part in qkv.chunk(3, dim=-1))  # (B, 1, h*w, F)
        attended = attend(q, k, v)[:, 0]
        attended = F.linear(attended, self.proj_out.weight[..., 0], self.proj_out.bias)
        image: Tensor = attended.transpose(1, 2).unflatten(2, x.shape[-2:])
        return x + image


class _Down(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(features, features, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # type: ignore[no-any-return]


class _Up(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))  # type: ignore[no-any-return]


class _Stage(nn.ModuleList):
    """Layers in a row, of which residual blocks take the time embedding."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, _Residual) else layer(x)
        return x


class UNet(nn.Module):
    """Predicts the clean image from a noisy one, its time step and a grid of codes.

    Parameters
    ----------
    channels : int
        Of an image.
    latents : int
        Channels of the codes.
    description : UNetDescription
    """

    def __init__(self, channels: int, latents: int, description: UNetDescription) -> None:
        super().__init__()
        self.description = description
        self.memory_format = torch.contiguous_format
        base, groups = description.features, description.groups
        time, folded = 4 * base, channels * description.patch_px**2
        self.time_embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        widths = [base * factor for factor in description.multipliers]

        def stage(inputs: int, level: int) -> _Stage:
            layers: list[nn.Module] = [_Residual(inputs, widths[level], time, groups)]
            if level in description.attention_levels:
                layers.append(_Attention(widths[level], groups))
            return _Stage(layers)

        self.input_blocks = nn.ModuleList(
            [_Stage([nn.Conv2d(folded + latents, base, 3, padding=1)])]
        )
        skips, features, last = [base], base, len(widths) - 1
        for level, width in enumerate(widths):
            for _ in range(description.blocks):
                self.input_blocks.append(stage(features, level))
                features = width
                skips.append(features)
            if level < last:
                self.input_blocks.append(_Stage([_Down(features)]))
                skips.append(features)
        self.middle_block = _Stage(
            [
                _Residual(features, features, time, groups),
                _Attention(features, groups),
                _Residual(features, features, time, groups),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(description.blocks + 1):
                block = stage(features + skips.pop(), level)
                features = widths[level]
                if level and i == description.blocks:
                    block.append(_Up(features))
                self.output_blocks.append(block)
        self.out = nn.Sequential(
            nn.GroupNorm(groups, base), nn.SiLU(), nn.Conv2d(base, folded, 3, padding=1)
        )

    def cast(self, dtype: torch.dtype, device: torch.device) -> None:
        """Compute in a dtype on a device, in the memory layout that is fastest there.

        Channels last everywhere but in float32 on a CPU, where it costs 6 % (measured).
        """
        is_plain = dtype == torch.float32 and device.type == "cpu"
        self.memory_format = torch.contiguous_format if is_plain else torch.channels_last
        self.to(dtype=dtype, memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, x: Tensor, step: int, codes: Tensor) -> Tensor:
        """Predict the clean image.

        Parameters
        ----------
        x : torch.Tensor
            Noisy image (B, C, H, W); H and W are multiples of ``description.multiple_px``.
        step : int
            Training time step of the noise level, 0 to 999.
        codes : torch.Tensor
            (B, L, h, w) in [0, 1], resized to the folded grid by repetition.

        Returns
        -------
        torch.Tensor
            (B, C, H, W), float32.
        """
        dtype = next(self.out.parameters()).dtype
        fold = self.description.patch_px
        grid = (x.shape[-2] // fold, x.shape[-1] // fold)
        condition = F.interpolate(codes, grid, mode="nearest")
        # (B, C * 16 + L, H/4, W/4)
        hidden = torch.cat([F.pixel_unshuffle(x, fold), condition], dim=1)
        hidden = hidden.to(dtype, memory_format=self.memory_format)
        time = self.time_embed(self._sinusoid(step, x.device).to(dtype))  # (1, 4 * features)
        skips = []
        for block in self.input_blocks:
            hidden = block(hidden, time)
            skips.append(hidden)
        hidden = self.middle_block(hidden, time)
        for block in self.output_blocks:
            hidden = block(torch.cat([hidden, skips.pop()], dim=1), time)
        return F.pixel_shuffle(self.out(hidden).float(), fold)

    def _sinusoid(self, step: int, device: torch.device) -> Tensor:
        half = self.description.features // 2
        rates = torch.exp(
            -math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=device) / half
        )
        angle = rates * float(step)
        return torch.cat([angle.cos(), angle.sin()])[None]
