"""S2L2A to LULC with TerraMind tiny against TerraTorch's tiled inference: speed and memory.

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
from pathlib import Path

import numpy as np
import pytest
from roofline import matmul_gflops, tile_flops
from seeded_weights import parity_kit, write_checkpoints, write_scene

HERE = Path(__file__).parent
THREADS = os.cpu_count() or 1
ROUNDS = 3
RIVAL_BATCHES = (1, 4)
SETTINGS = {
    # 25 tiles each: TerraTorch's defaults and ours.
    "overlapping": (["--stride", "192", "--delta", "8"], ["--overlap", "32"], 25),
    # 16 tiles each, without overlap.
    "abutting": (["--stride", "224", "--delta", "0"], ["--overlap", "0"], 16),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    if "TERRAMIND_CUBE_SHARED" not in os.environ:
        pytest.skip("TERRAMIND_CUBE_SHARED does not name the folder of the parity kit")
    kit, folder = parity_kit(), tmp_path_factory.mktemp("benchmark")
    weights = write_checkpoints(kit, folder)
    scenes = {size: write_scene(kit, folder / f"scene_{size}.npz", size) for size in (896, 1792)}
    return {
        "arguments": ["--weights", weights["tiny"], "--tokenizer", weights["tokenizer_lulc"]],
        "scenes": scenes,
        "folder": folder,
    }


@pytest.fixture(scope="session")
def terratorch():
    interpreter = os.environ.get("TERRAMIND_CUBE_TERRATORCH")
    if not interpreter:
        pytest.skip("TERRAMIND_CUBE_TERRATORCH does not name a Python that has terratorch")
    return [interpreter, HERE / "rivals" / "terratorch_lulc.py"]


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


def ours(files, *arguments):
    return run([sys.executable, HERE / "ours_lulc.py", *files["arguments"], *arguments])


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_seconds_against_terratorch(benchmark, files, terratorch, setting):
    rival_tiling, our_tiling, tiles = SETTINGS[setting]
    common = ["--scene", files["scenes"][896], "--threads", THREADS]
    out = [files["folder"] / "rival.npz", files["folder"] / "ours.npz"]
    pairs = []

    def one_round():
        # TerraTorch is given its best batch.
        rivals = [
            run([*terratorch, *files["arguments"], *common, *rival_tiling,
                 "--batch", batch, "--out", out[0]])
            for batch in RIVAL_BATCHES
        ]  # fmt: skip
        mine = ours(files, *common, *our_tiling, "--out", out[1])
        pairs.append((min(rivals, key=lambda report: report["seconds"]), mine))

    benchmark.pedantic(one_round, rounds=ROUNDS)
    ratio = statistics.median(rival["seconds"] / mine["seconds"] for rival, mine in pairs)
    seconds = statistics.median(mine["seconds"] for _, mine in pairs)
    gflops, work = matmul_gflops(THREADS), sum(tile_flops().values()) * tiles * 1e-9
    benchmark.extra_info.update(
        setting=setting,
        tiles=tiles,
        ours_s=seconds,
        terratorch_s=statistics.median(rival["seconds"] for rival, _ in pairs),
        times_terratorch=round(ratio, 3),
        ours_peak_mib=max(mine["peak_rss_mib"] for _, mine in pairs),
        terratorch_peak_mib=min(rival["peak_rss_mib"] for rival, _ in pairs),
        matmul_gflops=round(gflops, 1),
        roofline_s=round(work / gflops, 2),
        fraction_of_roofline=round(work / gflops / seconds, 3),
        versions={**pairs[0][0]["versions"], **pairs[0][1]["versions"]},
    )
    print("\n" + json.dumps(benchmark.extra_info, indent=1))


def test_greedy_classes_are_the_same(files, terratorch):
    """The race is between the same work: greedy maps differ only where blends differ."""
    common = ["--scene", files["scenes"][896], "--threads", THREADS, "--greedy"]
    rival_tiling, our_tiling, _ = SETTINGS["abutting"]
    maps = [files["folder"] / "greedy_rival.npz", files["folder"] / "greedy_ours.npz"]
    run([*terratorch, *files["arguments"], *common, *rival_tiling, "--out", maps[0]])
    ours(files, *common, *our_tiling, "--out", maps[1])
    rival, mine = (np.load(path)["LULC"] for path in maps)
    assert (rival == mine).mean() > 0.995


def test_memory_does_not_grow_with_the_scene(benchmark, files):
    peaks = {}

    def every_size():
        # Both hold groups with neighbours on all sides, whose halos are read.
        for side_px in (3584, 5376):
            report = ours(files, "--cube-px", side_px, "--threads", THREADS, "--overlap", 0)
            peaks[side_px] = report["peak_rss_mib"]

    benchmark.pedantic(every_size, rounds=1)
    benchmark.extra_info.update(peak_mib=peaks)
    print("\n" + json.dumps(peaks))
    assert peaks[5376] < 1.15 * peaks[3584]


def test_memory_against_terratorch(benchmark, files, terratorch):
    common = ["--scene", files["scenes"][1792], "--threads", THREADS]
    rival_tiling, our_tiling, _ = SETTINGS["overlapping"]
    out = ["--out", files["folder"] / "memory.npz"]
    reports = {}

    def both():
        reports["terratorch"] = run(
            [*terratorch, *files["arguments"], *common, *rival_tiling, "--batch", 4, *out]
        )
        reports["ours"] = ours(files, *common, *our_tiling, *out)

    benchmark.pedantic(both, rounds=1)
    peaks = {name: report["peak_rss_mib"] for name, report in reports.items()}
    benchmark.extra_info.update(
        peak_mib=peaks, seconds={name: report["seconds"] for name, report in reports.items()}
    )
    print("\n" + json.dumps(benchmark.extra_info, indent=1))
