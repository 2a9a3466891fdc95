"""What this machine could do: its float32 matrix rate, and the arithmetic of one tile.

``python benchmarks/roofline.py --threads 2`` prints one JSON line: the measured rate, the work per
tile by part, and the seconds per tile at that rate, which no float32 contestant can beat by much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

__all__ = ["matmul_gflops", "tile_flops"]

TOKENS = 196  # 224 px in patches of 16 px


def matmul_gflops(threads: int, *, size: int = 2048, repeats: int = 7) -> float:
    """Return the measured rate of a float32 matrix product of `size` cubed, GFLOP/s, median."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(size, size), torch.randn(size, size)
        out = torch.empty(size, size)
        torch.mm(a, b, out=out)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2e-9 * size**3 / statistics.median(seconds)


def tile_flops() -> dict[str, int]:
    """Return the floating-point operations of one 224 px tile, S2L2A to LULC, by part.

    A multiply and an add are two operations; norms, softmax and activations are left out (below
    2 %). Sizes are those of terramind_v1_tiny (encoder 12 blocks, decoder 4, width 192) and of the
    decoder of the LULC tokenizer (12 blocks, width 768).
    """
    n, width, wide = TOKENS, 192, 768
    patch_pixels, codebook, out_channels = 16 * 16, 4375, 10
    block = _linear(n, width, 12 * width) + _attention(n, width)
    wide_block = _linear(n, wide, 12 * wide) + _attention(n, wide)
    cross = _linear(n, width, 4 * width) + _attention(n, width)
    return {
        "encoder": _linear(n, 12 * patch_pixels, width) + 12 * block,
        "decoder": _linear(n, width, width) + 4 * (block + cross),
        "head": _linear(n, width, codebook),
        "tokenizer_decoder": _linear(n, 5, wide)
        + 12 * wide_block
        + _linear(n, wide, 8 * wide)
        + _linear(n, wide, out_channels * patch_pixels),
    }


def _linear(rows: int, inner: int, outer: int) -> int:
    return 2 * rows * inner * outer


def _attention(n: int, width: int) -> int:
    return 2 * _linear(n, width, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = parser.parse_args().threads
    rate, parts = matmul_gflops(threads), tile_flops()
    total = sum(parts.values()) * 1e-9
    report = {
        "threads": threads,
        "matmul_gflops": round(rate, 1),
        "gflop_per_tile": {name: round(flops * 1e-9, 3) for name, flops in parts.items()},
        "gflop_per_tile_total": round(total, 3),
        "seconds_per_tile_at_roof": round(total / rate, 4),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
