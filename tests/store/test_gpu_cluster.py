"""Clusters with GPUs: who sees which, and that only the model's tasks take one. No GPU is needed."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import ModuleType

import dask
import pytest
import xarray as xr
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker, get_worker
from small import make_cube, tokenizers

import terramind_cube as tc
from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import mapping
from terramind_cube.inference import plan as plan_module
from terramind_cube.inference.mapping import generated_regions, read_fingerprint, runs_model
from terramind_cube.store import completed, conventions, write_result, writer
from terramind_cube.store.regions import plan_regions
from terramind_cube.store.writer import RegionError

torch = pytest.importorskip("torch")

QUIET = {"dashboard_address": ":0", "silence_logs": False}
REGIONS = 8  # two dates of 2 x 2 groups


@pytest.fixture(scope="module", autouse=True)
def small_groups():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "GROUP_PX", 64)
        yield


def generate(small_weights, outputs=("LULC",), cube=None, **settings):
    cube = make_cube(96, 128, modalities=("S2L2A",)) if cube is None else cube
    settings = {
        "weights": small_weights["weights"], "overlap": 16, "threads": 1, "chunks": 32,
        "tokenizer_weights": tokenizers(small_weights["weights"].parent, *outputs), **settings,
    }  # fmt: skip
    return TerraMindAccessor(cube.chunk(y=50, x=50)).generate(outputs, **settings)


@pytest.fixture(scope="module")
def result(small_weights):
    return generate(small_weights)


def write(result, path, device="cuda"):
    """Write a result that was computed on the CPU as if on another device."""
    fingerprint = read_fingerprint(result) | {"compute_device": device}
    return write_result(result, path, regions=generated_regions(result), fingerprint=fingerprint)


def read_bytes(store):
    """Every file that must be the same from run to run."""
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in store.rglob("*")
        if file.is_file() and file.name != "zarr.json" and "ledger" not in file.parts
    }


@pytest.fixture(scope="module")
def whole(result, tmp_path_factory):
    with dask.config.set(scheduler="synchronous"):
        return write(result, tmp_path_factory.mktemp("whole") / "out.zarr")


@pytest.fixture
def spans(monkeypatch):
    """Worker, begin and end of each group in this process; they last long enough to meet."""
    found = []

    def run(*args):
        begin = time.perf_counter()
        time.sleep(0.05)
        values = run_group(*args)
        found.append((get_worker().name, begin, time.perf_counter()))
        return values

    run_group = mapping.run_group
    monkeypatch.setattr(mapping, "run_group", run)
    return found


def count_at_once(spans):
    """Return how many groups were computed at the same time on a worker, at most."""
    return max(
        sum(other == name and start <= begin < end for other, start, end in spans)
        for name, begin, _ in spans
    )


@pytest.fixture(scope="module")
def mixed():
    """A client of two workers in this process; only one declares a GPU."""

    def spec(**options):
        return {"cls": Worker, "options": {"protocol": "inproc://", "nthreads": 3, **options}}

    scheduler = {"cls": Scheduler, "options": {"protocol": "inproc://", "dashboard_address": ":0"}}
    workers = {"gpu": spec(resources={"GPU": 1}), "cpu": spec()}
    with SpecCluster(workers, scheduler) as cluster, Client(cluster) as client:
        yield client


class Record:
    """Which worker ran what between two moments: groups, and all the other tasks."""

    def __init__(self, client):
        self.client = client
        self.begin = time.time()
        client.get_task_stream()  # keeps a record from now on

    def __enter__(self):
        return self

    def __exit__(self, *error):
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        rows = self.client.get_task_stream(start=self.begin)
        tasks = [(row["key"], workers[row["worker"]]["name"]) for row in rows]
        self.models = [name for key, name in tasks if runs_model(key)]
        self.others = [name for key, name in tasks if not runs_model(key)]


def test_only_groups_take_the_gpu_and_one_at_a_time(result, whole, mixed, spans, tmp_path):
    with Record(mixed) as record:
        path = write(result, tmp_path / "out.zarr")
    assert record.models == ["gpu"] * len(spans) == ["gpu"] * REGIONS
    assert count_at_once(spans) == 1
    # Reading, cutting and writing goes on everywhere.
    assert set(record.others) == {"gpu", "cpu"}
    assert read_bytes(path) == read_bytes(whole)
    assert len(completed(path)) == REGIONS


def test_a_result_for_cpus_goes_to_every_worker(result, whole, mixed, spans, tmp_path):
    with Record(mixed) as record:
        path = write(result, tmp_path / "out.zarr", device="cpu")
    assert set(record.models) == {"gpu", "cpu"}
    assert count_at_once(spans) > 1
    assert read_bytes(path) == read_bytes(whole)


def test_a_cluster_without_declared_gpus_is_used_as_it_is(result, whole, tmp_path):
    with LocalCluster(n_workers=1, processes=False, **QUIET) as cluster, Client(cluster) as client:
        assert writer._place_on_gpus(client) == ({}, 0)
        path = write(result, tmp_path / "out.zarr")
    assert read_bytes(path) == read_bytes(whole)


def test_two_regions_are_in_flight_for_each_task_that_gpus_take(mixed):
    assert writer._place_on_gpus(mixed) == ({"resources": tc.gpu_resources}, 2)


@pytest.mark.parametrize(
    "compute",
    [
        lambda client, result: client.compute(result, resources=tc.gpu_resources).result(),
        lambda client, result: client.persist(result, resources=tc.gpu_resources).compute(),
        lambda client, result: annotated(result),
    ],
    ids=["compute", "persist", "annotate"],
)
def test_other_ways_to_compute_take_the_resources(result, whole, mixed, spans, compute):
    found = compute(mixed, result[["LULC"]])
    assert [name for name, *_ in spans] == ["gpu"] * REGIONS
    assert count_at_once(spans) == 1
    assert found.LULC.equals(xr.open_zarr(whole).LULC)


def annotated(result):
    with dask.annotate(resources=tc.gpu_resources):
        return result.compute()


def list_tasks(region):
    """Return the tasks of a region's computation as a scheduler gets them."""
    found = {}

    def take(graph, keys, **options):
        found.update(graph.__dask_graph__() if hasattr(graph, "__dask_graph__") else graph)
        raise StopIteration

    with pytest.raises(StopIteration):
        region.compute(scheduler=take)
    return found


