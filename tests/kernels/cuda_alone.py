"""Loads the kernels without the package around them, which needs xarray and much more."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def kernel_module(name: str, is_alone: bool = True) -> ModuleType:
    """Import `terramind_cube.kernels.<name>`, but neither package's `__init__` if it is alone.

    Alone, other modules of the package cannot be imported in the same process any more.
    """
    for package in ("terramind_cube", "terramind_cube.kernels"):
        if is_alone and package not in sys.modules:
            empty = ModuleType(package)
            empty.__path__ = [str(ROOT.joinpath(*package.split(".")))]
            sys.modules[package] = empty
    return importlib.import_module(f"terramind_cube.kernels.{name}")
