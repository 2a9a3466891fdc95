"""Any set of inputs: pixels, tokens, classes, places, captions, generated data, some bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from pyproj import Transformer
from small import make_cube, tokenizers, write_captioned

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import read_fingerprint
from terramind_cube.modalities import V1_STATISTICS, standardize
from terramind_cube.model import load_model, load_tokenizer
from terramind_cube.model.text import CoordinateVocabulary
from terramind_cube.model.transformer import TerraMind
from terramind_cube.model.variants import MODELS
from terramind_cube.testing import assert_lazy


@pytest.fixture(scope="module")
def generate(small_weights):
    folder = small_weights["weights"].parent

    def call(cube, *outputs, tokens=(), **changes):
        """`tokens`: inputs that a tokenizer encodes."""
        names = [n for n in (*outputs, *tokens) if n not in ("Coordinates", "Captions")]
        arguments = {
            "weights": small_weights["weights"],
            "tokenizer_weights": tokenizers(folder, *names) if names else None,
            "overlap": 16,
            "threads": 1,
            "steps": 2,
            "temperature": 0,
        }
        return TerraMindAccessor(cube).generate(list(outputs), **{**arguments, **changes})

    return call


@pytest.fixture(scope="module")
def cube():
    """80 x 64 px, two dates, with LULC and NDVI as a catalog would give them."""
    cube = make_cube(80, 64)
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 10, (2, 10, 8), dtype=np.uint8)
    classes = blocks.repeat(8, axis=1).repeat(8, axis=2)
    greenness = rng.uniform(-0.2, 0.9, classes.shape).astype(np.float32)
    greenness[:, 30:40, 5:15] = np.nan
    dims = ("time", "y", "x")
    return cube.assign(LULC=(dims, classes), NDVI=(dims, greenness))


def assert_same(found, expected):
    assert set(found.data_vars) == set(expected.data_vars)
    for name in expected.data_vars:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].values.tobytes() == expected[name].values.tobytes(), name


def differs(found, expected):
    return all(
        found[name].values.tobytes() != expected[name].values.tobytes()
        for name in expected.data_vars
    )


# Forms.


def test_pixels_and_tokens_can_be_mixed(generate, cube, small_weights):
    tile = cube.isel(y=slice(64), time=[0])
    forms = {"S2L2A": "tokens", "DEM": "pixels"}
    result = generate(tile, "NDVI", tokens=["S2L2A"], inputs=forms, compute_batch=1)
    assert result.NDVI.attrs["terramind_inputs"] == ["S2L2A as tokens", "DEM"]

    model = load_model("terramind_nano", small_weights["weights"])
    weights = small_weights["weights"].with_name("S2L2A.safetensors")
    pixels = standardize("S2L2A", tile.S2L2A.values)
    pixels[(tile.S2L2A.values == 0).any(axis=1, keepdims=True).repeat(12, axis=1)] = 0
    height = standardize("DEM", tile.DEM.values[None, None])
    inputs = {
        "S2L2A": load_tokenizer("S2L2A", weights, family="nano").tokenize(torch.from_numpy(pixels)),
        "DEM": torch.from_numpy(np.nan_to_num(height, nan=0)),
    }
    expected = model.logits(inputs, "NDVI").softmax(dim=-1).amax(dim=-1).view(1, 4, 4)
    is_known = result.NDVI_token_confidence.notnull().values
    assert is_known.mean() > 0.5
    np.testing.assert_allclose(
        result.NDVI_token_confidence.values[is_known], expected.numpy()[is_known], rtol=1e-3
    )
    pixels_only = generate(tile, "NDVI", inputs=["S2L2A", "DEM"], compute_batch=1)
    assert differs(result, pixels_only)


@pytest.mark.parametrize("name", ["LULC", "NDVI"])
def test_classes_and_indices_are_inputs_as_tokens(generate, cube, name):
    result = generate(cube, "DEM", tokens=[name], inputs=[name])
    assert result.DEM.attrs["terramind_inputs"] == [f"{name} as tokens"]
    is_known = cube[name].notnull() & ((cube[name] != 0) | (name != "LULC"))
    np.testing.assert_array_equal(result.DEM.notnull(), is_known)
    turned = cube.assign({name: cube[name].isel(x=slice(None, None, -1)).drop_vars("x")})
    other = generate(turned, "DEM", tokens=[name], inputs=[name])
    assert differs(result, other)
    beside = generate(cube, "DEM", tokens=[name], inputs=["S2L2A", name])
    assert differs(beside, generate(cube, "DEM", inputs=["S2L2A"]))


def test_classes_may_be_floats_with_gaps(generate, cube):
    gaps = cube.assign(LULC=cube.LULC.where(cube.LULC != 0).astype("float32"))
    settings = {"tokens": ["LULC"], "inputs": ["LULC"]}
    assert_same(generate(gaps, "DEM", **settings), generate(cube, "DEM", **settings))


@pytest.mark.parametrize(("code", "dtype"), [(11, "uint8"), (255, "uint8"), (-1, "int16")])
def test_classes_of_another_coding_are_refused_with_advice(generate, cube, code, dtype):
    foreign = cube.copy(deep=True)
    foreign["LULC"] = foreign.LULC.astype(dtype)
    foreign.LULC[1, 7, 9] = code
    result = generate(foreign, "DEM", tokens=["LULC"], inputs=["LULC"])
    told = rf"LULC holds the code {code}; .* 0 \.\. 9.* must be translated, as load_cube does"
    with pytest.raises(ValueError, match=told):
        result.compute()
    result.isel(time=0).compute()  # the other date is fine


@pytest.mark.parametrize("dtype", ["int16", "int32", "float64"])
def test_elevation_may_have_another_dtype(generate, cube, dtype):
    whole = cube.assign(DEM=cube.DEM.fillna(0).round())
    expected = generate(whole, "NDVI", inputs=["DEM"]).compute()
    found = generate(whole.assign(DEM=whole.DEM.astype(dtype)), "NDVI", inputs=["DEM"]).compute()
    assert_same(found, expected)


def test_default_inputs_leave_out_what_is_generated(generate, cube):
    def inputs(*outputs, cube=cube):
        return generate(cube, *outputs)[outputs[0]].attrs["terramind_inputs"]

    assert inputs("LULC") == ["S2L2A", "S1RTC", "DEM"]  # LULC and NDVI are no pixels
    assert inputs("S1RTC") == ["S2L2A", "DEM"]
    assert inputs("S1RTC", "DEM") == ["S2L2A"]
    assert inputs("S1RTC", "DEM", "S2L2A") == ["S2L2A", "S1RTC", "DEM"]
    assert inputs("DEM", cube=cube[["DEM"]]) == ["DEM"]


# Places and captions.


def test_coordinates_are_the_cells_of_the_tiles_centres(generate, monkeypatch):
    # An area across the meridian between two cells, 8.875 degrees east.
    to_utm = Transformer.from_crs("EPSG:4326", "EPSG:32632", always_xy=True)
    border = to_utm.transform(8.875, 43.35)[0]
    col = round(border / 160) * 16 - 64
    cube = make_cube(64, 160, modalities=("DEM",), times=0, col=col)
    result = generate(cube, "NDVI", "Coordinates", inputs=["DEM", "Coordinates"], compute_batch=1)
    assert result.NDVI.attrs["terramind_inputs"] == ["DEM", "Coordinates"]
    seen = []
    embed = TerraMind.embed

    def spy(model, inputs):
        seen.extend(ids for name, ids in inputs.items() if name == "Coordinates")
        return embed(model, inputs)

    monkeypatch.setattr(TerraMind, "embed", spy)
    result.compute()
    assert len(seen) == result.tile_x.size >= 3
    to_degrees = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(
        result.tile_x.values, np.full(result.tile_x.size, result.tile_y.item())
    )
    expected = CoordinateVocabulary.bundled().encode(longitude, latitude)
    assert len(np.unique(expected, axis=0)) == 2
    np.testing.assert_array_equal(torch.cat(seen), expected)


def test_coordinates_condition_the_result(generate, cube):
    moved = cube.assign_coords(x=cube.x + 200_000)
    here, there = (
        {name: generate(area, "NDVI", inputs=inputs).compute() for name, inputs in chosen.items()}
        for area in (cube, moved)
        for chosen in [{"placed": ["S2L2A", "Coordinates"], "plain": ["S2L2A"]}]
    )
    assert_same(there["plain"], here["plain"])  # temperature 0 draws nothing
    assert differs(there["placed"], here["placed"])
    assert differs(here["placed"], here["plain"])


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    return write_captioned(tmp_path_factory.mktemp("captioned"))


def test_captions_condition_the_result(generate, cube, captioned):
    settings = {**captioned, "inputs": ["S2L2A", "Captions"]}
    lake = generate(cube, "NDVI", caption="a lake", **settings).compute()
    assert lake.NDVI.attrs["terramind_inputs"] == ["S2L2A", "Captions"]
    assert len(lake.NDVI.attrs["terramind_vocabulary_sha256"][0]) == len("Captions:") + 64
    assert_same(generate(cube, "NDVI", caption="A  Lake", **settings), lake)
    assert differs(generate(cube, "NDVI", caption="a lake and trees", **settings), lake)
    silent = generate(cube, "NDVI", inputs=["S2L2A"], weights=captioned["weights"])
    assert differs(silent, lake)


def test_captions_may_be_a_coordinate_of_the_cube(generate, captioned):
    cube = make_cube(64, 64, modalities=("S2L2A",), times=2)
    settings = {**captioned, "inputs": ["S2L2A", "Captions"]}
    texts = ["a lake", "a lake and trees"]
    found = generate(cube.assign_coords(caption=("time", texts)), "NDVI", **settings).compute()
    for t, text in enumerate(texts):
        one = generate(cube.isel(time=[t]), "NDVI", caption=text, **settings).compute()
        assert_same(found.isel(time=[t]), one)
    assert found.NDVI.attrs["terramind_caption"] == texts
    single = generate(cube.assign_coords(caption="a lake"), "NDVI", **settings)
    assert_same(single, generate(cube, "NDVI", caption="a lake", **settings))
    with pytest.raises(ValueError, match=r"caption has dims \('y',\)"):
        generate(cube.assign_coords(caption=("y", ["a"] * 64)), "NDVI", **settings)


# Generated data.


def test_generated_data_are_inputs_again(generate, cube, tmp_path):
    first = generate(cube, "S1RTC", "LULC", "Coordinates", inputs=["S2L2A"], chunks=32)
    with assert_lazy():
        merged = xr.merge([cube[["S2L2A"]], first], compat="override", join="exact")
        inputs = ["S2L2A", "S1RTC", "LULC"]
        result = generate(merged, "DEM", tokens=["LULC"], inputs=inputs)
    assert result.DEM.attrs["terramind_inputs"] == ["S2L2A", "S1RTC", "LULC as tokens"]
    result = result.compute()
    in_memory = merged.compute()
    assert_same(generate(in_memory, "DEM", tokens=["LULC"], inputs=inputs), result)
    first.to_zarr(tmp_path / "first.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "first.zarr", consolidated=False) as opened:
        stored = opened.assign(S2L2A=cube.S2L2A)
        assert_same(generate(stored, "DEM", tokens=["LULC"], inputs=inputs), result)
    assert differs(generate(cube, "DEM", tokens=["LULC"], inputs=inputs), result)


def test_generated_elevation_has_dates(generate, cube):
    first = generate(cube, "DEM", inputs=["S2L2A"]).compute()
    result = generate(first, "NDVI").compute()
    assert result.NDVI.attrs["terramind_inputs"] == ["DEM"]
    for date in (0, 1):
        alone = generate(first.isel(time=[date]), "NDVI").compute()
        assert_same(result.isel(time=[date]), alone)


# Bands.


def test_bands_left_out_count_as_their_mean(generate, cube):
    bands = ["B04", "B8A", "B12"]
    settings = {"inputs": ["S2L2A", "DEM"]}
    found = generate(cube, "NDVI", bands={"S2L2A": bands}, **settings).compute()
    means = xr.DataArray(np.float32(V1_STATISTICS["S2L2A"].mean), dims="S2L2A_band")
    floats = cube.S2L2A.astype("float32")
    filled = cube.assign(S2L2A=floats.where(floats.S2L2A_band.isin(bands), means))
    filled["S2L2A"] = filled.S2L2A.transpose(*cube.S2L2A.dims)
    assert_same(found, generate(filled, "NDVI", **settings))
    assert differs(found, generate(cube, "NDVI", **settings))
    # The other bands need not be there, and the order of names is free.
    lean = cube.sel(S2L2A_band=["B12", "B04", "B8A"])
    assert_same(generate(lean, "NDVI", bands={"S2L2A": bands[::-1]}, **settings), found)
    tokens = {"tokens": ["S2L2A"], "inputs": {"S2L2A": "tokens"}}
    assert_same(
        generate(lean, "NDVI", bands={"S2L2A": bands}, **tokens),
        generate(filled, "NDVI", **tokens),
    )


def test_a_band_that_is_left_out_invalidates_nothing(generate, cube):
    broken = cube.copy(deep=True)
    broken.S2L2A.loc[{"S2L2A_band": "B01"}] = 0
    settings = {"inputs": ["S2L2A"], "bands": {"S2L2A": ["B02", "B03"]}}
    assert_same(generate(broken, "NDVI", **settings), generate(cube, "NDVI", **settings))
    assert bool(generate(broken, "NDVI", inputs=["S2L2A"]).NDVI.isnull().all())


# Refusals.

BAD = [
    ({"outputs": ["RGB"]}, "RGB cannot be generated; TerraMind generates S2L2A, S1GRD"),
    ({"outputs": ["LULC", "S2L1C"]}, "S2L1C cannot be generated; TerraMind generates"),
    (
        {"outputs": ["S1GRD"], "tokenizer_weights": None},
        "knows no tokens of S1GRD; it knows those of LULC, S1RTC",
    ),
    ({"outputs": ["Captions"]}, "terramind_nano knows no Captions"),
    ({"think": ["Captions"]}, "Captions condition nothing.* do not think them"),
    ({"outputs": ["Captions", "LULC"], "chain": True}, "Captions .*: generate them last"),
    ({"steps": 0}, "steps must be at least 1"),
    ({"steps": 1001}, "at most 1000, got 1001"),
    ({"decoding_steps": 0}, "decoding_steps must be at least 1, got 0"),
    ({"decoding_steps": 17}, "decoding_steps=17: the grid has 16 tokens only"),
    ({"temperature": -0.1}, "temperature must not be negative, got -0.1"),
    ({"temperature_schedule": "falling"}, "give 'constant', 'linear' or 'onex:MIN:POWER'"),
    ({"top_k": -1}, "top_k must not be negative"),
    ({"guidance": -1}, "a weight from 0 upwards, got -1"),
    ({"guidance": float("nan")}, "a weight from 0 upwards, got nan"),
    ({"guidance": 0}, "guidance contradicts itself.*Leave it out"),
    ({"guidance": {}}, "guidance contradicts itself.*Leave it out"),
    ({"guidance": {"S2L2A": 0, "DEM": 0}}, "guidance contradicts itself.*Leave it out"),
    ({"guidance": {"S1RTC": 2}}, "S1RTC, which is no input; the inputs are S2L2A, DEM"),
    ({"scheme": "random"}, "Unknown scheme 'random': give one of roar, maskgit"),
    ({"schedule": "square"}, "Unknown schedule 'square': give one of cosine, linear"),
    ({"sampler": "euler"}, r"Unknown sampler 'euler': give one of dpm\+\+, ddim"),
    ({"clamp": "hard"}, "Unknown clamp 'hard': 'physical', 'released' or None"),
    ({"candidates": 0}, r"candidates must lie in 1 \.\. 1000: 0"),
    ({"candidates": 100_000}, r"candidates must lie in 1 \.\. 1000: 100000"),
    ({"n_samples": 0}, "n_samples must be at least 1, got 0"),
    ({"caption": " "}, "caption is empty: leave it out"),
    ({"caption": "a lake"}, "knows no Captions"),
    ({"inputs": ["S2L2A", "Captions"]}, r"give the text as caption='\.\.\.'"),
    ({"inputs": "S2L2A"}, r"give \['S2L2A'\]"),
    ({"inputs": {"S2L2A": "patches"}}, "read as 'pixels' or as 'tokens', not as 'patches'"),
    ({"inputs": {"LULC": "pixels"}}, "takes no pixels of LULC: it takes the pixels of S2L2A"),
    ({"inputs": ["RGB"]}, "The cube has no RGB"),
    ({"bands": {"S2L2A": ["B99"]}}, "B99 given; it has B01, B02"),
    ({"bands": {"S2L2A": []}}, "bands of S2L2A: none given; it has B01"),
    ({"bands": {"S1RTC": ["VV"]}}, "bands names S1RTC; the inputs are S2L2A, DEM"),
    ({"think": ["LULC"]}, "LULC is both an output and thought of: choose one"),
    ({"think": ["RGB"]}, "RGB cannot be generated"),
    ({"tokenizer_weights": {"DEM": "x.pt"}}, "names DEM, which is no output and no input"),
    ({"vocabularies": {"Captions": "x.txt"}}, "names Captions, which is no input or output"),
]


@pytest.mark.parametrize(("changes", "told"), BAD)
def test_bad_requests_are_refused_before_anything_is_computed(generate, cube, changes, told):
    changes = {"inputs": ["S2L2A", "DEM"], **changes}
    outputs = changes.pop("outputs", ["LULC"])
    with assert_lazy(), pytest.raises(ValueError, match=told):
        generate(cube.chunk(y=40), *outputs, **changes)


def test_captions_need_the_models_vocabulary(generate, cube, captioned, tmp_path):
    settings = {"inputs": ["S2L2A"], "caption": "a lake", "weights": captioned["weights"]}
    with pytest.raises(ValueError, match=r"give vocabularies=\{'Captions': path\}"):
        generate(cube, "LULC", **settings)
    with pytest.raises(FileNotFoundError, match=r"No vocabulary of Captions at .*nowhere\.txt"):
        generate(cube, "LULC", vocabularies={"Captions": tmp_path / "nowhere.txt"}, **settings)
    words = captioned["vocabularies"]["Captions"].read_text()
    (tmp_path / "long.txt").write_text("\n".join([words, *map(str, range(50))]))
    with pytest.raises(ValueError, match="the model's table has 12 rows"):
        generate(cube, "LULC", vocabularies={"Captions": tmp_path / "long.txt"}, **settings)


def test_a_subset_of_bands_that_stand_alone_is_enough(small_weights):
    cube = make_cube(64, 64, modalities=("S2L2A",), times=1)
    chosen = ["B02", "B04", "B08"]
    apart = cube.S2L2A.to_dataset("S2L2A_band")[chosen].assign_coords(cube.coords)
    settings = {**small_weights, "bands": {"S2L2A": chosen}, "threads": 1, "overlap": 16}
    together = TerraMindAccessor(cube).generate(["LULC"], **settings).compute()
    alone = TerraMindAccessor(apart.drop_vars("S2L2A_band")).generate(["LULC"], **settings)
    np.testing.assert_array_equal(alone.LULC, together.LULC)


@pytest.mark.parametrize("name", ["dem", "S2L2A", "ndvi.v1"])
def test_names_of_ones_own_never_take_over_an_embedding(name):
    with pytest.raises(ValueError, match="a name of the model's own, or holds a dot"):
        MODELS["terramind_v1_tiny"].with_modality(name, V1_STATISTICS["DEM"])


def test_an_array_in_memory_becomes_views_not_one_chunk(monkeypatch):
    from terramind_cube.inference import mapping

    monkeypatch.setattr(mapping, "GROUP_PX", 48)
    cube = make_cube(100, 90, modalities=("S2L2A",), times=2)
    array = mapping._as_dask(cube.S2L2A)
    assert array.chunks == ((1, 1), (12,), (48, 48, 4), (48, 42))
    first = next(iter(array.dask.values()))
    assert np.shares_memory(first(), cube.S2L2A.values)
    np.testing.assert_array_equal(array.compute(), cube.S2L2A)


def test_the_run_knows_which_precision_it_computes_in(small_weights):
    cube = make_cube(64, 64, modalities=("S2L2A",), times=1)
    result = TerraMindAccessor(cube).generate(
        ["LULC"], **small_weights, precision="auto", overlap=16
    )
    assert read_fingerprint(result)["compute_precision"] in ("float32", "bfloat16")