@pytest.mark.parametrize("chunks", [32, 64, 128])
@pytest.mark.parametrize("outputs", [["S1RTC"], ["LULC", "DEM"]])
@pytest.mark.parametrize("side", [50, 400])
def test_a_group_keeps_its_key_and_stays_alone(small_weights, tmp_path, outputs, chunks, side):
    """Also with one input chunk and one variable of one chunk, which dask would make one task."""
    cube = make_cube(96, 128, modalities=("S2L2A",)).chunk(y=side, x=side)
    cube["S2L2A"] = cube.S2L2A.where(cube.S2L2A > 3, 0)
    result = generate(small_weights, outputs, cube, chunks=chunks, token_confidence=False)
    prepared = conventions.prepare(result)
    for plan in plan_regions(result, generated_regions(result)):
        tasks = list_tasks(writer._build_task(prepared, tmp_path, plan))
        models = [key for key in tasks if tc.gpu_resources(key)]
        assert [tasks[key].func for key in models] == [mapping._compute_group]
        functions = [getattr(task, "func", None) for task in tasks.values()]
        assert functions.count(mapping._compute_group) == 1
        hidden = [task for task in tasks.values() if getattr(task, "has_subgraph", bool)()]
        inside = {getattr(part, "func", None) for task in hidden for part in task.args[0].values()}
        assert mapping._compute_group not in inside
        assert mapping._cut in inside | set(functions)


def test_a_group_task_is_told_by_its_key():
    assert tc.gpu_resources(("terramind-12ab", 0, 3)) == {"GPU": 1}
    for key in (("LULC-terramind-12ab", 0, 0, 3), ("cube-1", 0), "write-time0-1", (), ("a",)):
        assert tc.gpu_resources(key) == {}


