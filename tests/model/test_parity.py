"""TerraMind here is the released TerraMind: layouts, logits, latents, tokens (promise 1)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import seeded
import torch

from terramind_cube.modalities import standardize
from terramind_cube.model import load_model, load_tokenizer
from terramind_cube.model.loading import tensor_shapes
from terramind_cube.model.tokenizers import Tokenizer
from terramind_cube.model.transformer import TerraMind
from terramind_cube.model.variants import MODELS, TOKENIZERS

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "goldens.json").read_text())
GOLDENS = np.load(DATA / "goldens.npz")
TOLERANCE = 1e-3
CLEAR_MARGIN = 5e-3

LOGIT_CASES = [
    pytest.param(name, marks=pytest.mark.slow if case["variant"] == "base" else ())
    for name, case in CASES.items()
    if case["kind"] == "logits"
]
TOKENIZER_CASES = [
    pytest.param(name, marks=() if case["mod"] == "LULC" else pytest.mark.slow)
    for name, case in CASES.items()
    if case["kind"] == "tok"
]


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_model_layout_is_that_of_the_released_checkpoint(size, shapes):
    with torch.device("meta"):
        model = TerraMind(MODELS[f"terramind_v1_{size}"])
    assert tensor_shapes(model) == {name: tuple(shape) for name, shape in shapes[size].items()}


@pytest.mark.parametrize("modality", [name for family, name in TOKENIZERS if family == "v1"])
def test_tokenizer_layout_is_that_of_the_released_checkpoint(modality, shapes):
    with torch.device("meta"):
        tokenizer = Tokenizer(TOKENIZERS["v1", modality])
    released = shapes[f"tokenizer_{modality.lower()}"]
    assert tensor_shapes(tokenizer) == {name: tuple(shape) for name, shape in released.items()}


@pytest.mark.parametrize("name", LOGIT_CASES)
def test_logits_equal_the_reference(name, seeded_checkpoint):
    case = CASES[name]
    weights = seeded_checkpoint(case["variant"], case["seed"])
    model = load_model(f"terramind_v1_{case['variant']}", weights)
    inputs = {}
    for modality in case["inputs"]:
        pixels = seeded.seeded_input(modality, case["batch"], case["size"], case["seed"])
        inputs[modality] = torch.from_numpy(standardize(modality, pixels))

    encoded = model.encode(inputs).numpy()
    logits = model.logits(inputs, target=case["target"]).numpy()

    np.testing.assert_allclose(
        encoded[:, ::7, ::5], GOLDENS[f"{name}/encoder"], rtol=0, atol=TOLERANCE
    )
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :3]
    top = np.take_along_axis(logits, order, axis=-1)
    golden = GOLDENS[f"{name}/top_logits"]
    np.testing.assert_allclose(top, golden, rtol=0, atol=TOLERANCE)
    is_clear = golden[..., 0] - golden[..., 1] > CLEAR_MARGIN
    assert is_clear.any()
    np.testing.assert_array_equal(
        order[..., 0][is_clear], GOLDENS[f"{name}/top_ids"][..., 0][is_clear]
    )
    np.testing.assert_allclose(
        logits.mean(-1), GOLDENS[f"{name}/logit_mean"], rtol=0, atol=TOLERANCE
    )
    np.testing.assert_allclose(logits.std(-1), GOLDENS[f"{name}/logit_std"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", TOKENIZER_CASES)
def test_tokenizer_equals_the_reference(name, seeded_checkpoint):
    case = CASES[name]
    modality, size = case["mod"], case["size"]
    tokenizer = load_tokenizer(
        modality, seeded_checkpoint(f"tokenizer_{modality.lower()}", case["seed"])
    )
    pixels = seeded.seeded_input(modality, case["batch"], size, case["seed"])
    x = torch.from_numpy(standardize(modality, pixels))

    latent = tokenizer.latent(x).numpy()
    tokens = tokenizer.tokenize(x).numpy()
    golden_tokens = GOLDENS[f"{name}/tokens"]
    arguments = {}
    if modality != "LULC":
        noise = seeded.seeded_noise(seeded.CHANNELS[modality], case["batch"], size, case["seed"])
        arguments = {
            "steps": case["steps"],
            "noise": torch.from_numpy(noise),
            "sampler": "ddim",
            "clamp": case.get("clamp", "released"),
        }
    decoded = tokenizer.decode(torch.from_numpy(golden_tokens), **arguments).numpy()

    np.testing.assert_allclose(latent, GOLDENS[f"{name}/latent"], rtol=0, atol=TOLERANCE)
    levels = np.array(TOKENIZERS["v1", modality].fsq_levels)[:, None, None]
    scaled = 1 / (1 + np.exp(-GOLDENS[f"{name}/latent"].astype(np.float64))) * (levels - 1)
    is_clear = (np.abs(scaled - np.floor(scaled) - 0.5) > TOLERANCE).all(axis=1)
    assert is_clear.mean() > 0.9
    np.testing.assert_array_equal(tokens[is_clear], golden_tokens[is_clear])
    np.testing.assert_allclose(
        decoded[:, :, ::4, ::4], GOLDENS[f"{name}/decoded"], rtol=0, atol=TOLERANCE
    )
    moments = {"mean": decoded.mean((2, 3)), "std": decoded.std((2, 3))}
    for moment, found in moments.items():
        if f"{name}/decoded_{moment}" in GOLDENS:
            golden = GOLDENS[f"{name}/decoded_{moment}"]
            np.testing.assert_allclose(found, golden, rtol=0, atol=TOLERANCE)


def test_class_codes_and_one_hot_give_the_same_tokens():
    tokenizer = load_tokenizer("LULC", family="nano")
    classes = torch.arange(10).repeat_interleave(4).repeat(64 * 64 // 40 + 1)[: 64 * 64]
    classes = classes.view(1, 64, 64)
    one_hot = torch.nn.functional.one_hot(classes, 10).movedim(-1, 1).float()
    expected = tokenizer.tokenize(one_hot)
    assert torch.equal(tokenizer.tokenize(classes), expected)
    assert torch.equal(tokenizer.tokenize(classes[:, None].to(torch.uint8)), expected)
