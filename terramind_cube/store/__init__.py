"""The store: a georeferenced Zarr 3 folder that a killed run can continue."""

from __future__ import annotations

from terramind_cube.store.conventions import prepare
from terramind_cube.store.ledger import Receipt, Run, completed, read_receipts, read_run
from terramind_cube.store.writer import RegionError, write_result

__all__ = [
    "Receipt",
    "RegionError",
    "Run",
    "completed",
    "prepare",
    "read_receipts",
    "read_run",
    "write_result",
]
