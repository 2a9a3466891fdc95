"""The compute batch: found by a trial, and named when a device runs out of memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small import MODEL, TILE_PX, make_cube, tokenizers

from terramind_cube.cube.layout import read_layout
from terramind_cube.grid import Region
from terramind_cube.inference import features, generate, runtime, trial
from terramind_cube.inference.choice import WeightsChoice
from terramind_cube.inference.execution import run_group
from terramind_cube.inference.runtime import Compute
from terramind_cube.inference.variables import Ensemble

OOM = torch.OutOfMemoryError


class Device:
    """Holds batches up to a size, and remembers those that were tried."""

    def __init__(self, holds):
        self.holds, self.tried = holds, []

    def attempt(self, batch):
        self.tried.append(batch)
        if batch > self.holds:
            raise OOM(f"CUDA out of memory. Tried to allocate {batch} GiB.\nsecond line")


@pytest.mark.parametrize(
    ("holds", "found", "tried"),
    [
        (100, 64, [64]),
        (64, 64, [64]),
        (63, 32, [64, 32]),
        (5, 4, [64, 32, 16, 8, 4]),
        (1, 1, [64, 32, 16, 8, 4, 2, 1]),
    ],
)
def test_the_largest_power_of_two_that_fits_is_found(holds, found, tried):
    device = Device(holds)
    assert trial.largest_batch(device.attempt) == found
    assert device.tried == tried


def test_a_smaller_start_is_the_upper_bound():
    assert trial.largest_batch(Device(100).attempt, largest=8) == 8


def test_a_device_that_holds_no_tile_is_named_with_what_to_do():
    with pytest.raises(MemoryError, match=r"single tile: choose a smaller model, .*device='cpu'"):
        trial.largest_batch(Device(0).attempt)


def test_other_errors_end_the_trial():
    def attempt(batch):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        trial.largest_batch(attempt)


@pytest.fixture(scope="module")
def cube():
    return make_cube(100, 80, modalities=("S2L2A", "DEM"), times=1)


@pytest.fixture(scope="module")
def make_plan(small_weights, cube):
    folder = small_weights["weights"].parent

    def make(batch, *outputs, **changes):
        names = [name for name in outputs if name != "Coordinates"]
        options = generate.Options(
            WeightsChoice("terramind_nano", small_weights["weights"], tokenizers(folder, *names)),
            Compute("cpu", "float32", batch, 1),
            diffusion=generate.Diffusion(steps=1),
            overlap_px=16,
            **changes,
        )
        return generate.plan_generation(read_layout(cube), outputs, options)

    return make


def test_a_plan_without_a_batch_gets_the_one_that_fits(make_plan, monkeypatch):
    device = Device(2)
    monkeypatch.setattr(trial, "run_blank", lambda plan: device.attempt(plan.spec.compute.batch))
    plan = make_plan(0, "LULC", "S1RTC")
    # More than the four tiles of the area would be padding.
    assert device.tried == [4, 2]
    assert plan.spec.compute.batch == 2
    # Nothing else has changed.
    assert plan == make_plan(2, "LULC", "S1RTC")
    assert plan.fingerprint()["compute_batch"] == 2


def test_a_plan_with_a_batch_is_not_tried(make_plan, monkeypatch):
    device = Device(0)
    monkeypatch.setattr(trial, "run_blank", lambda plan: device.attempt(plan.spec.compute.batch))
    assert make_plan(3, "LULC").spec.compute.batch == 3
    assert device.tried == []


def test_a_trial_runs_whole_batches_of_everything(make_plan, monkeypatch):
    """The real trial, of every kind of plan, on a model that is quickly done."""
    seen = []
    run = generate.Generation.run

    def spy(plan, loaded, batch):
        assert len(batch.tiles) == batch.size
        seen.append(batch.size)
        if batch.size > 2:
            raise OOM("CUDA out of memory.")
        for values in run(plan, loaded, batch):
            seen.append({name: array.shape for name, array in values.items()})
            yield values

    monkeypatch.setattr(generate.Generation, "run", spy)
    plan = make_plan(0, "LULC", "S1RTC", "Coordinates", ensemble=Ensemble(2), is_chained=True)
    assert plan.spec.compute.batch == 2
    # One sample takes as much of the device as all of them.
    assert plan.ensemble == Ensemble(2)
    shapes = {
        "LULC": (1, 10, TILE_PX, TILE_PX),
        "LULC_token_confidence": (1, 4, 4),
        "S1RTC": (1, 2, TILE_PX, TILE_PX),
        "S1RTC_token_confidence": (1, 4, 4),
        "Coordinates": (3, 5),
    }
    assert seen == [4, 2, shapes, shapes]


def test_embeddings_and_tokens_are_tried_too(small_weights, cube, monkeypatch):
    device = Device(8)
    monkeypatch.setattr(trial, "run_blank", lambda plan: device.attempt(plan.spec.compute.batch))
    choice = WeightsChoice("terramind_nano", small_weights["weights"])
    compute, layout = Compute("cpu", "float32", 0, 1), read_layout(cube)
    plans = [
        features.plan_embedding(layout, features.EmbedOptions(choice, compute)),
        features.plan_tokenization(layout, WeightsChoice("terramind_nano"), compute, 896),
        features.plan_reconstruction(
            layout, WeightsChoice("terramind_nano"), compute, generate.Diffusion(), (32, 896), 0
        ),
    ]
    # The tiles of the tokenizers' own model are larger: one covers the area.
    assert [plan.spec.compute.batch for plan in plans] == [4, 1, 1]
    assert device.tried == [4, 1, 1]


@pytest.mark.parametrize(
    ("batch", "advice"),
    [(16, "compute_batch=8"), (3, "compute_batch=1"), (1, "a smaller model or device='cpu'")],
)
def test_running_out_of_memory_names_the_batch_to_set(make_plan, monkeypatch, batch, advice):
    plan = make_plan(batch, "LULC")

    def run(plan, loaded, batch):
        raise OOM("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has 80 GiB")
        yield

    monkeypatch.setattr(generate.Generation, "run", run)
    windows = [np.full((len(row.bands), 64, 64), 500, np.float32) for row in plan.inputs]
    with pytest.raises(MemoryError) as failure:
        run_group(plan, Region(0, 48, 0, 16), 0, windows)
    told = str(failure.value)
    assert told == (
        f"cpu ran out of memory with compute_batch={batch}: start again with {advice}. "
        "(CUDA out of memory. Tried to allocate 2 GiB.)"
    )
    assert isinstance(failure.value.__cause__, OOM)


def test_a_plan_is_small_whatever_its_model(make_plan):
    """It travels in every task."""
    import pickle

    plan = make_plan(2, "LULC", "S1RTC", "Coordinates")
    assert len(pickle.dumps(plan)) < 6_000
    assert dataclasses.asdict(plan.spec)["name"] == MODEL.name


def test_a_trial_leaves_room_for_what_lies_beside_the_batch(make_plan, monkeypatch):
    asked, empty = [], torch.empty

    def spy(*shape, **options):
        if options.get("dtype") == torch.uint8:
            asked.append(shape[0])
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", spy)
    monkeypatch.setattr(trial, "run_blank", lambda plan: None)
    plan = make_plan(0, "LULC")
    # Codes and confidence of the pixels, and twice twelve bands of reflectance and the elevation.
    side = 112 + 2 * TILE_PX  # the area in whole patches, and the halo
    assert asked == [plan.group_bytes]
    assert plan.group_bytes > (1 + 4 + 2 * 4 * 13) * 100 * 80
    assert plan.group_bytes < 2 * (1 + 4 + 2 * 4 * 13) * side**2


def test_a_gpu_without_our_kernels_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"pip install 'terramind-cube\[cuda12\]'"):
        assert Compute.choose(None, "float32").device == "cpu"
    with pytest.raises(ValueError, match=r"numba-cuda.*device='cpu'"):
        Compute.choose("cuda", "float32")
    monkeypatch.setattr(runtime, "find_spec", lambda name: object())
    assert Compute.choose(None, "float32").device == "cuda"


def test_models_on_gpus_can_be_given_back(monkeypatch):
    parts = {("model", "m", None, "f", device, "float32", ()): device for device in ("cpu", "cuda")}
    monkeypatch.setattr(runtime, "_parts", parts)
    runtime.release_gpus()
    assert list(parts.values()) == ["cpu"]
