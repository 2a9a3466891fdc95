"""What several tests share: seeded checkpoints, tile data beside the clone, and the limits of a run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# GDAL must not list the folder beside every raster, nor look for sidecar files there.
os.environ.setdefault("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared"
sys.path.insert(0, str(HERE))

import seeded


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def shapes() -> dict[str, dict[str, list[int]]]:
    """Tensor names and shapes of the released checkpoints."""
    return json.loads((HERE / "data" / "state_dicts.json").read_text())


@pytest.fixture(scope="session")
def seeded_checkpoint(shapes, tmp_path_factory):
    """Return a function that writes a checkpoint of the released layout, once per session."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(name: str, seed: int) -> Path:
        path = folder / f"{name}_{seed}.pt"
        if not path.exists():
            tensors = seeded.fill_state_dict(shapes[name], seed)
            torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, path)
        return path

    return write


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
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory):
    """Arguments of `generate` for a model of 64 px tiles."""
    import small

    return small.write_weights(tmp_path_factory.mktemp("small"))
