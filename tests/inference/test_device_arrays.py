"""Cubes whose chunks lie on a device: nothing brings them to the host behind the user's back.

CuPy needs a GPU even to make an array; see `device_array` for what stands in for its arrays.
"""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
import torch
import xarray as xr
from device_array import Elsewhere
from small import make_cube, tokenizers

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import plan as plan_module
from terramind_cube.inference import staging


def elsewhere(cube, side):
    """Return the cube with every chunk on the other device."""
    moved = cube.chunk(y=side, x=side)
    for name in moved.data_vars:
        data = moved[name].data
        meta = Elsewhere(np.empty((0,) * data.ndim, data.dtype))
        moved[name] = moved[name].copy(data=data.map_blocks(Elsewhere, meta=meta))
        assert isinstance(moved[name].data._meta, Elsewhere)
    return moved


@pytest.fixture(scope="module")
def cube():
    return make_cube()


@pytest.mark.parametrize("side", [64, 1000])
def test_chunks_on_a_device_give_the_same_bytes(small_weights, cube, side, monkeypatch):
    monkeypatch.setattr(plan_module, "GROUP_PX", 96)
    weights = tokenizers(small_weights["weights"].parent, "LULC", "S1RTC")
    settings = {"overlap": 16, "threads": 1, **small_weights, "tokenizer_weights": weights}
    outputs = ["LULC", "S1RTC"]
    expected = TerraMindAccessor(cube).generate(outputs, **settings).compute()
    found = TerraMindAccessor(elsewhere(cube, side)).generate(outputs, **settings).compute()
    xr.testing.assert_identical(found, expected)


def test_arrays_of_the_host_are_shared_not_copied():
    cpu = torch.device("cpu")
    pixels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    assert staging.upload(pixels, cpu).data_ptr() == pixels.ctypes.data
    assert staging.upload(Elsewhere(pixels), cpu).data_ptr() == pixels.ctypes.data
    made = torch.ones(3)
    found = staging.download({"a": made, "b": pixels})
    assert found["a"].ctypes.data == made.data_ptr()
    assert found["b"] is pixels


def test_arrays_that_torch_cannot_view_are_copied():
    cpu = torch.device("cpu")
    pixels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    np.testing.assert_array_equal(staging.upload(pixels[:, ::-1], cpu).numpy(), pixels[:, ::-1])
    pixels.flags.writeable = False
    tensor = staging.upload(pixels, cpu)
    assert tensor.data_ptr() != pixels.ctypes.data
    np.testing.assert_array_equal(tensor.numpy(), pixels)


def test_copies_have_a_stream_of_their_own_and_are_done_at_the_end(monkeypatch):
    told = []

    class Stream:
        def __init__(self, device):
            told.append(("made", str(device)))

        def wait_event(self, event):
            told.append(("waits for", event))

        def synchronize(self):
            told.append("done")

    @contextlib.contextmanager
    def current(stream):
        told.append("begin")
        yield
        told.append("end")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(staging._threads, "streams", {}, raising=False)
    device = torch.device("cuda:1")
    with staging.copying(device):
        told.append("up")
    with staging.copying(device, after="computing"):
        told.append("down")
    first = [("made", "cuda:1"), "begin", "up", "done", "end"]
    assert told == [*first, "begin", ("waits for", "computing"), "down", "done", "end"]


def test_a_gpu_holds_two_groups_at_a_time(monkeypatch):
    monkeypatch.setattr(staging, "_rooms", {})
    device, inside, most = torch.device("cuda:0"), [], []
    gate = threading.Event()

    def hold():
        with staging.room_on(device):
            inside.append(1)
            most.append(len(inside))
            gate.wait(5)
            inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(5)]
    for thread in threads:
        thread.start()
    while len(inside) < 2:
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(inside) == 2
    gate.set()
    for thread in threads:
        thread.join()
    assert max(most) == 2
    with staging.room_on(torch.device("cpu")), staging.room_on(torch.device("cpu")):
        assert len(staging._rooms) == 1  # memory of the host has no such bound
