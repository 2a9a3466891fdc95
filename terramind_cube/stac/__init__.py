"""STAC: open a catalog, search it, and find the bands of a modality in its items."""

from __future__ import annotations

from terramind_cube.stac.bands import ItemBands, locate_bands
from terramind_cube.stac.catalogs import Catalog, StaticCatalog, open_catalog
from terramind_cube.stac.finding import find_bands
from terramind_cube.stac.providers import DERIVED, LOADABLE, PROVIDERS
from terramind_cube.stac.result import SearchResult
from terramind_cube.stac.search import Filters, area_geometry

__all__ = [
    "DERIVED",
    "LOADABLE",
    "PROVIDERS",
    "Catalog",
    "Filters",
    "ItemBands",
    "SearchResult",
    "StaticCatalog",
    "area_geometry",
    "find_bands",
    "locate_bands",
    "open_catalog",
]
