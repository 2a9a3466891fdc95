"""What a generation sees: inputs, parts of grids, what was generated before, and guidance."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import small
import torch

from terramind_cube.model.conditions import Conditions, Guidance
from terramind_cube.model.decoding import Decoding, generate_grid
from terramind_cube.model.embeddings import VisibleTokens
from terramind_cube.model.generation import Sampling
from terramind_cube.model.quantizer import FiniteScalarQuantizer
from terramind_cube.model.sequences import SequenceDecoder, generate_sequence

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (4, 8)
CELLS = 32
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def model():
    return small.lively_model()


def pixels(channels, seed=0, shape=SHAPE, batch=2):
    size = (batch, channels, 16 * shape[0], 16 * shape[1])
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def some_ids(seed=0, shape=SHAPE, batch=2, vocabulary=4375):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (batch, *shape), generator=generator)


PLACES = torch.tensor([[301, 1507, 6], [12, 900, 6]])
OPTICAL, RADAR, HEIGHT = pixels(12, 1), pixels(2, 2), pixels(1, 3)
BOTH = {"S2L2A": OPTICAL, "S1RTC": RADAR}


def conditions(model, inputs, guidance=None):
    return Conditions.of_inputs(model, inputs, Guidance.parse(guidance, list(inputs)))


class Draw:
    def __init__(self, shape=SHAPE, batch=2):
        self.generator = torch.Generator().manual_seed(0)
        self.size = (batch, shape[0] * shape[1])

    def tokens(self, step, width, positions):
        size = self.size if positions is None else positions.shape
        return torch.rand(*size, width, generator=self.generator).clamp_(1e-7, 1 - 1e-7)

    def order(self):
        return np.random.default_rng(0).random(self.size, np.float32)


@contextmanager
def counted(*blocks):
    """Count how often blocks run."""
    counts = [0] * len(blocks)

    def count(place):
        def hook(*_):
            counts[place] += 1

        return hook

    handles = [block.register_forward_hook(count(i)) for i, block in enumerate(blocks)]
    yield counts
    for handle in handles:
        handle.remove()


# Parts of grids.


def all_tokens(ids):
    rows, cols = ids.shape[1:]
    places = torch.arange(rows * cols).expand(len(ids), -1)
    return VisibleTokens(ids.flatten(1), places, rows, cols)


@pytest.mark.parametrize("shape", [(4, 4), (4, 8), (2, 6)])
def test_all_tokens_of_a_grid_are_the_grid(model, shape):
    """(4, 4) is the grid of pretraining; the others' positions are interpolated."""
    ids = some_ids(shape=shape)
    whole, parts = model.embed({"LULC": ids}), model.embed({"LULC": all_tokens(ids)})
    assert torch.equal(whole.content, parts.content)
    assert torch.equal(whole.embedding.expand_as(parts.embedding), parts.embedding)
    assert (parts.rows, parts.cols) == (whole.rows, whole.cols) == shape
    torch.testing.assert_close(
        model.encode({"LULC": all_tokens(ids)}), model.encode({"LULC": ids}), **CLOSE
    )


def test_order_of_visible_tokens_does_not_matter(model):
    tokens = all_tokens(some_ids())
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(CELLS, generator=generator) for _ in range(2)])
    shuffled = VisibleTokens(tokens.ids.gather(1, order), order, *SHAPE)
    first, second = model.encode({"LULC": tokens}), model.encode({"LULC": shuffled})
    for tile in range(2):
        torch.testing.assert_close(second[tile], first[tile][order[tile]], **CLOSE)
    # Tokens alone, without their positions, are another grid.
    moved = model.encode({"LULC": VisibleTokens(shuffled.ids, tokens.positions, *SHAPE)})
    assert float((moved[0] - first[0][order[0]]).abs().max()) > 0.1


def test_visible_tokens_lie_where_they_are(model):
    ids = torch.tensor([[7, 8], [9, 10]])
    places = torch.tensor([[0, 31], [12, 5]])
    part = model.embed({"LULC": VisibleTokens(ids, places, *SHAPE)})
    whole = model.embed({"LULC": some_ids()})
    for tile in range(2):
        assert torch.equal(part.embedding[tile], whole.embedding[0][places[tile]])
    table = model.encoder_embeddings["tok_lulc"].token_emb.weight
    assert torch.equal(part.content, table[ids])


