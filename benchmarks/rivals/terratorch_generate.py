"""TerraTorch's generation from S2L2A, timed; runs in an environment of its own.

Needs ``requirements-terratorch.txt`` and nothing of this project. The scene is an ``.npz`` with
``S2L2A``, reflectance x 10000, (12, H, W); the model standardises it, as in TerraTorch's notebook.
The result is an ``.npz`` with one array named after the output: ``LULC`` as classes, uint8 (H, W),
any other as float32 (C, H, W) in physical units (S1 in dB, DEM in m). Standard output ends with one
JSON line.

The whole scene goes through TerraTorch's tiled inference. With ``--tiles K`` the model runs on K
crops alone, row by row from the scene's corner at the given stride, without blending; the result
then has a leading axis for them, and ``origins`` (K, 2) holds their y, x.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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
    terramind_v1_base_generate,
    terramind_v1_tiny_generate,
)
from terratorch.tasks.tiled_inference import get_input_chips, tiled_inference

__all__ = ["build_model", "corner_crops", "run_crops", "run_scene"]

BUILDERS = {"tiny": terramind_v1_tiny_generate, "base": terramind_v1_base_generate}
OUTPUTS = ("S2L2A", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI")
CROP_PX = 224


def build_model(
    weights: Path, tokenizer: Path, *, size: str, output: str, steps: int, greedy: bool
) -> torch.nn.Module:
    """Build the generation model from local checkpoints; a tensor that is missing is an error.

    The model names its encoder-decoder's tensors with a prefix. Of the two names of a tied
    embedding, `to_logits` is loaded last and wins.
    """
    model = BUILDERS[size](
        modalities=["S2L2A"],
        output_modalities=[output],
        pretrained=False,
        standardize=True,
        temps=0.0 if greedy else 1.0,
        timesteps=steps,
    )
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    names = [name for name in model.state_dict() if not name.startswith("tokenizer.")]
    model.load_state_dict(
        {name: stored[name.removeprefix("sampler.model.")] for name in names}, strict=False
    )
    output_tokenizer(model).load_state_dict(
        torch.load(tokenizer, map_location="cpu", weights_only=True), strict=True
    )
    return model.eval()


def output_tokenizer(model: torch.nn.Module) -> torch.nn.Module:
    return model.tokenizer[model.output_modalities[0]]


def generate(model: torch.nn.Module, crops: torch.Tensor, **options: int) -> torch.Tensor:
    """Generate the model's one output, (B, C, h, w), of crops (B, 12, h, w)."""
    # A dict of its own: the model puts the standardised input into it.
    (result,) = model({"S2L2A": crops}, **options).values()
    return result


def run_scene(model: torch.nn.Module, scene: torch.Tensor, tiling: dict) -> torch.Tensor:
    """Generate the output (1, C, H, W) of a scene (1, 12, H, W), tile by tile; LULC as logits."""
    return tiled_inference(lambda crops: generate(model, crops), scene, crop=CROP_PX, **tiling)


@torch.no_grad()
def run_crops(model: torch.nn.Module, crops: torch.Tensor, batch: int) -> torch.Tensor:
    """Generate the output (K, C, h, w) of crops (K, 12, h, w), batch by batch."""
    return torch.cat([generate(model, part) for part in crops.split(batch)])


