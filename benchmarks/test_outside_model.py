"""The share of a generation's wall time that is not the model's: reading to writing, end to end.

Inside the model is `Generation.run`: the transformer, drawing of tokens, tokenizers. Everything
else counts as outside. On a CPU functions of the way are timed, each without what it calls among
them; on a GPU, where work is queued, it is asked how long the GPU is busy. The figures are printed
and kept in ``results/outside_model_cpu.json`` and ``results/outside_model_gpu.json``.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import defaultdict
from functools import lru_cache, wraps

import numpy as np
import pytest
import torch
import xarray as xr
from kernel_contest import keep, versions

import terramind_cube as tc
from terramind_cube import kernels
from terramind_cube.inference import execution, mapping, sample, sources
from terramind_cube.inference.generate import Generation
from terramind_cube.store import writer

SIDE_PX, SEED = 896, 900_001
ROUNDS = 5
GOALS = {"cpu": {"outside_share": 0.10}, "cuda": {"busy_share": 0.90}}
MODEL, NOISE = "model", "noise"

# Where a name is looked up when it is called, and the part of the way that it is.
PARTS = [
    (mapping.Window, "assemble", "assemble windows"),
    (mapping, "_cut", "cut chunks"),
    (execution, "Source", "hold inputs"),
    (execution, "usable_tiles", "choose tiles"),
    (execution, "download", "download"),
    (sources.InputBuffers, "fill", "normalise"),
    (kernels, "normalize", "normalise"),
    (kernels, "valid_pixels", "find valid pixels"),
    (kernels, "blend_accumulate", "blend"),
    (kernels, "blend_finish", "blend"),
    (kernels, "denormalize", "convert"),
    (kernels, "class_map", "convert"),
    (sample, "uniform_batch", NOISE),
    (sample, "normal_batch", NOISE),
    (writer, "_write_blocks", "write chunks"),
    (writer, "_digest", "digest"),
    (writer, "_create_template", "begin store"),
]


class Clock:
    """Seconds by part of the way, each without those of the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = threading.local()

    def enter(self) -> float:
        self._inner.__dict__.setdefault("stack", []).append(0.0)
        return time.perf_counter()

    def leave(self, name: str, start: float) -> None:
        spent = time.perf_counter() - start
        stack = self._inner.stack
        self.seconds[name] += spent - stack.pop()
        if stack:
            stack[-1] += spent

    def timed(self, function, name):
        """Return a function that does the same and is timed."""

        @wraps(function, updated=())
        def call(*arguments, **further):
            start = self.enter()
            try:
                return function(*arguments, **further)
            finally:
                self.leave(name, start)

        return call

    def steps(self, function, name):
        """Return a generator's function whose steps are timed, not what is done between them."""

        @wraps(function)
        def call(*arguments, **further):
            values = function(*arguments, **further)
            while True:
                start = self.enter()
                try:
                    value = next(values)
                except StopIteration:
                    return
                finally:
                    self.leave(name, start)
                yield value

        return call

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Put clocks around the parts of the way."""
        patch.setattr(Generation, "run", self.steps(Generation.run, MODEL))
        for owner, attribute, name in PARTS:
            patch.setattr(owner, attribute, self.timed(getattr(owner, attribute), name))


@pytest.fixture(scope="module")
def scene():
    """Return a function that makes a cube of a side, once."""
    return lru_cache(lambda side_px: tc.synthetic.make_scene(SEED, (side_px, side_px)))


def options(model, outputs, **further):
    return {"outputs": outputs, "model": model, "inputs": ["S2L2A"], **further}


# A store takes some time to begin, whatever goes into it: the larger scene says what is left of it.
CASES = [
    ("terramind_nano", "LULC", "generate", SIDE_PX),
    ("terramind_nano", "LULC", "write", SIDE_PX),
    ("terramind_nano", "LULC", "generate", 2 * SIDE_PX),
    ("terramind_nano", "LULC", "write", 2 * SIDE_PX),
    ("terramind_nano", "S1RTC", "generate", SIDE_PX),
    ("terramind_nano", "S1RTC", "write", SIDE_PX),
    ("terramind_v1_tiny", "LULC", "generate", SIDE_PX),
    ("terramind_v1_tiny", "LULC", "write", SIDE_PX),
    ("terramind_v1_base", "LULC", "generate", SIDE_PX),
]


@pytest.mark.parametrize(
    ("model", "output", "way", "side_px"), CASES, ids=["-".join(map(str, row)) for row in CASES]
)
def test_share_outside_the_model(
    benchmark, monkeypatch, scene, tmp_path, model, output, way, side_px
):
    """All of it on as many threads as torch takes.

    `generate` is timed from the graph to arrays in memory, `write` from the cube to a whole store.
    """
    cube, chosen = scene(side_px), options(model, [output], device="cpu")
    rounds, stores = [], iter(range(1 + ROUNDS))

    def once():
        path = tmp_path / f"{next(stores)}.zarr"
        result = cube.terramind.generate(**chosen) if way == "generate" else None
        start = time.perf_counter()
        if way == "generate":
            result.compute()
        else:
            cube.terramind.write(path, **chosen)
        return time.perf_counter() - start

    def one_round():
        clock = Clock()
        with monkeypatch.context() as patch:
            clock.watch(patch)
            wall = once()
        rounds.append({**clock.seconds, "wall": wall})

    once()  # loads the model
    benchmark.pedantic(one_round, rounds=3 if model.startswith("terramind_v1") else ROUNDS)
    info = {
        "what": f"{way} {output} from S2L2A, {model}, untrained, {side_px} x {side_px} px in "
        f"memory, float32, {torch.get_num_threads()} threads, overlap 32",
        **shares(rounds),
        "goals": GOALS["cpu"],
        "rounds": len(rounds),
        "versions": versions(),
    }
    benchmark.extra_info.update(info)
    keep("outside_model_cpu", f"{model}, {output}, {way}, {side_px} px", info)


def shares(rounds):
    """Return what is inside and outside of the model, and where the latter goes, in per cent."""

    def middle(of):
        return statistics.median(of(each) for each in rounds)

    def inside(each):
        return each[MODEL] + each[NOISE]

    names = {name for each in rounds for name in each} - {MODEL, NOISE, "wall"}
    parts = {name: middle(lambda each, n=name: each.get(n, 0.0) / each["wall"]) for name in names}
    known = middle(lambda each: (sum(each.values()) - each["wall"]) / each["wall"])
    parts["Dask, Python, the rest"] = 1 - known
    return {
        "wall_s": round(middle(lambda each: each["wall"]), 3),
        "outside_s": round(middle(lambda each: each["wall"] - inside(each)), 4),
        "outside_share": round(middle(lambda each: 1 - inside(each) / each["wall"]), 4),
        "noise_share": round(middle(lambda each: each[NOISE] / each["wall"]), 4),
        "outside_percent": {
            name: round(100 * share, 3)
            for name, share in sorted(parts.items(), key=lambda p: -p[1])
        },
    }


def lazy_series(dates):
    """A cube of several dates of a place, in chunks: a tile group each."""
    scene = tc.synthetic.make_scene(SEED, (2 * SIDE_PX, 2 * SIDE_PX))[["S2L2A"]]
    days = [scene.time + np.timedelta64(day, "D") for day in range(dates)]
    return xr.concat([scene.assign_coords(time=day) for day in days], "time").chunk(
        time=1, y=SIDE_PX, x=SIDE_PX
    )


def busy_seconds(trace, categories):
    """Return the length of the union of a trace's intervals of these categories."""
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in categories
    )
    total, end = 0.0, -np.inf
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return 1e-6 * total


