"""The compute batch of an accelerator, found by a trial before anything is written."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from terramind_cube.inference.plan import Batch, TilePlan
from terramind_cube.inference.runtime import acquire
from terramind_cube.inference.sources import InputBuffers, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    Plan = TypeVar("Plan", bound=TilePlan)

__all__ = ["explain_memory", "largest_batch", "with_batch"]

LARGEST = 64


def largest_batch(attempt: Callable[[int], object], largest: int = LARGEST) -> int:
    """Return the largest power of two for which an attempt does not run out of memory.

    By memory alone, never by time, so that the same device gives the same batch.

    Parameters
    ----------
    attempt : callable
        Called with a batch size; raises `torch.OutOfMemoryError` where it does not fit.
    largest : int
        The size to begin with; it is halved until it fits.

    Raises
    ------
    MemoryError
        If not even one tile fits.
    """
    size = largest
    while size >= 1:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            size //= 2
        else:
            return size
    raise MemoryError(
        "The device has not enough memory for a single tile: choose a smaller model, "
        "precision='bfloat16', or device='cpu'."
    )


def with_batch(plan: Plan) -> Plan:
    """Return the plan with the compute batch that its device holds, if it has none yet."""
    if plan.spec.compute.batch:
        return plan

    device = torch.device(plan.spec.compute.device)

    def attempt(batch: int) -> None:
        # The pages of a CPU's memory would be there only once they are written to.
        held = torch.empty(plan.group_bytes, dtype=torch.uint8, device=device)
        run_blank(_sized(plan.for_trial(), batch))
        del held

    # A batch beyond the area's tiles would be padding; the tiles do not depend on the chunks.
    enough = 1 << (plan.grid.tile_count - 1).bit_length()
    return _sized(plan, largest_batch(attempt, min(LARGEST, enough)))


def _sized(plan: Plan, batch: int) -> Plan:
    compute = dataclasses.replace(plan.spec.compute, batch=batch)
    return dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, compute=compute))


def run_blank(plan: TilePlan) -> None:
    """Run a batch of tiles of mean values."""
    shape, size = plan.tile_shape(), plan.spec.compute.batch
    sides, device = (shape.tile_px, shape.tile_px), torch.device(plan.spec.compute.device)
    blank = [
        Source(layer, np.full((len(layer.bands), *sides), layer.nodata, np.float32), sides, device)
        for layer in plan.inputs
    ]
    first = (plan.grid.y.starts[0], plan.grid.x.starts[0])
    with acquire(plan.spec) as loaded:
        buffers = InputBuffers(blank, first, size, shape)
        for _ in plan.run(loaded, Batch(buffers, (first,) * size, size, time=0)):
            pass


def explain_memory(error: torch.OutOfMemoryError, plan: TilePlan) -> MemoryError:
    """Return an error that says which compute batch to set."""
    batch = plan.spec.compute.batch
    advice = f"compute_batch={batch // 2}" if batch > 1 else "a smaller model or device='cpu'"
    return MemoryError(
        f"{plan.spec.compute.device} ran out of memory with compute_batch={batch}: start again "
        f"with {advice}. ({str(error).splitlines()[0]})"
    )
