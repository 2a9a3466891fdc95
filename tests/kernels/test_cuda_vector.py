"""The CUDA C++ kernel computes what the reference does: compiled for this CPU, bit for bit."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from terramind_cube.kernels import cuda_vector, reference
from terramind_cube.kernels.rules import Standardization

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")


class Arguments(ctypes.Structure):
    """Those of the kernel, as in cuda_launch.h."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("x", "corners", "constants", "out")),
        ("groups", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("rows", "columns", "height", "width", "nodata")),
    )


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    """Return a function that compiles the kernel for this CPU."""
    if COMPILER is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("cuda_vector")
    source = folder / "normalize.cpp"
    parts = ((HERE / "cuda_shim.h").read_text(), cuda_vector.SOURCE)
    source.write_text("\n".join((*parts, (HERE / "cuda_launch.h").read_text())))

    def compiled(channels, patch_px, is_bits):
        flags = cuda_vector.options(channels, patch_px, is_bits)
        library = folder / f"normalize_{channels}_{patch_px}_{is_bits}.so"
        command = [COMPILER, "-shared", "-fPIC", "-pthread", "-O1", "-ffp-contract=off"]
        command += ["-fno-strict-aliasing", "-Wno-unknown-pragmas", *flags, source, "-o", library]
        subprocess.run(command, check=True, timeout=120)
        return ctypes.CDLL(library).launch

    return compiled


def aligned(shape, dtype):
    """Return an array at an address that 16 divides."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + 16, np.uint8)
    start = -memory.ctypes.data % 16
    return memory[start : start + size].view(dtype).reshape(shape)


def work_and_rule(rng, channels, patch_px, is_bits, nodata):
    """Return tiles at corners that 8 divides, of images with all numbers and much nodata."""
    side = patch_px or 8
    height, width = 2 * side, 3 * side if patch_px else 24
    if not patch_px:
        height = 13
    x = aligned((2, channels, height + 9, width + 24), np.uint16)
    x[...] = rng.integers(0, 2**16, x.shape)
    x[..., ::3, ::5] = rng.choice([0, 65535], x[..., ::3, ::5].shape)
    corners = rng.integers(0, (2, 10, 4), (3, 3)) * [1, 1, 8]
    shape = (3, channels, height, width)
    if patch_px:
        shape = (3, height // side, width // side, side, side, channels)
    out = aligned(shape, "uint16" if is_bits else "float32")
    out[...] = 7
    mean, std = rng.uniform(0, 3000, channels), rng.uniform(1, 2000, channels)
    rule = Standardization.of(mean, std, nodata, -1000)
    constants = np.stack([rule.shift, rule.scale])
    work = cuda_vector.Work(x, corners.reshape(-1), constants, out, (height, width), patch_px)
    return work, corners, rule


@pytest.mark.parametrize(
    ("channels", "patch_px", "is_bits"),
    [
        (12, 0, False),
        (12, 0, True),
        (12, 16, False),
        (12, 16, True),
        (13, 8, False),
        (3, 16, True),
        (16, 0, False),
        (16, 24, True),
        (1, 8, False),
    ],
)
def test_vector_kernel_equals_the_reference(launcher, monkeypatch, channels, patch_px, is_bits):
    launch = launcher(channels, patch_px, is_bits)
    monkeypatch.setattr(cuda_vector, "_cupy", lambda: "here")
    rng = np.random.default_rng(channels)
    for nodata, blocks in ((None, 1), (0.0, 2), (65535.0, 3), (0.5, 20), (np.nan, 4)):
        work, corners, rule = work_and_rule(rng, channels, patch_px, is_bits, nodata)
        assert cuda_vector.fits(work, corners, rule)
        launch(blocks, Arguments(*map(int, cuda_vector.arguments(work, rule))))
        expected = np.empty_like(work.out)
        reference.normalize(work.pixels, corners, rule, expected)
        np.testing.assert_array_equal(work.out, expected)
        if nodata in (0, 65535):
            assert (expected == 0).mean() > 0.03


def test_what_does_not_fit_is_left_to_numba(monkeypatch):
    monkeypatch.setattr(cuda_vector, "_cupy", lambda: "here")
    rng = np.random.default_rng(0)

    def fits(change=None, corner=0, from_power=False, channels=3, patch_px=16):
        work, corners, rule = work_and_rule(rng, channels, patch_px, False, None)
        if from_power:
            rule = Standardization.of([0] * channels, [1] * channels, None, from_power=True)
        work = cuda_vector.Work(**{**vars(work), **(change(work) if change else {})})
        return cuda_vector.fits(work, corners + np.array([0, 0, corner]), rule)

    assert fits()
    assert not fits(lambda work: {"pixels": work.pixels.astype(np.int16)})
    assert not fits(lambda work: {"pixels": work.pixels[..., 4:]})
    assert not fits(lambda work: {"out": work.out.reshape(-1)[2:]})
    assert not fits(lambda work: {"tile": (32, 20)})
    assert not fits(lambda work: {"patch_px": 4})
    assert not fits(corner=4)
    assert not fits(from_power=True)
    assert not fits(channels=17)
    monkeypatch.setattr(cuda_vector, "_cupy", lambda: None)
    assert not fits()
