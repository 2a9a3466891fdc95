"""Both samplers against the schedule as released, algebra by hand, and the exact answer in 1-D."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from terramind_cube.model.diffusion import SAMPLERS, noise_levels, sample_image

# Weights, means and standard deviations of mixtures of normal distributions.
MIXTURES = (
    ((0.3, 0.5, 0.2), (-1.2, 0.3, 1.6), (0.15, 0.25, 0.1)),
    ((0.5, 0.5), (-1.0, 1.0), (0.05, 0.05)),
    ((0.6, 0.4), (-0.4, 0.8), (0.5, 0.3)),
    ((0.2, 0.3, 0.5), (-2.0, 0.0, 1.0), (0.4, 0.02, 0.3)),
)

pytestmark = pytest.mark.usefixtures("one_thread")
QUANTILES = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
SHAPE = (2, 3, 4, 5)


def alphas_squared():
    """The released schedule, written down a second time: linear betas, no signal at the end."""
    share = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)) ** 0.5
    return (((share - share[-1]) / (share[0] - share[-1])) * share[0]) ** 2


def normal(seed, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def box(low, high):
    """Bounds, one number or one per channel each, as a tokenizer gives them."""
    return tuple(
        torch.tensor(side, dtype=torch.float64).expand(3)[:, None, None] for side in (low, high)
    )


def columns(mixture):
    return tuple(torch.tensor(row, dtype=torch.float64)[:, None] for row in mixture)


def expect_clean(mixture, x, step):
    """E[x0 | x] of a mixture: what a perfectly trained network would predict."""
    weight, mean, std = columns(mixture)
    signal = float(alphas_squared()[step])
    alpha, variance = signal**0.5, signal * std**2 + 1 - signal
    off = x.reshape(1, -1) - alpha * mean
    share = torch.softmax(weight.log() - 0.5 * variance.log() - 0.5 * off**2 / variance, dim=0)
    return (share * (mean + alpha * std**2 / variance * off)).sum(0).view(x.shape)


def quantiles(mixture):
    """Inverse of a mixture's distribution function, by bisection."""
    weight, mean, std = columns(mixture)
    low, high = torch.full_like(QUANTILES, -9), torch.full_like(QUANTILES, 9)
    for _ in range(60):
        middle = (low + high) / 2
        is_below = (weight * torch.special.ndtr((middle - mean) / std)).sum(0) < QUANTILES
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return middle


@functools.cache
def error(sampler, steps):
    """RMS distance to the exact answer over the mixtures.

    Along one axis the probability flow keeps the order of the points, so that it carries each
    quantile of the noise to the same quantile of the images.
    """
    noise = torch.special.ndtri(QUANTILES).view(1, 1, 1, -1)
    squares = []
    for mixture in MIXTURES:
        denoise = functools.partial(expect_clean, mixture)
        found = sample_image(denoise, noise, steps=steps, sampler=sampler)
        squares.append((found.flatten() - quantiles(mixture)).square().mean())
    return float(torch.stack(squares).mean().sqrt())


def depend_on_everything(x, step):
    """Some prediction that depends on the noisy image and on the step."""
    return 1.4 * torch.tanh(x * (1 + step / 1000)) - 0.2


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [999]),
        (2, [999, 499]),
        (3, [999, 666, 333, 0]),
        (4, [999, 749, 499, 249]),
        (5, [999, 799, 599, 399, 199]),
        (10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (30, list(range(999, 0, -33))),
        (50, list(range(999, 0, -20))),
    ],
)
def test_ddim_asks_at_the_released_steps(steps, expected):
    assert [level.step for level in noise_levels(steps, "ddim")] == expected
    assert len(expected) == (steps if 1000 % steps == 0 else steps + 1)


def test_signal_shares_are_those_of_the_released_schedule():
    levels = {level.step: level for level in noise_levels(1000, "ddim")}
    assert sorted(levels) == list(range(1000))
    released = {0: 0.9999, 99: 0.8964, 249: 0.5215, 499: 0.0760, 749: 0.00269}
    for step, share in released.items():
        assert levels[step].alpha ** 2 == pytest.approx(share, rel=1e-3)
    assert levels[998].alpha ** 2 == pytest.approx(4e-9, rel=0.2)
    assert (levels[999].alpha, levels[999].sigma, levels[999].log_snr) == (0, 1, -math.inf)
    for step, level in levels.items():
        assert level.alpha**2 == pytest.approx(alphas_squared()[step], rel=1e-9)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)


def test_dpm_solver_takes_as_many_steps_as_it_is_given():
    for steps in range(1, 1001):
        chosen = [level.step for level in noise_levels(steps)]
        assert len(chosen) == steps
        assert chosen[0] == 999
        assert chosen[-1] >= 0
        assert all(here > there for here, there in itertools.pairwise(chosen))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_network_is_asked_once_at_every_level(sampler):
    asked = []

    def denoise(x, step):
        asked.append(step)
        return x

    sample_image(denoise, normal(0), steps=7, sampler=sampler)
    assert asked == [level.step for level in noise_levels(7, sampler)]


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_impossible_number_of_steps_is_refused(steps, sampler):
    with pytest.raises(
        ValueError, match=rf"steps must be at least 1 and at most 1000, got {steps}"
    ):
        noise_levels(steps, sampler)


def test_unknown_sampler_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'euler': give one of dpm\+\+, ddim"):
        sample_image(depend_on_everything, normal(0), steps=4, sampler="euler")


