"""Seeded weights and inputs: the same arrays from a tensor's name and shape, on any machine.

The goldens beside this file were computed with weights filled by `fill_state_dict`, so that a
checkpoint of the released size can be rebuilt anywhere instead of being shipped.
"""

import zlib

import numpy as np


def seeded_normal(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Standard normal float32 array that depends on `name`, `shape` and `seed` alone."""
    key = (zlib.crc32(name.encode()) + (seed << 32)) & (2**64 - 1)
    rng = np.random.Generator(np.random.Philox(key=key))
    return rng.standard_normal(tuple(shape), dtype=np.float32)


def seeded_weight(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """One checkpoint tensor: unit-scale norms and 1/sqrt(fan-in) matrices. Attention is made sharper and
    residual branches quieter than that, so that tokens depend on input and position while rounding does not
    grow through the layers (an input changed by 1e-6 moves the logits by less than 1e-4)."""
    noise = seeded_normal(name, shape, seed)
    parts = name.split(".")
    leaf = parts[-1]
    if leaf == "pos_emb":
        return noise
    if leaf in ("mod_emb", "mask_token"):
        return noise * 0.3
    if leaf == "bias":
        return noise * 0.02
    if len(shape) == 1:
        return 1.0 + 0.1 * noise
    return noise * np.float32(_gain(parts) / np.sqrt(np.prod(shape[1:])))


def _gain(parts: list[str]) -> float:
    module, parent = parts[-2], parts[-3] if len(parts) > 2 else ""
    if module in ("qkv", "q", "kv"):
        return 2.0
    if module == "proj" and parent == "cross_attn":
        return 0.6
    if module in ("fc2", "proj_out") or (module == "proj" and parent in ("attn", "self_attn")):
        return 0.2
    if module == "3" and parent == "out_layers":
        return 0.2
    return 1.0


def fill_state_dict(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """A whole checkpoint (name -> float32 array) for the shapes of one entry of state_dicts.json."""
    return {name: seeded_weight(name, tuple(shape), seed) for name, shape in shapes.items()}


# Physical value ranges of each raw input: (offset, scale) of a smooth-plus-noise field, before standardisation.
_RANGES = {
    "S2L2A": (1800.0, 900.0),
    "S2L1C": (2000.0, 900.0),
    "RGB": (80.0, 35.0),
    "S1GRD": (-15.0, 4.0),
    "S1RTC": (-14.0, 4.0),
    "DEM": (600.0, 300.0),
    "NDVI": (0.3, 0.2),
}
CHANNELS = {
    "S2L2A": 12,
    "S2L1C": 13,
    "RGB": 3,
    "S1GRD": 2,
    "S1RTC": 2,
    "DEM": 1,
    "NDVI": 1,
    "LULC": 10,
}


def seeded_input(modality: str, batch: int, size: int, seed: int = 0) -> np.ndarray:
    """A [batch, channel, size, size] float32 input in physical units (LULC: one-hot over its ten classes)."""
    shape = (batch, CHANNELS[modality], size, size)
    noise = seeded_normal(f"input/{modality}", shape, seed)
    y, x = np.meshgrid(np.linspace(0, 6, size), np.linspace(0, 6, size), indexing="ij")
    wave = np.sin(x + np.arange(shape[1])[:, None, None]) * np.cos(y)
    field = (wave[None] + 0.25 * noise).astype(np.float32)
    if modality == "LULC":
        classes = field.argmax(axis=1)
        return np.eye(10, dtype=np.float32)[classes].transpose(0, 3, 1, 2).copy()
    offset, scale = _RANGES[modality]
    return (offset + scale * field).astype(np.float32)


def seeded_noise(channels: int, batch: int, size: int, seed: int = 0) -> np.ndarray:
    """Initial diffusion noise, [batch, channel, size, size] float32."""
    return seeded_normal("diffusion/noise", (batch, channels, size, size), seed)
