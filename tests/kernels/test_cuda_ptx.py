"""Machine code of the CUDA kernels, compiled for two generations of GPUs without having one.

Needs NVIDIA's compilers, which come with `numba-cuda[cu12]` and are large: `make ptx` installs them
in an environment of their own and runs this there. Neither torch nor the package is needed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest


def assembler():
    """Return the path of ptxas, which comes with the other compilers, or None."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvcc-cu12") or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(path.locate()) for path in files if path.name == "ptxas"), None)


PTXAS = assembler()
if PTXAS is None:
    pytest.skip("compilers of numba-cuda[cu12] are not here: make ptx", allow_module_level=True)

from cuda.bindings import nvrtc
from numba import cuda as numba_cuda
from numba import types
from numba.cuda import dispatcher

from tests.kernels.cuda_alone import kernel_module

IS_ALONE = importlib.util.find_spec("xarray") is None
kernels, vector = (kernel_module(name, IS_ALONE) for name in ("cuda_kernels", "cuda_vector"))

CAPABILITIES = [(8, 0), (9, 0)]
MOST_REGISTERS = 64
"""So that at least half of the threads that a multiprocessor can hold are there."""
MOST_SHARED_BYTES = 20_000
"""So that its blocks are not limited by shared memory: a fifth of an A100's."""

f32, i64, flag = types.float32, types.int64, types.boolean


def array(dtype, ndim):
    return types.Array(dtype, ndim, "C")


def numbers(count, dtype=i64):
    return types.UniTuple(dtype, count)


def normalizing(dtype, bits=f32):
    rule = types.Tuple((f32, flag, flag))
    arguments = [array(dtype, 4), array(i64, 1), array(f32, 2), rule, i64, numbers(2)]
    return (*arguments, array(bits, 1))


def restoring(dtype):
    rule = types.Tuple((f32, f32, f32, flag, flag))
    return array(f32, 4), i64, array(f32, 2), rule, array(flag, 2), array(dtype, 4)


PIXELS = {"u8": types.uint8, "u16": types.uint16, "s16": types.int16, "f32": f32}
IDS = {"s64": i64, "s32": types.int32}
SIGNLESS = {"s16": "[su]16", "s32": "[su]32", "s64": "u64"}
"""PTX also loads and stores signed numbers as what has no sign."""

CASES = [
    *(("normalize_to_float32", normalizing(t), n, "f32") for n, t in PIXELS.items()),
    *(("normalize_to_bfloat16", normalizing(t, types.uint16), n, "u16") for n, t in PIXELS.items()),
    *(("valid_pixels", (array(t, 4), f32, array(flag, 3)), n, "u8") for n, t in PIXELS.items()),
    *(("denormalize", restoring(t), "f32", n) for n, t in PIXELS.items()),
    *(("fsq_quantize", (array(f32, 3), array(i64, 2), array(t, 2)), "f32", n)
      for n, t in IDS.items()),
    *(("fsq_dequantize", (array(t, 2), array(i64, 2), array(f32, 3)), n, "f32")
      for n, t in IDS.items()),
    ("blend_accumulate",
     (array(f32, 3), array(f32, 2), numbers(6), array(f32, 3), array(f32, 2)), "f32", "f32"),
    ("blend_finish", (array(f32, 3), array(f32, 2), i64, array(f32, 3)), "f32", "f32"),
    ("class_map", (array(f32, 2), array(types.uint8, 1), array(f32, 1)), "f32", "f32"),
    *((name, (numbers(2), array(i64, 1), array(f32, 2)), "s64", "f32")
      for name in ("philox_uniform", "philox_normal")),
]  # fmt: skip


@pytest.fixture(params=CAPABILITIES, ids=["sm_80", "sm_90"])
def capability(request, monkeypatch):
    # Device functions are compiled for the current device.
    device = SimpleNamespace(compute_capability=request.param)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
    return request.param


