"""Every output of `generate`: what it is, where it is unknown, and that cutting changes no byte."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from small import TILE_PX, make_cube, tokenizers, write_captioned

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import plan as plan_module
from terramind_cube.modalities import LULC_CLASSES, MODALITIES, V1_STATISTICS, standardize
from terramind_cube.model import load_model, load_tokenizer
from terramind_cube.testing import assert_lazy

OVERLAP = 16
GRIDS = ["LULC", "S1RTC", "S2L2A", "DEM", "NDVI"]
NAMES = [*GRIDS, "Coordinates"]


@pytest.fixture(scope="module")
def generate(small_weights):
    folder = small_weights["weights"].parent

    def call(cube, outputs, **changes):
        names = [name for name in outputs if name != "Coordinates"]
        arguments = {
            "weights": small_weights["weights"],
            "tokenizer_weights": tokenizers(folder, *names) if names else None,
            "overlap": OVERLAP,
            "threads": 1,
            "steps": 2,
        }
        return TerraMindAccessor(cube).generate(outputs, **{**arguments, **changes})

    return call


@pytest.fixture(scope="module")
def cube():
    """112 x 96 px: whole cells, and a last column of tiles that is moved inwards."""
    return make_cube(112, 96)


@pytest.fixture(scope="module")
def lazy(generate, cube):
    return generate(cube, NAMES, inputs=["S2L2A", "DEM"], chunks=48)


@pytest.fixture(scope="module")
def everything(lazy):
    return lazy.compute()


def assert_same_bytes(found, expected):
    assert set(found.data_vars) == set(expected.data_vars)
    for name in expected.data_vars:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].dims == expected[name].dims, name
        assert found[name].values.tobytes() == expected[name].values.tobytes(), name


RASTER = ("time", "y", "x")
PIXELS = ((1, 1), (48, 48, 16), (48, 48))
CELLS = (("time", "token_y", "token_x"), "float32", ((1, 1), (3, 3, 1), (3, 3)))
TILES = (
    ("time", "tile_y", "tile_x", "candidate"), "float32", ((1, 1), (1, 1), (1, 1), (5,)),
)  # fmt: skip
SHAPES = {
    "LULC": (RASTER, "uint8", PIXELS),
    "LULC_confidence": (RASTER, "float32", PIXELS),
    "S1RTC": (("time", "S1RTC_band", "y", "x"), "float32", (PIXELS[0], (2,), *PIXELS[1:])),
    "S2L2A": (("time", "S2L2A_band", "y", "x"), "uint16", (PIXELS[0], (12,), *PIXELS[1:])),
    "DEM": (RASTER, "float32", PIXELS),
    "NDVI": (RASTER, "float32", PIXELS),
    **{f"{name}_token_confidence": CELLS for name in GRIDS},
    "Coordinates": TILES,
    "Coordinates_latitude": TILES,
    "Coordinates_longitude": TILES,
}


def test_every_output_has_its_dims_dtype_and_chunks(lazy, everything, cube):
    assert set(lazy.data_vars) == set(SHAPES)
    for name, (dims, dtype, chunks) in SHAPES.items():
        for result in (lazy, everything):
            assert result[name].dims == dims, name
            assert result[name].dtype == dtype, name
            assert result[name].shape == tuple(map(sum, chunks)), name
        assert lazy[name].chunks == chunks, name
    assert lazy.odc.geobox == cube.odc.geobox
    np.testing.assert_array_equal(lazy.time, cube.time)


def test_bands_and_places_have_their_coordinates(lazy, cube):
    assert lazy.S1RTC_band.values.tolist() == ["VV", "VH"]
    assert lazy.S2L2A_band.values.tolist() == cube.S2L2A_band.values.tolist()
    assert lazy.candidate.values.tolist() == [0, 1, 2, 3, 4]
    for axis, starts in (("y", (0, 48)), ("x", (0, 32))):
        pixels = cube[axis].values
        cells = pixels.reshape(-1, 16).mean(axis=1)
        np.testing.assert_array_equal(lazy[f"token_{axis}"], cells)
        tiles = [pixels[start : start + TILE_PX].mean() for start in starts]
        np.testing.assert_array_equal(lazy[f"tile_{axis}"], tiles)
        for name in (f"token_{axis}", f"tile_{axis}"):
            assert lazy[name].attrs["standard_name"] == f"projection_{axis}_coordinate"
            assert lazy[name].attrs["units"] == "m"


def test_a_cell_at_the_edge_has_the_centre_of_the_whole_cell(generate):
    result = generate(make_cube(70, 40, modalities=("DEM",), times=0), ["LULC"], chunks=32)
    assert result.token_y.size == 5
    assert float(result.token_y[-1]) == float(result.y[64]) + 5 - 80
    assert result.token_x.size == 3
    assert result.LULC_token_confidence.chunks == ((2, 2, 1), (2, 1))


UNITS = {"LULC": "1", "S1RTC": "dB", "S2L2A": "1e-4", "DEM": "m", "NDVI": "1"}
STANDARD_NAMES = {
    "S1RTC": "surface_backwards_scattering_coefficient_of_radar_wave",
    "S2L2A": "surface_bidirectional_reflectance",
    "DEM": "surface_altitude",
    "NDVI": "normalized_difference_vegetation_index",
    "Coordinates_latitude": "latitude",
    "Coordinates_longitude": "longitude",
}


def test_every_output_is_described_as_cf_wants_it(lazy):
    for name, units in UNITS.items():
        attrs = lazy[name].attrs
        assert attrs["units"] == units
        assert attrs["long_name"].endswith("generated by TerraMind")
        if name == "LULC":
            assert attrs["flag_values"].tolist() == [row.value for row in LULC_CLASSES]
        else:
            assert attrs["valid_range"].dtype == lazy[name].dtype
            assert tuple(attrs["valid_range"]) == MODALITIES[name].valid_range
        assert attrs.get("nodata") == (0 if lazy[name].dtype.kind == "u" else None)
        assert lazy[name].encoding["grid_mapping"] == "spatial_ref"
        assert name in lazy[f"{name}_token_confidence"].attrs["long_name"]
        assert lazy[f"{name}_token_confidence"].attrs["units"] == "1"
    for name, standard_name in STANDARD_NAMES.items():
        assert lazy[name].attrs["standard_name"] == standard_name
    assert lazy.Coordinates_latitude.attrs["units"] == "degrees_north"
    assert lazy.Coordinates_longitude.attrs["units"] == "degrees_east"
    for name in ("LULC", "Coordinates"):
        for beside in lazy[name].attrs["ancillary_variables"].split():
            assert beside in lazy


def test_every_variable_says_where_it_comes_from(generate, cube):
    cube = cube.copy()
    cube["S2L2A"] = cube.S2L2A.assign_attrs(stac_items=["S2B_32TMR", "S2A_32TMR"])
    result = generate(
        cube, NAMES, inputs={"S2L2A": "pixels", "DEM": "pixels"}, seed=7, chain=True,
        bands={"S2L2A": ["B02", "B03"]}, decoding_steps=3, scheme="maskgit", soft=True,
        n_samples=2, guidance={"DEM": 2}, temperature=0.5, top_k=9, clamp="released",
    )  # fmt: skip
    for variable in result.data_vars.values():
        attrs = variable.attrs
        assert attrs["terramind_generated"] == "true"
        assert attrs["terramind_model"] == "terramind_nano"
        assert len(attrs["terramind_weights_sha256"]) == 64
        named = [row.partition(":")[0] for row in attrs["terramind_tokenizer_sha256"]]
        assert named == GRIDS
        assert attrs["terramind_vocabulary_sha256"] == ["Coordinates:bundled"]
        assert attrs["terramind_inputs"] == ["S2L2A (B02 B03)", "DEM"]
        assert attrs["terramind_stac_items"] == ["S2A_32TMR", "S2B_32TMR"]
        assert attrs["terramind_seed"] == "7"
        assert attrs["terramind_sampler"] == (
            "3 steps of maskgit, cosine schedule, constant temperature, temperature=0.5, "
            "top_p=0.8, top_k=9, expected codes"
        )
        assert attrs["terramind_decoder"] == "dpm++, 2 steps, clamp=released"
        assert attrs["terramind_samples"] == 2
        assert attrs["terramind_guidance"] == ["DEM:2"]
        assert attrs["terramind_run_chain"] == GRIDS


def test_coordinates_are_a_distribution_over_cells(everything):
    probability = everything.Coordinates.values
    assert (np.diff(probability, axis=-1) <= 0).all()
    assert probability.min() > 0
    assert probability.sum(axis=-1).max() <= 1
    latitude, longitude = everything.Coordinates_latitude, everything.Coordinates_longitude
    assert float(abs(latitude).max()) <= 90
    assert float(abs(longitude).max()) <= 180
    for degrees in (latitude.values, longitude.values):
        np.testing.assert_array_equal(degrees * 4, np.rint(degrees * 4))
    places = np.stack([latitude.values, longitude.values], axis=-1).reshape(-1, 5, 2)
    assert all(len(np.unique(cells, axis=0)) == 5 for cells in places)


def test_candidates_are_the_first_of_more(generate, cube, everything):
    """The ranking does not depend on how many are wanted."""
    fewer = generate(cube, ["Coordinates"], inputs=["S2L2A", "DEM"], candidates=2).compute()
    assert_same_bytes(
        fewer,
        everything[list(fewer.data_vars)].isel(candidate=slice(2)),
    )


def test_token_confidence_needs_whole_cells(generate, cube):
    assert "DEM_token_confidence" in generate(cube, ["DEM"], chunks=64)
    cut = generate(cube, ["DEM"], chunks=50)
    assert set(cut.data_vars) == {"DEM"}
    assert "token_y" not in cut.coords
    assert set(generate(cube, ["DEM"], chunks=48, token_confidence=False).data_vars) == {"DEM"}
    with (
        assert_lazy(),
        pytest.raises(ValueError, match="multiple of 16, or token_confidence=False"),
    ):
        generate(cube, ["DEM"], chunks=50, token_confidence=True)


@pytest.mark.parametrize("name", ["DEM", "NDVI", "S1RTC"])
def test_clamps_bound_the_values(generate, name):
    cube = make_cube(64, 64, modalities=("S2L2A",), times=1)
    found = {
        clamp: generate(cube, [name], clamp=clamp)[name].compute()
        for clamp in ("physical", "released", None)
    }
    low, high = MODALITIES[name].valid_range
    assert float(found["physical"].min()) >= low
    assert float(found["physical"].max()) <= high
    statistics = V1_STATISTICS[name]
    bands = found["released"].values.reshape(len(statistics.mean), -1)
    for band, mean, std in zip(bands, statistics.mean, statistics.std, strict=True):
        np.testing.assert_allclose(np.nanmin(band), mean - std, rtol=1e-5)
        np.testing.assert_allclose(np.nanmax(band), mean + std, rtol=1e-5)
    assert float(found[None].max()) > float(found["released"].max())
    if name != "S1RTC":  # untrained backscatter stays within -60 .. 35 dB anyhow
        assert not low <= float(found[None].min()) or not float(found[None].max()) <= high
        assert float(found["physical"].min()) == low or float(found["physical"].max()) == high


def test_a_static_cube_gives_outputs_without_time(generate):
    result = generate(make_cube(70, 64, modalities=("DEM",), times=0), NAMES, inputs=["DEM"])
    assert "time" not in result.dims
    assert "time" not in result.coords
    for name, (dims, dtype, _) in SHAPES.items():
        assert result[name].dims == dims[1:]
        assert result[name].dtype == dtype
    computed = result.compute()
    assert computed.S2L2A.shape == (12, 70, 64)
    assert computed.Coordinates.shape == (2, 1, 5)
    assert all(bool(variable.notnull().all()) for variable in computed.data_vars.values())


@pytest.fixture(scope="module")
def holed():
    """A cube whose north-west 40 x 40 px no input knows, and south of it only one."""
    cube = make_cube(100, 80, modalities=("S2L2A", "DEM"), times=1)
    cube.S2L2A[:, :, :40, :40] = 0
    cube.S2L2A[:, 5, 40:60, :40] = 0
    cube["DEM"] = cube.DEM.fillna(400)
    cube.DEM[:40, :40] = np.nan
    return cube


def test_outputs_are_nodata_exactly_where_no_input_is_valid(generate, holed):
    result = generate(holed, NAMES, inputs=["S2L2A", "DEM"], chunks=48).compute()
    known = ((holed.S2L2A != 0).all("S2L2A_band") | holed.DEM.notnull()).transpose(*RASTER)
    assert int((~known).sum()) == 1600
    for name in ("S1RTC", "DEM", "NDVI", "LULC_confidence"):
        is_known = result[name].notnull()
        np.testing.assert_array_equal(*xr.broadcast(is_known, known))
    np.testing.assert_array_equal(*xr.broadcast(result.S2L2A != 0, known))
    assert not result.LULC.values[~known.values].any()
    is_known_cell = np.ones((1, 7, 5), bool)
    is_known_cell[:, :2, :2] = False  # cells that begin at 32 hold pixels beyond 40
    for name in GRIDS:
        found = result[f"{name}_token_confidence"].notnull().values
        np.testing.assert_array_equal(found, is_known_cell)
    assert bool(result.Coordinates.notnull().all())


def test_a_tile_without_a_valid_pixel_has_no_coordinates(generate, monkeypatch):
    """Nor has it those of a neighbour that starts in another group."""
    monkeypatch.setattr(plan_module, "GROUP_PX", 32)
    cube = make_cube(64, 160, modalities=("S2L2A",), times=1)
    cube.S2L2A[:, :, :, 96:] = 0
    result = generate(cube, ["Coordinates"], chunks=32).compute()
    for variable in result.data_vars.values():
        assert variable.notnull().values.any(axis=-1).tolist() == [[[True, True, False]]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["S1RTC", "DEM"])
def test_a_bad_pixel_is_a_nodata_pixel(generate, name, bad):
    cube = make_cube(64, 64, modalities=(name,), times=1)
    zeroed, spoilt = cube.copy(deep=True), cube.copy(deep=True)
    zeroed[name][..., 50, 20] = np.nan
    spoilt[name].isel({dim: -1 for dim in spoilt[name].dims if "band" in dim})[..., 50, 20] = bad
    outputs = ["S1RTC", "NDVI", "Coordinates"]
    result = generate(spoilt, outputs, inputs=[name]).compute()
    assert_same_bytes(result, generate(zeroed, outputs, inputs=[name]).compute())
    lost = result.NDVI.isnull() & cube[name].notnull().all([d for d in cube[name].dims if "b" in d])
    assert int(lost.sum()) == 1
    assert bool(result.NDVI_token_confidence[..., 3, 1].notnull().all())


def test_values_equal_the_model_and_the_tokenizer_by_hand(generate, small_weights):
    folder = small_weights["weights"].parent
    cube = make_cube(64, 64, modalities=("DEM",), times=0, seed=3)
    cube["DEM"] = cube.DEM.fillna(100)
    result = generate(cube, ["LULC", "S2L2A", "NDVI"], temperature=0, compute_batch=1).compute()
    model = load_model("terramind_nano", small_weights["weights"])
    pixels = torch.from_numpy(standardize("DEM", cube.DEM.values[None, None]))
    for name in ("LULC", "S2L2A", "NDVI"):
        logits = model.logits({"DEM": pixels}, name)
        ids = logits.argmax(dim=-1).view(1, 4, 4)
        weights = folder / f"{name}.safetensors"
        image = load_tokenizer(name, weights, family="nano").decode(ids)[0]
        certain = logits.softmax(dim=-1).amax(dim=-1).view(4, 4)
        np.testing.assert_allclose(result[f"{name}_token_confidence"], certain, atol=1e-5)
        if name == "LULC":
            share = image.softmax(dim=0)
            np.testing.assert_allclose(result.LULC_confidence, share.amax(dim=0), atol=1e-5)
            assert (result.LULC.values == share.argmax(dim=0).numpy()).mean() > 0.999
            continue
        row = V1_STATISTICS[name]
        expected = image.numpy() * np.reshape(row.std, (-1, 1, 1)) + np.reshape(
            row.mean, (-1, 1, 1)
        )
        tolerance = 1 if name == "S2L2A" else 1e-4
        np.testing.assert_allclose(
            result[name].values.reshape(expected.shape).astype(float), expected, atol=tolerance
        )


@pytest.mark.parametrize("shape", [(64, 150), (150, 64), (64, 128), (70, 90), (40, 30), (1, 1)])
def test_odd_areas_equal_the_crop_of_the_reflected_area(generate, shape):
    """What an area lacks of whole patches and tiles is reflected, and cropped again."""
    cube = make_cube(*shape, modalities=("S2L2A",), times=1)
    sides = [max(TILE_PX, -(-side // 16) * 16) for side in shape]
    whole = make_cube(*sides, modalities=("S2L2A",), times=1)
    rest = [(0, side - own) for side, own in zip(sides, shape, strict=True)]
    whole.S2L2A[:] = np.pad(cube.S2L2A.values, ((0, 0), (0, 0), *rest), mode="reflect")
    outputs, settings = ["LULC", "S1RTC"], {"token_confidence": False}
    found = generate(cube, outputs, **settings).compute()
    expected = generate(whole, outputs, **settings).compute()
    assert found.S1RTC.shape == (1, 2, *shape)
    is_valid = (cube.S2L2A != 0).all("S2L2A_band").values
    np.testing.assert_array_equal(found.S1RTC.notnull().values.all(axis=1), is_valid)
    assert_same_bytes(found, expected.isel(y=slice(shape[0]), x=slice(shape[1])))


@pytest.fixture(scope="module")
def captions(generate, tmp_path_factory):
    settings = write_captioned(tmp_path_factory.mktemp("captioned"))

    def call(cube, **changes):
        arguments = {**settings, "tokenizer_weights": None, "inputs": ["S2L2A"], **changes}
        return generate(cube, ["Captions"], **arguments)

    return call


def test_captions_are_texts_per_tile(captions, monkeypatch):
    cube = make_cube(100, 160, modalities=("S2L2A",))
    cube.S2L2A[1, :, :, 96:] = 0
    lazy = captions(cube)
    assert lazy.Captions.dims == ("time", "tile_y", "tile_x")
    assert lazy.Captions.chunks == ((1, 1), (1, 1), (1, 1, 1))
    assert lazy.Captions.attrs["terramind_generated"] == "true"
    texts = lazy.compute().Captions
    assert texts.dtype == lazy.Captions.dtype
    words = set(" ".join(texts.values.ravel()).replace(".", " ").split())
    assert words <= {"a", "lake", "and", "trees"}
    assert len(set(texts.values[0].ravel())) > 2
    assert texts.values[1, :, 2].tolist() == ["", ""]  # not run
    assert texts.values[1, :, :2].tolist() != texts.values[0, :, :2].tolist()
    monkeypatch.setattr(plan_module, "GROUP_PX", 32)
    cut = captions(cube.chunk(y=30), chunks=32).compute()
    assert cut.Captions.values.tolist() == texts.values.tolist()
    assert captions(cube, seed=1).Captions.values.tolist() != texts.values.tolist()


HARD = {
    "outputs": ["S1RTC", "DEM", "Coordinates"], "inputs": ["S2L2A", "DEM"], "chain": True,
    "decoding_steps": 3, "n_samples": 2, "keep_samples": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def wide():
    return make_cube(120, 100, times=1)


@pytest.fixture(scope="module")
def hard(generate, wide):
    return generate(wide, **HARD).compute()


@pytest.mark.parametrize(
    ("read", "written", "group"), [(17, 48, 48), (64, 80, 80), (1000, 32, 96), (50, 128, 256)]
)
def test_cutting_does_not_change_a_byte(generate, wide, hard, monkeypatch, read, written, group):
    monkeypatch.setattr(plan_module, "GROUP_PX", group)
    result = generate(wide.chunk(y=read, x=read), chunks=written, **HARD)
    assert result.DEM.chunks[1][0] == min(written, 120)
    assert_same_bytes(result.compute(), hard)


def test_the_order_of_computing_does_not_change_a_byte(generate, wide, hard, monkeypatch):
    monkeypatch.setattr(plan_module, "GROUP_PX", 64)
    result = generate(wide, chunks=64, **HARD)
    parts = [{"x": slice(64, 100)}, {"x": slice(64)}]
    names = [name for name in result.data_vars if "x" in result[name].dims][::-1]
    for name in names:
        columns = [result[name].isel(part).compute() for part in parts][::-1]
        whole = xr.concat(columns, "x")
        assert whole.values.tobytes() == hard[name].values.tobytes(), name
    # The last tile alone, then the others.
    last, first = (result.Coordinates[:, row].compute() for row in (-1, 0))
    assert last.values.tobytes() == hard.Coordinates[:, -1].values.tobytes()
    assert first.values.tobytes() == hard.Coordinates[:, 0].values.tobytes()


def test_threads_do_not_change_a_byte(generate, wide, hard, monkeypatch):
    monkeypatch.setattr(plan_module, "GROUP_PX", 64)
    result = generate(wide.chunk(y=40, x=40), chunks=64, **HARD)
    with dask.config.set(scheduler="threads", num_workers=4):
        assert_same_bytes(result.compute(), hard)


def test_nothing_is_computed_while_building(generate, wide):
    lazy = wide.chunk(y=32, x=32)
    with assert_lazy() as scheduler:
        result = generate(lazy, **HARD)
        repr(result)
    with dask.config.set(scheduler=scheduler):
        result.isel(y=slice(1), x=slice(1))[["DEM"]].compute()
    assert scheduler.computations == 1