def test_parts_and_pixels_are_seen_together(model):
    part = VisibleTokens(torch.tensor([[7], [8]]), torch.tensor([[0], [31]]), *SHAPE)
    joined = model.embed({"S2L2A": OPTICAL, "LULC": part})
    assert joined.content.shape == joined.embedding.shape == (2, CELLS + 1, 32)
    sum_of = model.embed({"S2L2A": OPTICAL}) + model.embed({"LULC": part})
    assert torch.equal(joined.content, sum_of.content)
    assert torch.equal(joined.embedding, sum_of.embedding)


def visible(ids, places, name="LULC", shape=SHAPE):
    return {name: VisibleTokens(torch.tensor(ids), torch.tensor(places), *shape)}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (visible([[4375]], [[0]]), r"LULC: token ids must lie in 0 \.\. 4374, got 4375 \.\. 4375"),
        (visible([[3, -1]], [[0, 1]]), r"LULC: token ids must lie in 0 \.\. 4374, got -1 \.\. 3"),
        (visible([[[3]]], [[0]]), r"LULC: expected ids of rank 2, got \(1, 1, 1\)"),
        (visible([3], [0]), r"LULC: expected ids of rank 2, got \(1,\)"),
        (visible([[3, 4]], [[0]]), r"LULC: ids \(1, 2\) need positions of the same shape"),
        (visible([[3], [4]], [[0]]), r"LULC: ids \(2, 1\) need positions of the same shape"),
        (visible([[3]], [0]), r"LULC: ids \(1, 1\) need positions of the same shape, got \(1,\)"),
        (visible([[3]], [[32]]), r"LULC: positions must lie in 0 \.\. 31, got 32 \.\. 32"),
        (visible([[3, 4]], [[-1, 5]]), r"LULC: positions must lie in 0 \.\. 31, got -1 \.\. 5"),
        (visible([[3]], [[0]], "Coordinates"), "Coordinates is no grid"),
        (visible([[3]], [[0]], "S2L1C"), "knows no tokens of 'S2L1C'"),
        ({"LULC": some_ids(), **visible([[3]], [[0]], "DEM")}, r"batches differ: \[1, 2\]"),
        ({"S2L2A": OPTICAL, "S1RTC": RADAR[:1]}, r"batches differ: \[1, 2\]"),
        ({**visible([[3]], [[0]]), "DEM": pixels(1, shape=(4, 4), batch=1)}, "token grids differ"),
        ({"S2L2A": OPTICAL, "DEM": pixels(1, shape=(8, 4))}, "token grids differ"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model.encode(inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"S2L2A": OPTICAL, "S1RTC": RADAR[:1]}, "batches differ"),
        ({"S2L2A": OPTICAL, "DEM": pixels(1, shape=(8, 4))}, "token grids differ"),
    ],
)
@pytest.mark.parametrize("guidance", [None, 2.0], ids=["plain", "guided"])
def test_conditions_that_do_not_fit_are_refused(model, inputs, message, guidance):
    with pytest.raises(ValueError, match=message):
        conditions(model, inputs, guidance)


# Inputs and what was generated before.


def test_conditions_are_what_the_model_makes_of_the_inputs(model):
    found = conditions(model, BOTH)
    assert (found.grid, found.batch) == (SHAPE, 2)
    assert torch.equal(found.logits("LULC"), model.logits(BOTH, "LULC"))
    places = torch.tensor([[3, 30, 4], [9, 8, 7]])
    expected = model.decode(model.encode_inputs(BOTH), "LULC", places)
    assert torch.equal(found.logits("LULC", places), expected)
    assert expected.shape == (2, 3, 4375)


@pytest.mark.parametrize("guidance", [None, 2.0, {"Coordinates": 2.0}, {"S2L2A": 2.0}])
def test_a_sequence_before_the_images_has_their_grid(model, guidance):
    first = conditions(model, {"Coordinates": PLACES, "S2L2A": OPTICAL}, guidance)
    second = conditions(model, {"S2L2A": OPTICAL, "Coordinates": PLACES}, guidance)
    assert first.grid == second.grid == SHAPE
    torch.testing.assert_close(first.logits("LULC"), second.logits("LULC"), rtol=0, atol=1e-3)