def assemble(ptx, capability, folder):
    """Return registers, bytes of shared memory, and bytes of stack and spills of a kernel."""
    source, machine_code = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(ptx)
    command = [PTXAS, "-v", f"-arch=sm_{capability[0]}{capability[1]}", source, "-o", machine_code]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", log)[1])
    shared = int((re.search(r"(\d+) bytes smem", log) or (0, 0))[1])
    stack = sum(map(int, re.findall(r"(\d+) bytes (?:stack|spill)", log)))
    return registers, shared, stack


def memory_instructions(ptx):
    return Counter(re.findall(r"\b(?:ld|st)\.(?:global|local|shared)[.\w]*", ptx))


def check_arithmetic(ptx):
    """Nothing is float64; no product is, or can be, fused with a sum."""
    assert ".f64" not in ptx
    assert not re.search(r"\b(fma|mad)[.\w]*\.f32|\bmul\.f32|\b(sin|cos|ex2|lg2)\.|\.approx", ptx)
    assert ".ftz" not in ptx
    for operation in re.findall(r"\b(?:div|sqrt)\.[.\w]+", ptx):
        assert operation.endswith((".rn.f32", ".s64", ".u64", ".u32", ".s32")), operation


@pytest.mark.parametrize(
    ("name", "signature", "loaded", "stored"),
    CASES,
    ids=[f"{name}-{loaded}-{stored}" for name, _, loaded, stored in CASES],
)
def test_numba_kernels(name, signature, loaded, stored, capability, tmp_path):
    kernel = getattr(kernels, name)
    ptx, _ = numba_cuda.compile_ptx(kernel.py_func, signature, cc=capability)
    check_arithmetic(ptx)
    memory = memory_instructions(ptx)
    for way, width in (("ld", loaded), ("st", stored)):
        pattern = rf"{way}\.global(\.nc)?\.{SIGNLESS.get(width, width)}"
        assert any(re.fullmatch(pattern, one) for one in memory), (way, memory)
    assert not any("local" in one for one in memory), memory
    registers, shared, stack = assemble(ptx, capability, tmp_path)
    print(f"{name}: {registers} registers")
    assert registers <= MOST_REGISTERS
    assert shared == 0
    assert stack == 0


def compile_source(flags, capability):
    """Compile CUDA C++ as CuPy does."""

    def call(function, *arguments):
        status, *results = getattr(nvrtc, function)(*arguments)
        assert status == 0, (function, status)
        return results[0] if results else None

    program = call("nvrtcCreateProgram", vector.SOURCE.encode(), b"normalize.cu", 0, [], [])
    flags = [*flags, "-arch=compute_{}{}".format(*capability)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
    log = b" " * call("nvrtcGetProgramLogSize", program)
    call("nvrtcGetProgramLog", program, log)
    assert status == 0, log.decode()
    assert not log.strip(b"\0 "), log.decode()
    ptx = b" " * call("nvrtcGetPTXSize", program)
    call("nvrtcGetPTX", program, ptx)
    return ptx.decode().rstrip("\0")


@pytest.mark.parametrize("is_bits", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("patch_px", [0, 8, 16])
@pytest.mark.parametrize("channels", [1, 3, 12, 13, 16])
def test_vector_kernel(channels, patch_px, is_bits, capability, tmp_path):
    ptx = compile_source(vector.options(channels, patch_px, is_bits), capability)
    check_arithmetic(ptx)
    memory = memory_instructions(ptx)
    # Pixels and results move 16 bytes at a time; corners and constants are few.
    loads = {one for one in memory if one.startswith("ld.global")}
    assert loads == {"ld.global.nc.v4.u32", "ld.global.nc.u64", "ld.global.nc.f32"}
    assert memory["ld.global.nc.v4.u32"] == -(-channels * vector.GROUPS // vector.THREADS)
    assert {one for one in memory if one.startswith("st.global")} == {"st.global.v4.u32"}
    registers, shared, stack = assemble(ptx, capability, tmp_path)
    print(f"{channels} channels, patches of {patch_px}: {registers} registers, {shared} bytes")
    assert registers <= MOST_REGISTERS
    assert shared <= MOST_SHARED_BYTES
    assert stack == 0
