"""The cube against odc-stac and stackstac: building it of 1,000 items, and computing it.

All read the same items onto the same grid, each contestant in a process of its own, in turns.
stackstac runs under the interpreter named by ``TERRAMIND_CUBE_STACKSTAC`` (see the README of this
folder). The figures are printed and kept in ``results/cube_*.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from affine import Affine
from dask._task_spec import Task
from odc.geo.geobox import GeoBox
from sentinel2_items import BANDS, PROVIDERS, area_grid, make_items

from terramind_cube.synthetic import write_catalog

HERE = Path(__file__).parent
DAYS = 250
SIDE_PX, CHUNK_PX = 4480, 896
THREADS = 2
GOAL = 1.2  # of odc-stac's time to build
SCENE_PX = 1792


@pytest.fixture(scope="session")
def contestants():
    """Return the command of each contestant; stackstac only where its interpreter is named."""
    commands = {
        "ours": [sys.executable, HERE / "ours_cube.py"],
        "odc-stac": [sys.executable, HERE / "rivals" / "odc_cube.py"],
        "rasterio": [sys.executable, HERE / "read_roofline.py"],
    }
    if interpreter := os.environ.get("TERRAMIND_CUBE_STACKSTAC"):
        commands["stackstac"] = [interpreter, HERE / "rivals" / "stackstac_cube.py"]
    return commands


def require(contestants, rival):
    if rival not in contestants:
        pytest.skip("TERRAMIND_CUBE_STACKSTAC does not name a Python that has stackstac")


def run(command, job):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [*map(str, command), str(job)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def write_job(path, items, geobox, assets, **further):
    job = {
        "items": items,
        "crs": str(geobox.crs),
        "transform": list(geobox.affine)[:6],
        "shape": list(geobox.shape.yx),
        "assets": list(assets),
        "scl": None,
        "chunk_px": CHUNK_PX,
        "threads": THREADS,
        "out": None,
    }
    path.write_text(json.dumps(job | further))
    return path


def median(reports, key):
    return round(statistics.median(report[key] for report in reports), 3)


def ratio(pairs, key):
    """Return what ours takes of what the rival takes, the median of the rounds."""
    return round(statistics.median(mine[key] / their[key] for their, mine in pairs), 3)


def keep(name, case, info):
    """Print a comparison, and write it among the figures that the README quotes."""
    print("\n" + json.dumps(info, indent=1))
    path = HERE / "results" / f"cube_{name}.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, case: info}, indent=1) + "\n")


def bare_graph_seconds(tasks):
    """Return the time to make so many tasks that share what they read: no graph takes less."""
    shared, seconds = object(), []
    for _ in range(3):
        start = time.perf_counter()
        graph = {("read", number): Task(("read", number), id, shared) for number in range(tasks)}
        seconds.append(time.perf_counter() - start)
        assert len(graph) == tasks
    return statistics.median(seconds)


@pytest.fixture(scope="session")
def build_jobs(tmp_path_factory):
    folder, grid = tmp_path_factory.mktemp("build"), area_grid(SIDE_PX)
    jobs = {}
    for name, provider in PROVIDERS.items():
        items = make_items(name, DAYS)
        for clouds in (False, True):
            path = folder / f"{name}-{clouds}.json"
            scl = provider.scl if clouds else None
            jobs[name, clouds] = write_job(path, items, grid, provider.assets, scl=scl)
    return jobs


# stackstac stacks every item, so that its graph of a thousand takes most of a minute.
@pytest.mark.parametrize(("rival", "rounds"), [("odc-stac", 3), ("stackstac", 1)])
@pytest.mark.parametrize("clouds", [False, True], ids=["bands", "bands-and-clouds"])
@pytest.mark.parametrize("provider", list(PROVIDERS))
def test_seconds_to_build(benchmark, contestants, build_jobs, provider, clouds, rival, rounds):
    if rival == "stackstac" and clouds:
        pytest.skip("stackstac knows one dtype: the classification would need a stack of its own")
    require(contestants, rival)
    job, pairs = build_jobs[provider, clouds], []

    def one_round():
        pairs.append([run(contestants[name], job) for name in (rival, "ours")])

    benchmark.pedantic(one_round, rounds=rounds)
    theirs, ours = zip(*pairs, strict=True)
    searches = [report["parts_s"]["search"] for report in ours]
    unsearched = [
        (mine["build_s"] - search) / their["build_s"]
        for their, mine, search in zip(theirs, ours, searches, strict=True)
    ]
    info = {
        "what": f"{4 * DAYS} items of {provider}, {SIDE_PX} x {SIDE_PX} px, chunks of {CHUNK_PX}, "
        f"12 bands{' and clouds' if clouds else ''}: seconds of each round, graph included",
        "of_rival": ratio(pairs, "build_s"),
        "of_rival_without_search": round(statistics.median(unsearched), 3),
        "goal": GOAL if rival == "odc-stac" else None,
        "ours_s": [report["build_s"] for report in ours],
        f"{rival}_s": [report["build_s"] for report in theirs],
        "ours_search_s": searches,
        "bare_graph_s": round(bare_graph_seconds(ours[0]["tasks"]), 3),
        **{
            f"{name}_{key}": report[0][key]
            for name, report in (("ours", ours), (rival, theirs))
            for key in ("tasks", "output_chunks", "tasks_per_chunk")
        },
        "versions": {**theirs[0]["versions"], **ours[0]["versions"]},
    }
    benchmark.extra_info.update(info)
    keep("build", f"{provider}, bands{' and clouds' if clouds else ''}, {rival}", info)


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """Return items of real files with absolute paths, and the grid that they lie on."""
    root = write_catalog(tmp_path_factory.mktemp("cube") / "place", size_px=SCENE_PX)
    found = []
    for item in pystac.Catalog.from_file(str(root)).get_child("sentinel-2-l2a").get_items():
        hrefs = {key: asset.get_absolute_href() for key, asset in item.assets.items()}
        described = item.to_dict(transform_hrefs=False, include_self_link=False)
        described["links"] = []
        for key, href in hrefs.items():
            described["assets"][key]["href"] = href
        found.append(described)
    finest = found[0]["assets"]["B02"]
    affine = Affine(*finest["proj:transform"][:6])
    return found, GeoBox(tuple(finest["proj:shape"]), affine, found[0]["properties"]["proj:code"])


def neighbouring(geobox):
    """Return a grid over the same area in the next UTM zone."""
    code = geobox.crs.epsg
    crs = f"EPSG:{code - code % 100 + code % 100 % 60 + 1}"
    return GeoBox.from_bbox(geobox.extent.to_crs(crs).boundingbox.bbox, crs, resolution=10)


def exact_pixels(href, geobox):
    """Return the pixel of a file under the centre of each pixel of a grid, 0 outside."""
    with rasterio.open(href) as dataset:
        pixels = np.pad(dataset.read(1), 1)
        affine, crs = dataset.transform, str(dataset.crs)
    rows, columns = np.mgrid[: geobox.shape.y, : geobox.shape.x] + 0.5
    x = geobox.affine.c + geobox.affine.a * columns.ravel()
    y = geobox.affine.f + geobox.affine.e * rows.ravel()
    x, y = (np.asarray(v) for v in geobox.crs.transformer_to_crs(crs)(x, y))
    columns = np.floor((x - affine.c) / affine.a).astype(int) + 1
    rows = np.floor((y - affine.f) / affine.e).astype(int) + 1
    last = np.subtract(pixels.shape, 1)
    found = pixels[np.clip(rows, 0, last[0]), np.clip(columns, 0, last[1])]
    return found.reshape(geobox.shape.yx)


@pytest.mark.parametrize("rival", ["odc-stac", "stackstac"])
@pytest.mark.parametrize("case", ["same_grid", "next_zone"])
def test_seconds_and_memory_to_compute(benchmark, contestants, scene, tmp_path, case, rival):
    """The pixels are nearest neighbours everywhere; a warp's may differ along its blocks."""
    require(contestants, rival)
    items, geobox = scene
    geobox = geobox if case == "same_grid" else neighbouring(geobox)
    names = ("rasterio", rival, "ours")
    jobs = {
        name: write_job(
            tmp_path / f"{name}.json", items, geobox, BANDS, out=str(tmp_path / f"{name}.npy")
        )
        for name in names
    }
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def one_round():
        for name in names:
            reports[name].append(run(contestants[name], jobs[name]))

    benchmark.pedantic(one_round, rounds=5)
    roof, theirs, ours = reports.values()
    pairs = list(zip(theirs, ours, strict=True))
    theirs_px, ours_px = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in names[1:])
    same = float(np.mean(theirs_px == ours_px))
    exact = exact_pixels(items[0]["assets"]["B02"]["href"], geobox)
    info: dict[str, Any] = {
        "what": f"{len(items)} dates, 12 bands, {geobox.shape.y} x {geobox.shape.x} px, "
        f"{'the files own grid' if case == 'same_grid' else 'warped to the next UTM zone'}, "
        f"{THREADS} threads, local files: medians; peaks are above what was in use before",
        "same_pixels": round(same, 5),
        "of_rival": ratio(pairs, "compute_s"),
        "of_rival_cpu": ratio(pairs, "cpu_s"),
        "fraction_of_roofline": round(
            statistics.median(
                a["compute_s"] / b["compute_s"] for a, b in zip(roof, ours, strict=True)
            ),
            3,
        ),
        "read_mib": roof[0]["read_mib"],
        "rasterio": {key: median(roof, key) for key in ("compute_s", "mib_per_s")},
    }
    measured = ("compute_s", "cpu_s", "stream_s", "peak_mib", "peak_rss_mib", "stream_peak_mib")
    for name, found in (("ours", ours), (rival, theirs)):
        rate = round(roof[0]["read_mib"] / median(found, "compute_s"))
        info[name] = {key: median(found, key) for key in measured} | {"mib_per_s": rate}
        pixels = ours_px if name == "ours" else theirs_px
        info[name]["exact_pixels_of_b02"] = round(float(np.mean(pixels[0, 1] == exact)), 6)
    info["output_mib"] = ours[0]["output_mib"]
    info["tasks"] = {"ours": ours[0]["tasks"], rival: theirs[0]["tasks"]}
    benchmark.extra_info.update(info)
    keep("compute", f"{case}, {rival}", info)
    assert ours_px.dtype == theirs_px.dtype
    assert same == 1 if case == "same_grid" else same > 0.99