@pytest.fixture(scope="module")
def two_processes():
    # Neither of these GPUs is here.
    with (
        tc.gpu_cluster([5, "GPU-7f"], memory_limit="2GiB", env={"MINE": "1"}, **QUIET) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_each_process_has_a_gpu_of_its_own(two_processes):
    def look():
        return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], os.environ["MINE"], [*sys.modules]

    seen = list(two_processes.run(look).values())
    assert len({pid for pid, *_ in seen} | {os.getpid()}) == 3
    assert sorted(device for _, device, *_ in seen) == ["5", "GPU-7f"]
    assert {mine for _, _, mine, _ in seen} == {"1"}
    assert all("torch" not in modules for *_, modules in seen)
    workers = list(two_processes.scheduler_info(n_workers=-1)["workers"].values())
    assert [worker["resources"] for worker in workers] == [{"GPU": 2}] * 2
    assert [worker["nthreads"] for worker in workers] == [4, 4]
    assert [worker["memory_limit"] for worker in workers] == [2 << 30] * 2
    assert writer._place_on_gpus(two_processes)[1] == 8


def test_a_process_that_dies_comes_back_on_its_gpu(two_processes):
    two_processes.restart()
    seen = two_processes.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values()
    assert sorted(seen) == ["5", "GPU-7f"]


def test_processes_of_two_gpus_write_the_same_bytes(result, whole, two_processes, tmp_path):
    with Record(two_processes) as record:
        path = write(result, tmp_path / "out.zarr")
    assert len(record.models) == REGIONS
    assert set(record.models) == {0, 1}
    assert read_bytes(path) == read_bytes(whole)


def test_without_a_gpu_a_cluster_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"No GPU: .* devices=\[0, 1\]"):
        tc.gpu_cluster()
    for nothing in ([], "", "0,,1", [""]):
        with pytest.raises(ValueError, match="name at least one GPU"):
            tc.gpu_cluster(nothing)


@pytest.mark.parametrize(
    ("visible", "count", "devices", "chosen"),
    [
        (None, 2, None, ["0", "1"]),
        ("2, 3", 2, None, ["2", "3"]),
        ("MIG-a,MIG-b", 1, None, ["MIG-a"]),
        ("2,3", 2, [0], ["0"]),
        (None, 0, "4,5", ["4", "5"]),
    ],
)
def test_devices_are_those_that_are_seen_or_named(monkeypatch, visible, count, devices, chosen):
    """And dask_cuda starts the cluster where it is installed."""
    started = []
    module = ModuleType("dask_cuda")
    module.LocalCUDACluster = lambda **options: started.append(options)
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    tc.gpu_cluster(devices, memory_limit=None, resources={"disk": 2}, protocol="tcp")
    assert started == [
        {
            "CUDA_VISIBLE_DEVICES": chosen, "threads_per_worker": 4, "memory_limit": None,
            "resources": {"disk": 2, "GPU": 2}, "protocol": "tcp",
        }
    ]  # fmt: skip


def test_without_a_cluster_a_gpu_is_kept_busy_too(result, whole, tmp_path, monkeypatch):
    """One region is computed while the next one is read and the last one written."""
    spans, run_group = [], mapping.run_group

    def run(*args):
        begin = time.perf_counter()
        time.sleep(0.05)
        values = run_group(*args)
        spans.append((threading.current_thread().name, begin, time.perf_counter()))
        return values

    monkeypatch.setattr(mapping, "run_group", run)
    with dask.config.set(scheduler="synchronous"):
        ours = write(result, tmp_path / "gpu.zarr")
        at_once = [sum(start <= begin < end for _, start, end in spans) for _, begin, _ in spans]
        assert max(at_once) > 1
        spans.clear()
        theirs = write(result, tmp_path / "cpu.zarr", device="cpu")
        assert len({name for name, _, _ in spans}) == 1
    assert read_bytes(ours) == read_bytes(theirs) == read_bytes(whole)


def test_a_region_that_fails_ends_the_others(result, tmp_path, monkeypatch):
    started = []

    def run(plan, region, *args):
        started.append(region)
        raise RuntimeError("no such luck")

    monkeypatch.setattr(mapping, "run_group", run)
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(RegionError, match="no such luck"),
    ):
        write(result, tmp_path / "out.zarr")
    assert len(started) <= 3
