"""The store: a georeferenced Zarr 3 folder that a killed run can continue.

Its modules are imported when a name is asked for: the command line checks paths before it loads
any heavy library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "Receipt": "ledger",
    "RegionError": "writer",
    "Run": "ledger",
    "completed": "ledger",
    "prepare": "conventions",
    "read_receipts": "ledger",
    "read_run": "ledger",
    "write_result": "writer",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
