"""Kernels on a GPU: they equal the reference, on the stream and in the memory of the caller.

Results are asked to equal the reference bit for bit, which is more than promise 6 needs: products
and sums are not fused, and nothing comes from a library of functions.
"""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import terramind_cube.kernels as public
from terramind_cube.kernels import reference
from terramind_cube.kernels.rules import Restoration, Standardization
from tests.kernels import cases

pytestmark = pytest.mark.gpu

often = settings(deadline=None, max_examples=60)
WIDTHS = (0, 1, 7, 33, 224, 1000)
LONG_NAP = 200_000_000
"""Cycles of a GPU: a tenth of a second, far longer than launching takes."""


@pytest.fixture(scope="module")
def engine():
    return importlib.import_module("terramind_cube.kernels.cuda")


@pytest.fixture(scope="module")
def vector():
    return importlib.import_module("terramind_cube.kernels.cuda_vector")


class Torch:
    """Arrays as tensors."""

    name = "torch"

    @staticmethod
    def put(array):
        return torch.from_numpy(np.ascontiguousarray(array)).cuda()

    @staticmethod
    def get(array):
        return array.cpu().numpy()

    @staticmethod
    def address(array):
        return array.data_ptr()


class CuPy:
    """Arrays of CuPy."""

    name = "cupy"

    @staticmethod
    def put(array):
        return importlib.import_module("cupy").asarray(np.ascontiguousarray(array))

    @staticmethod
    def get(array):
        return array.get()

    @staticmethod
    def address(array):
        return array.data.ptr


@pytest.fixture(scope="module", params=[Torch, CuPy], ids=["torch", "cupy"])
def library(request):
    if request.param is CuPy:
        pytest.importorskip("cupy")
    return request.param


@dataclass(frozen=True)
class OnHost:
    """An array that engines for GPUs take as NumPy's: corners and cells."""

    array: np.ndarray


@pytest.fixture(scope="module")
def agree(engine, library):
    """Return a function that runs both engines on copies of the arrays that they write to."""

    def on_device(argument):
        if isinstance(argument, OnHost):
            return argument.array
        return library.put(argument) if isinstance(argument, np.ndarray) else argument

    def run(name, *arguments, outs):
        expected = [np.array(out, order="C") for out in outs]
        found = [library.put(out) for out in outs]
        given = [getattr(one, "array", one) for one in arguments]
        with np.errstate(all="ignore"):
            getattr(reference, name)(*given, *expected)
        getattr(engine, name)(*map(on_device, arguments), *found)
        for ours, theirs in zip(found, expected, strict=True):
            cases.assert_same(library.get(ours), theirs)

    return run


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_normalize(agree, dtype):
    @often
    @given(cases.pixels_to_standardize(dtypes=(dtype,), widths=WIDTHS))
    def check(case):
        x, corners, constants, out = case
        agree("normalize", x, OnHost(corners), Standardization(*constants), outs=[out])

    check()


@given(cases.pixels_to_check(widths=WIDTHS))
@often
def test_valid_pixels(agree, case):
    x, nodata, out = case
    agree("valid_pixels", x, nodata, outs=[out])


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_denormalize(agree, dtype):
    @often
    @given(cases.numbers_to_restore(dtypes=(dtype,), widths=WIDTHS))
    def check(case):
        x, first_row, constants, valid, out = case
        agree("denormalize", x, first_row, Restoration(*constants), valid, outs=[out])

    check()


@given(cases.latents(widths=WIDTHS))
@often
def test_fsq_quantize(agree, case):
    latent, levels, out = case
    agree("fsq_quantize", latent, levels, outs=[out])


@given(cases.token_ids(widths=WIDTHS))
@often
def test_fsq_dequantize(agree, case):
    ids, levels, out = case
    agree("fsq_dequantize", ids, levels, outs=[out])


def test_many_tokens(agree):
    levels = (8, 8, 8, 6, 5)
    rng = np.random.default_rng(0)
    latent = rng.normal(0, 2, (4, len(levels), 100_000)).astype(np.float32)
    latent[:, :, ::100] = 0  # ties of even numbers of levels
    agree("fsq_quantize", latent, levels, outs=[np.zeros((4, 100_000), np.int64)])
    ids = np.arange(np.prod(levels))[None]
    agree("fsq_dequantize", ids, levels, outs=[np.zeros((1, len(levels), ids.size), np.float32)])


