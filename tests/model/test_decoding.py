"""Token grids in one or several steps: what is decided when, from what, and with which numbers."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_cube.modalities import MODALITIES
from terramind_cube.model import decoding as module
from terramind_cube.model.conditions import Conditions, Guidance
from terramind_cube.model.decoding import Decoding, generate_grid
from terramind_cube.model.embeddings import VisibleTokens
from terramind_cube.model.generation import Sampling, sample_tokens
from terramind_cube.model.quantizer import FiniteScalarQuantizer
from terramind_cube.noise import NoiseStream, uniform_batch

pytestmark = pytest.mark.usefixtures("one_thread")

QUANTIZERS = {
    name: FiniteScalarQuantizer(row.fsq_levels) for name, row in small.TOKENIZERS_BY_NAME.items()
}
SCHEMES = ("roar", "maskgit")
LONG = [
    Decoding(steps=8, scheme=scheme, schedule=schedule)
    for scheme in SCHEMES
    for schedule in ("cosine", "linear")
]
EVERY = [Decoding(), *LONG]
SHAPES = [(4, 4), (4, 8), (2, 6)]


def label(value):
    if isinstance(value, Decoding):
        return "one-step" if value.steps == 1 else f"{value.scheme}-{value.schedule}"
    return None


@pytest.fixture(scope="module")
def model():
    return small.lively_model()


class Draw:
    """Numbers by world cell; tile i of a batch is the `tiles[i]`-th of a row of tiles."""

    def __init__(self, tiles, shape, seed=0):
        self.stream = NoiseStream(seed, "target")
        rows, cols = shape
        self.cells = [(np.arange(rows), np.arange(cols) + cols * tile) for tile in tiles]
        self.count = rows * cols
        self.calls = []

    def tokens(self, step, width, positions):
        self.calls.append((step, positions))
        count = self.count if positions is None else positions.shape[1]
        out = np.empty((len(self.cells), count, width), np.float32)
        uniform_batch(dataclasses.replace(self.stream, step=step), self.cells, out, positions)
        return torch.from_numpy(out)

    def order(self):
        out = np.empty((len(self.cells), self.count, 1), np.float32)
        uniform_batch(dataclasses.replace(self.stream, modality="order"), self.cells, out)
        return out[..., 0]


class Silent(Draw):
    """Orders cells, but has no numbers for tokens."""

    def tokens(self, step, width, positions):
        raise AssertionError("random numbers were drawn")


def pixels(tiles, shape):
    """The tile of a number is the same in any batch."""
    return torch.stack(
        [
            torch.randn(
                12, 16 * shape[0], 16 * shape[1], generator=torch.Generator().manual_seed(tile)
            )
            for tile in tiles
        ]
    )


def inputs_of(model, tiles, shape):
    return Conditions.of_inputs(model, {"S2L2A": pixels(tiles, shape)}, Guidance())


def generate(model, decoding, tiles=(0, 1), shape=(4, 4), *, seed=0, target="LULC", draw=None):
    return generate_grid(
        inputs_of(model, tiles, shape),
        target,
        decoding,
        draw or Draw(tiles, shape, seed),
        QUANTIZERS[target],
    )


@pytest.fixture
def spy(monkeypatch):
    """What every step saw and drew; its `plant` may replace the tokens that a step drew."""
    seen = SimpleNamespace(logits=[], ids=[], sampling=[], plant=lambda _step, ids: ids)

    def spied(logits, sampling, uniform=None):
        ids = seen.plant(len(seen.ids), sample_tokens(logits, sampling, uniform))
        seen.logits.append(logits.clone())
        seen.sampling.append(sampling)
        seen.ids.append(ids.clone())
        return ids

    monkeypatch.setattr(module, "sample_tokens", spied)
    return seen


def candidates(draw):
    """Return the cells that every step looked at, (B, n)."""
    everything = np.broadcast_to(np.arange(draw.count), (len(draw.cells), draw.count))
    return [everything if positions is None else positions for _, positions in draw.calls]


# How many tokens a step decides, and how warm it is.


@pytest.mark.parametrize("cells", [16, 196])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_every_step_decides_something_and_all_of_them_everything(schedule, cells):
    for steps in range(1, cells + 1):
        counts = Decoding(steps=steps, schedule=schedule).counts(cells)
        assert len(counts) == steps
        assert sum(counts) == cells
        assert min(counts) >= 1


@pytest.mark.parametrize("cells", [16, 196])
def test_linear_steps_are_equal_and_cosine_steps_grow(cells):
    for steps in range(2, cells + 1):
        linear = Decoding(steps=steps, schedule="linear").counts(cells)
        assert max(linear) - min(linear) <= 1
        cosine = Decoding(steps=steps, schedule="cosine").counts(cells)
        assert all(after >= before - 1 for before, after in pairwise(cosine))  # but for rounding
        assert cosine[0] <= linear[0]
        assert cosine[-1] >= linear[-1]
    assert Decoding(steps=4, schedule="linear").counts(196) == [49] * 4
    share = np.cumsum(Decoding(steps=8, schedule="cosine").counts(196)) / 196
    np.testing.assert_allclose(share, 1 - np.cos(np.arange(1, 9) / 8 * np.pi / 2), atol=0.5 / 196)


def test_steps_that_no_grid_allows_are_refused(model):
    with pytest.raises(ValueError, match="decoding_steps=17: the grid has 16 tokens only"):
        Decoding(steps=17).counts(16)
    with pytest.raises(ValueError, match="the grid has 16 tokens only"):
        generate(model, Decoding(steps=17))
    for steps in (0, -1):
        with pytest.raises(ValueError, match="decoding_steps must be at least 1"):
            Decoding(steps=steps)


def test_temperature_is_constant_or_falls_with_the_undecided_share():
    counts = [2, 3, 5, 10]
    assert Decoding(Sampling(0.7)).temperatures(counts) == [0.7] * 4
    linear = Decoding(Sampling(0.8), temperature_schedule="linear").temperatures(counts)
    np.testing.assert_allclose(linear, [0.8, 0.8 * 18 / 20, 0.8 * 15 / 20, 0.8 * 10 / 20])


@settings(deadline=None, max_examples=50)
@given(
    start=st.floats(0.1, 10),
    share=st.floats(0, 1),
    power=st.floats(0.1, 5),
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=30),
)
def test_onex_temperature_falls_from_the_start_to_the_minimum(start, share, power, counts):
    end = share * start
    schedule = f"onex:{end}:{power}"
    found = Decoding(Sampling(start), temperature_schedule=schedule).temperatures(counts)
    assert found[0] == pytest.approx(start)
    assert all(after <= before for before, after in pairwise(found))
    assert min(found) >= end - 1e-6 * start
    late = Decoding(Sampling(start), temperature_schedule=schedule).temperatures([10**9, 1])
    assert late[1] == pytest.approx(end, abs=1e-3 * start)


def test_a_higher_power_cools_faster():
    first, second, third = (
        Decoding(temperature_schedule=f"onex:0.1:{power}").temperatures([4] * 4)
        for power in (0.3, 1, 3)
    )
    assert first[1] > second[1] > third[1] > 0.1


@pytest.mark.parametrize(
    "schedule",
    [
        "cosine",
        "",
        "constant:1",
        "linear:0.1:1",
        "onex",
        "onex:0.1",
        "onex:0.1:1:2",
        "onex:a:1",
        "onex:-0.1:1",
        "onex:nan:1",
        "onex:inf:1",
        "onex:1.1:1",  # above the temperature: it would rise
        "onex:0.1:0",
        "onex:0.1:-1",
        "onex:0.1:inf",
        "onex:0.1:nan",
    ],
)
def test_senseless_temperature_schedules_are_refused(schedule):
    with pytest.raises(ValueError, match=f"temperature_schedule='{schedule}'"):
        Decoding(temperature_schedule=schedule)


def test_no_schedule_makes_temperature_0_random():
    assert Decoding(Sampling(0), temperature_schedule="onex:0:1").temperatures([1] * 4) == [0] * 4
    with pytest.raises(ValueError, match="a minimum from 0 to the temperature, here 0"):
        Decoding(Sampling(0), temperature_schedule="onex:0.5:1")


def test_infinite_temperature_has_a_finite_minimum():
    with pytest.raises(ValueError, match="temperature_schedule='onex:inf:1'"):
        Decoding(Sampling(np.inf), temperature_schedule="onex:inf:1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "random"}, "Unknown scheme 'random': give one of roar, maskgit"),
        ({"schedule": "square"}, "Unknown schedule 'square': give one of cosine, linear"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**arguments)


# One step.


@pytest.mark.parametrize("shape", SHAPES)
def test_one_step_samples_every_token_by_itself(model, shape):
    sampling = Sampling(2.0, 0.99)
    grid = generate(model, Decoding(sampling), shape=shape)
    logits = model.logits({"S2L2A": pixels((0, 1), shape)}, "LULC")
    uniform = Draw((0, 1), shape).tokens(0, logits.shape[-1], None)
    for tile, cell in ((0, 0), (0, 3), (1, shape[0] * shape[1] - 1)):
        own = (slice(tile, tile + 1), slice(cell, cell + 1))
        expected = sample_tokens(logits[own], sampling, uniform[own].clone())
        assert int(grid.ids[tile].flatten()[cell]) == int(expected)
    assert torch.equal(grid.ids.flatten(1), sample_tokens(logits, sampling, uniform))
    assert len(grid.ids.unique()) > 4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_one_step_the_scheme_does_not_matter(model, scheme):
    grid = generate(model, Decoding(scheme=scheme))
    assert torch.equal(grid.ids, generate(model, Decoding()).ids)


# Several steps.


def naive(model, decoding, tile, shape, target="LULC"):
    """The definition, for one tile: encode what is known, decode the rest, decide some of it."""
    draw, cells = Draw([tile], shape), shape[0] * shape[1]
    known, left = {}, list(range(cells))
    if decoding.scheme == "roar":
        left = draw.order()[0].argsort(kind="stable").tolist()
    counts = decoding.counts(cells)
    for step, count in enumerate(counts):
        inputs = [model.embed({"S2L2A": pixels([tile], shape)})]
        if known:
            places, ids = torch.tensor([[*known]]), torch.tensor([[*known.values()]])
            inputs.append(model.embed({target: VisibleTokens(ids, places, *shape)}))
        encoded = model.encode_embedded(sum(inputs[1:], start=inputs[0]))
        places = left[:count] if decoding.scheme == "roar" else sorted(left)
        logits = model.decode(encoded, target, torch.tensor([places]))
        temperature = decoding.temperatures(counts)[step]
        sampling = dataclasses.replace(decoding.sampling, temperature=temperature)
        uniform = draw.tokens(step, logits.shape[-1], np.array([places]))
        ids = sample_tokens(logits, sampling, uniform)
        confidence = logits.softmax(-1).gather(2, ids[..., None])[0, :, 0]
        for best in confidence.argsort(descending=True)[:count].tolist():
            known[places[best]] = int(ids[0, best])
            left.remove(places[best])
    assert not left
    return [known[cell] for cell in range(cells)]


@pytest.mark.parametrize("shape", [(4, 4), (2, 6)])
@pytest.mark.parametrize("decoding", LONG, ids=label)
def test_steps_follow_the_definition(model, decoding, shape):
    decoding = dataclasses.replace(
        decoding, sampling=Sampling(1.2, 0.9), temperature_schedule="onex:0.2:0.5"
    )
    grid = generate(model, decoding, tiles=(3, 4), shape=shape)
    for i, tile in enumerate((3, 4)):
        assert grid.ids[i].flatten().tolist() == naive(model, decoding, tile, shape)


@pytest.mark.parametrize("target", ["LULC", "DEM"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decoding", EVERY, ids=label)
def test_every_cell_is_decided_once(model, spy, decoding, shape, target):
    draw = Draw((0, 1), shape)
    grid = generate(model, decoding, shape=shape, target=target, draw=draw)
    cells = shape[0] * shape[1]
    assert grid.ids.shape == grid.confidence.shape == (2, *shape)
    assert grid.codes.shape == (2, 5, *shape)
    assert 0 <= int(grid.ids.min()) <= int(grid.ids.max()) < MODALITIES[target].vocabulary
    assert bool(((grid.confidence > 0) & (grid.confidence <= 1)).all())
    assert [step for step, _ in draw.calls] == list(range(decoding.steps))
    counts = decoding.counts(cells)
    looked_at = candidates(draw)
    left = [sum(counts[step:]) for step in range(decoding.steps)]
    is_everything = decoding.scheme == "maskgit" or decoding.steps == 1
    assert [part.shape[1] for part in looked_at] == (left if is_everything else counts)
    for tile in range(2):
        decided = []
        for step, part in enumerate(looked_at):
            after = looked_at[step + 1][tile] if is_everything and step + 1 < len(counts) else []
            now = np.setdiff1d(part[tile], after)
            assert len(now) == counts[step]
            decided.extend(now)
            # What was decided is in the result, and nothing changes it later.
            for place in now:
                own = part[tile].tolist().index(place)
                assert spy.ids[step][tile, own] == grid.ids[tile].flatten()[place]
        assert sorted(decided) == list(range(cells))


@pytest.mark.parametrize("steps", [16, 3, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_least_and_the_most_steps_work(model, scheme, steps):
    grid = generate(model, Decoding(steps=steps, scheme=scheme))
    assert bool((grid.confidence > 0).all())


@pytest.mark.parametrize("decoding", LONG, ids=label)
def test_each_step_has_its_temperature_and_the_same_nucleus(model, spy, decoding):
    decoding = dataclasses.replace(
        decoding, sampling=Sampling(0.9, 0.6, 40), temperature_schedule="linear"
    )
    generate(model, decoding)
    expected = decoding.temperatures(decoding.counts(16))
    assert len(set(expected)) == 8
    assert spy.sampling == [Sampling(temperature, 0.6, 40) for temperature in expected]


def test_maskgit_keeps_the_most_confident(model, spy):
    decoding = Decoding(steps=8, scheme="maskgit", schedule="linear")
    draw = Draw((0, 1), (4, 4))
    grid = generate(model, decoding, draw=draw)
    parts, rejected = candidates(draw), 0
    for step, (logits, ids) in enumerate(zip(spy.logits[:-1], spy.ids, strict=False)):
        confidence = logits.softmax(-1).gather(2, ids[..., None])[..., 0]
        for tile in range(2):
            is_left = np.isin(parts[step][tile], parts[step + 1][tile])
            is_left = torch.from_numpy(is_left)
            assert confidence[tile][~is_left].min() >= confidence[tile][is_left].max()
            rejected += int(is_left.sum())
    assert rejected == 2 * (14 + 12 + 10 + 8 + 6 + 4 + 2)
    # The most confident of all is decided first, hence stays as in one step.
    once = generate(model, Decoding())
    best = once.confidence.flatten(1).argmax(1, keepdim=True)
    assert torch.equal(grid.ids.flatten(1).gather(1, best), once.ids.flatten(1).gather(1, best))


def test_roar_follows_each_tile_s_own_order(model):
    draw = Draw((0, 1, 2), (4, 4))
    generate(model, Decoding(steps=8), tiles=(0, 1, 2), draw=draw)
    order = np.concatenate(candidates(draw), axis=1)
    np.testing.assert_array_equal(order, draw.order().argsort(axis=1))
    assert not np.array_equal(order[0], order[1])
    assert not np.array_equal(order[1], order[2])
    assert not np.array_equal(order[0], np.arange(16))


def test_other_orders_give_other_tokens(model):
    class Backwards(Draw):
        def order(self):
            return -super().order()

    first = generate(model, Decoding(Sampling(0), steps=8, schedule="linear"))
    draw = Backwards((0, 1), (4, 4))
    second = generate(model, Decoding(Sampling(0), steps=8, schedule="linear"), draw=draw)
    assert not torch.equal(first.ids, second.ids)
    # In one step there is no order.
    assert torch.equal(
        generate(model, Decoding(Sampling(0))).ids,
        generate(model, Decoding(Sampling(0)), draw=draw).ids,
    )


# Later tokens see earlier ones.


def plant_at(count):
    """Replace the first tokens that the first step draws in tile 0."""

    def plant(step, ids):
        if step == 0:
            ids = ids.clone()
            ids[0, :count] = (ids[0, :count] + 2000) % 4375
        return ids

    return plant


def test_later_tokens_see_those_decided_before(model, spy):
    decoding = Decoding(steps=8, schedule="linear")
    draw = Draw((0, 1), (4, 8))
    first = generate(model, decoding, shape=(4, 8), draw=draw)
    free, spy.logits, spy.ids = spy.logits, [], []
    spy.plant = plant_at(4)
    second = generate(model, decoding, shape=(4, 8))
    is_other = (first.ids != second.ids).flatten(1).numpy()
    assert is_other[0, candidates(draw)[0][0]].all()
    assert is_other[0].sum() >= 6  # the four, and what came of them
    assert torch.equal(spy.logits[0], free[0])
    for before, after in zip(free[1:], spy.logits[1:], strict=True):
        assert float((before[0] - after[0]).abs().amax(-1).min()) > 0.01  # in every later cell
        assert torch.equal(before[1], after[1])  # of the other tile, in none
    assert not is_other[1].any()


def test_maskgit_sees_what_it_decided_before(model, spy):
    decoding = Decoding(steps=8, scheme="maskgit")
    draw = Draw((0, 1), (4, 8))
    generate(model, decoding, shape=(4, 8), draw=draw)
    free, spy.logits, spy.ids = spy.logits, [], []
    looked_at = candidates(draw)
    (decided,) = np.setdiff1d(looked_at[0][0], looked_at[1][0])
    # The encoder sees another token of the same confidence.
    join = Conditions.joined
    seen = []

    def replaced(self, further):
        seen.append(further.content.shape[1])
        content = further.content.clone()
        content[0, 0] *= -3
        return join(self, dataclasses.replace(further, content=content))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conditions, "joined", replaced)
        generate(model, decoding, shape=(4, 8))
    assert seen == np.cumsum(decoding.counts(32))[:-1].tolist()
    assert decided not in looked_at[1][0]
    assert torch.equal(free[0], spy.logits[0])
    assert float((free[1][0] - spy.logits[1][0]).abs().amax(-1).min()) > 0.01
    assert torch.equal(free[1][1], spy.logits[1][1])


def test_in_one_step_no_token_sees_another(model, spy):
    first = generate(model, Decoding(), shape=(4, 8))
    spy.plant, spy.ids = plant_at(4), []
    second = generate(model, Decoding(), shape=(4, 8))
    is_other = (first.ids != second.ids).flatten(1)
    assert is_other.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]


# Random numbers, batches and seeds.


@pytest.mark.parametrize("decoding", EVERY, ids=label)
def test_a_tile_does_not_depend_on_its_batch(model, decoding):
    tile = 40
    alone = generate(model, decoding, tiles=[tile])
    for slot in (0, 15):
        tiles = [*range(slot), tile, *range(100, 115 - slot)]
        assert len(tiles) == 16
        together = generate(model, decoding, tiles=tiles)
        assert torch.equal(together.ids[slot], alone.ids[0])
        torch.testing.assert_close(
            together.confidence[slot], alone.confidence[0], rtol=1e-3, atol=0
        )
        assert torch.equal(together.codes[slot], alone.codes[0])
        assert not torch.equal(together.ids[15 - slot], alone.ids[0])


@pytest.mark.parametrize("decoding", EVERY, ids=label)
def test_a_seed_fixes_the_tokens_and_another_one_changes_them(model, decoding):
    decoding = dataclasses.replace(decoding, sampling=Sampling(2.0, 0.99))
    first = generate(model, decoding)
    again = generate(model, decoding)
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.confidence, again.confidence)
    for seed in (1, 2):
        other = generate(model, decoding, seed=seed)
        assert float((other.ids != first.ids).float().mean()) > 0.3


def test_the_global_generator_is_neither_used_nor_set(model):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = generate(model, LONG[0])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(generate(model, LONG[0]).ids, first.ids)


@pytest.mark.parametrize("temperature_schedule", ["constant", "linear"])
@pytest.mark.parametrize("decoding", EVERY, ids=label)
def test_temperature_0_needs_no_random_numbers(model, decoding, temperature_schedule, spy):
    decoding = dataclasses.replace(
        decoding, sampling=Sampling(0), temperature_schedule=temperature_schedule
    )
    draw = Silent((0, 1), (4, 4))
    if decoding.scheme == "maskgit":
        draw.order = None
    generate(model, decoding, draw=draw)
    assert len(spy.ids) == decoding.steps
    for logits, ids in zip(spy.logits, spy.ids, strict=True):
        assert torch.equal(ids, logits.argmax(-1))
    with pytest.raises(AssertionError, match="random numbers were drawn"):
        generate(
            model, dataclasses.replace(decoding, sampling=Sampling()), draw=Silent([0], (4, 4))
        )


# What is returned of each token.


def of_cells(draw, values, ids):
    """Put what steps found, (B, n, ...) each, into cells (B, N, ...): the last look counts."""
    found = torch.zeros(len(ids), draw.count, *values[0].shape[2:])
    for part, value in zip(candidates(draw), values, strict=True):
        for tile, places in enumerate(part):
            found[tile, torch.tensor(places)] = value[tile]
    return found


@pytest.mark.parametrize("decoding", EVERY, ids=label)
def test_confidence_is_the_probability_of_the_token_when_it_was_drawn(model, spy, decoding):
    decoding = dataclasses.replace(decoding, sampling=Sampling(1.5, 0.9))
    draw = Draw((0, 1), (4, 4))
    grid = generate(model, decoding, draw=draw)
    probability = of_cells(draw, [logits.softmax(-1) for logits in spy.logits], grid.ids)
    expected = probability.gather(2, grid.ids.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(grid.confidence.flatten(1), expected, rtol=1e-4, atol=1e-7)
    assert float(expected.std()) > 0.01


@pytest.mark.parametrize("target", ["LULC", "DEM"])
@pytest.mark.parametrize("decoding", EVERY, ids=label)
def test_codes_are_those_of_the_tokens_or_the_expected_ones(model, spy, decoding, target):
    hard = generate(model, decoding, target=target)
    quantizer = QUANTIZERS[target]
    assert torch.equal(hard.codes, quantizer.dequantize(hard.ids))
    spy.logits = []
    draw = Draw((0, 1), (4, 4))
    soft = generate(model, dataclasses.replace(decoding, is_soft=True), target=target, draw=draw)
    assert torch.equal(soft.ids, hard.ids)
    assert torch.equal(soft.confidence, hard.confidence)
    table = quantizer.dequantize(torch.arange(quantizer.size).view(1, 1, -1))[0, :, 0].T  # (V, L)
    codes = of_cells(draw, [logits.softmax(-1) @ table for logits in spy.logits], hard.ids)
    expected = codes.transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(soft.codes, expected, rtol=0, atol=1e-5)
    assert float((soft.codes - hard.codes).abs().mean()) > 0.05
