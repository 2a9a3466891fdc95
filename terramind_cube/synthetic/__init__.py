"""The procedural Earth: scenes with every modality, and a local STAC catalog of them."""

from __future__ import annotations

from terramind_cube.synthetic.catalog import write_catalog
from terramind_cube.synthetic.scene import make_scene

__all__ = ["make_scene", "write_catalog"]
