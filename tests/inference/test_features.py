"""`embed`, `tokenize` and `reconstruct`: what they are, and that they equal model and tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from small import MODEL, make_cube, tokenizers

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import plan as plan_module
from terramind_cube.modalities import V1_STATISTICS, Statistics, standardize
from terramind_cube.model import extend_model, load_model, load_tokenizer
from terramind_cube.testing import assert_lazy

DIM, DEPTH = MODEL.dim, MODEL.encoder_depth


@pytest.fixture(scope="module")
def cube():
    """112 x 90 px, two dates: tiles at 0 and 48 southwards, at 0 and 32 eastwards."""
    return make_cube(112, 90)


def make_whole(height, width, *names):
    """A cube of one date without a hole."""
    cube = make_cube(height, width, modalities=names, times=1)
    for name in names:
        if name == "S2L2A":
            cube[name] = cube[name].where(cube[name] > 0, 700).astype("uint16")
        else:
            cube[name] = cube[name].fillna(200)
    return cube


@pytest.fixture(scope="module")
def tile():
    return make_whole(64, 64, "S2L2A", "DEM")


@pytest.fixture(scope="module")
def embed(small_weights):
    def call(cube, **changes):
        arguments = {"weights": small_weights["weights"], "threads": 1, **changes}
        return TerraMindAccessor(cube).embed(**arguments)

    return call


@pytest.fixture(scope="module")
def weights_of(small_weights):
    return lambda *names: tokenizers(small_weights["weights"].parent, *names)


@pytest.fixture(scope="module")
def model(small_weights):
    return load_model("terramind_nano", small_weights["weights"])


def pixels(tile):
    return {
        "S2L2A": torch.from_numpy(standardize("S2L2A", tile.S2L2A.values)),
        "DEM": torch.from_numpy(standardize("DEM", tile.DEM.values[None, None])),
    }


def as_grid(vectors):
    """(N, D) of a tile as (4, 4, D)."""
    return vectors.reshape(4, 4, -1).numpy()


def assert_same(found, expected):
    assert found.dims == expected.dims
    assert found.dtype == expected.dtype
    assert found.values.tobytes() == expected.values.tobytes()


# Embeddings.


def test_embeddings_lie_on_the_token_grid(embed, cube):
    with assert_lazy():
        result = embed(cube.chunk(y=50, x=50), chunks=48)
    assert result.dims == ("time", "token_y", "token_x", "feature")
    assert result.shape == (2, 7, 6, DIM)
    assert result.dtype == np.float32
    assert result.chunks == ((1, 1), (3, 3, 1), (3, 3), (DIM,))
    np.testing.assert_array_equal(result.token_y, cube.y.values.reshape(7, 16).mean(axis=1))
    np.testing.assert_array_equal(result.token_x[:5], cube.x.values[:80].reshape(5, 16).mean(1))
    np.testing.assert_array_equal(result.time, cube.time)
    attrs = result.attrs
    assert attrs["terramind_inputs"] == ["S2L2A", "S1RTC", "DEM"]
    assert attrs["terramind_layers"] == [DEPTH - 1]
    assert attrs["terramind_merge"] == "mean"
    assert len(attrs["terramind_weights_sha256"]) == 64
    assert "terramind_generated" not in attrs


def test_an_embedding_equals_the_models_encoding(embed, tile, model):
    settings = {"inputs": ["S2L2A", "DEM"], "compute_batch": 1}
    encoded = model.encode(pixels(tile))[0]
    parts = [as_grid(encoded[:16]), as_grid(encoded[16:])]
    apart = embed(tile, merge=None, **settings)
    assert apart.dims == ("time", "modality", "token_y", "token_x", "feature")
    assert apart.modality.values.tolist() == ["S2L2A", "DEM"]
    np.testing.assert_allclose(apart[0], np.stack(parts), atol=1e-5)
    for merge, expected in (
        ("mean", np.mean(parts, axis=0)),
        ("max", np.max(parts, axis=0)),
        ("concat", np.concatenate(parts, axis=-1)),
    ):
        found = embed(tile, merge=merge, **settings)
        assert found.attrs["terramind_merge"] == merge
        np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_merging_agrees_with_the_parts_over_an_area(embed, cube):
    parts = embed(cube, merge=None).compute()
    assert parts.sizes["modality"] == 3
    xr.testing.assert_allclose(embed(cube), parts.mean("modality", skipna=False), atol=1e-6)
    assert_same(embed(cube, merge="max").compute(), parts.max("modality", skipna=False))
    joined = embed(cube, merge="concat").compute()
    assert joined.sizes["feature"] == 3 * DIM
    for i in range(3):
        piece = joined.isel(feature=slice(i * DIM, (i + 1) * DIM))
        assert_same(piece, parts.isel(modality=i))


def test_layers_are_those_of_the_encoder(embed, tile, model):
    settings = {"inputs": ["S2L2A", "DEM"], "merge": None, "compute_batch": 1}
    every = embed(tile, layers="all", **settings).compute()
    assert every.dims == ("time", "layer", "modality", "token_y", "token_x", "feature")
    assert every.layer.values.tolist() == list(range(DEPTH))
    states = model.hidden_states(model.embed(pixels(tile)))
    for found, state in zip(every[0], states, strict=True):
        np.testing.assert_allclose(found[1], as_grid(state[0, 16:]), atol=1e-5)
    last = embed(tile, **settings).compute()
    assert_same(every.isel(layer=-1), last)
    chosen = embed(tile, layers=[-1, 0], **settings).compute()
    assert chosen.layer.values.tolist() == [DEPTH - 1, 0]
    assert_same(chosen, every.isel(layer=[-1, 0]))
    with_axis = embed(tile, layers=[-2], **settings).compute()
    assert_same(with_axis, every.isel(layer=[0]))
    merged = embed(tile, layers="all", **{**settings, "merge": "max"}).compute()
    assert_same(merged, every.max("modality"))


def test_cells_without_a_valid_pixel_are_unknown(embed):
    cube = make_whole(64, 128, "S2L2A")
    cube.S2L2A[:, :, :40, :35] = 0
    found = embed(cube).compute().notnull()
    expected = np.ones((1, 4, 8), bool)
    expected[:, :2, :2] = False
    for any_or_all in (found.any("feature"), found.all("feature")):
        np.testing.assert_array_equal(any_or_all, expected)


def test_a_cell_comes_from_the_first_tile_that_holds_it(embed):
    """80 px are tiles at 0 and, moved inwards, at 16; the second one gives the last cells only."""
    cube = make_whole(80, 64, "DEM")
    whole = embed(cube, compute_batch=1).compute()
    first = embed(cube.isel(y=slice(64)), compute_batch=1).compute()
    second = embed(cube.isel(y=slice(16, 80)), compute_batch=1).compute()
    assert_same(whole.isel(token_y=slice(4)), first)
    assert_same(whole.isel(token_y=slice(4, 5)), second.isel(token_y=slice(3, 4)))
    assert not np.allclose(second[:3], first[1:], atol=1e-3)


@pytest.mark.parametrize(("read", "written", "group"), [(30, 32, 32), (64, 48, 96), (200, 80, 80)])
def test_cutting_changes_no_byte(embed, cube, monkeypatch, read, written, group):
    settings = {"think": ["NDVI"], "merge": None}
    expected = embed(cube, **settings).compute()
    monkeypatch.setattr(plan_module, "GROUP_PX", group)
    found = embed(cube.chunk(y=read, x=read), chunks=written, **settings)
    assert found.chunks[2][0] == written // 16
    assert_same(found.compute(), expected)


def test_bands_and_coordinates_change_embeddings(embed, cube):
    plain = embed(cube, inputs=["S2L2A"]).compute()
    some = embed(cube, inputs=["S2L2A"], bands={"S2L2A": ["B02", "B03", "B04"]})
    placed = embed(cube, inputs=["S2L2A", "Coordinates"])
    assert some.attrs["terramind_inputs"] == ["S2L2A (B02 B03 B04)"]
    assert placed.attrs["terramind_inputs"] == ["S2L2A", "Coordinates"]
    for other in (some, placed):
        assert other.shape == plain.shape
        assert not np.allclose(other, plain, atol=1e-3, equal_nan=True)


def test_thinking_adds_what_was_thought_of(embed, tile, model):
    settings = {"inputs": ["S2L2A"], "temperature": 0, "compute_batch": 1}
    plain = embed(tile, **settings).compute()
    result = embed(tile, think=["LULC", "Coordinates", "NDVI"], merge=None, **settings).compute()
    # Places are looked at, but have no cells to be merged.
    assert result.modality.values.tolist() == ["S2L2A", "LULC", "NDVI"]
    assert result.attrs["terramind_think"] == ["LULC", "Coordinates", "NDVI"]
    assert not np.allclose(result.isel(modality=0), plain, atol=1e-3)

    # By hand: the tokens that generation draws, each seeing the one before, as further inputs.
    found = embed(tile, think=["LULC", "NDVI"], merge=None, **settings).compute()
    inputs = {"S2L2A": pixels(tile)["S2L2A"]}
    for name in ("LULC", "NDVI"):
        inputs[name] = model.logits(inputs, name).argmax(dim=-1).view(1, 4, 4)
    expected = model.encode(inputs)[0]
    for i in range(3):
        np.testing.assert_allclose(found[0, i], as_grid(expected[16 * i : 16 * (i + 1)]), atol=1e-5)


def test_a_thought_beside_the_same_input_has_its_own_name(embed, tile):
    result = embed(tile, think=["DEM"], merge=None)
    assert result.modality.values.tolist() == ["S2L2A", "DEM", "DEM (thought)"]
    assert result.compute().notnull().all()


def test_seeds_change_thoughts(embed, tile):
    first, again, other = (embed(tile, think=["NDVI"], seed=s).compute() for s in (0, 0, 1))
    assert_same(first, again)
    assert not np.allclose(first, other, atol=1e-3)


def test_tokens_that_are_there_are_not_thought_of(embed, tile, weights_of):
    settings = {"inputs": {"DEM": "tokens"}, "tokenizer_weights": weights_of("DEM"), "merge": None}
    result = embed(tile, think=["DEM"], **settings)
    assert result.modality.values.tolist() == ["DEM"]
    assert "terramind_think" not in result.attrs
    assert_same(result.compute(), embed(tile, **settings).compute())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": [DEPTH]}, rf"layers=\[{DEPTH}\]: terramind_nano has 0 \.\. {DEPTH - 1}"),
        ({"layers": [-DEPTH - 1]}, "terramind_nano has 0"),
        ({"layers": []}, "terramind_nano has 0"),
        ({"layers": "last"}, r"give a list of blocks, such as \[0\], or 'all'"),
        ({"layers": 1}, r"give a list of blocks, such as \[0\], or 'all'"),
        ({"merge": "sum"}, "Unknown merge 'sum': 'mean', 'max', 'concat' or None"),
        ({"chunks": 40}, "chunks=40 cuts token cells: give a multiple of 16 px"),
        ({"think": ["RGB"]}, "RGB cannot be generated"),
        ({"think": ["Captions"]}, "do not think them"),
        ({"seed": -1, "think": ["LULC"]}, "seed must lie in"),
        ({"bands": {"S2L2A": ["B99"]}}, "B99 given; it has B01"),
    ],
)
def test_bad_requests_for_embeddings_are_refused(embed, cube, changes, told):
    with assert_lazy(), pytest.raises(ValueError, match=told):
        embed(cube.chunk(y=50), **changes)


# Tokens. Without a model's weights, tiles are those of terramind_nano.

NANO_PX = 224


@pytest.fixture(scope="module")
def nano_tile():
    return make_whole(NANO_PX, NANO_PX, "S2L2A", "DEM")


@pytest.fixture(scope="module")
def wide():
    """Four tiles, three of them moved inwards."""
    return make_cube(300, 250, modalities=("S1RTC", "DEM"), times=1)


@pytest.fixture(scope="module")
def tokenize(weights_of):
    def call(cube, *names, **changes):
        arguments = {"tokenizer_weights": weights_of(*names), "threads": 1, **changes}
        return TerraMindAccessor(cube).tokenize(names, **arguments)

    return call


def test_tokens_equal_the_tokenizers(tokenize, nano_tile, weights_of):
    with assert_lazy():
        result = tokenize(nano_tile.chunk(y=50), "S2L2A", "DEM", chunks=128)
    assert set(result.data_vars) == {"S2L2A_tokens", "DEM_tokens"}
    for name, image in pixels(nano_tile).items():
        found = result[f"{name}_tokens"]
        # A static layer beside dates serves every one of them.
        assert found.dims == ("time", "token_y", "token_x")
        assert found.dtype == np.int32
        assert found.chunks == ((1,), (8, 6), (8, 6))
        assert found.attrs["nodata"] == -1
        assert "terramind_weights_sha256" not in found.attrs  # no transformer takes part
        tokenizer = load_tokenizer(name, weights_of(name)[name], family="nano")
        expected = tokenizer.tokenize(image).numpy()
        # A latent may lie on the border of two codes.
        assert (found.values == expected).mean() > 0.98


def test_tokens_are_unknown_where_their_own_modality_is(tokenize):
    cube = make_whole(64, 64, "S2L2A", "DEM")
    cube.S2L2A[:, 3, :16, :] = 0
    cube.DEM[:, 48:] = np.nan
    cube.DEM[0, 48] = 5
    result = tokenize(cube, "S2L2A", "DEM").compute()
    for name, hole in (
        ("S2L2A_tokens", (0, 0, slice(None))),
        ("DEM_tokens", (0, slice(1, None), 3)),
    ):
        expected = np.zeros((1, 4, 4), bool)
        expected[hole] = True
        np.testing.assert_array_equal(result[name] == -1, expected)
        assert int(result[name].max()) > 0


def test_one_modalitys_tokens_do_not_depend_on_the_others(tokenize, wide):
    both, alone = tokenize(wide, "S1RTC", "DEM").compute(), tokenize(wide, "S1RTC").compute()
    assert_same(both.S1RTC_tokens, alone.S1RTC_tokens)
    static = tokenize(wide, "DEM").compute()
    assert static.DEM_tokens.dims == ("token_y", "token_x")
    np.testing.assert_array_equal(both.DEM_tokens[0], static.DEM_tokens)


def test_tokens_do_not_depend_on_cutting(tokenize, wide, monkeypatch):
    expected = tokenize(wide, "S1RTC").compute().S1RTC_tokens
    assert expected.shape == (1, 19, 16)
    monkeypatch.setattr(plan_module, "GROUP_PX", 96)
    found = tokenize(wide.chunk(y=33, x=71), "S1RTC", chunks=96).S1RTC_tokens
    assert_same(found.compute(), expected)
    # A cell comes from the first tile that holds it: within it, that tile alone gives the same.
    first = tokenize(wide.isel(y=slice(NANO_PX), x=slice(NANO_PX)), "S1RTC").S1RTC_tokens
    np.testing.assert_array_equal(expected[:, :14, :14], first)


@pytest.mark.parametrize(
    ("names", "changes", "told"),
    [
        ([], {}, "No modalities: give at least one"),
        (["S2L1C"], {}, "S2L1C cannot be generated"),
        (["LULC"], {}, "The cube has no LULC"),
        (["DEM"], {"chunks": 40}, "cuts token cells: give a multiple of 16"),
        (["DEM"], {"model": "terramind_nona"}, "did you mean 'terramind_nano'"),
    ],
)
def test_bad_requests_for_tokens_are_refused(cube, names, changes, told):
    with assert_lazy(), pytest.raises(ValueError, match=told):
        TerraMindAccessor(cube.chunk(y=50)).tokenize(names, **changes)


# Reconstructions.


@pytest.fixture(scope="module")
def reconstruct(weights_of):
    def call(cube, *names, **changes):
        arguments = {"overlap": 16, "steps": 2, "threads": 1, **changes}
        return TerraMindAccessor(cube).reconstruct(
            names, tokenizer_weights=weights_of(*names), **arguments
        )

    return call


def test_reconstructions_have_units_dtypes_and_nodata_of_a_cube(reconstruct, cube):
    classes = (cube.S1RTC.fillna(0)[:, 0] % 10).astype("uint8").drop_vars("S1RTC_band")
    cube = cube.assign(LULC=classes)
    with assert_lazy():
        lazy = reconstruct(cube.chunk(y=50), "S2L2A", "S1RTC", "DEM", "LULC", chunks=50)
    assert set(lazy.data_vars) == {"S2L2A", "S1RTC", "DEM", "LULC", "LULC_confidence"}
    assert lazy.S2L2A.chunks == ((1, 1), (12,), (50, 50, 12), (50, 40))
    result = lazy.compute()
    known = {
        "S2L2A": (cube.S2L2A != 0).all("S2L2A_band"),
        "S1RTC": cube.S1RTC.notnull().all("S1RTC_band"),
        "DEM": cube.DEM.notnull(),
        "LULC": cube.LULC != 0,
    }
    units = {"S2L2A": "1e-4", "S1RTC": "dB", "DEM": "m", "LULC": "1"}
    for name, is_known in known.items():
        found = result[name]
        assert found.dtype == cube[name].dtype
        assert found.attrs["units"] == units[name]
        assert found.attrs["terramind_generated"] == "true"
        assert found.attrs["terramind_decoder"] == "dpm++, 2 steps, clamp=physical"
        if name == "LULC":
            assert not found.values[~is_known.values].any()
            found = result.LULC_confidence.where(result.LULC_confidence > 0)
        is_found = found.notnull() if found.dtype.kind == "f" else found != 0
        np.testing.assert_array_equal(*xr.broadcast(is_found, is_known))


def test_a_reconstruction_is_tokenized_and_decoded(reconstruct, nano_tile, weights_of):
    result = reconstruct(nano_tile, "S2L2A", "DEM", compute_batch=1).compute()
    for name, image in pixels(nano_tile).items():
        tokenizer = load_tokenizer(name, weights_of(name)[name], family="nano")
        values = tokenizer.decode(tokenizer.tokenize(image))[0].numpy()
        row = V1_STATISTICS[name]
        expected = values * np.reshape(row.std, (-1, 1, 1)) + np.reshape(row.mean, (-1, 1, 1))
        found = result[name].values.astype(float).reshape(expected.shape)
        is_close = np.isclose(found, expected, rtol=0, atol=1 if name == "S2L2A" else 1e-2)
        assert is_close.mean() > 0.98


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"steps": 3}, {"sampler": "ddim"}, {"clamp": "released"}]
)
def test_how_to_decode_changes_a_reconstruction(reconstruct, cube, changes):
    cube = cube.isel(time=[0])
    first = reconstruct(cube, "S1RTC").compute().S1RTC
    other = reconstruct(cube, "S1RTC", **changes).compute().S1RTC
    assert float((other != first).where(first.notnull()).mean()) > 0.3


def test_a_reconstruction_does_not_depend_on_cutting(reconstruct, wide, monkeypatch):
    first = reconstruct(wide, "S1RTC").compute().S1RTC
    monkeypatch.setattr(plan_module, "GROUP_PX", 150)
    found = reconstruct(wide.chunk(y=33, x=71), "S1RTC", chunks=150).compute()
    assert_same(found.S1RTC, first)


def test_one_reconstruction_does_not_depend_on_the_others(reconstruct, wide):
    both = reconstruct(wide, "DEM", "S1RTC").compute()
    assert_same(both.S1RTC, reconstruct(wide, "S1RTC").compute().S1RTC)
    np.testing.assert_array_equal(both.DEM[0], reconstruct(wide, "DEM").compute().DEM)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"sampler": "euler"}, "Unknown sampler 'euler'"),
        ({"clamp": "hard"}, "Unknown clamp 'hard'"),
        ({"overlap": 8}, "multiple of the model's patch"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_bad_requests_for_reconstructions_are_refused(reconstruct, cube, changes, told):
    with assert_lazy(), pytest.raises(ValueError, match=told):
        reconstruct(cube.chunk(y=50), "DEM", **changes)


def test_a_variable_of_ones_own_gets_a_fresh_embedding(small_weights):
    cube = make_cube(64, 64, modalities=("S2L2A",), times=1)
    rng = np.random.default_rng(0)
    own = xr.DataArray(
        rng.normal(50, 9, (1, 3, 64, 64)).astype("float32"),
        dims=("time", "planet_band", "y", "x"),
        coords={"planet_band": ["red", "green", "blue"]},
    )
    cube["PLANET"] = own
    statistics = Statistics((50.0, 50.0, 50.0), (9.0, 9.0, 9.0))
    settings = {"weights": small_weights["weights"], "threads": 1, "merge": None}
    alone = cube.terramind.embed(**settings).compute()
    assert alone.modality.values.tolist() == ["S2L2A"]
    both = cube.terramind.embed(new_modalities={"PLANET": statistics}, **settings).compute()
    assert both.modality.values.tolist() == ["S2L2A", "PLANET"]
    assert float(np.abs(both.sel(modality="S2L2A") - alone.sel(modality="S2L2A")).max()) > 1e-3

    model = load_model("terramind_nano", small_weights["weights"])
    extend_model(model, "PLANET", statistics)
    inputs = {
        "S2L2A": torch.from_numpy(standardize("S2L2A", cube.S2L2A.values)),
        "PLANET": torch.from_numpy((own.values - 50) / 9),
    }
    inputs["S2L2A"][:, :, (cube.S2L2A.values == 0).any((0, 1))] = 0
    expected = model.encode(inputs).view(1, 2, 4, 4, -1)
    np.testing.assert_allclose(both.values, expected.numpy(), atol=1e-4)
    few = cube.terramind.embed(
        new_modalities={"PLANET": statistics}, bands={"PLANET": ["red"]}, **settings
    ).compute()
    assert not np.allclose(few, both)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"S1RTC": Statistics((1.0,), (1.0,))}, "TerraMind knows it"),
        ({"OTHER": Statistics((1.0,), (1.0,))}, "the cube holds S2L2A"),
        ({"PLANET": Statistics((1.0,) * 2, (1.0,) * 2)}, "has 1 bands, but 2 statistics"),
    ],
)
def test_new_modalities_that_do_not_fit_are_refused(small_weights, new, message):
    cube = make_cube(64, 64, modalities=("S2L2A",), times=1)
    cube["PLANET"] = cube.S2L2A.isel(S2L2A_band=0, drop=True)
    with pytest.raises(ValueError, match=message):
        cube.terramind.embed(new_modalities=new, weights=small_weights["weights"])


def test_land_cover_that_says_it_is_coded_otherwise_is_refused_at_once(small_weights):
    cube = make_cube(64, 64, modalities=("S2L2A",), times=1)
    codes = cube.S2L2A.isel(S2L2A_band=0, drop=True) % 10
    cube["LULC"] = codes.astype("uint8").assign_attrs(flag_values=[0, 1, 2, 4, 5, 7, 8, 9, 10, 11])
    with assert_lazy(), pytest.raises(ValueError, match="coded as another provider codes it"):
        cube.chunk(y=32).terramind.embed(inputs=["S2L2A", "LULC"], weights=small_weights["weights"])
