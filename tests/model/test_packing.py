"""Packed networks compute the same, and let go of what they were packed from."""

from __future__ import annotations

import numpy as np
import pytest
import small
import torch
from torch.nn import functional as F

from terramind_cube.model import load_model, load_tokenizer, packing
from terramind_cube.model.layers import _FEW_KEYS, Linear, attend

pytestmark = [
    pytest.mark.skipif(not packing.can_pack(), reason="this PyTorch has no oneDNN"),
    pytest.mark.usefixtures("one_thread"),
]


def pixels(seed=0, batch=2):
    return torch.randn(batch, 12, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_packed_model_computes_the_same(small_weights, precision, tolerance):
    path = small_weights["weights"]
    plain = load_model("terramind_nano", path, precision=precision)
    packed = load_model("terramind_nano", path, precision=precision, packed=True)
    kinds = {name: type(module).__name__ for name, module in packed.named_modules()}
    # Processors without AVX-512 take bfloat16 as it is.
    is_packed = precision == "float32" or packing.can_pack_bfloat16()
    assert kinds["encoder.0.attn.qkv"] == ("_PackedLinear" if is_packed else "Linear")
    # Most runs need one head of many: they stay in the file.
    assert isinstance(packed.decoder_embeddings["tok_lulc"].to_logits, Linear)
    for batch in (1, 2, 5):
        x = {"S2L2A": pixels(batch=batch)}
        a, b = plain.logits(x, "LULC"), packed.logits(x, "LULC")
        assert float((a - b).abs().max()) < tolerance * float(a.std())


@pytest.mark.parametrize("name", ["LULC", "S1RTC"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_packed_tokenizer_computes_the_same(small_weights, name, precision, tolerance):
    path = small.tokenizers(small_weights["weights"].parent, name)[name]
    ids = torch.randint(0, 4375, (3, 4, 4), generator=torch.Generator().manual_seed(1))
    plain, packed = (
        load_tokenizer(name, path, precision=precision, family="nano", packed=is_packed)
        for is_packed in (False, True)
    )
    a, b = plain.decode(ids, steps=2), packed.decode(ids, steps=2)
    assert float((a - b).abs().max()) < tolerance * float(a.std())
    if name == "S1RTC":
        kinds = {type(module).__name__ for module in packed.decoder.modules()}
        is_packed = precision == "bfloat16" and packing.can_pack_bfloat16()
        assert ("_PackedConvolution" in kinds) == is_packed


def test_a_packed_network_holds_no_plain_weights_and_maps_its_file_anew(tmp_path):
    path = tmp_path / "model.pt"
    plain = load_model("terramind_v1_tiny")
    torch.save(plain.state_dict(), path)
    packed = load_model("terramind_v1_tiny", path, packed=True)
    held = {name for name, _ in packed.named_parameters()}
    assert not any(name.endswith(("qkv.weight", "fc1.weight")) for name in held)
    # What is left lies in one mapping of the file, that of the last look at it.
    places = [
        tensor.data_ptr()
        for name, tensor in packed.named_parameters()
        if name.endswith(("mod_emb", "norm1.weight", "token_emb.weight"))
    ]
    assert max(places) - min(places) < path.stat().st_size
    x = {"DEM": torch.randn(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))}
    torch.testing.assert_close(packed.encode(x), plain.encode(x), rtol=0, atol=1e-3)


def test_relief_comes_while_packing(monkeypatch):
    monkeypatch.setattr(packing, "_RELIEF_BYTES", 100_000)
    calls = []
    packing.pack(load_model("terramind_nano"), lambda: calls.append(None))
    assert len(calls) > 3


def test_without_the_operators_nothing_is_packed(monkeypatch, small_weights):
    monkeypatch.setattr(packing, "can_pack", lambda: False)
    model = load_model("terramind_nano", small_weights["weights"], packed=True)
    assert isinstance(model.encoder[0].attn.qkv, Linear)
    assert model.logits({"S2L2A": pixels()}, "LULC").shape == (2, 16, 4375)


@pytest.mark.parametrize("keys", [1, 196, _FEW_KEYS, _FEW_KEYS + 1])
def test_attention_is_the_same_on_both_sides_of_the_switch(keys):
    generator = torch.Generator().manual_seed(keys)
    q = torch.randn(2, 3, 7, 16, generator=generator)
    k, v = (torch.randn(2, 3, keys, 16, generator=generator) for _ in range(2))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    np.testing.assert_allclose(attend(q, k, v), expected, rtol=0, atol=1e-5)
