"""TerraMind, the generative foundation model for Earth observation, as a tool of the xarray world.

A STAC search becomes a lazy cube (`load_cube`), `cube.terramind.generate([...])` maps the model over
it, and the result is a georeferenced Zarr store.
"""

from __future__ import annotations

from importlib.metadata import version

from terramind_cube import accessor as _accessor  # registers `Dataset.terramind`
from terramind_cube import kernels, synthetic
from terramind_cube.cube.load import load_cube
from terramind_cube.modalities import (
    LULC_CLASSES,
    MODALITIES,
    standardize,
    unstandardize,
)
from terramind_cube.model import load_model, load_tokenizer
from terramind_cube.stac import open_catalog

__version__ = version("terramind-cube")
__all__ = [
    "LULC_CLASSES",
    "MODALITIES",
    "__version__",
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
