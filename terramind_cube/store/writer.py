"""The bulk loop: computes a lazy result region by region into a Zarr 3 store.

One region is one dask computation that ends in whole-chunk writes, on the worker that holds the
pixels; only digests come back. A receipt follows each region, so a killed run continues where it
was, to the same bytes (at least once + idempotent writes, see `terramind_cube.store.ledger`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.base import get_scheduler
from dask.delayed import delayed

from terramind_cube.store import conventions, ledger
from terramind_cube.store.places import only_writer, store_path
from terramind_cube.store.regions import RegionPlan, plan_regions

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    Written = tuple[dict[str, str], list[str]]
    Outcome = tuple[RegionPlan, float, Callable[[], Written]]

__all__ = ["RegionError", "write_result"]

# One is computed while the next is read; beside a GPU the last one is still being written.
_IN_FLIGHT_PER_WORKER = 2
_IN_FLIGHT_PER_SLOT = 2
_AHEAD_OF_GPU = 3


class RegionError(ValueError):
    """A region could not be computed or written; finished ones keep their receipts.

    Attributes
    ----------
    region : str
        Key of the region, such as ``"time0-1_y0-896_x896-1792"``.
    """

    def __init__(self, message: str, region: str = "") -> None:
        super().__init__(message)
        self.region = region


def write_result(
    result: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    regions: Sequence[Mapping[str, slice]],
    fingerprint: Mapping[str, Any],
    resume: bool | Literal["same-pixels"] = False,
    progress: Callable[[int, int, ledger.Receipt], object] | None = None,
) -> Path:
    """Compute a lazy result into a georeferenced Zarr 3 store, region by region.

    Under the active dask scheduler: two regions per worker in flight on a distributed cluster
    (which must see `path`), else one at a time, and three beside a
    GPU. What was made for a GPU (``compute_device`` of the
    fingerprint) goes to the workers that declare a resource "GPU", if there are any, one task of
    the model per GPU; see `terramind_cube.gpu_cluster`. All is checked before anything is written.

    Parameters
    ----------
    result : xarray.Dataset
        See `terramind_cube.store.conventions.prepare`.
    path : path-like
        Folder of the store; its parent must exist.
    regions : sequence of mapping of str to slice
        Ranges by dimension (left out: whole) that cover whole dask chunks and together tile each
        variable once. The first region that meets a static layer writes it; of a variable whose
        part is empty a region writes nothing.
    fingerprint : mapping
        JSON-able settings that decide the bytes (model, seed, ...); ``layout`` is added here.
    resume : bool or "same-pixels", optional
        Continue a store of the same fingerprint, or begin anew where nothing exists. With
        "same-pixels" the caller vouches for the input's pixels, which are not compared.
    progress : callable, optional
        Called with (regions done, all regions, receipt) after each region.

    Returns
    -------
    pathlib.Path
        Absolute path of the complete store.

    Raises
    ------
    FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError
        If `path` exists without `resume`, or its parent is missing, a file, or not writable.
    ValueError
        If regions do not fit the chunks, the grid is missing, or `path` holds another result.
    BlockingIOError
        If another process is writing there, see `terramind_cube.store.places.only_writer`.
    RegionError
        If a region fails.

    Warns
    -----
    UserWarning
        If pixels of an input have a random name, so that a later run cannot compare them.
    """
    target = store_path(path)
    _check_choices(resume, progress)
    exists = _check_target(target, resume=bool(resume))
    if "layout" in fingerprint:
        raise ValueError("fingerprint['layout'] is set by the store; use another key.")
    settings = ledger.normalize_fingerprint(fingerprint)
    lazy = all(array.chunks is not None for array in result.data_vars.values())
    chunked = result if lazy else result.chunk()
    plans = plan_regions(chunked, regions)
    prepared = conventions.prepare(chunked)
    settings["layout"] = _describe_layout(prepared, plans)
    on_gpu = str(settings.get("compute_device")).startswith("cuda")
    with only_writer(target):
        # Another run may have begun, and ended, since.
        if exists or _check_target(target, resume=bool(resume)):
            ledger.check_run(target, settings, same_pixels=resume == "same-pixels")
        else:
            _warn_of_random_names(settings.get(ledger.PIXELS, {}))
            _create_template(prepared, target, settings, regions=len(plans))
        _write_regions(prepared, target, plans, progress, on_gpu=on_gpu)
    return target


def _check_choices(resume: object, progress: object) -> None:
    if not isinstance(resume, bool) and resume != "same-pixels":
        raise ValueError(f"resume={resume!r}: give True, False, or 'same-pixels'.")
    if progress is not None and not callable(progress):
        raise ValueError(f"progress={progress!r}: give a function of (done, total, receipt).")


def _warn_of_random_names(pixels: Mapping[str, Any]) -> None:
    for name, row in pixels.items():
        if "random" in row:
            warnings.warn(
                f"{name} has a random dask name ({row['random']}), as of from_array(..., "
                "name=False): resume=True will not know its pixels again in a new session. Leave "
                "the name to dask, or resume with resume='same-pixels'.",
                UserWarning,
                stacklevel=3,
            )


def _check_target(target: Path, *, resume: bool) -> bool:
    """Return whether a store to continue exists."""
    if os.path.lexists(target):
        if not resume:
            raise FileExistsError(
                f"{target} exists already. Pass resume=True to continue it, or choose another path."
            )
        ledger.read_run(target)
        return True
    parent = target.parent
    if not parent.exists():
        raise FileNotFoundError(f"The folder {parent} for the store does not exist. Create it.")
    if not parent.is_dir():
        raise NotADirectoryError(f"{parent} is a file, so no store can be written in it.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder {parent} is not writable. Choose another path.")
    return False


def _describe_layout(prepared: xr.Dataset, plans: Sequence[RegionPlan]) -> dict[str, Any]:
    """Return what must agree between two runs for their chunks to fit into one store."""
    attrs = prepared.attrs
    tiling = hashlib.sha256("\n".join(plan.key for plan in plans).encode()).hexdigest()
    return {
        "grid": {
            "crs": attrs.get("proj:code", attrs["proj:wkt2"]),
            "shape": attrs["spatial:shape"],
            "transform": attrs["spatial:transform"],
        },
        "coordinates": {
            str(name): _digest(coord.values)
            for name, coord in prepared.coords.items()
            if name not in ("y", "x", conventions.GRID_MAPPING)
        },
        "variables": {
            str(name): {
                "dims": list(map(str, array.dims)),
                "shape": list(array.shape),
                "chunks": list(array.encoding["chunks"]),
                "dtype": str(array.dtype),
            }
            for name, array in prepared.data_vars.items()
        },
        "regions": {"count": len(plans), "sha256": tiling},
    }


def _create_template(
    prepared: xr.Dataset, target: Path, settings: Mapping[str, Any], *, regions: int
) -> None:
    """Write metadata, coordinates and ledger under another name, then rename."""
    prefix = f".{target.name}.partial-"
    for stale in target.parent.iterdir():
        if stale.name.startswith(prefix):
            shutil.rmtree(stale, ignore_errors=True)
    scratch = target.with_name(f"{prefix}{uuid.uuid4().hex}")
    empty = {
        name: array.variable.copy(data=da.zeros(array.shape, dtype=array.dtype, chunks=-1))
        for name, array in prepared.data_vars.items()
    }
    template = xr.Dataset(empty, coords=prepared.coords, attrs=prepared.attrs)
    template.attrs[ledger.UNFINISHED] = (
        "This store is not finished: what is missing reads as nodata. Write it again with "
        "resume=True; `terramind-cube info` tells how far it is."
    )
    try:
        template.to_zarr(scratch, mode="w-", zarr_format=3, consolidated=False, compute=False)
        group = zarr.open_group(scratch, mode="r+", zarr_format=3)
        # As a group, the ledger is a known member: listing the store does not warn about it.
        group.create_group(ledger.LEDGER)
        _consolidate(group, scratch)
        ledger.start_run(scratch, settings, regions=regions)
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _consolidate(group: zarr.Group, root: Path) -> None:
    """Write the metadata of all variables where readers look for them at once."""
    with warnings.catch_warnings():
        # Without it a plain xr.open_zarr warns; zarr warns that it is not in the core spec.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        # Beside the arrays lie the ledger and the metadata in Zarr 2 terms.
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        zarr.consolidate_metadata(group.store, zarr_format=3)
    legacy = json.dumps(conventions.legacy_metadata(group), indent=2, sort_keys=False)
    scratch = root / ".zmetadata.partial"
    scratch.write_text(legacy + "\n", encoding="utf-8")
    scratch.replace(root / ".zmetadata")


def _write_regions(
    prepared: xr.Dataset,
    target: Path,
    plans: Sequence[RegionPlan],
    progress: Callable[[int, int, ledger.Receipt], object] | None,
    *,
    on_gpu: bool,
) -> None:
    from terramind_cube.inference.mapping import group_remarks

    finished = ledger.completed(target)
    missing = [plan for plan in plans if plan.key not in finished]
    done = len(plans) - len(missing)
    within = group_remarks(prepared)
    tasks = ((plan, _build_task(prepared, target, plan, within)) for plan in missing)
    client = _find_client()
    compute = _compute_locally if client is None else partial(_compute_on, client)
    outcomes = compute(tasks, on_gpu)
    with closing(outcomes):
        for plan, begin, collect in outcomes:
            try:
                digests, remarks = collect()
            except Exception as error:
                raise RegionError(
                    f"Region {plan.key} of {target} failed: {type(error).__name__}: {error} "
                    f"({done} of {len(plans)} regions are finished; resume=True continues.)",
                    plan.key,
                ) from error
            seconds = time.perf_counter() - begin
            receipt = ledger.write_receipt(
                target,
                plan.key,
                region=plan.bounds,
                seconds=seconds,
                sha256=digests,
                remarks=remarks,
            )
            ledger.note_failures(target, prepared.attrs.get("read_failures", ()))
            done += 1
            if progress is not None:
                progress(done, len(plans), receipt)
    for leftover in target.rglob("*.partial"):
        # A process killed inside a write leaves the temporary file of zarr or of the ledger.
        leftover.unlink(missing_ok=True)
    if ledger.read_run(target).status != "complete":
        group = zarr.open_group(target, mode="r+", zarr_format=3)
        attrs = {key: value for key, value in group.attrs.items() if key != ledger.UNFINISHED}
        if failures := ledger.noted_failures(target):
            attrs["read_failures"] = failures
        group.attrs.put(attrs)
        _consolidate(group, target)
        ledger.finish_run(target)


def _build_task(
    prepared: xr.Dataset,
    target: Path,
    plan: RegionPlan,
    within: Callable[[Mapping[str, tuple[int, int]]], Any] | None = None,
) -> Any:
    write = delayed(partial(_write_blocks, str(target), dict(plan.blocks)), pure=False)
    arrays = {name: prepared[name].data[index] for name, index in plan.blocks.items()}
    remarks = [] if within is None else within(plan.bounds)
    return write(arrays, remarks, dask_key_name=f"write-{plan.key}-{uuid.uuid4().hex[:8]}")


def _write_blocks(
    root: str,
    index: Mapping[str, tuple[slice, ...]],
    blocks: Mapping[str, NDArray[Any]],
    remarks: list[str],
) -> Written:
    """Write whole chunks; return the digest of each variable, and the remarks."""
    digests = {}
    for name, block in blocks.items():
        array: Any = zarr.open_array(
            root, path=name, mode="r+", zarr_format=3, config={"write_empty_chunks": False}
        )
        shape = tuple(part.stop - part.start for part in index[name])
        if block.shape != shape or block.dtype != array.dtype:
            raise ValueError(
                f"{name} came as {block.dtype}{block.shape}, its metadata promised "
                f"{array.dtype}{shape}. Correct the dtype or the chunks of the lazy result."
            )
        array[index[name]] = block
        digests[name] = _digest(block)
    return digests, remarks


def _digest(values: NDArray[Any]) -> str:
    if values.dtype.kind in "OUT":
        return hashlib.sha256("\0".join(map(str, values.ravel())).encode()).hexdigest()
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()


def _find_client() -> Any:
    """Return the distributed client behind the active scheduler, None for a local one."""
    scheduler: Any = get_scheduler()
    owner = getattr(scheduler, "__self__", None)
    return owner if hasattr(owner, "scheduler_info") else None


def _compute_locally(tasks: Iterator[tuple[RegionPlan, Any]], on_gpu: bool) -> Generator[Outcome]:
    if not on_gpu:
        for plan, task in tasks:
            yield plan, time.perf_counter(), task.compute
        return
    # A GPU computes one region while the next one is read and the last one written.
    pending: deque[tuple[RegionPlan, float, Future[Written]]] = deque()
    with ThreadPoolExecutor(_AHEAD_OF_GPU) as pool:
        try:
            while True:
                for plan, task in islice(tasks, _AHEAD_OF_GPU - len(pending)):
                    pending.append((plan, time.perf_counter(), pool.submit(task.compute)))
                if not pending:
                    return
                plan, begin, future = pending.popleft()
                yield plan, begin, future.result
        finally:
            for _, _, future in pending:
                future.cancel()


def _compute_on(
    client: Any, tasks: Iterator[tuple[RegionPlan, Any]], on_gpu: bool
) -> Generator[Outcome]:
    """Keep a window of regions in flight, so that the scheduler never holds the whole graph."""
    from distributed import as_completed

    options, window = _place_on_gpus(client) if on_gpu else ({}, 0)
    # `nthreads` has one entry per worker.
    window = window or _IN_FLIGHT_PER_WORKER * max(1, len(client.nthreads()))
    pending: dict[Any, tuple[RegionPlan, float]] = {}

    def submit(amount: int) -> list[Any]:
        futures = []
        for plan, task in islice(tasks, amount):
            future = client.compute(task, **options)
            pending[future] = (plan, time.perf_counter())
            futures.append(future)
        return futures

    arriving: Any = as_completed(submit(window))  # type: ignore[no-untyped-call]
    try:
        for future in arriving:
            plan, begin = pending.pop(future)
            yield plan, begin, future.result
            arriving.update(submit(1))
    finally:
        client.cancel(list(pending))


def _place_on_gpus(client: Any) -> tuple[dict[str, Any], int]:
    """Return how regions are sent to a cluster's GPUs and how many at once, 0 if it has none.

    A whole region sent with ``resources={"GPU": 1}`` would hold its GPU while it is read and
    written; asked per key, after optimisation, only the model's task takes it.
    """
    from terramind_cube.inference.runtime import release_gpus
    from terramind_cube.store.cluster import count_slots, gpu_resources

    slots = count_slots(client)
    if not slots:
        return {}, 0
    # A trial of the compute batch left the model here; a worker on the same GPU needs the memory.
    release_gpus()
    return {"resources": gpu_resources}, _IN_FLIGHT_PER_SLOT * slots
