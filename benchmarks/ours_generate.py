"""Our side of the comparison: `cube.terramind.generate` from S2L2A, timed in a process of its own.

Takes the arguments of ``rivals/terratorch_generate.py`` as far as they mean something here, and
ends with the same JSON line. `--tiles` cuts a row of so many tiles off the scene. `--cube-px` takes
a lazy cube of that size in place of a scene in memory, and writes a store, to show how memory grows
with the scene.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import dask.array as da
import numpy as np
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import terramind_cube  # noqa: F401  # registers the accessor
from terramind_cube.modalities import MODALITIES

TILE_PX = 224


def make_cube(pixels):
    """Put (12, H, W) pixels on a grid whose lattice of tiles starts at the corner."""
    origin = Affine(10, 0, 0, 0, -10, 224 * 192 * 100)
    geobox = GeoBox(pixels.shape[1:], origin, "EPSG:32632")
    return xr.Dataset(
        {"S2L2A": (("time", "S2L2A_band", "y", "x"), pixels[None])},
        coords={
            **xr_coords(geobox),
            "S2L2A_band": list(MODALITIES["S2L2A"].bands),
            "time": np.array(["2024-05-14"], "M8[ns]"),
        },
    )


def lazy_pixels(side_px):
    """Random pixels, made chunk by chunk."""
    chunks = (12, 448, 448)
    return da.random.default_rng(0).integers(
        1, 8000, (12, side_px, side_px), "uint16", chunks=chunks
    )


def peak_mib():
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def reset_peak():
    clear = Path("/proc/self/clear_refs")
    if clear.is_file():
        clear.write_text("5")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("weights", "tokenizer"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--cube-px", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--output", default="LULC")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--sampler", default="dpm++")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--tiles", type=int)
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--greedy", action="store_true")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    pixels = (
        lazy_pixels(arguments.cube_px)
        if arguments.cube_px
        else np.load(arguments.scene)["S2L2A"].astype(np.uint16)
    )
    if arguments.tiles:
        pixels = pixels[:, :TILE_PX, : TILE_PX * arguments.tiles]
    output = arguments.output
    settings = {
        "model": f"terramind_v1_{arguments.size}",
        "weights": arguments.weights,
        "tokenizer_weights": {output: arguments.tokenizer},
        "steps": arguments.steps,
        "sampler": arguments.sampler,
        "precision": arguments.precision,
        "temperature": 0.0 if arguments.greedy else 1.0,
        "overlap": arguments.overlap,
        "compute_batch": arguments.batch,
        "threads": arguments.threads,
    }
    cube = make_cube(pixels)
    corner = cube.isel(y=slice(TILE_PX), x=slice(TILE_PX))
    corner.terramind.generate([output], **{**settings, "steps": 1}).compute()
    loaded_mib = peak_mib()
    reset_peak()
    runs = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        if arguments.cube_px:
            with tempfile.TemporaryDirectory() as folder:
                cube.terramind.write(Path(folder) / "made.zarr", [output], **settings)
        else:
            result = cube.terramind.generate([output], **settings).compute()
        runs.append(time.perf_counter() - start)
    peak = peak_mib()
    if arguments.out and not arguments.cube_px:
        np.savez_compressed(arguments.out, **{output: result[output].values[0]})
    report = {
        "package": "terramind_cube",
        "seconds": round(statistics.median(runs), 3),
        "seconds_runs": [round(run, 3) for run in runs],
        "peak_rss_mib": peak,
        "peak_rss_loading_mib": loaded_mib,
        "shape": list(pixels.shape[1:]),
        **{name: getattr(arguments, name) for name in ("size", "output", "steps", "precision")},
        "overlap": arguments.overlap,
        "greedy": arguments.greedy,
        "threads": arguments.threads,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("terramind-cube", "torch", "dask", "numpy")},
        },
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
