"""One process per GPU: the same bytes as one process alone."""

from __future__ import annotations

import os

import pytest
import torch
from distributed import Client
from small import make_cube, tokenizers

import terramind_cube as tc
from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import plan as plan_module
from terramind_cube.inference.mapping import runs_model
from terramind_cube.store import completed

pytestmark = pytest.mark.gpu

OUTPUTS = ["LULC", "S1RTC", "DEM"]
QUIET = {"dashboard_address": ":0", "silence_logs": False}


@pytest.fixture
def settings(small_weights, monkeypatch):
    monkeypatch.setattr(plan_module, "GROUP_PX", 64)
    folder = small_weights["weights"].parent
    return {
        "inputs": ["S2L2A"], "weights": small_weights["weights"], "steps": 2, "overlap": 16,
        "tokenizer_weights": tokenizers(folder, *OUTPUTS), "chunks": 32, "threads": 1,
        "device": "cuda", "compute_batch": 4,
    }  # fmt: skip


def read_bytes(store):
    """Every file that must be the same from run to run."""
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in store.rglob("*")
        if file.is_file() and file.name != "zarr.json" and "ledger" not in file.parts
    }


def describe_device():
    return os.getpid(), str(torch.cuda.get_device_properties(0).uuid)


def test_two_processes_write_what_one_does(settings, tmp_path):
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    devices = visible[:count] if any(visible) else [*range(count)]
    pair = devices[:2] if count > 1 else devices * 2
    cube = TerraMindAccessor(make_cube(160, 128, modalities=("S2L2A",)).chunk(y=50, x=50))
    alone = cube.write(tmp_path / "alone.zarr", OUTPUTS, **settings)
    with tc.gpu_cluster(pair, **QUIET) as cluster, Client(cluster) as client:
        seen = [*client.run(describe_device).values()]
        client.get_task_stream()  # keeps a record from now on
        path = cube.write(tmp_path / "out.zarr", OUTPUTS, **settings)
        models = [row["worker"] for row in client.get_task_stream() if runs_model(row["key"])]
    assert len({pid for pid, _ in seen}) == 2
    assert len({device for _, device in seen}) == len(set(pair))
    assert len(models) == len(completed(path)) == 2 * 3 * 2
    assert len(set(models)) == 2
    assert read_bytes(path) == read_bytes(alone)


def test_every_gpu_gets_a_process():
    with tc.gpu_cluster(**QUIET) as cluster, Client(cluster) as client:
        assert len(client.run(os.getpid)) == torch.cuda.device_count()
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert all(worker["resources"] == {"GPU": 2} for worker in workers)