@given(cases.tiles_in_a_ring(widths=WIDTHS))
@often
def test_blending(engine, library, case):
    tiles, parts, total, weight = case
    shapes = [(len(total), rows, total.shape[2]) for _, rows in parts]
    results = []
    for room, put in ((reference, np.ascontiguousarray), (engine, library.put)):
        sums = put(total.copy()), put(weight.copy())
        outs = [put(np.full(shape, 7, np.float32)) for shape in shapes]
        with np.errstate(all="ignore"):
            for values, weights, place in tiles:
                room.blend_accumulate(put(values), put(weights), place, *sums)
            for (first_row, _), out in zip(parts, outs, strict=True):
                room.blend_finish(*sums, first_row, out)
        results.append([*sums, *outs])
    for expected, found in zip(*results, strict=True):
        cases.assert_same(library.get(found), expected)


@given(cases.probabilities(widths=WIDTHS))
@often
def test_class_map(agree, case):
    probability, *outs = case
    agree("class_map", probability, outs=outs)


@pytest.mark.parametrize("name", ["philox_uniform", "philox_normal"])
def test_random_numbers(agree, name):
    @often
    @given(cases.cells())
    def check(case):
        key, rows, cols, out = case
        agree(name, key, OnHost(rows), OnHost(cols), outs=[out])

    check()


def tiles_of_sentinel(rng, patch_px=16):
    """Return an image of Sentinel-2, corners of tiles that overlap, a rule, and a result's shape."""
    x = rng.integers(1, 10000, (2, 12, 480, 520), np.uint16)
    x[rng.random(x.shape) < 0.001] = 0
    corners = np.array([[b, y, x] for b in (0, 1) for y in (0, 160, 256) for x in (0, 32, 288)])
    rule = Standardization.of(rng.uniform(0, 3000, 12), rng.uniform(1, 2000, 12), 0, -1000)
    shape = (len(corners), 12, 224, 224)
    if patch_px:
        side = 224 // patch_px
        shape = (len(corners), side, side, patch_px, patch_px, 12)
    return x, corners, rule, shape


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("patch_px", [0, 16])
def test_the_vector_kernel_does_what_numba_does(
    engine, vector, library, monkeypatch, dtype, patch_px
):
    pytest.importorskip("cupy")
    x, corners, rule, shape = tiles_of_sentinel(np.random.default_rng(0), patch_px)
    expected = np.empty(shape, dtype)
    reference.normalize(x, corners, rule, expected)
    launches = []
    launch = vector.normalize
    monkeypatch.setattr(vector, "normalize", lambda *args: launches.append(launch(*args)) or True)
    for is_wide in (True, False):
        if not is_wide:
            monkeypatch.setattr(vector, "fits", lambda *_: False)
        out = library.put(np.full(shape, 7, dtype))
        engine.normalize(library.put(x), corners, rule, out)
        cases.assert_same(library.get(out), expected)
    assert launches == [True]


def test_corners_that_do_not_fit_go_to_numba(engine, vector, library, monkeypatch):
    x, corners, rule, shape = tiles_of_sentinel(np.random.default_rng(0))
    monkeypatch.setattr(vector, "normalize", None)
    out, expected = library.put(np.empty(shape, np.float32)), np.empty(shape, np.float32)
    corners = corners + np.array([0, 0, 1])
    reference.normalize(x, corners, rule, expected)
    engine.normalize(library.put(x), corners, rule, out)
    cases.assert_same(library.get(out), expected)


def test_bfloat16_is_that_of_torch():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 10000, (2, 12, 64, 64), np.uint16)).cuda()
    how = {"mean": rng.uniform(0, 3000, 12), "std": rng.uniform(1, 2000, 12), "nodata": 0}
    found = public.normalize(x, dtype="bfloat16", patch_px=16, **how)
    assert found.dtype is torch.bfloat16
    assert found.device == x.device
    assert torch.equal(found, public.normalize(x, patch_px=16, **how).to(torch.bfloat16))


class SideStream:
    """A stream of a library that waits for no other, and is made the current one."""

    def __init__(self, library):
        if library is Torch:
            self.current = self.stream = torch.cuda.Stream()
            self.context = torch.cuda.stream(self.stream)
        else:
            self.context = importlib.import_module("cupy").cuda.Stream(non_blocking=True)
            self.stream = torch.cuda.ExternalStream(self.context.ptr)

    def nap(self):
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(LONG_NAP)


@pytest.mark.parametrize("kind", ["twin", "vector"])
def test_kernels_run_on_the_current_stream_and_nothing_waits(engine, library, kind):
    x, corners, rule, shape = tiles_of_sentinel(np.random.default_rng(0))
    corners = corners + np.array([0, 0, int(kind == "twin")])
    expected = np.empty(shape, np.float32)
    reference.normalize(x, corners, rule, expected)
    pixels, later = library.put(np.zeros_like(x)), library.put(x)
    out = library.put(np.empty(shape, np.float32))
    engine.normalize(pixels, corners, rule, out)  # compiles
    side = SideStream(library)
    with side.context:
        engine.normalize(pixels, corners, rule, out)  # makes room for corners
        torch.cuda.synchronize()
        side.nap()
        pixels[...] = later
        engine.normalize(pixels, corners, rule, out)
        assert not side.stream.query()
    side.stream.synchronize()
    cases.assert_same(library.get(out), expected)


