"""Commands that make a synthetic place: the demo, and a catalog of its own."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from terramind_cube.cli import options  # noqa: TC001  # typer reads annotations
from terramind_cube.cli.stores import print_closing, write_store
from terramind_cube.cli.terminal import make_console, reporting, status, step

__all__ = ["DEMO_MARKER", "demo", "synthesize"]

DEMO_MARKER = ".terramind_cube_demo"
"""File that marks the directory of a demo, which another demo may replace."""

_DEMO_INPUTS = ("S2L2A", "S1RTC", "DEM")


@reporting
def demo(
    directory: options.Directory = Path("demo"),
    size: options.Size = 896,
    seed: options.Place = 900_001,
) -> None:
    """Show the main job: catalog, cube, generated land cover, Zarr store and picture.

    Works without internet and without a GPU, on a synthetic scene. A directory of an earlier demo
    is replaced, any other one is refused.
    """
    console = make_console()
    begin = time.perf_counter()
    console.print("From a STAC catalog to a land-cover map, without internet and without a GPU.\n")
    _claim_demo(directory)
    with status(console, "Loading the libraries"):
        import xarray as xr

        from terramind_cube import accessor, display  # noqa: F401  # registers the accessor
        from terramind_cube.cube.load import load_cube
        from terramind_cube.stac import open_catalog
        from terramind_cube.synthetic import write_catalog
    with step(console, f"Writing a synthetic place of {size} x {size} px as GeoTIFFs and STAC"):
        path = write_catalog(directory / "catalog", size_px=size, seed=seed)
    with step(console, "Opening the catalog and describing the cube, lazily"):
        cube = load_cube(open_catalog(path), modalities=(*_DEMO_INPUTS, "LULC"))
    result = cube.terramind.generate(["LULC"], inputs=_DEMO_INPUTS, model="terramind_nano")
    note = display.describe_training(result["LULC"].attrs)
    sizes = f"{cube.sizes['time']} dates, {cube.sizes['x']} x {cube.sizes['y']} px of 10 m"
    console.print(f"  {', '.join(map(str, cube.data_vars))}: {sizes}")
    store, picture = directory / "lulc.zarr", directory / "lulc.png"
    with step(console, "Generating land cover with terramind_nano", is_live=False):
        write_store(console, result, store, resume=False)
    with step(console, "Drawing the picture"):
        display.save_quicklook(picture, cube, xr.open_zarr(store), note=note)
    print_closing(console, store, "LULC", time.perf_counter() - begin)
    console.print(f"  Picture     {picture}")
    if note:
        console.print(f"\n{note} Give trained ones to terramind-cube generate, with --weights.")


@reporting
def synthesize(
    directory: options.Directory,
    size: options.Size = 896,
    seed: options.Place = 900_001,
) -> None:
    """Write a synthetic place as Cloud-Optimized GeoTIFFs with a static STAC catalog."""
    console = make_console()
    with step(console, f"Writing a synthetic place of {size} x {size} px"):
        from terramind_cube.synthetic import write_catalog

        path = write_catalog(directory, size_px=size, seed=seed)
    console.print(f"The catalog: {path}")
    console.print(f"  Next        terramind-cube generate {path} --out lulc.zarr")


def _claim_demo(directory: Path) -> None:
    """Make room for a demo: an empty directory, or one that an earlier demo wrote.

    Raises
    ------
    FileExistsError
        If something else is there.
    """
    marker = directory / DEMO_MARKER
    is_free = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    if not is_free and not marker.is_file():
        raise FileExistsError(
            f"{directory} exists and is no demo of terramind-cube: name another directory."
        )
    directory.mkdir(parents=True, exist_ok=True)
    marker.write_text("Written by terramind-cube demo, which may replace what lies here.\n")
    for name in ("catalog", "lulc.zarr"):
        if (directory / name).exists():
            shutil.rmtree(directory / name)
    (directory / "lulc.png").unlink(missing_ok=True)
