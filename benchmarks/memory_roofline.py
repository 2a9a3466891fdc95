"""How fast this machine copies memory: what no kernel that reads and writes as much can beat by far.

``python benchmarks/memory_roofline.py`` prints one JSON line: GB/s of copies of float32 numbers on
one thread, read and written bytes counted, for sizes from a tile to a scene; and those of a GPU's
own memory, if there is one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BYTES", "copy_gb_per_s", "copy_on_device", "copy_on_host"]

BYTES = 8
"""That a copied float32 number moves: four are read, four are written."""
SCENE = 12 * 2048 * 2048


def copy_on_host(numbers: int) -> Callable[[], object]:
    """Return a function that copies so many float32 numbers with NumPy, always the same ones."""
    source, target = np.ones(numbers, np.float32), np.zeros(numbers, np.float32)
    return lambda: np.copyto(target, source)


def copy_on_device(numbers: int) -> Callable[[], object]:
    """Return a function that queues a copy of so many float32 numbers of a GPU's memory."""
    source = torch.ones(numbers, device="cuda")
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def copy_gb_per_s(numbers: int, device: str = "cpu", rounds: int = 15) -> float:
    """Return the measured rate of copies, median."""
    copy = (copy_on_host if device == "cpu" else copy_on_device)(numbers)
    copy()
    seconds = []
    for _ in range(rounds):
        if device == "cpu":
            start = time.perf_counter()
            copy()
            seconds.append(time.perf_counter() - start)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        copy()
        end.record()
        end.synchronize()
        seconds.append(1e-3 * begin.elapsed_time(end))
    return 1e-9 * BYTES * numbers / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", type=int, nargs="*", default=[224 * 224, SCENE // 16, SCENE])
    sizes = parser.parse_args().numbers
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    report = {
        device: {f"{n} numbers": round(copy_gb_per_s(n, device), 1) for n in sizes}
        for device in devices
    }
    print(json.dumps({"copy_gb_per_s": report}))


if __name__ == "__main__":
    main()