def test_random_numbers_come_on_the_current_stream(engine, library):
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(-1000, 1000, (2, 500))
    expected, out = np.empty((500, 7), np.float32), library.put(np.zeros((500, 7), np.float32))
    reference.philox_normal((1, 2), rows, cols, expected)
    engine.philox_normal((1, 2), rows, cols, out)
    side = SideStream(library)
    with side.context:
        engine.philox_normal((3, 4), rows, cols, out)
        torch.cuda.synchronize()
        side.nap()
        engine.philox_normal((3, 4), cols, rows, out)
        engine.philox_normal((1, 2), rows, cols, out)  # not with the cells of the call before
        assert not side.stream.query()
    side.stream.synchronize()
    cases.assert_same(library.get(out), expected)


def test_threads_that_share_a_stream_do_not_mix_up_corners(engine, library):
    x, corners, rule, _ = tiles_of_sentinel(np.random.default_rng(0))
    pixels = library.put(x)
    shape = (1, 14, 14, 16, 16, 12)
    outs = [library.put(np.empty(shape, np.float32)) for _ in corners]

    def work(k):
        for _ in range(20):
            engine.normalize(pixels, corners[k : k + 1], rule, outs[k])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(len(corners))))
    for k, out in enumerate(outs):
        expected = np.empty(shape, np.float32)
        reference.normalize(x, corners[k : k + 1], rule, expected)
        cases.assert_same(library.get(out), expected)


def count_tensors():
    """Return how many blocks torch's allocator has given out so far, new ones or kept ones."""
    return torch.cuda.memory_stats().get("allocation.all.allocated", 0)


class AllocationsOfCuPy(ExitStack):
    """The sizes that CuPy's pool, which keeps no count, is asked for meanwhile."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __enter__(self):
        with suppress(ImportError):
            cuda = importlib.import_module("cupy").cuda
            sizes = self.sizes

            class Hook(cuda.MemoryHook):
                name = "Allocations"

                def malloc_preprocess(self, **how):
                    sizes.append(how["size"])

            self.enter_context(Hook())
        return super().__enter__()


def test_allocators_that_keep_memory_are_seen(library):
    tensors = count_tensors()
    with AllocationsOfCuPy() as arrays:
        for _ in range(2):  # the second one gets the memory of the first one
            library.put(np.zeros(1000, np.float32))
    assert count_tensors() - tensors == (2 if library is Torch else 0)
    assert len(arrays.sizes) == (2 if library is CuPy else 0)


def test_memory_is_neither_copied_nor_allocated(library):
    x, _, rule, _ = tiles_of_sentinel(np.random.default_rng(0))
    pixels, out = library.put(x), library.put(np.empty(x.shape, np.float32))
    address = library.address(out)
    how = {"mean": rule.shift, "std": 1 / rule.scale, "nodata": 0, "out": out}
    assert public.normalize(pixels, **how) is out
    torch.cuda.synchronize()
    free, tensors = torch.cuda.mem_get_info()[0], count_tensors()
    with AllocationsOfCuPy() as arrays:
        for _ in range(50):
            public.normalize(pixels, **how)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] == free
    assert count_tensors() == tensors
    assert arrays.sizes == []
    assert library.address(out) == address
    assert np.isfinite(library.get(out)).all()


def test_arrays_of_numba_are_taken(engine):
    from numba import cuda

    probability = np.random.default_rng(0).random((5, 1000), np.float32)
    outs = np.empty(1000, np.uint8), np.empty(1000, np.float32)
    reference.class_map(probability, *outs)
    found = [cuda.to_device(np.zeros_like(out)) for out in outs]
    engine.class_map(cuda.to_device(probability), *found)
    for ours, theirs in zip(found, outs, strict=True):
        cases.assert_same(ours.copy_to_host(), theirs)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_results_come_on_the_device_of_the_pixels():
    x = np.random.default_rng(0).integers(0, 9000, (3, 64, 64), np.uint16)
    how = {"mean": [1, 2, 3], "std": [4, 5, 6]}
    expected = public.normalize(x, **how)
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        found = public.normalize(torch.from_numpy(x).to(device), **how)
        assert str(found.device) == device
        assert torch.cuda.current_device() == 0
        cases.assert_same(found.cpu().numpy(), expected)
