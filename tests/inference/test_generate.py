"""`cube.terramind.generate`: the same bytes however the work is cut, and what the result is."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import rioxarray  # noqa: F401  # registers `Dataset.rio`
import xarray as xr
from dask.base import tokenize
from distributed import Client, LocalCluster
from small import TILE_PX, make_cube

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import plan as plan_module
from terramind_cube.modalities import LULC_CLASSES
from terramind_cube.testing import CountingScheduler, assert_lazy

OVERLAP = 16


@pytest.fixture
def generate(small_weights):
    def call(cube, **changes):
        arguments = {"overlap": OVERLAP, "threads": 1, **small_weights, **changes}
        return TerraMindAccessor(cube).generate(["LULC"], **arguments)

    return call


@pytest.fixture(scope="module")
def cube():
    return make_cube()


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(plan_module, "GROUP_PX", 96)


def assert_same_bytes(found, expected):
    for name in ("LULC", "LULC_confidence"):
        assert found[name].dtype == expected[name].dtype
        assert found[name].values.tobytes() == expected[name].values.tobytes(), name


@pytest.fixture(scope="module")
def expected(small_weights, cube):
    return (
        TerraMindAccessor(cube)
        .generate(["LULC"], overlap=OVERLAP, threads=1, **small_weights)
        .compute()
    )


@pytest.mark.parametrize("side", [17, 64, 100, 1000])
def test_input_chunks_do_not_change_a_byte(generate, cube, expected, side, small_groups):
    assert_same_bytes(generate(cube.chunk(y=side, x=side), chunks=48).compute(), expected)


@pytest.mark.parametrize("side", [16, 48, 75, 96, 1000])
def test_output_chunks_and_groups_do_not_change_a_byte(
    generate, cube, expected, side, small_groups
):
    result = generate(cube, chunks=side)
    assert result.LULC.chunks[1:] == tuple(
        tuple(min(side, length - start) for start in range(0, length, side))
        for length in (200, 180)
    )
    assert_same_bytes(result.compute(), expected)


@pytest.fixture(scope="module")
def large():
    return make_cube(1000, 930, modalities=("S2L2A",), times=1)


@pytest.fixture(scope="module")
def large_expected(small_weights, large):
    arguments = {"overlap": OVERLAP, "threads": 1, **small_weights}
    return TerraMindAccessor(large).generate(["LULC"], **arguments).compute()


@pytest.mark.parametrize("group", [448, 1792])
@pytest.mark.parametrize(("read", "written"), [(64, 448), (100, 896), (224, 448), (1000, 896)])
def test_scenes_of_usual_size_do_not_depend_on_chunks(
    generate, large, large_expected, monkeypatch, read, written, group
):
    monkeypatch.setattr(plan_module, "GROUP_PX", group)
    result = generate(large.chunk(y=read, x=read), chunks=written)
    assert result.LULC.chunks[1][0] == written
    assert_same_bytes(result.compute(), large_expected)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_schedulers_do_not_change_a_byte(generate, cube, expected, scheduler, small_groups):
    result = generate(cube.chunk(y=64, x=64), chunks=48)
    with dask.config.set(scheduler=scheduler):
        assert_same_bytes(result.compute(), expected)


def test_a_distributed_cluster_does_not_change_a_byte(generate, cube, expected, small_groups):
    result = generate(cube.chunk(y=64, x=64), chunks=48)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        assert_same_bytes(result.compute(), expected)


def test_one_chunk_alone_equals_the_same_chunk_of_the_whole(generate, cube, expected, small_groups):
    result = generate(cube, chunks=48)
    part = {"time": slice(1, 2), "y": slice(96, 144), "x": slice(48, 96)}
    assert_same_bytes(result.isel(part).compute(), expected.isel(part))


def test_the_compute_batch_moves_values_by_rounding_only(generate, cube, expected):
    result = generate(cube, compute_batch=3).compute()
    assert (result.LULC == expected.LULC).mean() > 0.999
    np.testing.assert_allclose(result.LULC_confidence, expected.LULC_confidence, atol=1e-4)


def test_nothing_is_computed_while_building(generate, cube):
    lazy = cube.chunk(y=64, x=64)
    with assert_lazy():
        result = generate(lazy)
        repr(result)
        result._repr_html_()
    scheduler = CountingScheduler()
    with dask.config.set(scheduler=scheduler):
        result.compute()
    assert scheduler.computations == 1


def test_the_graph_is_small_and_its_names_are_fixed(generate, small_groups):
    import pickle

    lazy = make_cube(400, 400).chunk(y=100, x=100)
    first, second = generate(lazy, chunks=48), generate(lazy, chunks=48)
    assert tokenize(first) == tokenize(second)
    assert tokenize(first) != tokenize(generate(lazy, chunks=48, seed=1))
    layer = next(
        layer
        for name, layer in first.LULC.data.dask.layers.items()
        if name.startswith("terramind-")
    )
    groups = 2 * 5 * 5
    assert len(layer) == groups
    assert len(pickle.dumps(dict(layer))) / groups < 6_000


def test_seed_temperature_and_time_change_tokens(generate, cube, expected):
    assert_same_bytes(generate(cube, seed=0).compute(), expected)
    other = generate(cube, seed=1).compute()
    assert (other.LULC != expected.LULC).mean() > 0.05
    greedy = generate(cube, temperature=0).compute()
    assert_same_bytes(generate(cube, temperature=0, seed=5).compute(), greedy)
    twice = xr.concat([cube.isel(time=0), cube.isel(time=0)], "time", data_vars="minimal")
    twice = twice.assign_coords(time=cube.time)
    result = generate(twice).compute()
    assert (result.LULC[0] != result.LULC[1]).mean() > 0.05
    assert_same_bytes(result.isel(time=[0]), expected.isel(time=[0]))


def test_overlapping_areas_agree_inside_the_tiles_that_both_hold(generate):
    """Where only tiles that lie in both areas reach, the bytes are equal."""
    stride = TILE_PX - OVERLAP
    first = make_cube(5 * stride + OVERLAP, 4 * stride + OVERLAP, row=-stride * 10_000, col=0)
    second = make_cube(5 * stride + OVERLAP, 4 * stride + OVERLAP, row=-stride * 9_998, col=stride)
    a, b = generate(first).compute(), generate(second).compute()
    common = {"y": slice(3 * stride, 5 * stride), "x": slice(2 * stride, 4 * stride)}
    shifted = {"y": slice(stride, 3 * stride), "x": slice(stride, 3 * stride)}
    assert_same_bytes(b.isel(shifted), a.isel(common))
    np.testing.assert_array_equal(b.y.values[shifted["y"]], a.y.values[common["y"]])


def test_result_is_described_and_on_the_cubes_grid(generate, cube, expected):
    result = generate(cube)
    assert result.odc.geobox == cube.odc.geobox
    np.testing.assert_array_equal(result.time, cube.time)
    assert result.LULC.dims == ("time", "y", "x")
    assert result.LULC.dtype == np.uint8
    assert result.LULC_confidence.dtype == np.float32
    attrs = result.LULC.attrs
    np.testing.assert_array_equal(attrs["flag_values"], np.arange(10, dtype=np.uint8))
    assert attrs["flag_meanings"].split() == [row.name for row in LULC_CLASSES]
    assert attrs["flag_colors"].split() == [row.color for row in LULC_CLASSES]
    assert attrs["ancillary_variables"] == "LULC_confidence"
    for variable in result.data_vars.values():
        assert variable.attrs["terramind_generated"] == "true"
        assert variable.attrs["terramind_model"] == "terramind_nano"
        assert len(variable.attrs["terramind_weights_sha256"]) == 64
        assert variable.attrs["terramind_inputs"] == ["S2L2A", "S1RTC", "DEM"]
        assert variable.attrs["terramind_seed"] == "0"
        assert variable.attrs["terramind_version"]
    confidence = expected.LULC_confidence.values
    assert np.nanmin(confidence) > 0.05
    assert np.nanmax(confidence) <= 1


def test_a_pixel_is_nodata_only_where_no_input_is_valid(generate, cube):
    s2, s1 = cube.S2L2A, cube.S1RTC
    s2_valid = (s2 != 0).all("S2L2A_band")
    s1_valid = s1.notnull().all("S1RTC_band")
    assert 0.05 < float((~s2_valid).mean()) < 0.5
    alone = generate(cube, inputs=["S2L2A"]).compute()
    np.testing.assert_array_equal(alone.LULC_confidence.notnull(), s2_valid)
    assert (alone.LULC.values[~s2_valid.values] == 0).all()
    both = generate(cube[["S2L2A", "S1RTC"]]).compute()
    np.testing.assert_array_equal(both.LULC_confidence.notnull(), s2_valid | s1_valid)


def test_values_under_nodata_never_reach_the_model(generate, cube):
    changed = cube.copy(deep=True)
    is_hole = (cube.S2L2A == 0).all("S2L2A_band")
    pixels = changed.S2L2A.values
    pixels[:, 1:][np.broadcast_to(is_hole.values[:, None], pixels[:, 1:].shape)] = 9999
    result = generate(changed, inputs=["S2L2A"]).compute()
    assert_same_bytes(result, generate(cube, inputs=["S2L2A"]).compute())


def test_a_tile_without_a_valid_pixel_is_not_run(generate, monkeypatch):
    from terramind_cube.inference.generate import Generation

    ran = []
    run = Generation.run

    def counting(plan, loaded, batch):
        ran.append(batch.tiles)
        return run(plan, loaded, batch)

    monkeypatch.setattr(Generation, "run", counting)
    empty = make_cube(256, 256, modalities=("S2L2A",))
    empty.S2L2A[:] = 0
    result = generate(empty, compute_batch=1).compute()
    assert not ran
    assert (result.LULC == 0).all()
    assert result.LULC_confidence.isnull().all()
    empty.S2L2A[:, :, 10, 10] = 1000
    result = generate(empty, compute_batch=1, overlap=0).compute()
    assert len(ran) == 2
    assert int(result.LULC_confidence.notnull().sum()) == 2


@pytest.mark.parametrize("shape", [(64, 64), (40, 30), (70, 64), (1, 1), (64, 150), (79, 81)])
def test_odd_areas_are_filled(generate, shape):
    result = generate(make_cube(*shape, modalities=("DEM",), times=0)).compute()
    assert result.LULC.dims == ("y", "x")
    assert result.LULC.shape == shape
    assert result.LULC_confidence.notnull().all()


def test_a_static_cube_has_no_time(generate):
    result = generate(make_cube(modalities=("DEM",)))
    assert "time" not in result.dims
    assert "time" not in result.coords


def test_user_may_write_with_xarray_alone(generate, cube, tmp_path, expected):
    generate(cube.chunk(y=77, x=50), chunks=64).to_zarr(tmp_path / "plain.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "plain.zarr", consolidated=False) as opened:
        assert_same_bytes(opened.compute(), expected)
        assert opened.odc.geobox == cube.odc.geobox
        assert opened.rio.crs.to_epsg() == 32632


BAD = [
    ({"outputs": []}, "at least one modality"),
    ({"outputs": "LULC"}, r"give \['LULC'\]"),
    ({"outputs": ["LUCL"]}, "did you mean 'LULC'"),
    ({"outputs": ["RGB"]}, "RGB cannot be generated; TerraMind generates"),
    ({"inputs": ["S2L2B"]}, "did you mean 'S2L2A'"),
    ({"inputs": ["S1GRD"]}, "cube has no S1GRD"),
    ({"model": "terramind_nono"}, "did you mean 'terramind_nano'"),
    ({"overlap": 8}, "multiple of the model's patch"),
    ({"chunks": 0}, "give one side in pixels"),
    ({"chunks": {"y": 64, "x": 32}}, "give one side in pixels"),
    ({"chunks": 8}, "at least a patch"),
    ({"temperature": -1}, "temperature must not be negative"),
    ({"top_p": 2}, "top_p must lie in"),
    ({"steps": 0}, "steps must be at least 1"),
    ({"seed": -1}, "seed must lie in"),
    ({"precision": "float16"}, "Unknown precision"),
    ({"device": "tpu"}, "device 'tpu'"),
    ({"compute_batch": 0}, "must be at least 1"),
    ({"tokenizer_weights": {"DEM": "x.pt"}}, "names DEM, which is no output"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_requests_are_refused_before_any_work(small_weights, cube, changes, message):
    arguments = {"outputs": ["LULC"], "overlap": OVERLAP, **small_weights, **changes}
    with assert_lazy(), pytest.raises(ValueError, match=message):
        TerraMindAccessor(cube.chunk(y=64)).generate(**arguments)


def test_absent_weights_are_named(cube, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TerraMindAccessor(cube).generate(["LULC"], weights=tmp_path / "nowhere.pt")


def test_weights_of_another_size_are_refused(cube, seeded_checkpoint):
    weights = seeded_checkpoint("tiny", 0)
    with pytest.raises(ValueError, match=r"tiny_0\.pt"):
        TerraMindAccessor(cube).generate(["LULC"], model="terramind_v1_small", weights=weights)


def test_truncated_weights_are_refused(cube, small_weights, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(small_weights["weights"].read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        TerraMindAccessor(cube).generate(["LULC"], weights=path)


def test_peaked_logits_and_a_short_last_batch_end_and_change_nothing(generate, cube, monkeypatch):
    """A short batch must not sample with numbers that an earlier batch has overwritten."""
    from terramind_cube.model.conditions import Conditions

    logits = Conditions.logits
    monkeypatch.setattr(Conditions, "logits", lambda *arguments: 20 * logits(*arguments))
    odd = generate(cube.isel(time=[0]), compute_batch=7).compute(scheduler="synchronous")
    one = generate(cube.isel(time=[0]), compute_batch=1).compute(scheduler="synchronous")
    assert (odd.LULC == one.LULC).mean() > 0.99


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_pixel_costs_one_pixel(generate, bad):
    cube = make_cube(64, 64, modalities=("S2L2A",), times=1)
    zeroed = cube.copy(deep=True)
    zeroed.S2L2A[:, :, 60, 60] = 0
    spoilt = cube.assign(S2L2A=cube.S2L2A.astype("float32"))
    spoilt.S2L2A[:, 3, 60, 60] = bad
    assert_same_bytes(generate(spoilt).compute(), generate(zeroed).compute())
