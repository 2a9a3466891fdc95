"""A network is filled completely and exactly, or the error names the tensor."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from terramind_cube.modalities import Statistics
from terramind_cube.model import load_model, load_tokenizer, loading
from terramind_cube.model.loading import choose_dtype, fill_untrained, tensor_shapes
from terramind_cube.model.tokenizers import Tokenizer
from terramind_cube.model.transformer import TerraMind
from terramind_cube.model.unet import UNetDescription
from terramind_cube.model.variants import (
    DESCRIPTION_KEY,
    MODELS,
    TOKENIZERS,
    ModelDescription,
    RawInput,
    TokenizerDescription,
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
SMALL_TOKENIZER = TokenizerDescription(
    "S1GRD",
    "v1",
    2,
    (8, 8, 8, 6, 5),
    dim=32,
    heads=2,
    encoder_depth=1,
    decoder_depth=1,
    mlp_hidden=64,
    unet=UNetDescription(features=32, groups=8, blocks=1),
    statistics=Statistics((-11.0, -18.0), (4.0, 5.0)),
)

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.arange(6).view(1, 2, 3) * 2500
IMAGE = torch.linspace(-2, 2, 2 * 32 * 48).sin().view(1, 2, 32, 48)


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


@pytest.fixture(scope="module")
def diffusing():
    network = Tokenizer(SMALL_TOKENIZER).eval().requires_grad_(False)
    fill_untrained(network)
    return network


@pytest.fixture(scope="module")
def tokenizer_file(diffusing, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t.safetensors"
    return write(path, diffusing, SMALL_TOKENIZER)


def in_memory(tokenizer):
    """First parts of the names of the tensors that a tokenizer holds now."""
    return {name.split(".")[0] for name in nn.Module.state_dict(tokenizer)}


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


def test_tokenizer_loads_a_half_when_it_is_needed(tokenizer_file, diffusing):
    tokenizer = load_tokenizer("S1GRD", tokenizer_file)
    assert tokenizer.description == SMALL_TOKENIZER
    assert in_memory(tokenizer) == set()
    assert not tokenizer.has("encoder")
    assert not tokenizer.has("decoder")

    decoded = tokenizer.decode(IDS, steps=2)
    assert in_memory(tokenizer) == {"decoder"}
    assert (tokenizer.has("encoder"), tokenizer.has("decoder")) == (False, True)
    assert torch.equal(decoded, diffusing.decode(IDS, steps=2))

    other = load_tokenizer("S1GRD", tokenizer_file)
    ids = other.tokenize(IMAGE)
    assert in_memory(other) == {"encoder", "quant_proj"}
    assert (other.has("encoder"), other.has("decoder")) == (True, False)
    assert torch.equal(ids, diffusing.tokenize(IMAGE))
    assert torch.equal(other.decode(ids, steps=2), diffusing.decode(ids, steps=2))


def test_state_dict_of_a_lazy_tokenizer_is_whole(tokenizer_file, diffusing):
    tokenizer = load_tokenizer("S1GRD", tokenizer_file)
    found, expected = tokenizer.state_dict(), diffusing.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_diffusion_tokenizer_is_the_same_from_either_file_type(
    tokenizer_file, diffusing, tmp_path, monkeypatch
):
    # A .pt file carries no description: its layout is that of the family's tokenizer.
    released = dataclasses.replace(SMALL_TOKENIZER, statistics=None)
    monkeypatch.setitem(TOKENIZERS, ("v1", "S1GRD"), released)
    torch.save(diffusing.state_dict(), tmp_path / "t.pt")
    from_pt = load_tokenizer("S1GRD", tmp_path / "t.pt")
    from_safetensors = load_tokenizer("S1GRD", tokenizer_file)
    assert from_pt.description == released
    for sampler in ("dpm++", "ddim"):
        images = [
            network.decode(IDS, steps=3, sampler=sampler, clamp=None)
            for network in (from_pt, from_safetensors, diffusing)
        ]
        assert torch.equal(images[0], images[1])
        assert torch.equal(images[0], images[2])
    assert torch.equal(from_pt.latent(IMAGE), from_safetensors.latent(IMAGE))
    assert torch.equal(from_pt.latent(IMAGE), diffusing.latent(IMAGE))


def test_untrained_tokenizer_is_the_same_whichever_half_comes_first(monkeypatch):
    monkeypatch.setitem(TOKENIZERS, ("v1", "S1GRD"), SMALL_TOKENIZER)
    first, second = load_tokenizer("S1GRD"), load_tokenizer("S1GRD")
    latent, image = first.latent(IMAGE), first.decode(IDS, steps=2)
    assert torch.equal(second.decode(IDS, steps=2), image)
    assert torch.equal(second.latent(IMAGE), latent)
    assert float(image.std()) > 0.1


@pytest.mark.parametrize(
    "name", ["decoder.out.2.weight", "encoder.blocks.0.attn.qkv.weight", "quant_proj.bias"]
)
def test_missing_tensor_of_either_half_is_named_at_once(diffusing, tmp_path, name):
    path = write(tmp_path / "w.safetensors", diffusing, SMALL_TOKENIZER, drop=[name])
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        load_tokenizer("S1GRD", path)


def test_tokenizer_of_another_modality_is_refused(tokenizer_file):
    with pytest.raises(WeightsError, match="tokenizer of 'S1GRD', not of 'S1RTC'"):
        load_tokenizer("S1RTC", tokenizer_file)


def test_threads_that_decode_at_once_load_the_decoder_once(tokenizer_file, diffusing, monkeypatch):
    loads = []
    load_tensors = loading.load_tensors

    def count(path):
        loads.append(path)
        return load_tensors(path)

    monkeypatch.setattr(loading, "load_tensors", count)
    tokenizer = load_tokenizer("S1GRD", tokenizer_file)
    assert loads == []
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: tokenizer.decode(IDS, steps=2), range(4)))
    assert len(loads) == 1
    for image in images:
        torch.testing.assert_close(image, diffusing.decode(IDS, steps=2), rtol=0, atol=1e-5)
    tokenizer.decode(IDS, steps=1)
    assert len(loads) == 1


def test_half_that_failed_to_load_does_not_pass_for_a_loaded_one(diffusing, tmp_path):
    path = write(tmp_path / "w.safetensors", diffusing, SMALL_TOKENIZER)
    tokenizer = load_tokenizer("S1GRD", path)
    path.rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=r"w\.safetensors"):
            tokenizer.decode(IDS, steps=2)
        assert not tokenizer.has("decoder")
    (tmp_path / "elsewhere").rename(path)
    assert torch.equal(tokenizer.decode(IDS, steps=2), diffusing.decode(IDS, steps=2))


def test_half_that_decoding_loaded_can_be_trained(tokenizer_file):
    tokenizer = load_tokenizer("S1GRD", tokenizer_file)
    tokenizer.decode(IDS, steps=1)
    tokenizer.tokenize(IMAGE)
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    tokenizer.requires_grad_(True)
    codes = tokenizer.quantizer.dequantize(IDS)
    tokenizer.decoder(torch.zeros(1, 2, 32, 64), 500, codes).square().sum().backward()
    tokenizer.quant_proj(tokenizer.encoder(IMAGE)).square().sum().backward()
    gradients = {
        name: float(parameter.grad.abs().sum()) for name, parameter in tokenizer.named_parameters()
    }
    assert gradients["encoder.proj.weight"] > 0
    assert gradients["decoder.input_blocks.0.0.weight"] > 0


def test_bfloat16_tokenizer_stays_close_to_float32(tokenizer_file):
    exact = load_tokenizer("S1GRD", tokenizer_file)
    fast = load_tokenizer("S1GRD", tokenizer_file, precision="bfloat16")
    images = torch.randn(2, 2, 96, 128, generator=torch.Generator().manual_seed(0))
    latent, expected = fast.latent(images), exact.latent(images)
    assert latent.dtype == torch.float32
    assert 0 < float((latent - expected).std()) < 0.02 * float(expected.std())
    tokens = exact.tokenize(images)
    assert len(tokens.unique()) > 50
    assert float((fast.tokenize(images) == tokens).float().mean()) > 0.9

    for steps, sampler in ((10, "dpm++"), (5, "ddim")):
        expected = exact.decode(IDS, steps=steps, sampler=sampler, clamp=None)
        found = fast.decode(IDS, steps=steps, sampler=sampler, clamp=None)
        assert found.dtype == torch.float32
        assert 0 < float((found - expected).std()) < 0.1 * float(expected.std())

    dtypes = {name: value.dtype for name, value in fast.state_dict().items()}
    assert dtypes["quant_proj.weight"] == torch.float32
    assert dtypes["encoder.proj.weight"] == torch.float32
    assert dtypes["encoder.post_mlp.fc1.weight"] == torch.float32
    assert dtypes["encoder.blocks.0.attn.qkv.weight"] == torch.bfloat16
    assert dtypes["decoder.out.2.weight"] == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    for load in (lambda: load_model("terramind_nano", device="cuda"),
                 lambda: load_tokenizer("LULC", device="cuda:1")):  # fmt: skip
        with pytest.raises(ValueError, match=r"device 'cuda(:1)?': torch sees no CUDA device"):
            load()
