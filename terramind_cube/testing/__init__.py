"""Assertions that others may reuse."""

from __future__ import annotations

from terramind_cube.testing.laziness import CountingScheduler, assert_lazy

__all__ = ["CountingScheduler", "assert_lazy"]
