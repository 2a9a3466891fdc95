"""Sequences: parity of coordinates with the reference, cells as a distribution, the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import seeded
import torch

from terramind_cube.modalities import standardize
from terramind_cube.model import load_model
from terramind_cube.model.conditions import Conditions, Guidance
from terramind_cube.model.generation import Sampling
from terramind_cube.model.sequences import SequenceDecoder, generate_sequence, rank_coordinates
from terramind_cube.model.text import CoordinateVocabulary

DATA = Path(__file__).parents[1] / "data"
GOLDENS = np.load(DATA / "goldens_sequences.npz")
CASES = json.loads((DATA / "goldens_sequences.json").read_text())["cases"]
TOLERANCE = 1e-3
START = 5


@pytest.fixture(scope="module")
def tiny(seeded_checkpoint):
    return load_model("terramind_v1_tiny", seeded_checkpoint("tiny", 3))


def pixels(modality):
    return torch.from_numpy(standardize(modality, seeded.seeded_input(modality, 1, 224, 3)))


def conditions(model, inputs, guidance=None):
    return Conditions.of_inputs(model, inputs, guidance or Guidance())


def assert_logits(logits, case):
    top = np.take_along_axis(logits, GOLDENS[f"{case}/top_ids"].astype(np.int64), axis=-1)
    np.testing.assert_allclose(top, GOLDENS[f"{case}/top_logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(top.max(-1), logits.max(-1), rtol=0, atol=TOLERANCE)
    for name, found in (("mean", logits.mean(-1)), ("std", logits.std(-1))):
        golden = GOLDENS[f"{case}/logit_{name}"]
        np.testing.assert_allclose(found, golden, rtol=0, atol=TOLERANCE)


def test_coordinate_logits_equal_the_reference(tiny):
    case = "coords_from_s2l2a"
    decoder = SequenceDecoder(conditions(tiny, {"S2L2A": pixels("S2L2A")}), "Coordinates")
    encoder = decoder.conditions.encodings[0].tokens.numpy()
    np.testing.assert_allclose(
        encoder[:, ::7, ::5], GOLDENS[f"{case}/encoder"], rtol=0, atol=TOLERANCE
    )
    forced = [START, *CASES[case]["forced_ids"]]
    logits = [decoder.step(torch.tensor([token])).numpy() for token in forced]
    assert_logits(np.stack(logits, axis=1), case)


def test_greedy_coordinates_equal_the_reference(tiny):
    inputs = conditions(tiny, {"S2L2A": pixels("S2L2A")})
    ids = generate_sequence(inputs, "Coordinates", Sampling(0), lambda *_: None, max_length=3)
    np.testing.assert_array_equal(ids.numpy(), GOLDENS["coords_from_s2l2a/greedy_ids"])


def test_coordinates_as_input_equal_the_reference(tiny):
    case = "s2l2a_coords_to_lulc"
    ids = torch.tensor(CASES[case]["coords_ids"])
    inputs = {"S2L2A": pixels("S2L2A"), "Coordinates": ids}
    encoder = tiny.encode(inputs).numpy()
    assert encoder.shape == (1, 199, 192)
    for name, found in (
        ("encoder", encoder[:, ::7, ::5]),
        ("encoder_tail", encoder[:, 196:, ::5]),
    ):
        np.testing.assert_allclose(found, GOLDENS[f"{case}/{name}"], rtol=0, atol=TOLERANCE)
    assert_logits(tiny.logits(inputs, "LULC").numpy(), case)


def test_tokens_as_input_equal_the_reference(tiny):
    case = "lulc_tokens_s1grd_to_dem"
    ids = torch.from_numpy(GOLDENS[f"{case}/lulc_ids"].astype(np.int64))
    inputs = {"LULC": ids, "S1GRD": pixels("S1GRD")}
    np.testing.assert_allclose(
        tiny.encode(inputs).numpy()[:, ::7, ::5],
        GOLDENS[f"{case}/encoder"],
        rtol=0,
        atol=TOLERANCE,
    )
    assert_logits(tiny.logits(inputs, "DEM").numpy(), case)


@pytest.fixture(scope="module")
def nano():
    return load_model("terramind_nano")


def noise(channels, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 64, 64, generator=generator)


@pytest.mark.parametrize("guidance", [None, 2.5], ids=["plain", "guided"])
def test_the_cache_changes_nothing(nano, guidance):
    """Step by step equals one causal pass over the sequence, block by block."""
    weights = Guidance.parse(guidance, ["S2L2A"])
    inputs = conditions(nano, {"S2L2A": noise(12)}, weights)
    ids = torch.tensor([[START, 77, 901, 4], [START, 8, 15, 16]])
    decoder = SequenceDecoder(inputs, "Coordinates")
    stepwise = torch.stack([decoder.step(ids[:, i]) for i in range(4)], dim=1)
    head = decoder.head
    whole = []
    for context in decoder.contexts:
        x = head.token_emb(ids) + head.pos_emb[:, :4] + head.mod_emb
        for block in nano.decoder:
            q, k, v = (
                part.unflatten(2, (3, -1)).transpose(1, 2)
                for part in block.self_attn.qkv(block.norm1(x)).chunk(3, -1)
            )
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block.self_attn.proj(attended.transpose(1, 2).flatten(2))
            kv = block.cross_attn.project(block.context_norm(context))
            x = x + block.cross_attn(block.query_norm(x), kv)
            x = x + block.mlp(block.norm2(x))
        whole.append(head.to_logits(nano.decoder_norm(x)))
    torch.testing.assert_close(stepwise, inputs.combine(whole), rtol=0, atol=1e-4)


def test_cells_are_a_distribution(nano):
    vocabulary = CoordinateVocabulary.bundled()
    tables = (vocabulary.latitude_ids.copy(), vocabulary.longitude_ids.copy())
    inputs = conditions(nano, {"S2L2A": noise(12)})
    everything = rank_coordinates(inputs, tables, count=721 * 1441, beam=721)
    np.testing.assert_allclose(everything.probability.sum(1), 1, atol=1e-4)
    best = rank_coordinates(inputs, tables, count=5)
    assert (best.probability <= everything.probability[:, :5] * 1.0001).all()
    exact = rank_coordinates(inputs, tables, count=5, beam=721)
    torch.testing.assert_close(exact.probability, everything.probability[:, :5])
    assert (best.probability.diff(dim=1) <= 0).all()
    decoder = SequenceDecoder(inputs, "Coordinates")
    first = decoder.step(torch.full((2,), START))[:, tables[0]].softmax(1)
    place = best.latitude[:, 0]
    second = decoder.step(torch.tensor(tables[0])[place])[:, tables[1]].softmax(1)
    joint = first.gather(1, place[:, None])[:, 0] * second.gather(1, best.longitude[:, :1])[:, 0]
    torch.testing.assert_close(best.probability[:, 0], joint)


def test_a_sequence_ends_at_its_stop(nano):
    inputs = conditions(nano, {"S2L2A": noise(12)})
    greedy = generate_sequence(inputs, "Coordinates", Sampling(0), lambda *_: None, max_length=6)
    stop = int(greedy[0, 2])
    ids = generate_sequence(
        inputs, "Coordinates", Sampling(0), lambda *_: None, max_length=6, stops=(stop,)
    )
    row = ids[0].tolist()
    assert row[: row.index(stop)] == greedy[0].tolist()[: row.index(stop)]
    assert set(row[row.index(stop) :]) == {stop}


def test_a_grid_is_no_sequence(nano):
    with pytest.raises(ValueError, match="generates no sequence 'LULC'"):
        SequenceDecoder(conditions(nano, {"S2L2A": noise(12)}), "LULC")