def test_ten_steps_of_dpm_solver_are_as_good_as_fifty_of_ddim():
    assert error("dpm++", 10) <= error("ddim", 50) < 0.05
    assert error("dpm++", 9) == pytest.approx(error("ddim", 50), rel=0.05)


@pytest.mark.parametrize("steps", [5, 8, 10, 20])
def test_dpm_solver_has_less_than_half_the_error_of_ddim(steps):
    assert error("dpm++", steps) < 0.5 * error("ddim", steps)


def test_both_samplers_converge_to_the_exact_answer():
    assert error("ddim", 1000) < 0.005
    assert error("dpm++", 100) < 0.002
    # Of first and of second order.
    assert error("ddim", 100) / error("ddim", 200) == pytest.approx(2, rel=0.3)
    assert error("dpm++", 25) / error("dpm++", 50) > 3


def walk_by_hand(advance, chosen, bounds=None):
    """Walk with formulas of NumPy, where `advance` maps all that is known to the next image."""
    x, clean = normal(0).numpy(), None
    for i, step in enumerate(chosen):
        predicted = depend_on_everything(torch.from_numpy(x), step).numpy()
        previous, clean = clean, predicted if bounds is None else predicted.clip(*bounds)
        if i + 1 < len(chosen):
            x = advance(x, predicted, clean, previous, chosen[max(i - 1, 0) : i + 2])
    return clean


def advance_ddim(x, predicted, clean, previous, steps):
    here, there = alphas_squared()[list(steps[-2:])]
    noise = (x - here**0.5 * predicted) / (1 - here) ** 0.5
    return there**0.5 * clean + (1 - there) ** 0.5 * noise


def advance_dpm_solver(x, predicted, clean, previous, steps):
    """Algorithm 2 of arXiv 2211.01095 as it is printed."""
    alpha = np.sqrt(alphas_squared()[list(steps)])
    sigma = np.sqrt(1 - alpha**2)
    with np.errstate(divide="ignore"):
        half_log_snr = np.log(alpha / sigma)
    h = half_log_snr[-1] - half_log_snr[-2]
    if previous is not None:
        r = (half_log_snr[-2] - half_log_snr[-3]) / h
        clean = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * previous
    return sigma[-1] / sigma[-2] * x - alpha[-1] * np.expm1(-h) * clean


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("bounds", [None, (-0.5, 0.4)])
@pytest.mark.parametrize(
    ("sampler", "advance"), [("ddim", advance_ddim), ("dpm++", advance_dpm_solver)]
)
def test_steps_follow_the_published_formula(sampler, advance, bounds, steps):
    chosen = [level.step for level in noise_levels(steps, sampler)]
    found = sample_image(
        depend_on_everything,
        normal(0),
        steps=steps,
        sampler=sampler,
        bounds=bounds and box(*bounds),
    )
    expected = walk_by_hand(advance, chosen, bounds)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)


def test_ddim_takes_the_noise_from_the_prediction_before_it_is_cut():
    seen = []

    def denoise(x, step):
        seen.append(x)
        return torch.full_like(x, 5.0)

    sample_image(denoise, normal(0), steps=4, sampler="ddim", bounds=box(-1.0, 1.0))
    here, there = np.sqrt(alphas_squared()[[749, 499]])
    noise = (seen[1] - here * 5.0) / (1 - here**2) ** 0.5
    expected = there * 1.0 + (1 - there**2) ** 0.5 * noise
    torch.testing.assert_close(seen[2], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50, 333])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_oracle_is_reproduced_along_the_straight_mix_of_image_and_noise(sampler, steps):
    image, noise = 3 * normal(1), normal(0)

    def denoise(x, step):
        signal = alphas_squared()[step]
        mix = signal**0.5 * image + (1 - signal) ** 0.5 * noise
        torch.testing.assert_close(x, mix, rtol=0, atol=1e-9)
        return image

    assert torch.equal(sample_image(denoise, noise, steps=steps, sampler=sampler), image)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_result_lies_within_the_bounds_of_its_channel(sampler):
    low, high = [-0.1, -0.3, 0.2], [0.1, 0.0, 0.6]
    found = sample_image(
        lambda x, step: normal(step),
        normal(0),
        steps=6,
        sampler=sampler,
        bounds=box(low, high),
    )
    assert found.amin((0, 2, 3)).tolist() == low
    assert found.amax((0, 2, 3)).tolist() == high


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_noise_is_not_modified_and_float32_stays(sampler, steps):
    noise = normal(0).float()
    kept = noise.clone()
    found = sample_image(depend_on_everything, noise, steps=steps, sampler=sampler)
    assert torch.equal(noise, kept)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_walk_from_pure_noise_is_finite_at_every_step(sampler):
    seen = []

    def denoise(x, step):
        seen.append(x)
        return 0.5 * x

    seen.append(sample_image(denoise, normal(0).float(), steps=10, sampler=sampler))
    assert all(bool(x.isfinite().all()) for x in seen)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_of_a_batch_do_not_influence_one_another(sampler):
    def denoise(x, step):
        return 0.5 * torch.tanh(x) + x.mean((1, 2, 3), keepdim=True)

    noise = normal(0, (3, 2, 8, 8)) * torch.tensor([0.1, 1.0, 5.0])[:, None, None, None]
    together = sample_image(denoise, noise, steps=8, sampler=sampler)
    for i in range(3):
        alone = sample_image(denoise, noise[i : i + 1], steps=8, sampler=sampler)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)
