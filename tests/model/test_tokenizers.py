"""The tokenizer's interface and its quantizer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from terramind_cube.modalities import Statistics, unstandardize
from terramind_cube.model import load_tokenizer
from terramind_cube.model.loading import fill_untrained
from terramind_cube.model.quantizer import FiniteScalarQuantizer
from terramind_cube.model.tokenizers import Tokenizer
from terramind_cube.model.unet import UNetDescription
from terramind_cube.model.variants import TOKENIZERS, TokenizerDescription

LEVELS = (7, 5, 5, 5, 5)
IMAGE_LEVELS = (8, 8, 8, 6, 5)
UNET = UNetDescription(features=32, groups=8, blocks=1)
SMALL = TokenizerDescription(
    "S1GRD",
    "v1",
    2,
    IMAGE_LEVELS,
    dim=32,
    heads=2,
    encoder_depth=1,
    decoder_depth=1,
    mlp_hidden=64,
    unet=UNET,
)

pytestmark = pytest.mark.usefixtures("one_thread")
# Physically possible values; the released models' limit of one standard deviation is far inside.
POSSIBLE = {
    "S2L2A": (1, 65535),
    "S1GRD": (-60, 35),
    "S1RTC": (-60, 35),
    "DEM": (-500, 9000),
    "NDVI": (-1, 1),
}


def build(description=SMALL, **changes):
    network = Tokenizer(dataclasses.replace(description, **changes)).eval().requires_grad_(False)
    fill_untrained(network)
    return network


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_ids(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 15360, shape, generator=generator)


@pytest.fixture(scope="module")
def diffusing():
    return build()


@pytest.fixture(scope="module", params=["diffusion", "vit"])
def either(request):
    return build() if request.param == "diffusion" else build(unet=None)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("LULC", family="nano")


def test_every_token_survives_a_round_trip_through_codes():
    quantizer = FiniteScalarQuantizer(LEVELS)
    ids = torch.arange(quantizer.size).view(1, 35, 125)
    codes = quantizer.dequantize(ids)
    assert float(codes.min()) == 0
    assert float(codes.max()) == 1
    latent = torch.logit(codes.double(), eps=1e-9)
    assert torch.equal(quantizer.quantize(latent), ids)


def test_first_latent_is_least_significant():
    quantizer = FiniteScalarQuantizer(LEVELS)
    ids = torch.tensor([[[0, 1, 7, 35, 175, 875]]])
    numbers = quantizer.dequantize(ids) * (torch.tensor(LEVELS)[:, None, None] - 1)
    np.testing.assert_array_equal(
        numbers[0, :, 0].T.round().int().numpy(),
        [
            [0] * 5,
            [1, 0, 0, 0, 0],
            [0, 1, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 0, 1, 0],
            [0] * 4 + [1],
        ],
    )


def test_halves_round_to_even():
    quantizer = FiniteScalarQuantizer((2, 4))
    # sigmoid(0) = 0.5: 0.5 * 1 is a half and rounds to 0, 0.5 * 3 = 1.5 rounds to 2.
    assert int(quantizer.quantize(torch.zeros(1, 2, 1, 1))) == 0 + 2 * 2


def test_decoder_gives_class_logits_of_any_grid(tokenizer):
    ids = torch.arange(12).view(1, 2, 6)
    decoded = tokenizer.decode(ids)
    assert decoded.shape == (1, 10, 32, 96)
    assert torch.equal(tokenizer.decode(ids, size=(30, 91)), decoded[:, :, :30, :91])


def test_tokens_of_a_rectangle_have_its_shape(tokenizer):
    x = torch.randint(0, 10, (2, 32, 96), generator=torch.Generator().manual_seed(0))
    assert tokenizer.latent(x).shape == (2, 5, 2, 6)
    ids = tokenizer.tokenize(x)
    assert ids.shape == (2, 2, 6)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 4375


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.latent(torch.zeros(1, 9, 32, 32)), r"expected \(B, 10, H, W\)"),
        (lambda t: t.latent(torch.full((1, 32, 32), 11)), r"codes must lie in 0 \.\. 9"),
        (lambda t: t.decode(torch.zeros(1, 2, 2)), "integer ids"),
        (lambda t: t.decode(torch.full((1, 2, 2), 4375)), r"LULC: ids: expected 0 \.\. 4374"),
        (lambda t: t.decode(torch.full((1, 2, 2), -1)), r"LULC: ids: expected 0 \.\. 4374"),
        (lambda t: t.decode(torch.zeros(1, 2, 2).long(), size=(33, 32)), "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        call(tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, r"steps must be at least 1 and at most 1000"),
        ({"steps": -3, "sampler": "ddim"}, r"steps must be at least 1 and at most 1000"),
        ({"steps": 1001}, r"steps must be at least 1 and at most 1000"),
        ({"sampler": "euler"}, r"Unknown sampler 'euler': give one of dpm\+\+, ddim"),
        ({"clamp": "hard"}, "Unknown clamp 'hard': 'physical', 'released' or None"),
        ({"size": (33, 32)}, "does not fit"),
        ({"size": (0, 32)}, "does not fit"),
    ],
)
def test_wrong_arguments_are_refused_before_a_decoder_is_loaded(arguments, message):
    tokenizer = load_tokenizer("LULC", family="nano")
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(torch.zeros(1, 2, 2).long(), **arguments)
    assert not tokenizer.has("decoder")


@pytest.mark.parametrize("shape", [(1, 2, 32, 48), (2, 2, 32, 32), (1, 1, 32, 32), (2, 32, 32)])
def test_noise_of_another_shape_is_refused(diffusing, shape):
    with pytest.raises(ValueError, match=r"noise must be \(1, 2, 32, 32\), got"):
        diffusing.decode(torch.zeros(1, 2, 2).long(), noise=torch.zeros(shape))


@pytest.mark.parametrize(
    ("grid", "size"),
    [((14, 28), None), ((15, 20), (230, 310)), ((1, 1), None), ((3, 5), (48, 65)), ((1, 4), None)],
)
def test_grid_of_any_shape_is_decoded_and_cropped(either, grid, size):
    ids = some_ids(1, *grid)
    whole = either.decode(ids, steps=2)
    assert whole.shape == (1, 2, 16 * grid[0], 16 * grid[1])
    assert whole.dtype == torch.float32
    assert bool(whole.isfinite().all())
    if size is not None:
        cropped = either.decode(ids, steps=2, size=size)
        assert torch.equal(cropped, whole[..., : size[0], : size[1]])


def test_tokens_smaller_than_half_the_coarsest_cell_are_decoded():
    tokenizer = build(patch_px=8)
    noise = normal(1, 2, 8, 24)
    image = tokenizer.decode(some_ids(1, 1, 3), steps=2, noise=noise, clamp=None)
    assert image.shape == noise.shape
    # The canvas of 32 px continues the noise around its edge, the codes by repetition.
    wide = noise.repeat(1, 1, 4, 2)[..., :32]
    ids = torch.cat([some_ids(1, 1, 3), some_ids(1, 1, 3)[..., -1:]], dim=-1).repeat(1, 4, 1)
    expected = tokenizer.decode(ids, steps=2, noise=wide, clamp=None)[..., :8, :24]
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_token_acts_most_on_its_own_pixels(either):
    ids = some_ids(1, 4, 7)
    first = either.decode(ids, steps=2, clamp=None)
    for row, col in ((0, 6), (2, 5), (3, 0)):
        changed = ids.clone()
        changed[0, row, col] = 15359 - changed[0, row, col]
        change = (either.decode(changed, steps=2, clamp=None) - first).square().sum(1)
        assert divmod(int(F.avg_pool2d(change, 16).argmax()), 7) == (row, col)


def test_image_of_rows_of_tokens_varies_downwards_and_of_columns_sideways(diffusing):
    rows, cols = some_ids(1, 6, 1).expand(1, 6, 10), some_ids(1, 1, 10).expand(1, 6, 10)
    noise = torch.zeros(1, 2, 96, 160)

    def spread(ids):
        image = diffusing.decode(ids, steps=1, noise=noise, clamp=None)
        cells = F.avg_pool2d(image, 16)[..., 1:-1, 1:-1]
        return float(cells.std(dim=-2).mean()), float(cells.std(dim=-1).mean())

    down, sideways = spread(rows)
    assert down > 1.5 * sideways
    down, sideways = spread(cols)
    assert sideways > 1.5 * down


def test_pixel_acts_most_on_its_own_latent(diffusing):
    x = normal(1, 2, 64, 112)
    first = diffusing.latent(x)
    for row, col in ((0, 6), (2, 5), (3, 0)):
        changed = x.clone()
        changed[..., 16 * row : 16 * row + 16, 16 * col : 16 * col + 16] *= -1
        change = (diffusing.latent(changed) - first).square().sum(1)
        assert divmod(int(change.argmax()), 7) == (row, col)


@pytest.mark.parametrize(
    ("height", "width", "mode"),
    [
        (230, 310, "reflect"),
        (17, 16, "reflect"),
        (10, 5, "edge"),
        (40, 5, "edge"),
        (25, 41, "reflect"),
    ],
)
def test_odd_sides_are_continued_southwards_and_eastwards(diffusing, height, width, mode):
    x = normal(2, 2, height, width)
    rows, cols = -(-height // 16), -(-width // 16)
    margins = ((0, 0), (0, 0), (0, 16 * rows - height), (0, 16 * cols - width))
    if mode == "reflect":
        assert margins[2][1] < height
        assert margins[3][1] < width
    continued = torch.from_numpy(np.pad(x.numpy(), margins, mode=mode))
    assert torch.equal(diffusing.latent(x), diffusing.latent(continued))
    ids = diffusing.tokenize(x)
    assert ids.shape == (2, rows, cols)
    assert torch.equal(ids, diffusing.tokenize(continued))


def test_odd_sides_of_class_codes_are_continued_too(tokenizer):
    classes = torch.randint(0, 10, (1, 10, 5), generator=torch.Generator().manual_seed(0))
    continued = torch.from_numpy(np.pad(classes.numpy(), ((0, 0), (0, 6), (0, 11)), mode="edge"))
    assert torch.equal(tokenizer.latent(classes), tokenizer.latent(continued))


def blow_up(modality, kind):
    """A tokenizer whose every image leaves all bounds on both sides."""
    channels = TOKENIZERS["nano", modality].channels
    unet = UNET if kind == "diffusion" else None
    tokenizer = build(modality=modality, channels=channels, unet=unet)
    last = tokenizer.decoder.out[2] if kind == "diffusion" else tokenizer.decoder.out_proj
    with torch.no_grad():
        last.weight.mul_(300)
    return tokenizer


@pytest.mark.parametrize("kind", ["diffusion", "vit"])
@pytest.mark.parametrize("modality", POSSIBLE)
def test_clamp_bounds_every_band(modality, kind):
    tokenizer = blow_up(modality, kind)
    ids = some_ids(1, 4, 6)
    low, high = POSSIBLE[modality]

    def extremes(clamp):
        image = tokenizer.decode(ids, steps=2, clamp=clamp)
        return image, unstandardize(modality, image)[0].flatten(1)

    image, _ = extremes("released")
    assert bool((image.amin((0, 2, 3)) == -1).all())
    assert bool((image.amax((0, 2, 3)) == 1).all())

    image, values = extremes("physical")
    tolerance = 1e-5 * (high - low)
    np.testing.assert_allclose(values.amin(1), low, rtol=0, atol=tolerance)
    np.testing.assert_allclose(values.amax(1), high, rtol=0, atol=tolerance)
    assert float(image.abs().max()) > 1.5

    image, values = extremes(None)
    assert bool((values.amin(1) < low - 10 * tolerance).all())
    assert bool((values.amax(1) > high + 10 * tolerance).all())
    default = tokenizer.decode(ids, steps=2)
    assert torch.equal(default, tokenizer.decode(ids, steps=2, clamp="physical"))


def test_high_mountains_and_green_fields_pass_the_physical_clamp_unchanged():
    for modality, limit in (("DEM", 1622), ("NDVI", 0.649)):
        tokenizer = build(modality=modality, channels=1, unet=None)
        free = tokenizer.decode(some_ids(1, 4, 6), clamp=None)
        values = unstandardize(modality, free)
        low, high = POSSIBLE[modality]
        is_possible = (low <= values) & (values <= high)
        assert bool((is_possible & (values > limit)).any())
        clamped = tokenizer.decode(some_ids(1, 4, 6), clamp="physical")
        assert torch.equal(clamped[is_possible], free[is_possible])
        assert float(unstandardize(modality, clamped).max()) > limit


def test_bounds_follow_the_statistics_of_the_weights():
    tokenizer = build(modality="DEM", channels=1, unet=None, statistics=Statistics((100,), (400,)))
    with torch.no_grad():
        tokenizer.decoder.out_proj.weight.mul_(300)
    image = tokenizer.decode(some_ids(1, 4, 6))
    assert float(image.min()) == -600 / 400
    assert float(image.max()) == 8900 / 400


def test_class_logits_are_never_clamped(tokenizer):
    ids = some_ids(1, 3, 3) % 4375
    free = tokenizer.decode(ids, clamp=None)
    assert float(free.abs().max()) > 1
    assert torch.equal(tokenizer.decode(ids, clamp="released"), free)
    assert torch.equal(tokenizer.decode(ids, clamp="physical"), free)


@pytest.mark.parametrize("sampler", ["dpm++", "ddim"])
def test_same_noise_gives_the_same_bytes_and_other_noise_another_image(diffusing, sampler):
    ids, noise = some_ids(1, 3, 5), normal(1, 2, 48, 80)
    kept = noise.clone()
    first = diffusing.decode(ids, 3, noise, sampler)
    assert torch.equal(diffusing.decode(ids, 3, noise.clone(), sampler), first)
    assert torch.equal(noise, kept)
    other = diffusing.decode(ids, 3, normal(1, 2, 48, 80, seed=1), sampler)
    assert float((other - first).std()) > 0.1 * float(first.std())


def test_default_noise_is_fixed_and_leaves_the_global_generator_alone(diffusing):
    ids = some_ids(1, 2, 3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = diffusing.decode(ids, steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(diffusing.decode(ids, steps=2), first)
    silent = diffusing.decode(ids, steps=2, noise=torch.zeros(1, 2, 32, 48))
    assert not torch.equal(silent, first)


def test_steps_and_sampler_change_the_image(diffusing):
    ids, noise = some_ids(1, 2, 4), normal(1, 2, 32, 64)
    images = [
        diffusing.decode(ids, steps, noise, sampler, None)
        for steps, sampler in ((2, "dpm++"), (5, "dpm++"), (5, "ddim"))
    ]
    for i in (1, 2):
        assert float((images[i] - images[i - 1]).std()) > 0.01 * float(images[i].std())


def test_rows_of_a_batch_do_not_influence_one_another(either):
    ids, noise = some_ids(3, 2, 3), normal(3, 2, 32, 48)
    together = either.decode(ids, steps=3, noise=noise)
    for i in range(3):
        alone = either.decode(ids[i : i + 1], steps=3, noise=noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("levels", [LEVELS, IMAGE_LEVELS])
def test_certain_probabilities_give_the_codes_themselves(levels):
    quantizer = FiniteScalarQuantizer(levels)
    ids = some_ids(2, 3, 4) % quantizer.size
    found = quantizer.expected_codes(F.one_hot(ids, quantizer.size).float())
    assert torch.equal(found.movedim(-1, 1), quantizer.dequantize(ids))


@pytest.mark.parametrize("levels", [LEVELS, IMAGE_LEVELS])
def test_expected_codes_are_means_over_the_ids(levels):
    quantizer = FiniteScalarQuantizer(levels)
    uniform = torch.full((2, 3, quantizer.size), 1 / quantizer.size)
    expected = torch.full((2, 3, 5), 0.5)
    torch.testing.assert_close(quantizer.expected_codes(uniform), expected, rtol=0, atol=1e-4)
    probability = torch.zeros(1, quantizer.size)
    probability[0, 1], probability[0, -1] = 0.25, 0.75
    expected = torch.full((1, 5), 0.75)
    expected[0, 0] += 0.25 / (levels[0] - 1)
    torch.testing.assert_close(quantizer.expected_codes(probability), expected)


def test_codes_between_the_levels_are_decoded(either):
    ids = some_ids(1, 2, 3)
    codes = either.quantizer.dequantize(ids)
    assert torch.equal(either.decode_codes(codes, steps=2), either.decode(ids, steps=2))
    between = either.decode_codes(codes * 0.9 + 0.05, steps=2)
    assert between.shape == (1, 2, 32, 48)
    assert not torch.equal(between, either.decode(ids, steps=2))


@pytest.mark.parametrize("modality", ["S2L2A", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI"])
def test_nano_tokenizer_goes_from_image_to_tokens_and_back(modality):
    tokenizer = load_tokenizer(modality, family="nano")
    description = tokenizer.description
    assert description == TOKENIZERS["nano", modality]
    assert description.fsq_levels == TOKENIZERS["v1", modality].fsq_levels
    assert description.channels == TOKENIZERS["v1", modality].channels
    assert not tokenizer.decodes_by_diffusion
    x = normal(1, description.channels, 32, 48)
    ids = tokenizer.tokenize(x)
    assert ids.shape == (1, 2, 3)
    assert 0 <= int(ids.min()) <= int(ids.max()) < description.vocabulary
    assert tokenizer.decode(ids).shape == x.shape


def test_both_families_have_a_tokenizer_of_the_same_six_modalities():
    modalities = {"S2L2A", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI"}
    for family in ("v1", "nano"):
        assert {name for group, name in TOKENIZERS if group == family} == modalities
    assert [row.unet is None for row in TOKENIZERS.values() if row.family == "v1"].count(True) == 1
    assert TOKENIZERS["v1", "LULC"].unet is None


def test_pixels_that_no_sensor_measures_are_named():
    tokenizer = load_tokenizer("DEM", family="nano")
    image = torch.zeros(1, 1, 32, 32)
    image[0, 0, 3, 4] = -3.4e38
    with pytest.raises(ValueError, match=r"DEM: latent: .*NaN"):
        tokenizer.tokenize(image)


def test_any_integers_are_ids():
    tokenizer = load_tokenizer("LULC", family="nano")
    ids = torch.tensor([[[3, 200], [17, 0]]])
    expected = tokenizer.decode(ids)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(tokenizer.decode(ids.to(dtype)), expected, rtol=0, atol=0)


def test_convolutions_of_float32_are_not_rounded_to_tf32_on_a_gpu(monkeypatch):
    from terramind_cube.model.layers import exact_float32

    backend = torch.backends.cudnn
    monkeypatch.setattr(backend, "allow_tf32", True)
    gpu = torch.device("cuda:0")
    with exact_float32(gpu):
        with exact_float32(gpu):
            assert not backend.allow_tf32
        assert not backend.allow_tf32
    assert backend.allow_tf32
    with exact_float32(torch.device("cpu")):
        assert backend.allow_tf32
