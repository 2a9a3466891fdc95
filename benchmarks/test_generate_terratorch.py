"""TerraMind from S2L2A against TerraTorch: speed at the same tiles, our fastest setting, memory.

Both read the same seeded weights and the same scene, each in a process and an environment of its
own, in turns. TerraTorch runs under the interpreter named by ``TERRAMIND_CUBE_TERRATORCH`` (see
the README of this folder); the parity kit is named by ``TERRAMIND_CUBE_SHARED``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from roofline import matmul_gflops, tile_flops
from seeded_weights import parity_kit, write_checkpoints, write_scene

HERE = Path(__file__).parent
THREADS = os.cpu_count() or 1
ROUNDS = 3


@dataclass(frozen=True)
class Race:
    """One comparison: what both do, how each cuts the scene, and the ratio that is hoped for."""

    size: str
    output: str
    rival: tuple[object, ...]
    ours: tuple[object, ...]
    tiles: int  # of ours
    goal: float
    steps: int = 10


# TerraTorch's defaults, 25 tiles over 896 x 896 px, and the same tiles of ours.
DEFAULTS, SAME = ("--stride", 192, "--delta", 8, "--batch", 4), ("--overlap", 32)
AUTO = ("--precision", "auto")
ROW = ("--tiles", 2, "--batch", 2)
RACES = {
    "lulc tiny, same tiles, float32": Race("tiny", "LULC", DEFAULTS, SAME, 25, 1.1),
    "lulc tiny, same tiles, auto": Race("tiny", "LULC", DEFAULTS, (*SAME, *AUTO), 25, 1.8),
    "lulc tiny, fastest": Race("tiny", "LULC", DEFAULTS, ("--overlap", 0, *AUTO), 16, 3.0),
    "lulc base, same tiles, float32": Race("base", "LULC", DEFAULTS, SAME, 25, 1.1),
    "lulc base, same tiles, auto": Race("base", "LULC", DEFAULTS, (*SAME, *AUTO), 25, 1.8),
    "lulc base, fastest": Race("base", "LULC", DEFAULTS, ("--overlap", 0, *AUTO), 16, 3.0),
    "s1grd tiny, same steps, float32": Race(
        "tiny", "S1GRD", (*ROW, "--steps", 10), (*ROW, "--overlap", 0, "--sampler", "ddim"), 2, 1.1
    ),
    "s1grd tiny, same steps, auto": Race(
        "tiny", "S1GRD", (*ROW, "--steps", 10),
        (*ROW, "--overlap", 0, "--sampler", "ddim", *AUTO), 2, 2.0,
    ),
    # At 10 steps DPM-Solver++ is as close to the exact answer as DDIM at 50 (test_diffusion.py).
    "s1grd tiny, same quality, auto": Race(
        "tiny", "S1GRD", (*ROW, "--steps", 50), (*ROW, "--overlap", 0, *AUTO), 2, 8.0
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    if "TERRAMIND_CUBE_SHARED" not in os.environ:
        pytest.skip("TERRAMIND_CUBE_SHARED does not name the folder of the parity kit")
    kit, folder = parity_kit(), tmp_path_factory.mktemp("benchmark")
    weights = write_checkpoints(kit, folder)
    scenes = {size: write_scene(kit, folder / f"scene_{size}.npz", size) for size in (896, 1792)}
    return {"weights": weights, "scenes": scenes, "folder": folder}


@pytest.fixture(scope="session")
def terratorch():
    interpreter = os.environ.get("TERRAMIND_CUBE_TERRATORCH")
    if not interpreter:
        pytest.skip("TERRAMIND_CUBE_TERRATORCH does not name a Python that has terratorch")
    return [interpreter, HERE / "rivals" / "terratorch_generate.py"]


def run(command):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def arguments(files, race, name, side_px=896):
    tokenizer = files["weights"][f"tokenizer_{race.output.lower()}"]
    return [
        "--weights", files["weights"][race.size], "--tokenizer", tokenizer,
        "--size", race.size, "--output", race.output, "--threads", THREADS,
        "--scene", files["scenes"][side_px], "--out", files["folder"] / f"{name}.npz",
    ]  # fmt: skip


def ours(files, race, *further, side_px=896):
    common = arguments(files, race, "ours", side_px)
    return run([sys.executable, HERE / "ours_generate.py", *common, *race.ours, *further])


@pytest.mark.parametrize("name", list(RACES))
def test_seconds_against_terratorch(benchmark, files, terratorch, name):
    race, pairs = RACES[name], []

    def one_round():
        rival = run([*terratorch, *arguments(files, race, "rival"), *race.rival])
        pairs.append((rival, ours(files, race, "--steps", race.steps)))

    slow = race.output != "LULC" and race.goal > 5
    benchmark.pedantic(one_round, rounds=1 if slow else ROUNDS)
    seconds = statistics.median(mine["seconds"] for _, mine in pairs)
    dtype = torch.bfloat16 if "auto" in race.ours else torch.float32
    gflops = matmul_gflops(THREADS, dtype=dtype)
    work = sum(tile_flops(race.size, race.output, race.steps).values()) * race.tiles * 1e-9
    benchmark.extra_info.update(
        race=name,
        times_terratorch=round(statistics.median(a["seconds"] / b["seconds"] for a, b in pairs), 2),
        goal=race.goal,
        ours_s=[mine["seconds"] for _, mine in pairs],
        terratorch_s=[rival["seconds"] for rival, _ in pairs],
        ours_peak_mib=max(mine["peak_rss_mib"] for _, mine in pairs),
        terratorch_peak_mib=min(rival["peak_rss_mib"] for rival, _ in pairs),
        matmul_gflops=round(gflops, 1),
        gflop=round(work, 1),
        fraction_of_roofline=round(work / gflops / seconds, 3),
        versions={**pairs[0][0]["versions"], **pairs[0][1]["versions"]},
    )
    print("\n" + json.dumps(benchmark.extra_info, indent=1))


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_greedy_classes_are_the_same(benchmark, files, terratorch, size):
    """The race is between the same work; the agreement of bfloat16 stands beside it."""
    race = Race(size, "LULC", ("--stride", 224, "--delta", 0), ("--overlap", 0), 16, 1)
    run([*terratorch, *arguments(files, race, "rival"), *race.rival, "--greedy"])
    shares = {}

    def both():
        with np.load(files["folder"] / "rival.npz") as stored:
            rival = stored["LULC"]
        for precision in ("float32", "auto"):
            ours(files, race, "--greedy", "--precision", precision)
            with np.load(files["folder"] / "ours.npz") as stored:
                shares[precision] = float((rival == stored["LULC"]).mean())

    benchmark.pedantic(both, rounds=1)
    benchmark.extra_info.update(size=size, same_classes=shares)
    print("\n" + json.dumps(benchmark.extra_info))
    assert shares["float32"] > 0.995


def test_memory_does_not_grow_with_the_scene(benchmark, files):
    peaks = {}
    race = Race("tiny", "LULC", (), ("--overlap", 0), 0, 1)

    def every_size():
        # Both hold groups with neighbours on all sides, whose halos are read.
        for side_px in (3584, 5376):
            report = ours(files, race, "--cube-px", side_px)
            peaks[side_px] = report["peak_rss_mib"]

    benchmark.pedantic(every_size, rounds=1)
    benchmark.extra_info.update(peak_mib=peaks)
    print("\n" + json.dumps(peaks))
    assert peaks[5376] < 1.15 * peaks[3584]


def test_memory_against_terratorch(benchmark, files, terratorch):
    race = Race("tiny", "LULC", DEFAULTS, SAME, 81, 2.0)
    reports = {}

    def both():
        common = arguments(files, race, "rival", side_px=1792)
        reports["terratorch"] = run([*terratorch, *common, *race.rival])
        reports["ours"] = ours(files, race, side_px=1792)

    benchmark.pedantic(both, rounds=1)
    peaks = {name: report["peak_rss_mib"] for name, report in reports.items()}
    benchmark.extra_info.update(
        peak_mib=peaks,
        times_less=round(peaks["terratorch"] / peaks["ours"], 2),
        seconds={name: report["seconds"] for name, report in reports.items()},
    )
    print("\n" + json.dumps(benchmark.extra_info, indent=1))