@pytest.mark.parametrize("guidance", [None, 2.0, {"S1RTC": 2.0}])
def test_later_targets_see_what_was_generated_before(model, guidance):
    plain = conditions(model, BOTH, guidance)
    first = plain.joined(model.embed({"LULC": some_ids(1)}))
    second = plain.joined(model.embed({"LULC": some_ids(2)}))
    logits = [one.logits("DEM") for one in (plain, first, second)]
    for i in range(3):
        change = (logits[i] - logits[i - 1]).abs().amax(-1)  # (B, N)
        assert float(change.min()) > 0.1
    assert torch.equal(plain.logits("DEM"), logits[0])
    again = conditions(model, BOTH, guidance).joined(model.embed({"LULC": some_ids(1)}))
    assert torch.equal(again.logits("DEM"), logits[1])


def test_joining_equals_giving_the_tokens_as_input(model):
    ids, heights = some_ids(1), some_ids(2, vocabulary=15360)
    chained = conditions(model, BOTH).joined(model.embed({"LULC": ids}))
    chained = chained.joined(model.embed({"DEM": heights}))
    expected = model.logits({**BOTH, "LULC": ids, "DEM": heights}, "NDVI")
    assert torch.equal(chained.logits("NDVI"), expected)


def test_every_condition_sees_what_was_generated_before(model):
    further = model.embed({"LULC": some_ids(1)})
    guided = conditions(model, BOTH, 3.0).joined(further)
    nothing, everything = (
        model.logits({**inputs, "LULC": some_ids(1)}, "DEM") for inputs in ({}, BOTH)
    )
    expected = nothing + 3 * (everything - nothing)
    torch.testing.assert_close(guided.logits("DEM"), expected, rtol=0, atol=1e-3)


def test_a_generated_sequence_keeps_the_grid_of_the_images(model):
    guided = conditions(model, BOTH, 2.0).joined(model.embed({"Coordinates": PLACES}))
    assert guided.grid == SHAPE
    assert guided.logits("LULC").shape == (2, CELLS, 4375)


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("guidance", [None, 1.5])
def test_tokens_can_be_both_input_and_target(model, steps, guidance):
    """Inpainting and de-noising; the reference refuses NDVI -> NDVI."""
    quantizer = FiniteScalarQuantizer(small.TOKENIZERS_BY_NAME["NDVI"].fsq_levels)
    found = []
    for seed in (1, 2):
        inputs = {"NDVI": some_ids(seed, vocabulary=15360)}
        seen = conditions(model, inputs, guidance)
        assert bool(seen.logits("NDVI").isfinite().all())
        decoding = Decoding(Sampling(0), steps=steps)
        found.append(generate_grid(seen, "NDVI", decoding, Draw(), quantizer).ids)
    assert found[0].shape == (2, *SHAPE)
    assert float((found[0] != found[1]).float().mean()) > 0.3


@pytest.mark.parametrize(
    ("guidance", "encoded", "decoded"),
    [(None, 1, 1), (2.0, 1, 2), ({"S1RTC": 2.0}, 2, 2), ({"S1RTC": 2.0, "S2L2A": 0.5}, 2, 3)],
)
def test_an_ensemble_runs_encoder_and_decoder_once_per_condition(model, guidance, encoded, decoded):
    """The condition that sees nothing needs no encoder."""
    quantizer = FiniteScalarQuantizer(small.TOKENIZER.fsq_levels)
    seen, draw = conditions(model, BOTH, guidance), Draw()
    with counted(model.encoder[0], model.decoder[0]) as counts:
        members = [generate_grid(seen, "LULC", Decoding(), draw, quantizer).ids for _ in range(5)]
        assert counts == [encoded, decoded]
        generate_grid(seen, "NDVI", Decoding(), draw, _quantizer("NDVI"))
        assert counts == [encoded, 2 * decoded]
    assert not torch.equal(members[0], members[1])


def _quantizer(name):
    return FiniteScalarQuantizer(small.TOKENIZERS_BY_NAME[name].fsq_levels)


def test_the_first_step_of_an_ensemble_shares_the_encoder(model):
    seen, draw = conditions(model, BOTH), Draw()
    with counted(model.encoder[0]) as counts:
        for _ in range(3):
            generate_grid(seen, "LULC", Decoding(steps=4), draw, _quantizer("LULC"))
    assert counts == [1 + 3 * 3]


# Guidance.

NAMES = ("S2L2A", "S1RTC", "DEM")


