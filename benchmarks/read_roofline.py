"""What no cube can beat: plain rasterio reads of the windows that its chunks need.

``python benchmarks/read_roofline.py JOB`` reads, for every item, band and chunk of a job, the
pixels of the file under the chunk, at the file's own resolution, on as many threads, and drops
them. Nothing is resampled, moved or kept. Standard output ends with one JSON line.
"""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import rasterio
from cube_contest import Job, read_job
from rasterio.warp import transform_bounds
from rasterio.windows import Window, from_bounds


def chunk_bounds(job: Job) -> list[tuple[float, float, float, float]]:
    """Return left, bottom, right and top of each chunk."""
    step_x, _, left, _, step_y, top = job.transform
    height, width = job.shape
    found = []
    for y in range(0, height, job.chunk_px):
        for x in range(0, width, job.chunk_px):
            y1, x1 = min(y + job.chunk_px, height), min(x + job.chunk_px, width)
            found.append(
                (left + x * step_x, top + y1 * step_y, left + x1 * step_x, top + y * step_y)
            )
    return found


def read_window(href: str, crs: str, bounds: tuple[float, float, float, float]) -> int:
    """Read what lies under some bounds, and return its bytes."""
    with rasterio.open(href) as dataset:
        if dataset.crs != rasterio.crs.CRS.from_user_input(crs):
            bounds = transform_bounds(crs, dataset.crs, *bounds)
        window = from_bounds(*bounds, dataset.transform)
        row, column = (max(math.floor(v + 1e-6), 0) for v in (window.row_off, window.col_off))
        end_row = min(math.ceil(window.row_off + window.height - 1e-6), dataset.height)
        end_column = min(math.ceil(window.col_off + window.width - 1e-6), dataset.width)
        if end_row <= row or end_column <= column:
            return 0
        inner = Window(column, row, end_column - column, end_row - row)
        return dataset.read(1, window=inner).nbytes


def main() -> None:
    job = read_job()
    reads = [
        (item["assets"][asset]["href"], job.crs, bounds)
        for item in job.items
        for asset in job.assets
        for bounds in chunk_bounds(job)
    ]
    with ThreadPoolExecutor(job.threads) as pool:
        # Starts the threads and GDAL's drivers.
        list(pool.map(read_window, *zip(*reads[: job.threads], strict=True)))
        start, cpu_start = time.perf_counter(), time.process_time()
        read_bytes = sum(pool.map(read_window, *zip(*reads, strict=True)))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    report = {
        "tool": "rasterio",
        "compute_s": round(seconds, 3),
        "cpu_s": round(cpu_seconds, 3),
        "windows": len(reads),
        "read_mib": read_bytes >> 20,
        "mib_per_s": round(read_bytes / 2**20 / seconds),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
