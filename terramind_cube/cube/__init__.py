"""STAC items become one Dataset on one grid."""

from __future__ import annotations

from terramind_cube.cube.assets import ReadOptions
from terramind_cube.cube.failures import AssetError, ReadFailures
from terramind_cube.cube.layout import read_layout
from terramind_cube.cube.load import load_cube

__all__ = ["AssetError", "ReadFailures", "ReadOptions", "load_cube", "read_layout"]
