"""Memory-bound passes over pixels and noise: one mathematics, several engines."""

from __future__ import annotations

from terramind_cube.kernels.dispatch import normalize

__all__ = ["normalize"]
