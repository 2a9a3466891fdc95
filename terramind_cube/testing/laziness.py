"""Prove that something is lazy."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask
import dask.local

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CountingScheduler", "assert_lazy"]


class CountingScheduler:
    """A Dask scheduler that counts how often it is asked to compute.

    Attributes
    ----------
    computations : int
        Calls so far.
    """

    def __init__(self) -> None:
        self.computations = 0

    def __call__(self, graph: Any, keys: Any, **options: Any) -> Any:
        """Compute on the calling thread and count."""
        self.computations += 1
        return dask.local.get_sync(graph, keys, **options)


@contextmanager
def assert_lazy() -> Iterator[CountingScheduler]:
    """Fail if anything is computed with Dask inside the block.

    Raises
    ------
    AssertionError
        With the number of computations.
    """
    scheduler = CountingScheduler()
    with dask.config.set(scheduler=scheduler):
        yield scheduler
    assert scheduler.computations == 0, f"{scheduler.computations} computations, expected none"
