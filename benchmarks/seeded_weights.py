"""Write the inputs of the benchmark: seeded checkpoints of the released layout, and a scene.

Both contestants read the same files. Run as
``python benchmarks/seeded_weights.py OUT [--shared DIR] [--size PX]``; `DIR` holds the parity kit
and defaults to the environment variable ``TERRAMIND_CUBE_SHARED``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["parity_kit", "write_checkpoints", "write_scene"]

CHECKPOINTS = ("tiny", "base", "tokenizer_lulc", "tokenizer_s1grd")


def parity_kit(shared: str | Path | None = None) -> Path:
    """Return the folder of the parity kit.

    Parameters
    ----------
    shared : path, optional
        The folder that holds ``parity/``; by default that of ``TERRAMIND_CUBE_SHARED``.

    Raises
    ------
    ValueError
        If neither the argument nor the environment names a folder.
    FileNotFoundError
        If the kit is not there.
    """
    shared = shared or os.environ.get("TERRAMIND_CUBE_SHARED")
    if not shared:
        raise ValueError(
            "The benchmark needs the parity kit: give --shared DIR or set TERRAMIND_CUBE_SHARED."
        )
    kit = Path(shared) / "parity"
    for name in ("seeded.py", "state_dicts.json"):
        if not (kit / name).is_file():
            raise FileNotFoundError(f"{kit / name} does not exist: is {shared} the right folder?")
    return kit


def write_checkpoints(kit: Path, out: Path, *, seed: int = 21) -> dict[str, Path]:
    """Write one ``.pt`` per network and return their paths.

    Parameters
    ----------
    kit : Path
        As returned by `parity_kit`.
    out : Path
        Folder to write into; it is created.
    seed : int
        Seed of every tensor.

    Returns
    -------
    dict
        By entry of ``state_dicts.json``, those of `CHECKPOINTS`.
    """
    seeded = _seeded(kit)
    layouts = json.loads((kit / "state_dicts.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    paths = {}
    for entry in CHECKPOINTS:
        arrays = seeded.fill_state_dict(layouts[entry], seed)
        paths[entry] = out / f"{entry}.pt"
        torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, paths[entry])
    return paths


def write_scene(kit: Path, path: Path, size_px: int, *, seed: int = 21) -> Path:
    """Write a square S2L2A scene, uint16 reflectance x 10000 (12, size, size), 0 nowhere, to `.npz`."""
    field = _seeded(kit).seeded_input("S2L2A", 1, size_px, seed)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, S2L2A=np.clip(np.rint(field), 1, 10_000).astype(np.uint16))
    return path


def _seeded(kit: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_seeded", kit / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--size", type=int, nargs="*", default=[896], help="scenes to write, in px")
    arguments = parser.parse_args()
    kit = parity_kit(arguments.shared)
    print(*write_checkpoints(kit, arguments.out).values(), sep="\n")
    for size_px in arguments.size:
        print(write_scene(kit, arguments.out / f"scene_{size_px}.npz", size_px))


if __name__ == "__main__":
    main()
