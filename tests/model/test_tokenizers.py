"""The tokenizer's interface and its quantizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terramind_cube.model import load_tokenizer
from terramind_cube.model.quantizer import FiniteScalarQuantizer

LEVELS = (7, 5, 5, 5, 5)


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
        (lambda t: t.decode(torch.full((1, 2, 2), 4375)), r"must lie in 0 \.\. 4374"),
        (lambda t: t.decode(torch.full((1, 2, 2), -1)), r"must lie in 0 \.\. 4374"),
        (lambda t: t.decode(torch.zeros(1, 2, 2).long(), size=(33, 32)), "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        call(tokenizer)
