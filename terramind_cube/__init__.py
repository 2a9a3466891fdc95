"""TerraMind, the generative foundation model for Earth observation, as a tool of the xarray world.

A STAC search becomes a lazy cube (`load_cube`), `cube.terramind.generate([...])` maps the model over
it, and the result is a georeferenced Zarr store. Rooms are imported when they are first used:
loading a cube needs no PyTorch, asking the command line for help needs nothing.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from terramind_cube import accessor as _accessor  # registers `.terramind`
from terramind_cube.modalities import LULC_CLASSES, MODALITIES, standardize, unstandardize

if TYPE_CHECKING:
    from terramind_cube import kernels, synthetic
    from terramind_cube.cube import ReadOptions, load_cube
    from terramind_cube.model import load_model, load_tokenizer
    from terramind_cube.stac import open_catalog
    from terramind_cube.store.cluster import gpu_cluster, gpu_resources

__version__ = version("terramind-cube")
__all__ = [
    "LULC_CLASSES",
    "MODALITIES",
    "ReadOptions",
    "__version__",
    "gpu_cluster",
    "gpu_resources",
    "kernels",
    "load_cube",
    "load_model",
    "load_tokenizer",
    "open_catalog",
    "standardize",
    "synthetic",
    "unstandardize",
]
del _accessor

_ROOMS = {
    "ReadOptions": "terramind_cube.cube",
    "gpu_cluster": "terramind_cube.store.cluster",
    "gpu_resources": "terramind_cube.store.cluster",
    "load_cube": "terramind_cube.cube",
    "load_model": "terramind_cube.model",
    "load_tokenizer": "terramind_cube.model",
    "open_catalog": "terramind_cube.stac",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(_ROOMS[name]), name)
    if name in __all__:
        return importlib.import_module(f"terramind_cube.{name}")
    raise AttributeError(f"module 'terramind_cube' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
