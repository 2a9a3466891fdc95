"""Which tokenizers a run takes where the user names none, some or all."""

from __future__ import annotations

import pytest

from terramind_cube.inference.choice import WeightsChoice

NAMES = ("LULC", "DEM")


def choose(weights, tokenizers):
    choice = WeightsChoice("terramind_v1_tiny", weights, tokenizers)
    return choice.of_tokenizers(NAMES, released=True)


@pytest.mark.parametrize(
    ("weights", "tokenizers", "expected"),
    [
        (None, None, {"LULC": "untrained", "DEM": "untrained"}),
        ("pretrained", None, {"LULC": "pretrained", "DEM": "pretrained"}),
        ("pretrained", {"DEM": "d.pt"}, {"LULC": "pretrained", "DEM": "d.pt"}),
        ("m.pt", "pretrained", {"LULC": "pretrained", "DEM": "pretrained"}),
        ("m.pt", "untrained", {"LULC": "untrained", "DEM": "untrained"}),
        ("m.pt", {"LULC": "l.pt", "DEM": "untrained"}, {"LULC": "l.pt", "DEM": "untrained"}),
    ],
)
def test_tokenizers_go_with_the_model(weights, tokenizers, expected):
    assert choose(weights, tokenizers) == expected


@pytest.mark.parametrize(
    ("weights", "tokenizers", "told"),
    [
        ("m.pt", None, "the tokenizer of LULC, DEM has none.*'pretrained'.*'untrained'"),
        ("m.pt", {"LULC": "l.pt"}, "the tokenizer of DEM has none"),
        (None, {"LULC": "l.pt"}, "the tokenizer of LULC has weights, the tokenizer of DEM"),
        ("m.pt", "l.pt", r"give a path for each modality, such as \{'LULC': 'l.pt'\}"),
    ],
)
def test_an_untrained_tokenizer_beside_weights_must_be_asked_for(weights, tokenizers, told):
    with pytest.raises(ValueError, match=told):
        choose(weights, tokenizers)
