"""What this machine could do: its float32 matrix rate, and the arithmetic of one tile.

``python benchmarks/roofline.py --threads 2`` prints one JSON line: the measured rate, the work per
tile by part, and the seconds per tile at that rate, which no float32 contestant can beat by much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass

import torch

__all__ = ["matmul_gflops", "tile_flops"]

TOKENS = 196  # 224 px in patches of 16 px


def matmul_gflops(
    threads: int, *, size: int = 2048, repeats: int = 7, dtype: torch.dtype = torch.float32
) -> float:
    """Return the measured rate of a matrix product of `size` cubed, GFLOP/s, median."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        out = torch.empty(size, size, dtype=dtype)
        torch.mm(a, b, out=out)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2e-9 * size**3 / statistics.median(seconds)


@dataclass(frozen=True)
class Size:
    """Width, encoder and decoder blocks, and the matrices and width inside the MLP of a model."""

    width: int
    encoder: int
    decoder: int
    mlp: tuple[int, int]


SIZES = {"tiny": Size(192, 12, 4, (2, 768)), "base": Size(768, 12, 12, (3, 2048))}
# Of one evaluation of the UNet of a diffusion tokenizer at 224 px (torch's FlopCounterMode).
UNET_FLOPS = 189_156_196_352


def tile_flops(size: str = "tiny", output: str = "LULC", steps: int = 10) -> dict[str, int]:
    """Return the floating-point operations of one 224 px tile from S2L2A, by part.

    A multiply and an add are two operations; norms, softmax and activations are left out (below
    2 %). The decoder of the LULC tokenizer has 12 blocks of width 768, that of the others is the
    UNet, `steps` times.
    """
    row, n = SIZES[size], TOKENS
    patch_pixels, codebook = 16 * 16, 4375 if output == "LULC" else 15360
    mlp = row.mlp[0] * _linear(n, row.width, row.mlp[1])
    block = _linear(n, row.width, 4 * row.width) + mlp + _attention(n, row.width)
    cross = _linear(n, row.width, 4 * row.width) + _attention(n, row.width)
    wide = 768
    wide_block = _linear(n, wide, 12 * wide) + _attention(n, wide)
    vit = _linear(n, 5, wide) + 12 * wide_block + _linear(n, wide, 8 * wide + 10 * patch_pixels)
    return {
        "encoder": _linear(n, 12 * patch_pixels, row.width) + row.encoder * block,
        "decoder": _linear(n, row.width, row.width) + row.decoder * (block + cross),
        "head": _linear(n, row.width, codebook),
        "tokenizer_decoder": vit if output == "LULC" else steps * UNET_FLOPS,
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
