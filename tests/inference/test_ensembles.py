"""What conditions what: chains, thinking, guidance; ensembles and their statistics; soft codes."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from small import make_cube, tokenizers

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.model.transformer import TerraMind
from terramind_cube.testing import assert_lazy


@pytest.fixture(scope="module")
def cube():
    """112 x 96 px of one date without a hole."""
    cube = make_cube(112, 96, modalities=("S2L2A", "DEM"), times=1)
    cube["DEM"] = cube.DEM.fillna(300)
    return cube.assign(S2L2A=cube.S2L2A.where(cube.S2L2A > 0, 900).astype("uint16"))


@pytest.fixture(scope="module")
def generate(small_weights, cube):
    folder = small_weights["weights"].parent

    def call(*outputs, **changes):
        arguments = {
            "weights": small_weights["weights"],
            "tokenizer_weights": tokenizers(folder, *outputs),
            "inputs": ["S2L2A"],
            "overlap": 16,
            "threads": 1,
            "steps": 2,
        }
        return TerraMindAccessor(cube).generate(outputs, **{**arguments, **changes})

    return call


@pytest.fixture
def compute(generate):
    return lambda *outputs, **changes: generate(*outputs, **changes).compute()


def is_same(found, expected):
    return found.values.tobytes() == expected.values.tobytes()


def assert_same(found, expected, *names):
    for name in names:
        assert is_same(found[name], expected[name]), name


# What conditions what.


@pytest.fixture(scope="module")
def apart(generate):
    return generate("LULC", "S1RTC", "DEM").compute()


def test_a_chain_leaves_the_first_output_and_changes_the_others(compute, apart):
    chained = compute("LULC", "S1RTC", "DEM", chain=True)
    assert_same(chained, apart, "LULC", "LULC_confidence", "LULC_token_confidence")
    for name in ("S1RTC", "DEM"):
        assert (chained[name] != apart[name]).mean() > 0.5
        # Not only other tokens: the probabilities themselves are others.
        changed = chained[f"{name}_token_confidence"] != apart[f"{name}_token_confidence"]
        assert bool(changed.all())
    # The third one sees the second one too.
    without = compute("LULC", "DEM", chain=True)
    assert not is_same(without.DEM, chained.DEM)
    assert not is_same(without.DEM, apart.DEM)


def test_the_order_of_outputs_matters_in_a_chain_only(compute, apart):
    turned = compute("DEM", "S1RTC", "LULC")
    assert_same(turned, apart, *apart.data_vars)
    first, last = compute("LULC", "DEM", chain=True), compute("DEM", "LULC", chain=True)
    assert not is_same(first.LULC, last.LULC)
    assert not is_same(first.DEM, last.DEM)


def test_one_output_does_not_depend_on_what_else_is_generated(compute, apart):
    alone = compute("S1RTC")
    assert_same(alone, apart, *alone.data_vars)


@pytest.mark.parametrize("decoding_steps", [1, 3])
def test_what_is_thought_of_conditions_like_a_link_of_a_chain(compute, decoding_steps):
    settings = {"decoding_steps": decoding_steps}
    thought = compute("DEM", think=["NDVI"], **settings)
    chained = compute("NDVI", "DEM", chain=True, **settings)
    assert set(thought.data_vars) == {"DEM", "DEM_token_confidence"}
    assert_same(thought, chained, *thought.data_vars)
    assert not is_same(thought.DEM, compute("DEM", **settings).DEM)
    assert thought.DEM.attrs["terramind_run_chain"] == ["NDVI"]


def test_a_thought_needs_no_tokenizer_and_places_can_be_thought_of(compute, small_weights):
    folder = small_weights["weights"].parent
    settings = {"tokenizer_weights": tokenizers(folder, "DEM")}
    plain = compute("DEM", **settings)
    placed = compute("DEM", think=["Coordinates"], **settings)
    assert not is_same(plain.DEM, placed.DEM)


def test_thinking_of_an_output_is_refused(generate):
    with assert_lazy(), pytest.raises(ValueError, match="DEM is both an output and thought of"):
        generate("LULC", "DEM", think=["NDVI", "DEM"])


def test_guidance_exaggerates_an_input(compute):
    settings = {"inputs": ["S2L2A", "DEM"], "temperature": 0}
    plain = compute("NDVI", **settings)
    assert_same(compute("NDVI", guidance=1, **settings), plain, "NDVI", "NDVI_token_confidence")
    guided = compute("NDVI", guidance=3, **settings)
    assert not is_same(guided.NDVI, plain.NDVI)
    # The best token stands out more.
    sure, unsure = guided.NDVI_token_confidence, plain.NDVI_token_confidence
    assert float((sure > unsure).mean()) > 0.9
    # Weights of 0 and 1 leave an input out, and the other as it is.
    left = compute("NDVI", guidance={"S2L2A": 0, "DEM": 1}, **settings)
    alone = compute("NDVI", **{**settings, "inputs": ["DEM"]})
    assert float((abs(left.NDVI - alone.NDVI) < 1e-3).mean()) > 0.95
    # DEM alone is a static cube, without time.
    np.testing.assert_allclose(
        left.NDVI_token_confidence[0], alone.NDVI_token_confidence, rtol=1e-3, atol=1e-6
    )


# Ensembles.


@pytest.fixture(scope="module")
def members(generate):
    outputs = ["LULC", "S1RTC", "S2L2A"]
    return generate(*outputs, n_samples=3, keep_samples=True, seed=4).compute()


def test_an_ensemble_has_its_variables(members):
    for name in ("S1RTC", "S2L2A"):
        band = f"{name}_band"
        assert members[f"{name}_samples"].dims == ("sample", "time", band, "y", "x")
        assert members[f"{name}_samples"].dtype == members[name].dtype
        assert members[f"{name}_std"].dims == members[name].dims
        assert members[f"{name}_std"].dtype == np.float32
        assert members[name].attrs["cell_methods"] == "sample: mean"
        assert members[f"{name}_std"].attrs["cell_methods"] == "sample: standard_deviation"
        assert members[f"{name}_std"].attrs["units"] == members[name].attrs["units"]
    assert members.LULC_samples.dims == ("sample", "time", "y", "x")
    assert members.LULC_samples.dtype == np.uint8
    assert members.LULC_probability.dims == ("class", "time", "y", "x")
    assert members["class"].values.tolist()[:2] == ["no_data", "water"]
    assert members.sample.values.tolist() == [0, 1, 2]
    assert "LULC_std" not in members


def test_an_ensemble_returns_members_only_if_they_are_kept(generate):
    assert not [name for name in generate("DEM", n_samples=2) if name.endswith("_samples")]
    single = generate("DEM", "LULC", keep_samples=True)
    assert single.DEM_samples.sizes["sample"] == single.LULC_samples.sizes["sample"] == 1
    assert not {"DEM_std", "LULC_probability", "LULC_entropy"} & set(single.data_vars)


def test_mean_and_deviation_are_those_of_the_members(members):
    floats = members.S1RTC_samples.values
    np.testing.assert_array_equal(members.S1RTC, floats.mean(axis=0))
    np.testing.assert_allclose(members.S1RTC_std, floats.std(axis=0), rtol=3e-7)
    assert float(members.S1RTC_std.min()) > 0
    # Members of integers are rounded on their own, the mean and the deviation are not.
    integers = members.S2L2A_samples.values.astype(np.float64)
    assert abs(members.S2L2A - integers.mean(axis=0)).max() <= 1
    is_inside = (integers > 1).all(axis=0)
    deviation = np.abs(members.S2L2A_std.values - integers.std(axis=0))
    assert deviation[is_inside].max() <= 0.5
    assert members.S2L2A_std.values.max() > 100


def test_class_probabilities_are_a_distribution(members):
    share = members.LULC_probability.values.astype(np.float64)
    np.testing.assert_allclose(share.sum(axis=0), 1, atol=1e-5)
    assert share.min() >= 0
    entropy = -(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum(axis=0)
    np.testing.assert_allclose(members.LULC_entropy, entropy, atol=1e-5)
    np.testing.assert_array_equal(members.LULC, share.argmax(axis=0))
    np.testing.assert_array_equal(members.LULC_confidence, share.max(axis=0).astype(np.float32))
    codes = members.LULC_samples.values
    assert (codes != codes[0]).any(axis=0).mean() > 0.1


def test_the_first_member_is_the_single_run_of_the_same_seed(compute, members):
    single = compute("LULC", "S1RTC", "S2L2A", seed=4)
    for name in ("LULC", "S1RTC", "S2L2A"):
        assert is_same(single[name], members[f"{name}_samples"][0]), name
        for other in (1, 2):
            assert not is_same(single[name], members[f"{name}_samples"][other])


def test_more_members_leave_the_first_ones_as_they_are(compute, members):
    two = compute("LULC", "S1RTC", "S2L2A", n_samples=2, keep_samples=True, seed=4)
    assert_same(two, members.isel(sample=slice(2)), "LULC_samples", "S1RTC_samples")


def test_seeds_decide_an_ensemble(compute, members):
    settings = {"n_samples": 3, "keep_samples": True}
    again = compute("LULC", "S1RTC", "S2L2A", seed=4, **settings)
    assert_same(again, members, *members.data_vars)
    other = compute("LULC", "S1RTC", "S2L2A", seed=5, **settings)
    for name in ("LULC_samples", "S1RTC_samples", "S2L2A_samples"):
        assert float((other[name] != members[name]).mean()) > 0.1, name


def test_members_of_a_chain_see_their_own_links(compute):
    settings = {"n_samples": 2, "keep_samples": True, "chain": True}
    both = compute("LULC", "DEM", **settings)
    alone = compute("LULC", "DEM", chain=True)
    assert is_same(both.DEM_samples[0], alone.DEM)
    unchained = compute("LULC", "DEM", n_samples=2, keep_samples=True)
    assert_same(both, unchained, "LULC_samples")
    for member in (0, 1):
        assert not is_same(both.DEM_samples[member], unchained.DEM_samples[member])


def test_an_ensembles_token_confidence_is_the_mean_over_its_members(compute, monkeypatch):
    from terramind_cube.inference import collect

    seen = []
    settle = collect.CellMean._settle

    def spy(self, rows, values):
        seen.append(values)
        settle(self, rows, values)

    monkeypatch.setattr(collect.CellMean, "_settle", spy)
    result = compute("DEM", n_samples=3)
    values = np.concatenate([part.numpy() for part in seen], axis=1)
    assert values.shape == (3, 7, 6)
    assert (values[0] != values[1]).any()
    np.testing.assert_array_equal(result.DEM_token_confidence[0], values.mean(axis=0))


@pytest.mark.parametrize(
    ("settings", "per_batch"),
    [
        ({}, 1),
        ({"n_samples": 4}, 1),
        ({"n_samples": 4, "guidance": 2}, 1),
        ({"n_samples": 2, "chain": True}, 1 + 2),  # of each member, what the last output sees
        ({"n_samples": 2, "decoding_steps": 3}, 1 + 2 * 2 * 2),  # members, outputs, later steps
    ],
)
def test_the_encoder_runs_no_more_often_than_needed(compute, monkeypatch, settings, per_batch):
    runs = []
    encode = TerraMind.encode_embedded

    def spy(model, embedded):
        runs.append(len(embedded.content))
        return encode(model, embedded)

    monkeypatch.setattr(TerraMind, "encode_embedded", spy)
    compute("LULC", "NDVI", compute_batch=4, **settings)
    assert runs == [4] * per_batch  # the area has four tiles


# Soft codes.


def test_soft_codes_are_expected_ones(compute):
    hard, soft = compute("S1RTC"), compute("S1RTC", soft=True)
    assert float((hard.S1RTC != soft.S1RTC).mean()) > 0.9
    assert_same(soft, hard, "S1RTC_token_confidence")  # the same tokens are drawn beside
    # A ViT decoder draws nothing of its own, so nothing random is left.
    first, second = (compute("DEM", soft=True, seed=seed) for seed in (0, 1))
    assert_same(first, second, "DEM")
    assert not is_same(compute("DEM", seed=1).DEM, compute("DEM").DEM)
    # The decoder of S1RTC starts from noise.
    assert not is_same(compute("S1RTC", soft=True, seed=1).S1RTC, soft.S1RTC)


def test_soft_codes_leave_nothing_to_an_ensemble_of_a_vit(compute):
    spread = compute("DEM", soft=True, n_samples=2).DEM_std
    np.testing.assert_array_equal(spread, xr.zeros_like(spread))


def test_soft_codes_do_not_concern_classes(compute):
    soft, hard = compute("LULC", soft=True), compute("LULC")
    assert_same(soft, hard, "LULC", "LULC_confidence")
