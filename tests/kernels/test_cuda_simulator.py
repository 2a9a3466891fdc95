"""The CUDA kernels equal the reference, without a GPU: in Numba's simulator (promise 6)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.cudasim
@pytest.mark.skipif(not importlib.util.find_spec("numba_cuda"), reason="needs numba-cuda")
def test_kernels_equal_the_reference_in_the_simulator():
    # A process of its own: Numba becomes the simulator when it is imported.
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    # Kernels run in threads, which do not inherit NumPy's errstate.
    command += ["-o", "filterwarnings=error", "-W", "ignore::RuntimeWarning"]
    run = subprocess.run(
        [*command, "tests/kernels/cuda_simulated.py"],
        cwd=ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_a_missing_numba_cuda_is_an_import_error():
    code = """
import sys
sys.modules["numba_cuda"] = None
import terramind_cube.kernels
try:
    import terramind_cube.kernels.cuda
except ImportError:
    pass
else:
    raise AssertionError("imported")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


def test_the_engine_imports_without_a_driver_and_without_other_libraries():
    code = """
import sys
from tests.kernels.cuda_alone import kernel_module
cuda = kernel_module("cuda")
assert not {"torch", "cupy", "xarray"} & set(sys.modules)
assert cuda.__all__
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120, cwd=ROOT)