def test_guidance_is_read_as_one_group_or_one_for_each_name():
    assert Guidance.parse(None, NAMES) == Guidance()
    assert Guidance.parse(2, NAMES) == Guidance(((NAMES, 2.0),))
    assert Guidance.parse(0.5, ["DEM"]) == Guidance(((("DEM",), 0.5),))
    found = Guidance.parse({"DEM": 3, "S2L2A": 0}, NAMES)
    assert found == Guidance(((("DEM",), 3.0), (("S2L2A",), 0.0)))
    assert all(isinstance(weight, float) for _, weight in found.groups)


def test_one_for_everything_is_no_guidance():
    for one in (1, 1.0):
        assert Guidance.parse(one, NAMES) == Guidance()
    # One for each of several is a composition, not the model itself.
    assert len(Guidance.parse(dict.fromkeys(NAMES, 1.0), NAMES).groups) == 3


NO_WEIGHT = "guidance contradicts itself: with no weight above 0 every input is ignored"


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (-0.1, r"guidance must be a weight from 0 upwards, got -0\.1"),
        (float("nan"), "guidance must be a weight from 0 upwards, got nan"),
        (float("inf"), "guidance must be a weight from 0 upwards, got inf"),
        ({"DEM": -1}, "guidance of DEM must be a weight from 0 upwards, got -1"),
        ({"S2L2A": 1, "DEM": float("nan")}, "guidance of DEM must be .* got nan"),
        ({"DEM": float("inf")}, "guidance of DEM must be .* got inf"),
        ({"LULC": 2.0}, "guidance names LULC, which is no input; the inputs are S2L2A, S1RTC, DEM"),
        ({"DEM": 1, "A": 1, "B": 0}, "guidance names A, B, which is no input"),
        ({"": 2.0}, "guidance names , which is no input"),
        (0, NO_WEIGHT),
        (0.0, NO_WEIGHT),
        (dict.fromkeys(NAMES, 0), NO_WEIGHT),
        ({}, NO_WEIGHT),
    ],
)
def test_senseless_guidance_is_refused(guidance, message):
    with pytest.raises(ValueError, match=message):
        Guidance.parse(guidance, NAMES)


def test_a_single_input_cannot_be_ignored_but_one_of_several_can():
    with pytest.raises(ValueError, match=NO_WEIGHT):
        Guidance.parse({"DEM": 0}, ["DEM"])
    assert Guidance.parse({"DEM": 0}, NAMES).split(NAMES)[0] == ("S2L2A", "S1RTC")


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (None, [NAMES]),
        (2.0, [(), NAMES]),
        ({"S1RTC": 2.0}, [("S2L2A", "DEM"), ("S2L2A", "DEM", "S1RTC")]),
        (
            {"DEM": 1, "S2L2A": 2},
            [("S1RTC",), ("S1RTC", "DEM"), ("S1RTC", "S2L2A")],
        ),
        (dict.fromkeys(NAMES, 2), [(), ("S2L2A",), ("S1RTC",), ("DEM",)]),
    ],
)
def test_each_condition_sees_the_base_and_one_group(guidance, expected):
    assert Guidance.parse(guidance, NAMES).split(NAMES) == tuple(expected)


def logits_of(model, inputs, target="LULC"):
    """Logits from inputs alone, from nothing too."""
    if inputs:
        return model.logits(inputs, target)
    return model.decode(model.unconditional(like=model.encode_inputs(BOTH)), target)


EVERYTHING = {**BOTH, "DEM": HEIGHT}


@pytest.mark.parametrize(
    "guidance",
    [
        2.5,
        0.3,
        {"S1RTC": 3.0},
        {"DEM": 0.5, "S1RTC": 2.0},
        {"S2L2A": 1.5, "S1RTC": 0.7, "DEM": 2.0},
        {"S2L2A": 0.0, "S1RTC": 2.0},
    ],
)
@pytest.mark.parametrize("target", ["LULC", "NDVI"])
def test_guided_logits_are_the_formula(model, guidance, target):
    named = guidance if isinstance(guidance, dict) else {}
    base = {k: v for k, v in EVERYTHING.items() if named and k not in named}
    groups = [({**base, name: EVERYTHING[name]}, weight) for name, weight in named.items()]
    groups = groups or [(EVERYTHING, guidance)]
    without = logits_of(model, base, target)
    expected = without + sum(
        weight * (logits_of(model, inputs, target) - without) for inputs, weight in groups
    )
    guided = conditions(model, EVERYTHING, guidance)
    torch.testing.assert_close(guided.logits(target), expected, rtol=0, atol=1e-3)
    assert float((expected - model.logits(EVERYTHING, target)).abs().mean()) > 0.1
    places = torch.tensor([[31, 0, 4], [9, 8, 7]])
    part = guided.logits(target, places)
    steps = [model.decode(one, target, places) for one in guided.encodings]
    by_hand = steps[0] + sum(
        weight * (one - steps[0]) for one, (_, weight) in zip(steps[1:], groups, strict=True)
    )
    torch.testing.assert_close(part, by_hand, rtol=0, atol=1e-3)


