"""One contestant of the cube benchmark in a process of its own: what is timed, and the report.

A contestant is a script that hands `run` a function from a job to a lazy xarray object. The job is
a JSON file: the items, the grid, the assets and the chunks, the same for all. Only numpy, xarray
and dask are imported here, so that a rival's own environment can run it. Standard output ends with
one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import platform
import resource
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array
import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Job", "read_job", "run"]


@dataclass(frozen=True)
class Job:
    """What every contestant does.

    Attributes
    ----------
    items : list of dict
        As the provider sends them.
    crs, transform, shape
        The grid.
    assets : list of str
        Asset keys of the bands.
    scl : str or None
        Asset key of the scene classification, where clouds are asked for.
    chunk_px, threads : int
    out : str or None
        Where to save the pixels, (time, band, y, x); None where nothing is computed.
    """

    items: list[dict[str, Any]]
    crs: str
    transform: list[float]
    shape: list[int]
    assets: list[str]
    scl: str | None
    chunk_px: int
    threads: int
    out: str | None

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top of the grid."""
        step_x, _, left, _, step_y, top = self.transform
        return left, top + step_y * self.shape[0], left + step_x * self.shape[1], top


def read_job() -> Job:
    """Read the job that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    return Job(**json.loads(parser.parse_args().job.read_text()))


def run(
    name: str,
    parse: Callable[[list[dict[str, Any]]], Any],
    build: Callable[[Job, Any], xr.Dataset | xr.DataArray],
    packages: tuple[str, ...],
    parts: Mapping[str, float] | None = None,
) -> None:
    """Time a contestant, and print its report.

    Parameters
    ----------
    name : str
    parse : callable
        Makes what a search would have returned of the items; not timed.
    build : callable
        Makes the lazy cube of a job and parsed items.
    packages : tuple of str
        Whose versions to report.
    parts : mapping of str to float, optional
        Seconds of parts of the last build, which the contestant has kept up to date.
    """
    warnings.simplefilter("ignore")
    job = read_job()
    # The first call pays for imports and for PROJ's tables.
    build(job, parse(job.items[:4]))
    items = parse(job.items)
    start = time.perf_counter()
    cube = build(job, items)
    built = time.perf_counter()
    # A layer of a graph may be a promise until it is looked at.
    tasks = len(dict(cube.__dask_graph__()))
    done = time.perf_counter()
    chunks = _count_chunks(cube)
    report = {
        "tool": name,
        "load_s": round(built - start, 3),
        "graph_s": round(done - built, 3),
        "build_s": round(done - start, 3),
        "parts_s": {part: round(seconds, 3) for part, seconds in (parts or {}).items()},
        "tasks": tasks,
        "output_chunks": chunks,
        "tasks_per_chunk": round(tasks / chunks, 3),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }
    if job.out is not None:
        report |= _compute(cube, job)
    print(json.dumps(report))


def _count_chunks(cube: xr.Dataset | xr.DataArray) -> int:
    """Count the chunks of a cube's lazy variables; coordinates count as well."""
    known = dict(cube.coords)
    known |= dict(cube.data_vars) if isinstance(cube, xr.Dataset) else {"pixels": cube}
    return sum(each.data.npartitions for each in known.values() if each.chunks is not None)


def _compute(cube: xr.Dataset | xr.DataArray, job: Job) -> dict[str, Any]:
    """Compute a cube to nowhere, as what goes to disk is, then into memory."""
    with dask.config.set(scheduler="threads", num_workers=job.threads):
        # Starts the threads and GDAL's drivers.
        cube.isel(time=0, y=slice(0, 16), x=slice(0, 16)).compute()
        gc.collect()
        before = _reset_peak()
        start = time.perf_counter()
        _stream(cube)
        stream_seconds = time.perf_counter() - start
        # In this order: what the first leaves with the allocator is small beside the second.
        stream_peak = _peak_rss_bytes()
        _reset_peak()
        start, cpu_start = time.perf_counter(), time.process_time()
        computed = cube.compute()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        peak = _peak_rss_bytes()
    pixels = _stacked(computed, job)
    np.save(str(job.out), pixels)
    return {
        "compute_s": round(seconds, 3),
        "cpu_s": round(cpu_seconds, 3),
        "peak_mib": (peak - before) >> 20,
        "peak_rss_mib": peak >> 20,
        "stream_s": round(stream_seconds, 3),
        "stream_peak_mib": (stream_peak - before) >> 20,
        "output_mib": pixels.nbytes >> 20,
    }


class _Nowhere:
    """A store that keeps nothing."""

    def __setitem__(self, region: Any, pixels: Any) -> None:
        pass


def _stream(cube: xr.Dataset | xr.DataArray) -> None:
    arrays = [cube.data] if isinstance(cube, xr.DataArray) else []
    if isinstance(cube, xr.Dataset):
        arrays = [each.data for each in cube.data_vars.values() if each.chunks is not None]
    dask.array.store(arrays, [_Nowhere() for _ in arrays], lock=False)


def _stacked(cube: xr.Dataset | xr.DataArray, job: Job) -> np.ndarray:
    """Return the bands as (time, band, y, x)."""
    if isinstance(cube, xr.DataArray):
        return cube.values
    if "S2L2A" in cube:
        return cube["S2L2A"].values
    return np.stack([cube[asset].values for asset in job.assets], axis=1)


def _reset_peak() -> int:
    """Let the peak start anew where the kernel can, and return the memory in use."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_rss_bytes()


def _peak_rss_bytes() -> int:
    """Return the peak resident memory since `_reset_peak`, outside Linux since the start."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
