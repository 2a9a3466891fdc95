"""``cube.terramind`` and ``tree.terramind``: importing this room registers both."""

from __future__ import annotations

from terramind_cube.accessor.dataset import TerraMindAccessor
from terramind_cube.accessor.tree import TerraMindTreeAccessor

__all__ = ["TerraMindAccessor", "TerraMindTreeAccessor"]