def test_union_of_intervals():
    spans = [(0, 10, "kernel"), (5, 20, "kernel"), (6, 2, "kernel"), (40, 5, "gpu_memcpy")]
    trace = {
        "traceEvents": [{"ph": "X", "ts": s, "dur": d, "cat": c} for s, d, c in spans]
        + [{"ph": "M", "name": "process_name"}]
    }
    assert busy_seconds(trace, {"kernel"}) == pytest.approx(25e-6)
    assert busy_seconds(trace, {"kernel", "gpu_memcpy"}) == pytest.approx(30e-6)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # of the profiler
@pytest.mark.parametrize("way", ["generate", "write"])
@pytest.mark.parametrize("output", ["LULC", "S1RTC"])
@pytest.mark.parametrize("model", ["terramind_v1_base"])
def test_share_of_time_in_which_the_gpu_is_busy(benchmark, tmp_path, model, output, way):
    """The profiler slows the host down, so the share without it is the same or greater."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    from torch.profiler import ProfilerActivity, profile

    cube = lazy_series(dates=4)
    chosen = options(model, [output], device="cuda", precision="auto")
    stores, walls, found = iter(range(10)), [], []

    def once():
        path = tmp_path / f"{next(stores)}.zarr"
        result = cube.terramind.generate(**chosen) if way == "generate" else None
        torch.cuda.synchronize()
        start = time.perf_counter()
        if way == "generate":
            result.compute()
        else:
            cube.terramind.write(path, **chosen)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def one_round():
        walls.append(once())
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            wall = once()
        path = tmp_path / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())
        kernels_s = busy_seconds(trace, {"kernel"})
        moving_s = busy_seconds(trace, {"kernel", "gpu_memcpy", "gpu_memset"})
        found.append({"wall": wall, "kernels": kernels_s, "kernels or copies": moving_s})

    once()  # loads the model, compiles kernels, chooses the batch
    benchmark.pedantic(one_round, rounds=3)
    info = {
        "what": f"{way} {output} from S2L2A, {model}, untrained, 4 dates of "
        f"{2 * SIDE_PX} x {2 * SIDE_PX} px in memory, precision auto",
        "busy_share": _middle_share(found, "kernels"),
        "busy_share_with_copies": _middle_share(found, "kernels or copies"),
        "wall_s": round(statistics.median(walls), 3),
        "wall_with_profiler_s": round(statistics.median(each["wall"] for each in found), 3),
        "goals": GOALS["cuda"],
        "device": torch.cuda.get_device_name(),
        "versions": versions(),
    }
    benchmark.extra_info.update(info)
    keep("outside_model_gpu", f"{model}, {output}, {way}", info)
    assert 0 < info["busy_share"] <= 1


def _middle_share(found, name):
    return round(statistics.median(each[name] / each["wall"] for each in found), 4)
