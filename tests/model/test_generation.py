"""Sampling: the exponential race draws from the nucleus with the right frequencies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_cube.model.generation import Sampling, sample_tokens


def draw(logits, sampling, seed=0):
    uniform = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed))
    return sample_tokens(logits, sampling, uniform.clamp_(1e-7, 1 - 1e-7))


def nucleus(logits, top_p):
    """The definition: sort, sum, keep those before which at most top_p has passed."""
    probability = logits.double().softmax(-1).numpy()
    order = np.argsort(-probability, kind="stable")
    before = np.cumsum(probability[order]) - probability[order]
    return set(order[before <= top_p].tolist())


def test_zero_temperature_takes_the_most_probable_without_noise():
    logits = torch.randn(2, 5, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_tokens(logits, Sampling(temperature=0)), logits.argmax(-1))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    top_p=st.floats(0.05, 0.99),
    scale=st.floats(0.1, 5),
    temperature=st.floats(0.2, 3),
)
def test_every_draw_lies_in_the_nucleus(seed, top_p, scale, temperature):
    row = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * scale
    tokens = draw(row.expand(1, 300, -1), Sampling(temperature, top_p), seed)
    allowed = nucleus(row, top_p + 1e-5)
    assert set(tokens.unique().tolist()) <= allowed


def test_frequencies_are_those_of_the_truncated_distribution():
    row = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    tokens = draw(row.expand(1, 200_000, -1), Sampling(0.7, 0.85))
    kept = sorted(nucleus(row, 0.85))
    assert 1 < len(kept) < 6
    expected = (row[kept] / 0.7).softmax(-1).numpy()
    found = np.bincount(tokens.flatten().numpy(), minlength=6)
    assert found.sum() == found[kept].sum()
    np.testing.assert_allclose(found[kept] / found.sum(), expected, atol=0.004)


def test_top_k_keeps_the_k_most_probable():
    row = torch.arange(30.0) / 10
    tokens = draw(row.expand(1, 5000, -1), Sampling(1.0, 1.0, top_k=3))
    assert set(tokens.unique().tolist()) == {27, 28, 29}


def test_the_same_numbers_give_the_same_tokens_and_similar_logits_nearly_so():
    logits = torch.randn(1, 2000, 100, generator=torch.Generator().manual_seed(0))
    first = draw(logits, Sampling())
    assert torch.equal(draw(logits, Sampling()), first)
    assert not torch.equal(draw(logits, Sampling(), seed=1), first)
    nudged = logits + 1e-3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    assert float((draw(nudged, Sampling()) == first).float().mean()) > 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature must not be negative"),
        ({"temperature": float("nan")}, "temperature must not be negative"),
        ({"top_p": 0}, "top_p must lie in"),
        ({"top_p": 1.5}, "top_p must lie in"),
        ({"top_k": -1}, "top_k must not be negative"),
    ],
)
def test_senseless_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)


def test_missing_random_numbers_are_refused():
    with pytest.raises(ValueError, match="needs uniform numbers"):
        sample_tokens(torch.zeros(1, 2, 3), Sampling())
