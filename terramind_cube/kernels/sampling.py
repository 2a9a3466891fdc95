"""The loop over pixels whose places in another raster are linear in each cell of a lattice."""

# Numba's types are not Python's.
# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import numpy as np

from terramind_cube.kernels.compiled import kernel
from terramind_cube.kernels.reference import LEAST_WEIGHT, NODE_PX

__all__ = ["sample"]


@kernel
def _mean(pixels, row, column, fill):
    j, i = int(np.floor(row)), int(np.floor(column))
    down, across = row - j, column - i
    total, divisor = 0.0, 0.0
    for k in range(4):
        y, x = j + k // 2, i + k % 2
        if 0 <= y < pixels.shape[0] and 0 <= x < pixels.shape[1]:
            value = float(pixels[y, x])
            if not (value == fill or np.isnan(value)):
                weight = (down if k // 2 else 1 - down) * (across if k % 2 else 1 - across)
                total += weight * value
                divisor += weight
    return total / divisor if divisor > LEAST_WEIGHT else fill


@kernel
def sample(pixels, nodes, is_bent, frame, fill, is_mean, out):
    """Write pixels of a raster, or their means, to pixels of another one."""
    top, left, first_row, first_column, height, width = frame
    rows, columns = nodes[0], nodes[1]
    for y in range(out.shape[0]):
        j = (y + top) // NODE_PX
        v = (y + top - j * NODE_PX + 0.5) / NODE_PX
        for i in range(is_bent.shape[1]):
            if is_bent[j, i]:
                continue
            r0 = rows[j, i] * (1 - v) + rows[j + 1, i] * v
            r1 = rows[j, i + 1] * (1 - v) + rows[j + 1, i + 1] * v
            c0 = columns[j, i] * (1 - v) + columns[j + 1, i] * v
            c1 = columns[j, i + 1] * (1 - v) + columns[j + 1, i + 1] * v
            start = i * NODE_PX - left
            for x in range(max(start, 0), min(start + NODE_PX, out.shape[1])):
                u = (x - start + 0.5) / NODE_PX
                row, column = r0 * (1 - u) + r1 * u, c0 * (1 - u) + c1 * u
                if not (0 <= row < height and 0 <= column < width):
                    continue
                if is_mean:
                    out[y, x] = _mean(
                        pixels, row - 0.5 - first_row, column - 0.5 - first_column, fill
                    )
                    continue
                k, m = int(row) - first_row, int(column) - first_column
                if 0 <= k < pixels.shape[0] and 0 <= m < pixels.shape[1]:
                    out[y, x] = pixels[k, m]
