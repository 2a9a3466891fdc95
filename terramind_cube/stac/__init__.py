"""STAC: open a catalog, search it, and find the bands of a modality in its items."""

from __future__ import annotations

from terramind_cube.stac.catalogs import Catalog, StaticCatalog, open_catalog
from terramind_cube.stac.providers import LOADABLE, ItemBands, find_bands
from terramind_cube.stac.search import area_geometry

__all__ = [
    "LOADABLE",
    "Catalog",
    "ItemBands",
    "StaticCatalog",
    "area_geometry",
    "find_bands",
    "open_catalog",
]
