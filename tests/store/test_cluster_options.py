"""What `gpu_cluster` is told: every argument that cannot be right is named before anything starts."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

import terramind_cube as tc


@pytest.fixture
def started(monkeypatch):
    """The options of clusters that dask_cuda would have started."""
    found = []
    module = ModuleType("dask_cuda")
    module.LocalCUDACluster = lambda **options: found.append(options)
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    return found


@pytest.mark.parametrize("devices", [0, 2, True, 1.5])
def test_a_number_of_gpus_is_no_list(started, devices):
    with pytest.raises(ValueError, match=rf"devices={devices} is no list: .*devices=\[0, 1\]"):
        tc.gpu_cluster(devices)
    assert not started


@pytest.mark.parametrize(
    ("devices", "named"),
    [
        ([None], "None"), ([True], "True"), ([0, False], "False"), ([1.5], "1.5"), ("all", "'all'"),
        (["all"], "'all'"), ([-1], "-1"), ("0,cuda:1", "'cuda:1'"),
    ],
)  # fmt: skip
def test_what_names_no_gpu_is_refused(started, devices, named):
    with pytest.raises(ValueError, match=f"devices: {named} is no GPU"):
        tc.gpu_cluster(devices)
    assert not started


@pytest.mark.parametrize("devices", [[np.int64(0), "GPU-7f", " MIG-a/1 "], "0,GPU-7f,MIG-a/1"])
def test_numbers_and_names_are_taken(started, devices):
    tc.gpu_cluster(devices)
    assert started[0]["CUDA_VISIBLE_DEVICES"] == ["0", "GPU-7f", "MIG-a/1"]


@pytest.mark.parametrize(
    "options",
    [
        {"n_workers": 2}, {"processes": False}, {"worker_class": object},
        {"CUDA_VISIBLE_DEVICES": [0]},
    ],
)  # fmt: skip
def test_the_number_of_processes_is_that_of_the_devices(started, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}: there is one process per GPU"):
        tc.gpu_cluster([0], **options)
    assert not started


@pytest.mark.parametrize("threads", [0, -1, True, 2.5, None])
def test_a_process_has_a_thread(started, threads):
    with pytest.raises(ValueError, match=f"threads_per_worker={threads}: "):
        tc.gpu_cluster([0], threads_per_worker=threads)
    assert not started


def test_no_resources_are_none(started):
    tc.gpu_cluster([0], resources=None)
    assert started[0]["resources"] == {"GPU": 2}
