"""The denoiser: names and shapes of its tensors, and what its answer depends on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from terramind_cube.modalities import Statistics
from terramind_cube.model.loading import fill_untrained, tensor_shapes
from terramind_cube.model.unet import UNet, UNetDescription
from terramind_cube.model.variants import TOKENIZERS, TokenizerDescription

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = UNetDescription(features=32, groups=8, blocks=1)


def build(channels=2, description=SMALL):
    network = UNet(channels, 5, description).eval().requires_grad_(False)
    fill_untrained(network)
    return network


@pytest.fixture(scope="module")
def network():
    return build()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def affine(name, outputs, *inputs):
    return {f"{name}.weight": (outputs, *inputs), f"{name}.bias": (outputs,)}


def residual(name, inputs, outputs, time=128):
    return (
        affine(f"{name}.in_layers.0", inputs)
        | affine(f"{name}.in_layers.2", outputs, inputs, 3, 3)
        | affine(f"{name}.emb_layers.1", outputs, time)
        | affine(f"{name}.out_layers.0", outputs)
        | affine(f"{name}.out_layers.3", outputs, outputs, 3, 3)
        | (affine(f"{name}.skip_connection", outputs, inputs, 1, 1) if inputs != outputs else {})
    )


def attention(name, features):
    return (
        affine(f"{name}.norm", features)
        | affine(f"{name}.qkv", 3 * features, features, 1)
        | affine(f"{name}.proj_out", features, features, 1)
    )


def test_layout_obeys_the_released_naming_scheme(network):
    expected = (
        affine("time_embed.0", 128, 32)
        | affine("time_embed.2", 128, 128)
        | affine("input_blocks.0.0", 32, 2 * 16 + 5, 3, 3)
        | residual("input_blocks.1.0", 32, 32)
        | affine("input_blocks.2.0.op", 32, 32, 3, 3)
        | residual("input_blocks.3.0", 32, 64)
        | affine("input_blocks.4.0.op", 64, 64, 3, 3)
        | residual("input_blocks.5.0", 64, 64)
        | attention("input_blocks.5.1", 64)
        | affine("input_blocks.6.0.op", 64, 64, 3, 3)
        | residual("input_blocks.7.0", 64, 64)
        | attention("input_blocks.7.1", 64)
        | residual("middle_block.0", 64, 64)
        | attention("middle_block.1", 64)
        | residual("middle_block.2", 64, 64)
        | residual("output_blocks.0.0", 128, 64)
        | attention("output_blocks.0.1", 64)
        | residual("output_blocks.1.0", 128, 64)
        | attention("output_blocks.1.1", 64)
        | affine("output_blocks.1.2.conv", 64, 64, 3, 3)
        | residual("output_blocks.2.0", 128, 64)
        | attention("output_blocks.2.1", 64)
        | residual("output_blocks.3.0", 128, 64)
        | attention("output_blocks.3.1", 64)
        | affine("output_blocks.3.2.conv", 64, 64, 3, 3)
        | residual("output_blocks.4.0", 128, 64)
        | residual("output_blocks.5.0", 64 + 32, 64)
        | affine("output_blocks.5.1.conv", 64, 64, 3, 3)
        | residual("output_blocks.6.0", 64 + 32, 32)
        | residual("output_blocks.7.0", 64, 32)
        | affine("out.0", 32)
        | affine("out.2", 2 * 16, 32, 3, 3)
    )
    assert tensor_shapes(network) == expected


@pytest.mark.parametrize(
    ("description", "multiple_px"),
    [
        (SMALL, 32),
        (UNetDescription(16, (1, 2), 1, (1,), patch_px=2, groups=4), 4),
        (UNetDescription(16, (1,), 2, (), patch_px=8, groups=4), 8),
    ],
)
def test_any_multiple_of_the_coarsest_cell_keeps_its_shape(description, multiple_px):
    assert description.multiple_px == multiple_px
    network = build(3, description)
    for rows, cols in ((1, 1), (1, 3), (2, 1)):
        x = normal(2, 3, rows * multiple_px, cols * multiple_px)
        predicted = network(x, 500, torch.rand(2, 5, rows, cols))
        assert predicted.shape == x.shape
        assert predicted.dtype == torch.float32


def test_noisy_image_step_and_codes_change_the_answer(network):
    x, codes = normal(1, 2, 32, 64), torch.full((1, 5, 2, 4), 0.5)
    first = network(x, 500, codes)
    assert torch.equal(network(x, 500, codes), first)
    scale = float(first.std())
    for other in (
        network(x + 0.5 * normal(*x.shape, seed=1), 500, codes),
        network(x, 100, codes),
        network(x, 500, 1 - codes * normal(*codes.shape, seed=2).abs()),
    ):
        assert float((other - first).std()) > 0.02 * scale


def test_code_acts_most_on_its_own_cell(network):
    x, codes = normal(1, 2, 64, 128), torch.full((1, 5, 4, 8), 0.5)
    first = network(x, 500, codes)
    for row, col in ((0, 7), (2, 5), (3, 0)):
        changed = codes.clone()
        changed[..., row, col] = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
        change = (network(x, 500, changed) - first).square().sum(1)
        by_cell = torch.nn.functional.avg_pool2d(change, 16)[0]
        assert divmod(int(by_cell.argmax()), 8) == (row, col)


def test_attention_mixes_the_positions_of_a_rectangle_by_likeness(network):
    layer = network.middle_block[1]
    x = normal(2, 64, 3, 5)
    rows = torch.nn.functional.group_norm(x, 8, layer.norm.weight, layer.norm.bias).flatten(2)
    q, k, v = torch.einsum("of,bfn->bon", 3 * layer.qkv.weight[..., 0], rows).chunk(3, dim=1)
    share = (torch.einsum("bfn,bfm->bnm", q, k) / 64**0.5).softmax(-1)
    mixed = torch.einsum("bnm,bfm->bfn", share, v)
    expected = x.flatten(2) + torch.einsum("of,bfn->bon", layer.proj_out.weight[..., 0], mixed)

    sharper = build().middle_block[1]
    with torch.no_grad():
        sharper.qkv.weight.mul_(3)  # for shares that differ clearly
    found = sharper(x).flatten(2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_pixels_are_folded_channel_by_channel():
    """The released order of a folded channel is (c, row in patch, column in patch)."""
    network = build(2)
    seen = []
    network.input_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.arange(2 * 32 * 32).view(1, 2, 32, 32).float()
    network(x, 0, torch.zeros(1, 5, 2, 2))
    folded = seen[0][0, : 2 * 16]
    assert folded.shape == (32, 8, 8)
    for channel, row, col in ((0, 0, 0), (0, 1, 0), (0, 0, 2), (1, 3, 1)):
        plane = folded[channel * 16 + row * 4 + col]
        assert torch.equal(plane, x[0, channel, row::4, col::4])


def test_rows_of_a_batch_do_not_influence_one_another(network):
    x = normal(3, 2, 32, 32) * torch.tensor([0.1, 1.0, 10.0])[:, None, None, None]
    codes = torch.rand(3, 5, 2, 2, generator=torch.Generator().manual_seed(1))
    together = network(x, 300, codes)
    for i in range(3):
        alone = network(x[i : i + 1], 300, codes[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


def test_bfloat16_stays_close_and_answers_in_float32(network):
    other = build().to(torch.bfloat16)
    x, codes = normal(1, 2, 32, 64), torch.rand(1, 5, 2, 4)
    expected, found = network(x, 500, codes), other(x, 500, codes)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).std()) < 0.05 * float(expected.std())


@pytest.mark.parametrize("unet", [None, SMALL, UNetDescription(16, (1, 2), 1, (1,), 2, 4)])
@pytest.mark.parametrize("statistics", [None, Statistics((1.5, -2.0), (3.0, 0.25))])
def test_description_survives_json(unet, statistics):
    description = dataclasses.replace(
        TOKENIZERS["nano", "S1GRD"], unet=unet, statistics=statistics, patch_px=8
    )
    fields = json.loads(description.to_json())["tokenizer"]
    found = TokenizerDescription.from_fields(fields)
    assert found == description
    assert hash(found) == hash(description)
