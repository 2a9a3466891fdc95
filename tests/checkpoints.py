"""Seeded checkpoints of the released layouts, at most so many bytes of them on disk."""

from __future__ import annotations

import math
import os
from pathlib import Path

MOST_BYTES = 1_900_000_000
"""Just more than the largest that a test writes."""


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder, whatever vanishes meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = (Path(parent) / name).lstat()
            except OSError:
                continue
            total += status.st_size
    return total


class Checkpoints:
    """Writes checkpoints, and removes the oldest before the next would exceed the limit."""

    def __init__(self, shapes, folder, seeded, most_bytes=MOST_BYTES):
        self.shapes, self.folder, self.seeded = shapes, folder, seeded
        self.most_bytes = most_bytes
        self.sizes = {}

    def write(self, name: str, seed: int) -> Path:
        path = self.folder / f"{name}_{seed}.pt"
        if path in self.sizes:
            self.sizes[path] = self.sizes.pop(path)  # now the newest
            return path
        import torch

        size = 4 * sum(math.prod(shape) for shape in self.shapes[name].values())
        while self.sizes and sum(self.sizes.values()) + size > self.most_bytes:
            oldest = next(iter(self.sizes))
            oldest.unlink()
            del self.sizes[oldest]
        tensors = self.seeded.fill_state_dict(self.shapes[name], seed)
        torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, path)
        self.sizes[path] = size
        return path

    def remove_all(self):
        for path in self.sizes:
            path.unlink(missing_ok=True)
        self.sizes.clear()
