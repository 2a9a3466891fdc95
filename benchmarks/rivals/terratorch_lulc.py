"""TerraTorch's tiled generation, S2L2A to LULC, timed; runs in an environment of its own.

Needs ``requirements-terratorch.txt`` and nothing of this project. The scene is an ``.npz`` with
``S2L2A``, reflectance x 10000, (12, H, W); the model standardises it, as in TerraTorch's notebook.
The result is an ``.npz`` with ``LULC``, uint8 (H, W). Standard output ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

# Every file is local; a look at the hub would only cost time.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

try:
    import torchvision
except RuntimeError:
    # A torchvision built for CUDA beside a torch built for the CPU fails on declaring these two
    # operators. TerraMind uses no operator of torchvision: naming them lets the import pass.
    _operators = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

from terratorch.models.backbones.terramind.model.terramind_register import (
    terramind_v1_tiny_generate,
)
from terratorch.tasks.tiled_inference import get_input_chips, tiled_inference

__all__ = ["build_model", "run_scene"]

TOKENIZER = "tok_lulc@224"
CROP_PX = 224


def build_model(weights: Path, tokenizer: Path, *, greedy: bool) -> torch.nn.Module:
    """Build the generation model from local checkpoints; a tensor that is missing is an error.

    The model names its encoder-decoder's tensors with a prefix, and the embeddings a second time
    without it. Of the two names of a tied embedding, `to_logits` is loaded last and wins.
    """
    model = terramind_v1_tiny_generate(
        modalities=["S2L2A"],
        output_modalities=["LULC"],
        pretrained=False,
        standardize=True,
        temps=0.0 if greedy else 1.0,
    )
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    names = [name for name in model.state_dict() if not name.startswith("tokenizer.")]
    model.load_state_dict(
        {name: stored[name.removeprefix("sampler.model.")] for name in names}, strict=False
    )
    model.tokenizer[TOKENIZER].load_state_dict(
        torch.load(tokenizer, map_location="cpu", weights_only=True), strict=True
    )
    return model.eval()


def run_scene(model: torch.nn.Module, scene: torch.Tensor, tiling: dict) -> torch.Tensor:
    """Generate class logits (1, 10, H, W) of a scene (1, 12, H, W), tile by tile."""
    return tiled_inference(lambda x: model({"S2L2A": x})["LULC"], scene, crop=CROP_PX, **tiling)


def profile_parts(model: torch.nn.Module) -> dict[str, float]:
    """Time the model's parts from now on; the returned seconds grow with every call."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(owner: object, method: str, part: str) -> None:
        inner = getattr(owner, method)

        def call(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            result = inner(*args, **kwargs)
            seconds[part] += time.perf_counter() - start
            return result

        setattr(owner, method, call)

    timed(model.sampler.model, "forward_encoder", "encoder")
    timed(model.sampler.model, "forward_decoder", "decoder")
    timed(model.sampler.model, "forward_logits", "head")
    timed(model.sampler, "sample_tokens_batched", "sampling")
    timed(model.tokenizer[TOKENIZER], "decode_tokens", "tokenizer_decoder")
    timed(model, "forward", "model")
    return seconds


def reset_peak() -> None:
    """Let the peak start anew where the kernel can, so that reading checkpoints does not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process since `reset_peak`.

    Outside Linux it is that since the start. There `ru_maxrss` also begins at the parent's memory
    at the fork, so the kernel's own mark is read in its place.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def count_tiles(scene: torch.Tensor, tiling: dict) -> int:
    side = (CROP_PX, tiling["stride"]) * 2
    return len(get_input_chips(scene, *side, tiling["delta"], True, tiling["padding"]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("weights", "tokenizer", "scene", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--stride", type=int, default=192)
    parser.add_argument("--delta", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1, help="timed runs; the median is reported")
    parser.add_argument("--greedy", action="store_true", help="temperature 0 in place of top-p 0.8")
    parser.add_argument("--profile", action="store_true", help="seconds of each part as well")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    model = build_model(arguments.weights, arguments.tokenizer, greedy=arguments.greedy)
    with np.load(arguments.scene) as stored:
        scene = torch.from_numpy(stored["S2L2A"].astype(np.float32))[None]
    tiling = {
        "stride": arguments.stride,
        "delta": arguments.delta,
        "batch_size": arguments.batch,
        # Without a margin to cut off, padding would slice the whole output away (`[0:-0]`).
        "padding": "reflect" if arguments.delta else False,
    }
    run_scene(model, scene[..., :CROP_PX, :CROP_PX], tiling)
    start_bytes = peak_rss_bytes()
    parts = profile_parts(model) if arguments.profile else {}
    reset_peak()
    runs, cpu_runs = [], []
    for _ in range(arguments.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        logits = run_scene(model, scene, tiling)
        runs.append(time.perf_counter() - start)
        cpu_runs.append(time.process_time() - cpu_start)
    scene_bytes = peak_rss_bytes()
    np.savez_compressed(arguments.out, LULC=logits[0].argmax(dim=0).numpy().astype(np.uint8))
    tiles = count_tiles(scene, tiling)
    report = {
        "rival": "terratorch",
        "seconds": round(statistics.median(runs), 3),
        "seconds_min": round(min(runs), 3),
        "seconds_runs": [round(run, 3) for run in runs],
        "cpu_seconds": round(statistics.median(cpu_runs), 3),
        "seconds_per_tile": round(statistics.median(runs) / tiles, 4),
        "tiles": tiles,
        "peak_rss_mib": scene_bytes >> 20,
        "peak_rss_loading_mib": start_bytes >> 20,
        "shape": list(scene.shape[-2:]),
        "channels_out": logits.shape[1],
        "greedy": arguments.greedy,
        "threads": arguments.threads,
        **{name: tiling[name] for name in ("stride", "delta", "batch_size", "padding")},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("terratorch", "torch", "numpy")},
        },
    }
    if parts:
        report["profile_s"] = {name: round(s / len(runs), 3) for name, s in parts.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
