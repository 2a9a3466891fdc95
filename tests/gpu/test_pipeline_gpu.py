"""The whole way on a GPU: what leaves it is what a CPU computes, whatever holds the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from small import make_cube

from terramind_cube.accessor import TerraMindAccessor

pytestmark = pytest.mark.gpu

OUTPUTS = ["LULC", "S1RTC", "DEM"]
SETTINGS = {"overlap": 16, "threads": 1, "compute_batch": 4, "temperature": 0.0}


@pytest.fixture(scope="module")
def cube():
    return make_cube()


@pytest.fixture(scope="module")
def on_gpu(small_weights, cube):
    return compute(cube, small_weights, device="cuda")


def compute(cube, weights, **further):
    return TerraMindAccessor(cube).generate(OUTPUTS, **SETTINGS, **weights, **further).compute()


def with_cupy(cube, side):
    cupy = pytest.importorskip("cupy")
    moved = cube.chunk(y=side, x=side)
    for name in moved.data_vars:
        data = moved[name].data
        moved[name] = moved[name].copy(
            data=data.map_blocks(cupy.asarray, meta=cupy.empty((0,) * data.ndim, data.dtype))
        )
    return moved


def test_gpu_and_cpu_agree(small_weights, cube, on_gpu):
    # Promise 2: tokens equal to 99.9 %, values within 1e-3 standard deviations.
    on_cpu = compute(cube, small_weights, device="cpu")
    assert float((on_gpu.LULC == on_cpu.LULC).mean()) > 0.999
    for name in ("S1RTC", "DEM"):
        spread = float(on_cpu[name].std())
        difference = np.abs(on_gpu[name] - on_cpu[name])
        assert float((difference < 1e-3 * spread).mean()) > 0.995, name
        np.testing.assert_array_equal(np.isnan(on_gpu[name]), np.isnan(on_cpu[name]))


@pytest.mark.parametrize("side", [64, 1000])
def test_cupy_chunks_give_the_same_bytes(small_weights, cube, on_gpu, side):
    found = compute(with_cupy(cube, side), small_weights, device="cuda")
    for name in on_gpu.data_vars:
        assert isinstance(found[name].data, np.ndarray)
        np.testing.assert_array_equal(found[name], on_gpu[name])


def test_chunks_do_not_change_a_byte(small_weights, cube, on_gpu):
    found = compute(cube.chunk(y=40, x=75), small_weights, device="cuda", chunks=48)
    for name in on_gpu.data_vars:
        np.testing.assert_array_equal(found[name], on_gpu[name])


def test_several_threads_share_one_gpu(small_weights, cube, on_gpu):
    import dask

    with dask.config.set(scheduler="threads", num_workers=4):
        found = compute(cube.chunk(y=64, x=64), small_weights, device="cuda", chunks=48)
    for name in on_gpu.data_vars:
        np.testing.assert_array_equal(found[name], on_gpu[name])


def test_the_trial_finds_a_batch(small_weights, cube):
    settings = {**SETTINGS, "compute_batch": None}
    result = TerraMindAccessor(cube).generate(["LULC"], **settings, **small_weights, device="cuda")
    assert result.compute().LULC.dtype == np.uint8


def test_tokens_and_normalised_pixels_of_cupy_chunks(small_weights, cube):
    moved = with_cupy(cube, 64)
    names = ["S2L2A", "DEM"]
    accessor, expected = TerraMindAccessor(moved), TerraMindAccessor(cube)
    tokens = accessor.tokenize(names, device="cuda").compute()
    theirs = expected.tokenize(names, device="cpu").compute()
    for name in names:
        assert float((tokens[f"{name}_tokens"] == theirs[f"{name}_tokens"]).mean()) > 0.999
        import cupy

        normalised = accessor.normalize([name])[name].compute()
        assert isinstance(normalised.data, cupy.ndarray)
        np.testing.assert_array_equal(
            normalised.data.get(), expected.normalize([name])[name].compute()
        )