def corner_crops(
    scene: torch.Tensor, stride: int, count: int
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Cut the first `count` whole crops, row by row, of a scene (1, 12, H, W).

    Returns the crops (count, 12, h, w) and the y, x of their upper-left corners.
    """
    rows, columns = (range(0, side - CROP_PX + 1, stride) for side in scene.shape[-2:])
    origins = [(y, x) for y in rows for x in columns]
    if not 0 < count <= len(origins):
        raise ValueError(f"The scene holds {len(origins)} whole crops at stride {stride}: {count}?")
    origins = origins[:count]
    crops = [scene[..., y : y + CROP_PX, x : x + CROP_PX] for y, x in origins]
    return torch.cat(crops), origins


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
    timed(output_tokenizer(model), "decode_tokens", "tokenizer_decoder")
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


@torch.no_grad()
def warm_up(model: torch.nn.Module, scene: torch.Tensor, batch: int) -> None:
    """Run a whole batch of the corner once, with a single diffusion step."""
    generate(model, scene[..., :CROP_PX, :CROP_PX].expand(batch, -1, -1, -1), timesteps=1)


def count_tiles(scene: torch.Tensor, tiling: dict) -> int:
    side = (CROP_PX, tiling["stride"]) * 2
    return len(get_input_chips(scene, *side, tiling["delta"], True, tiling["padding"]))


def steps_run(model: torch.nn.Module) -> int | None:
    """Return how often the last decoding ran the UNet; None for LULC.

    It is more than what was asked for where that does not divide 1000.
    """
    scheduler = getattr(output_tokenizer(model), "noise_scheduler", None)
    return None if scheduler is None else len(scheduler.timesteps)


def save(
    path: Path, output: str, result: torch.Tensor, origins: list[tuple[int, int]] | None
) -> None:
    array = result.argmax(dim=1).to(torch.uint8) if output == "LULC" else result.float()
    if origins is None:
        np.savez_compressed(path, **{output: array[0].numpy()})
    else:
        np.savez_compressed(path, **{output: array.numpy(), "origins": np.array(origins)})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("weights", "tokenizer", "scene", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--size", choices=list(BUILDERS), default="tiny")
    parser.add_argument("--output", choices=OUTPUTS, default="LULC")
    parser.add_argument("--steps", type=int, default=10, help="diffusion steps; none for LULC")
    parser.add_argument("--tiles", type=int, help="run only so many crops, from the corner")
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
    model = build_model(
        arguments.weights,
        arguments.tokenizer,
        **{name: getattr(arguments, name) for name in ("size", "output", "steps", "greedy")},
    )
    with np.load(arguments.scene) as stored:
        scene = torch.from_numpy(stored["S2L2A"].astype(np.float32))[None]
    tiling = {
        "stride": arguments.stride,
        "delta": arguments.delta,
        "batch_size": arguments.batch,
        # Without a margin to cut off, padding would slice the whole output away (`[0:-0]`).
        "padding": "reflect" if arguments.delta else False,
    }
    origins = None
    if arguments.tiles is None:
        tiles = count_tiles(scene, tiling)
        work = functools.partial(run_scene, model, scene, tiling)
    else:
        tiles = arguments.tiles
        # Crops are taken as they are: nothing is padded, cut off or blended.
        tiling.update(delta=None, padding=None)
        crops, origins = corner_crops(scene, arguments.stride, tiles)
        work = functools.partial(run_crops, model, crops, arguments.batch)
    warm_up(model, scene, min(arguments.batch, tiles))
    start_bytes = peak_rss_bytes()
    parts = profile_parts(model) if arguments.profile else {}
    reset_peak()
    runs, cpu_runs = [], []
    for _ in range(arguments.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        result = work()
        runs.append(time.perf_counter() - start)
        cpu_runs.append(time.process_time() - cpu_start)
    scene_bytes = peak_rss_bytes()
    save(arguments.out, arguments.output, result, origins)
    report = {
        "rival": "terratorch",
        "size": arguments.size,
        "output": arguments.output,
        "mode": "scene" if origins is None else "tiles",
        "seconds": round(statistics.median(runs), 3),
        "seconds_min": round(min(runs), 3),
        "seconds_runs": [round(run, 3) for run in runs],
        "cpu_seconds": round(statistics.median(cpu_runs), 3),
        "seconds_per_tile": round(statistics.median(runs) / tiles, 4),
        "tiles": tiles,
        "steps": steps_run(model),
        "peak_rss_mib": scene_bytes >> 20,
        "peak_rss_loading_mib": start_bytes >> 20,
        "shape": list(scene.shape[-2:]),
        "channels_out": result.shape[1],
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
