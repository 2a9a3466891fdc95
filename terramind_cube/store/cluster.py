"""Machines with GPUs: one process per GPU, and the model's tasks on them alone."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from distributed import LocalCluster, Nanny

from terramind_cube.inference.mapping import runs_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["count_slots", "gpu_cluster", "gpu_resources"]

RESOURCE = "GPU"
SLOTS = 2
_DEVICE = re.compile(r"[0-9]+|(GPU|MIG)-.+")
_FIXED = ("n_workers", "processes", "worker_class", "CUDA_VISIBLE_DEVICES")


def gpu_cluster(
    devices: Sequence[int | str] | str | None = None,
    *,
    threads_per_worker: int = 4,
    memory_limit: str | float | None = "auto",
    **options: Any,
) -> LocalCluster:
    """Start a Dask cluster on this machine with one process per GPU.

    To each process its own GPU is ``cuda`` (so generate with ``device="cuda"``, not ``"cuda:1"``).
    A task of the model takes ``{"GPU": 1}`` of the ``{"GPU": 2}`` that a process declares: the model
    runs one at a time, while the pixels of the next one go up and the results of the last one come
    back. Other threads read and write meanwhile.

    ``cube.terramind.write`` sends the model's tasks to the GPUs by itself. Other ways to compute a
    lazy result take `gpu_resources`; without it tasks of the model that wait for their turn occupy
    the threads of a process::

        with tc.gpu_cluster() as cluster, Client(cluster) as client:
            cube.terramind.write("out.zarr", ["LULC"], device="cuda")
            future = client.compute(result, resources=tc.gpu_resources)
            with dask.annotate(resources=tc.gpu_resources):
                result.to_zarr("other.zarr")

    Without ``compute_batch``, `generate` tries in the calling process what fits into the memory that
    is free on its GPU. Once the processes hold models, give the batch.

    Parameters
    ----------
    devices : sequence of int or str, or str, optional
        GPUs as ``CUDA_VISIBLE_DEVICES`` names them, such as ``[0, 1]``; one that is given twice gets
        two processes. All that torch sees by default.
    threads_per_worker : int, optional
        Threads of each process.
    memory_limit : str, int, float or None, optional
        Host memory of each process, as `distributed.LocalCluster` takes it; "auto" is an equal part
        for each.
    **options
        Further arguments of `dask_cuda.LocalCUDACluster` where that is installed, else of
        `distributed.LocalCluster`, such as ``dashboard_address``; none that says how many processes
        there are, which `devices` does.

    Returns
    -------
    distributed.LocalCluster
        Running; a context manager, or to be closed with its ``close``.

    Raises
    ------
    ValueError
        If there is no GPU and none was named, or an argument does not fit.
    """
    names = _list_devices(devices)
    _check_threads(threads_per_worker, options)
    options["resources"] = {**(options.get("resources") or {}), RESOURCE: SLOTS}
    options["threads_per_worker"] = threads_per_worker
    cuda: Any = None
    if len(set(names)) == len(names):
        with suppress(ImportError):
            cuda = importlib.import_module("dask_cuda")
    cluster: LocalCluster
    if cuda is not None:
        # It also binds each process to the cores beside its GPU.
        options["memory_limit"] = memory_limit
        cluster = cuda.LocalCUDACluster(CUDA_VISIBLE_DEVICES=names, **options)
        return cluster
    if memory_limit != "auto":
        # A Nanny's own "auto" would be a part by threads, not by processes.
        options["memory_limit"] = memory_limit
    cluster = LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=len(names),
        processes=True,
        worker_class=partial(_start_on_device, tuple(names)),
        **options,
    )
    return cluster


def gpu_resources(key: object) -> dict[str, float]:
    """Return what a task of a generated result takes: a GPU if it runs the model, else nothing.

    Distributed asks it for every task when it is given as ``resources=`` to ``client.compute`` and
    ``client.persist``, or to `dask.annotate` around the call that computes. Annotations from where
    the graph is built would be lost when it is optimised.

    Parameters
    ----------
    key : str or tuple
        Of the task.

    Returns
    -------
    dict of str to float
        ``{"GPU": 1}`` or ``{}``.
    """
    return {RESOURCE: 1} if runs_model(key) else {}


def count_slots(client: Any) -> int:
    """Return how many tasks of a model the workers of a distributed client take at once."""
    # All of them: some versions of distributed show five unless they are told otherwise.
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(int(worker["resources"].get(RESOURCE, 0)) for worker in workers)


def _list_devices(devices: Sequence[int | str] | str | None) -> list[str]:
    if devices is None:
        count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",")[:count] if visible else range(count)
        if not devices:
            raise ValueError(
                "No GPU: torch sees no CUDA device. Name them as in devices=[0, 1], or start "
                "distributed.LocalCluster for CPUs."
            )
    elif not isinstance(devices, Iterable):
        raise ValueError(f"devices={devices!r} is no list: name each GPU, as in devices=[0, 1].")
    names = list(devices.split(",") if isinstance(devices, str) else devices)
    named = [str(name).strip() for name in names]
    if not all(named) or not named:
        raise ValueError(f"devices={devices!r}: name at least one GPU, as in devices=[0, 1].")
    for given, name in zip(names, named, strict=True):
        if isinstance(given, bool) or not _DEVICE.fullmatch(name):
            raise ValueError(
                f"devices: {given!r} is no GPU. CUDA_VISIBLE_DEVICES has numbers, and names such as "
                "'GPU-8932f937' and 'MIG-...'."
            )
    return named


def _check_threads(threads_per_worker: Any, options: Mapping[str, Any]) -> None:
    """Refuse numbers of threads that are none, and options that contradict the devices."""
    is_number = isinstance(threads_per_worker, int) and not isinstance(threads_per_worker, bool)
    if not is_number or threads_per_worker < 1:
        raise ValueError(f"threads_per_worker={threads_per_worker!r}: a process has at least one.")
    if wrong := [name for name in _FIXED if name in options]:
        raise ValueError(
            f"{', '.join(wrong)}: there is one process per GPU, so that devices says how many; to "
            "have two on one GPU, name it twice, as in devices=[0, 0]."
        )


def _start_on_device(
    devices: tuple[str, ...],
    scheduler: str,
    *,
    name: int,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> Nanny:
    """Start the worker of one device; its environment is set before it imports anything heavy."""
    if name >= len(devices):
        raise ValueError(f"The cluster has {len(devices)} GPUs; worker {name} would have none.")
    visible = {**(env or {}), "CUDA_VISIBLE_DEVICES": devices[name]}
    return Nanny(scheduler, name=name, env=visible, **options)
