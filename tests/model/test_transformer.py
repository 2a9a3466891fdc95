"""The encoder-decoder's interface: what it takes, in what order, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from terramind_cube.model import load_model


@pytest.fixture(scope="module")
def model():
    return load_model("terramind_nano")


def pixels(channels, height=64, width=64, batch=1, seed=0):
    return torch.randn(
        batch, channels, height, width, generator=torch.Generator().manual_seed(seed)
    )


def test_modalities_are_concatenated_in_the_order_given(model):
    s2, dem = pixels(12), pixels(1)
    first, second = model.encode({"S2L2A": s2, "DEM": dem}), model.encode({"DEM": dem, "S2L2A": s2})
    assert first.shape == (1, 32, 192)
    torch.testing.assert_close(first[:, :16], second[:, 16:], rtol=1e-4, atol=1e-4)


def test_inputs_change_the_logits(model):
    base = model.logits({"S2L2A": pixels(12)}, target="LULC")
    other = model.logits({"S2L2A": pixels(12, seed=1)}, target="LULC")
    more = model.logits({"S2L2A": pixels(12), "S1RTC": pixels(2)}, target="LULC")
    assert base.shape == (1, 16, 4375)
    assert (base - other).abs().max() > 0.1
    assert (base - more).abs().max() > 0.1


def test_rectangles_keep_rows_and_columns(model):
    wide = model.encode_inputs({"DEM": pixels(1, 32, 96)})
    assert (wide.rows, wide.cols) == (2, 6)
    assert model.decode(wide, "LULC").shape == (1, 12, 4375)
    table = model.encoder_embeddings["untok_dem@224"]
    full = table.pos_emb.transpose(1, 2).unflatten(2, (14, 14))
    expected = torch.nn.functional.interpolate(full, (2, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(
        table.embedding(2, 6) - table.mod_emb, expected.flatten(2).transpose(1, 2)
    )


def test_pixels_may_come_in_patches(model):
    image = pixels(12, 32, 96, batch=2)
    patches = image.unflatten(3, (6, 16)).unflatten(2, (2, 16)).permute(0, 2, 4, 3, 5, 1)
    assert patches.shape == (2, 2, 6, 16, 16, 12)
    found, expected = (model.encode_inputs({"S2L2A": x}) for x in (patches.contiguous(), image))
    assert (found.rows, found.cols) == (2, 6)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=0, atol=0)
    for wrong in (patches[..., :11], patches[..., :15, :], patches[:, 0]):
        with pytest.raises(ValueError, match="expected pixels"):
            model.encode({"S2L2A": wrong})


def test_tokens_enter_the_encoder_like_pixels(model):
    ids = torch.arange(16).view(1, 4, 4)
    assert model.encode({"LULC": ids}).shape == (1, 16, 192)
    assert model.encode({"S2L2A": pixels(12), "LULC": ids}).shape == (1, 32, 192)
    assert model.encode({"Coordinates": torch.tensor([[7, 8, 3]])}).shape == (1, 3, 192)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "at least one modality"),
        ({"S2L2A": pixels(11)}, r"S2L2A: expected pixels \(B, 12, H, W\)"),
        ({"S2L2A": pixels(12, 60)}, "no whole patches of 16 px"),
        ({"LULC": pixels(1)}, "takes no pixels of 'LULC'"),
        ({"S2L2B": pixels(12)}, "did you mean 'S2L2A'"),
        ({"S2L2A": pixels(12), "DEM": pixels(1, 32)}, "token grids differ"),
        ({"LULC": torch.full((1, 4, 4), 4375)}, r"must lie in 0 \.\. 4374"),
        ({"S2L1C": torch.zeros(1, 4, 4, dtype=torch.int64)}, "knows no tokens of 'S2L1C'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model.encode(inputs)


def test_targets_that_cannot_be_generated_are_refused(model):
    with pytest.raises(ValueError, match="cannot be generated"):
        model.logits({"DEM": pixels(1)}, target="RGB")


@pytest.mark.parametrize("slot", [0, 1, 3])
def test_a_tile_does_not_depend_on_its_slot_or_its_neighbours(model, slot):
    tile = pixels(12, 224, 224)
    reference = model.logits({"S2L2A": torch.cat([tile, pixels(12, 224, 224, 3, seed=5)])}, "LULC")
    batch = pixels(12, 224, 224, 4, seed=slot + 9)
    batch[slot] = tile[0]
    assert torch.equal(model.logits({"S2L2A": batch}, "LULC")[slot], reference[0])


def test_bfloat16_stays_close_to_float32():
    exact, fast = load_model("terramind_nano"), load_model("terramind_nano", precision="bfloat16")
    x = {"S2L2A": pixels(12)}
    a, b = exact.logits(x, "LULC"), fast.logits(x, "LULC")
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert float((a - b).abs().max() / a.std()) < 0.2