def test_weight_1_is_the_model_itself(model):
    plain = model.logits(BOTH, "LULC")
    assert torch.equal(conditions(model, BOTH, 1.0).logits("LULC"), plain)
    named = conditions(model, BOTH, {"S1RTC": 1.0})
    torch.testing.assert_close(named.logits("LULC"), plain, **CLOSE)
    alone = conditions(model, {"S2L2A": OPTICAL}, {"S2L2A": 1.0})
    torch.testing.assert_close(
        alone.logits("LULC"), model.logits({"S2L2A": OPTICAL}, "LULC"), **CLOSE
    )


def test_weight_0_leaves_an_input_out(model):
    left_out = conditions(model, BOTH, {"S1RTC": 0})
    expected = model.logits({"S2L2A": OPTICAL}, "LULC")
    torch.testing.assert_close(left_out.logits("LULC"), expected, **CLOSE)
    assert float((expected - model.logits(BOTH, "LULC")).abs().max()) > 0.5
    between = conditions(model, BOTH, {"S1RTC": 0.5}).logits("LULC")
    middle = (expected + model.logits(BOTH, "LULC")) / 2
    torch.testing.assert_close(between, middle, **CLOSE)


def test_seeing_nothing_depends_on_nothing(model):
    first, second = (
        model.unconditional(like=model.encode_inputs(inputs))
        for inputs in (BOTH, {"DEM": pixels(1, 9)})
    )
    assert first.tokens.shape == (2, 0, 32)
    for target in ("LULC", "DEM"):
        logits = model.decode(first, target)
        assert logits.shape[:2] == (2, CELLS)
        assert bool(logits.isfinite().all())
        assert float(logits.std()) > 0.1
        assert torch.equal(logits, model.decode(second, target))
        assert torch.equal(logits[0], logits[1])
        assert float((logits - model.logits(BOTH, target)).abs().mean()) > 0.1


def test_guidance_with_parts_of_a_batch_alone(model):
    """Guided logits of a tile do not depend on its neighbours."""
    guidance = {"S2L2A": 2.0, "S1RTC": 0.5}
    together = conditions(model, BOTH, guidance).logits("LULC")
    for tile in range(2):
        own = {name: values[tile : tile + 1] for name, values in BOTH.items()}
        alone = conditions(model, own, guidance).logits("LULC")
        torch.testing.assert_close(together[tile : tile + 1], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("guidance", [2.5, {"S1RTC": 3.0}, {"S2L2A": 0.5, "S1RTC": 2.0}])
def test_guidance_applies_to_sequences(model, guidance):
    named = guidance if isinstance(guidance, dict) else {}
    base = {k: v for k, v in BOTH.items() if named and k not in named}
    groups = [({**base, name: BOTH[name]}, weight) for name, weight in named.items()]
    groups = groups or [(BOTH, guidance)]
    guided = SequenceDecoder(conditions(model, BOTH, guidance), "Coordinates")
    others = [SequenceDecoder(conditions(model, inputs), "Coordinates") for inputs, _ in groups]
    nothing = conditions(model, BOTH, 2.0)
    if base:
        without = SequenceDecoder(conditions(model, base), "Coordinates")
    else:
        without = SequenceDecoder(
            Conditions(model, [None, *nothing.embedded[1:]], Guidance()), "Coordinates"
        )
    for ids in (torch.tensor([5, 5]), torch.tensor([77, 901]), torch.tensor([8, 9])):
        start = without.step(ids)
        expected = start + sum(
            weight * (one.step(ids) - start)
            for one, (_, weight) in zip(others, groups, strict=True)
        )
        torch.testing.assert_close(guided.step(ids), expected, rtol=0, atol=1e-3)


def test_guidance_exaggerates_in_sequences_too(model):
    found = [
        generate_sequence(
            conditions(model, BOTH, guidance),
            "Coordinates",
            Sampling(0),
            lambda *_: None,
            max_length=6,
        )
        for guidance in (None, 1.0, 6.0)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0][:, :2], found[2][:, :2])
