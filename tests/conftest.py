"""What several tests share: seeded checkpoints, tile data beside the clone, and the limits of a run."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

# GDAL must not list the folder beside every raster, nor look for sidecar files there.
os.environ.setdefault("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import settings

# On a busy machine a single example may take long.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared"
sys.path.insert(0, str(HERE))

import seeded
from checkpoints import Checkpoints, folder_bytes

HAS_TORCH = importlib.util.find_spec("torch") is not None
MOST_TEMPORARY_BYTES = 2 * 10**9
_PEAK = [0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_TORCH:
        import torch

        if torch.cuda.is_available():
            return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


if not HAS_TORCH:
    # The newest Python of `.ci/run` has none: what needs it is skipped, the rest of a module runs.

    def _skip_without_torch():
        try:
            return (yield)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            pytest.skip("needs PyTorch")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(item: pytest.Item):
        return (yield from _skip_without_torch())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item: pytest.Item):
        return (yield from _skip_without_torch())


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    if _TEMPORARY:
        _PEAK[0] = max(_PEAK[0], folder_bytes(_TEMPORARY[0]))


_TEMPORARY: list[Path] = []


@pytest.fixture(scope="session", autouse=True)
def _watched_folder(tmp_path_factory):
    """Let the end of the run see how much the tests have kept in their temporary folder."""
    _TEMPORARY[:] = [tmp_path_factory.getbasetemp()]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _PEAK[0] > MOST_TEMPORARY_BYTES:
        print(f"\nThe tests kept {_PEAK[0] / 1e9:.1f} GB in temporary files: 2 GB is the limit.")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def shapes() -> dict[str, dict[str, list[int]]]:
    """Tensor names and shapes of the released checkpoints."""
    return json.loads((HERE / "data" / "state_dicts.json").read_text())


@pytest.fixture(scope="session")
def seeded_checkpoint(shapes, tmp_path_factory):
    """Return a function that writes a checkpoint of the released layout.

    The oldest ones go when the next would not fit beside them.
    """
    checkpoints = Checkpoints(shapes, tmp_path_factory.mktemp("checkpoints"), seeded)
    yield checkpoints.write
    checkpoints.remove_all()


@pytest.fixture(scope="session")
def terramesh() -> Path:
    """Folder of the real TerraMesh tiles."""
    folder = SHARED / "data" / "terramesh"
    if not folder.is_dir():
        pytest.skip("shared/ with the TerraMesh tiles is not beside this clone")
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """Run on one thread: more only wait for each other in so small networks."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory):
    """Arguments of `generate` for a model of 64 px tiles."""
    pytest.importorskip("torch")
    import small

    return small.write_weights(tmp_path_factory.mktemp("small"))
