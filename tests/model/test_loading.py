"""A network is filled completely and exactly, or the error names the tensor."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from terramind_cube.modalities import Statistics
from terramind_cube.model import load_model, load_tokenizer
from terramind_cube.model.loading import choose_dtype, tensor_shapes
from terramind_cube.model.transformer import TerraMind
from terramind_cube.model.variants import (
    DESCRIPTION_KEY,
    MODELS,
    TOKENIZERS,
    ModelDescription,
    RawInput,
    TokenSpace,
)
from terramind_cube.model.weights import WeightsError

SMALL = ModelDescription(
    "terramind_nano",
    dim=16,
    heads=2,
    encoder_depth=1,
    decoder_depth=1,
    mlp_hidden=32,
    tokenizers="nano",
    tile_px=64,
    patch_px=8,
    raw_inputs=(RawInput("DEM", "untok_dem", 1),),
    token_spaces=(TokenSpace("LULC", "tok_lulc", 12),),
    statistics={"DEM": Statistics((100.0,), (7.0,))},
)


def write(path, network, description=None, **changes):
    tensors = {name: value.contiguous().clone() for name, value in network.state_dict().items()}
    tensors |= changes.get("replace", {})
    for name in changes.get("drop", ()):
        del tensors[name]
    metadata = {DESCRIPTION_KEY: description.to_json()} if description else None
    save_file(tensors, path, metadata)
    return path


def small_network():
    torch.manual_seed(0)
    return TerraMind(SMALL).eval().requires_grad_(False)


def test_description_comes_from_the_weights_metadata(tmp_path):
    network = small_network()
    model = load_model("terramind_nano", write(tmp_path / "w.safetensors", network, SMALL))
    assert model.description == dataclasses.replace(SMALL, pretrained=None)
    assert model.description.grid == 8
    x = {"DEM": torch.randn(2, 1, 64, 64)}
    assert model.logits(x, target="LULC").shape == (2, 64, 12)
    torch.testing.assert_close(model.encode(x), network.encode(x), rtol=0, atol=0)


def test_weights_of_another_model_are_refused(tmp_path):
    path = write(tmp_path / "w.safetensors", small_network(), SMALL)
    with pytest.raises(WeightsError, match="terramind_nano"):
        load_model("terramind_v1_tiny", path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"drop": ["encoder.0.attn.qkv.weight"]}, "encoder.0.attn.qkv.weight"),
        (
            {"drop": ["encoder_embeddings.untok_dem.pos_emb"]},
            "encoder_embeddings.untok_dem.pos_emb",
        ),
        ({"replace": {"mask_token": torch.zeros(1, 1, 8)}}, "mask_token"),
    ],
)
def test_missing_or_misshaped_tensor_is_named(tmp_path, change, named):
    path = write(tmp_path / "w.safetensors", small_network(), SMALL, **change)
    with pytest.raises(WeightsError, match=named.replace(".", r"\.")):
        load_model("terramind_nano", path)


def test_logits_head_overrules_the_token_table_it_is_tied_to(tmp_path):
    network = small_network()
    other = {"decoder_embeddings.tok_lulc.token_emb.weight": torch.ones(12, 16)}
    model = load_model(
        "terramind_nano", write(tmp_path / "w.safetensors", network, SMALL, replace=other)
    )
    head = model.decoder_embeddings["tok_lulc"]
    assert head.token_emb.weight is head.to_logits.weight
    torch.testing.assert_close(
        head.to_logits.weight, network.decoder_embeddings["tok_lulc"].to_logits.weight
    )


def test_pt_and_safetensors_give_the_same_model(tmp_path):
    network = small_network()
    tokenizer = load_tokenizer("LULC", family="nano")
    torch.save(tokenizer.state_dict(), tmp_path / "t.pt")
    save_file(
        {name: value.contiguous().clone() for name, value in tokenizer.state_dict().items()},
        tmp_path / "t.safetensors",
    )
    ids = torch.arange(16).view(1, 4, 4)
    expected = tokenizer.decode(ids)
    for name in ("t.pt", "t.safetensors"):
        loaded = load_tokenizer("LULC", tmp_path / name, family="nano")
        assert torch.equal(loaded.decode(ids), expected)
    assert set(tensor_shapes(network)) == set(network.state_dict())


def test_untrained_weights_are_fixed():
    first, second = load_model("terramind_nano"), load_model("terramind_nano")
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert float(first.encoder[0].attn.qkv.weight.std()) == pytest.approx(192**-0.5, rel=0.02)


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'terramind_v1_tiny'"):
        load_model("terramind_v1_tny")
    with pytest.raises(ValueError, match="LULC"):
        load_tokenizer("LUCL")
    with pytest.raises(ValueError, match="float32, bfloat16 or auto"):
        choose_dtype("half", torch.device("cpu"))


def test_descriptions_of_released_sizes_follow_the_published_table():
    table = {
        "tiny": (192, 12, 4, "gelu", True, 768),
        "small": (384, 12, 6, "gelu", True, 1536),
        "base": (768, 12, 12, "swiglu", False, 2048),
        "large": (1024, 24, 24, "swiglu", False, 2730),
    }
    for size, expected in table.items():
        row = MODELS[f"terramind_v1_{size}"]
        found = (
            row.dim, row.encoder_depth, row.decoder_depth, row.mlp, row.bias, row.mlp_hidden,
        )  # fmt: skip
        assert found == expected
        assert row.dim // row.heads == 64
    assert TOKENIZERS["v1", "LULC"].vocabulary == 4375
