"""STAC items become one Dataset on one grid."""

from __future__ import annotations

from terramind_cube.cube.layout import read_layout
from terramind_cube.cube.load import load_cube
from terramind_cube.cube.reading import AssetError

__all__ = ["AssetError", "load_cube", "read_layout"]
