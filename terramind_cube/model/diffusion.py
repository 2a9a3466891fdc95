"""Noise levels of the diffusion tokenizers, and the samplers that walk down them.

The network predicts the clean image (x0). The schedule is linear in beta, rescaled to zero terminal
signal-to-noise ratio (arXiv 2305.08891, algorithm 1): the walk starts at pure noise, where a noise
prediction would be undefined and a prediction of the clean image is exact.

Samplers: DDIM (arXiv 2010.02502, eta 0), as released, and DPM-Solver++(2M) (arXiv 2211.01095,
algorithm 2), which reaches the same quality in a fifth of the steps (tests/model/test_diffusion.py
measures it against the exact answer of a Gaussian mixture).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Denoiser = Callable[[Tensor, int], Tensor]
    Range = tuple[Tensor, Tensor]

__all__ = ["SAMPLERS", "NoiseLevel", "Sampler", "noise_levels", "sample_image"]

Sampler = Literal["dpm++", "ddim"]
SAMPLERS = ("dpm++", "ddim")
TRAINING_STEPS = 1000
_BETAS = (1e-4, 0.02)
# Of 1 to 2, the power with the least error on Gaussian mixtures at 8 to 10 steps.
_SPACING_POWER = 1.5


@dataclass(frozen=True)
class NoiseLevel:
    """One step of a walk.

    Attributes
    ----------
    step : int
        Training time step, 0 to 999; the network is asked at it.
    alpha, sigma : float
        Share of signal and of noise: a noisy image is ``alpha * x0 + sigma * noise``.
    """

    step: int
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """Half the logarithm of the signal-to-noise ratio: minus infinity for pure noise."""
        return -math.inf if self.alpha == 0 else math.log(self.alpha / self.sigma)


@cache
def _signal_shares() -> NDArray[np.float64]:
    """Alpha of every training step, rescaled so that the last one is exactly 0."""
    alpha = np.sqrt(np.cumprod(1 - np.linspace(*_BETAS, TRAINING_STEPS)))
    shares: NDArray[np.float64] = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return shares


def noise_levels(steps: int, sampler: Sampler = "dpm++") -> tuple[NoiseLevel, ...]:
    """Return the levels at which the network is asked, noisiest first.

    DDIM walks as the released models do: evenly, with the stride ``1000 // steps``, so that a
    number that does not divide 1000 takes one step more. DPM-Solver++ takes exactly `steps`,
    denser towards the clean image, where its last jump would otherwise be its largest error.

    Raises
    ------
    ValueError
        If the number of steps or the sampler is not known.
    """
    if not 1 <= steps <= TRAINING_STEPS:
        raise ValueError(f"steps must be at least 1 and at most {TRAINING_STEPS}, got {steps}.")
    if sampler == "ddim":
        chosen = np.arange(TRAINING_STEPS, 0, -(TRAINING_STEPS // steps)) - 1
    elif sampler == "dpm++":
        share = np.linspace(1, 0, steps, endpoint=False)
        chosen = np.rint(TRAINING_STEPS * share**_SPACING_POWER).astype(int) - 1
        # A walk of many steps would stand still near its end.
        chosen = np.maximum(chosen, np.arange(steps)[::-1])
    else:
        raise ValueError(f"Unknown sampler {sampler!r}: give one of {', '.join(SAMPLERS)}.")
    shares = _signal_shares()[chosen]
    return tuple(
        NoiseLevel(int(step), float(alpha), math.sqrt(1 - float(alpha) ** 2))
        for step, alpha in zip(chosen, shares, strict=True)
    )


def sample_image(
    denoise: Denoiser,
    noise: Tensor,
    *,
    steps: int,
    sampler: Sampler = "dpm++",
    bounds: Range | None = None,
) -> Tensor:
    """Walk from noise to an image.

    Nothing is read back from the device between the steps.

    Parameters
    ----------
    denoise : callable
        Maps a noisy image (B, C, H, W) and a training time step to the predicted clean image.
    noise : torch.Tensor
        Standard normal (B, C, H, W), float32; it is not changed.
    steps : int
    sampler : {"dpm++", "ddim"}
    bounds : pair of torch.Tensor (C, 1, 1), optional
        Least and greatest value of a clean image; every prediction is cut to them.

    Returns
    -------
    torch.Tensor
        The last prediction of the clean image, (B, C, H, W).
    """
    levels = noise_levels(steps, sampler)
    advance = _ddim if sampler == "ddim" else _dpm_solver
    x, previous = noise, None
    for i, level in enumerate(levels):
        predicted = denoise(x, level.step)
        clean = predicted if bounds is None else predicted.clamp(*bounds)
        if i + 1 == len(levels):
            return clean
        x = advance(x, (predicted, clean, previous), levels[max(i - 1, 0) : i + 2])
        previous = clean
    raise AssertionError("unreachable: there is at least one level")


def _ddim(
    x: Tensor, images: tuple[Tensor, Tensor, Tensor | None], levels: tuple[NoiseLevel, ...]
) -> Tensor:
    """One step of DDIM: the noise comes from the prediction as it is, the image from the cut one."""
    predicted, clean, _ = images
    here, there = levels[-2:]
    noise = (x - here.alpha * predicted) / here.sigma
    return there.alpha * clean + there.sigma * noise


def _dpm_solver(
    x: Tensor, images: tuple[Tensor, Tensor, Tensor | None], levels: tuple[NoiseLevel, ...]
) -> Tensor:
    """One step of DPM-Solver++(2M), of first order where there is no finite step before it."""
    _, clean, previous = images
    here, there = levels[-2:]
    # Exact for pure noise too: alpha is 0 there, sigma 1, and the exponential of the step is 0.
    shrink = there.sigma / here.sigma
    pull = there.alpha - shrink * here.alpha
    if previous is not None and math.isfinite(levels[0].log_snr):
        ratio = (here.log_snr - levels[0].log_snr) / (there.log_snr - here.log_snr)
        clean = clean + (clean - previous) * (0.5 / ratio)
    return shrink * x + pull * clean
