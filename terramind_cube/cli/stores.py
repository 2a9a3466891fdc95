"""Commands about stores: generating one, and saying what it holds."""

from __future__ import annotations

import os
import time
from pathlib import Path  # noqa: TC003  # typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from terramind_cube.cli import options
from terramind_cube.cli.terminal import make_console, print_rows, reporting, status
from terramind_cube.store.places import store_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from rich.console import Console

    from terramind_cube.inference.generate import Options
    from terramind_cube.model.loading import Precision

__all__ = ["generate", "info", "print_closing", "write_store"]


@reporting
def info(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Store that this package wrote.")],
) -> None:
    """Say what a store holds, how it was made, and whether it is complete."""
    from terramind_cube.display import describe_store

    print_rows(make_console(), describe_store(store))


@reporting
def generate(  # noqa: PLR0913  # the public surface
    catalog: options.Source,
    out: options.Out,
    resume: options.Resume = False,
    bbox: options.Bbox = None,
    datetime: options.Datetime = None,
    inputs: options.Inputs = None,
    radar_unit: options.RadarUnit = None,
    lulc_legend: options.LulcLegend = None,
    outputs: options.Outputs = None,
    model: options.Model = "terramind_nano",
    weights: options.Weights = None,
    tokenizer_weights: options.TokenizerWeights = None,
    seed: options.Seed = 0,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 0.8,
    steps: options.Steps = 10,
    decoding_steps: options.DecodingSteps = 1,
    chain: options.Chain = False,
    samples: options.Samples = 1,
    overlap: options.Overlap = 32,
    chunks: options.Chunks = 896,
    precision: options.Precision = "float32",
    device: options.Device = None,
    compute_batch: options.Batch = None,
    threads: options.Threads = None,
) -> None:
    """Generate modalities over the items of a catalog, into a Zarr store.

    Without --bbox and --datetime it takes everything that the catalog holds.
    """
    begin = time.perf_counter()
    area, tokenizers = options.parse_bbox(bbox), options.parse_tokenizers(tokenizer_weights)
    out = store_path(out)
    if os.path.lexists(out) and not resume:
        raise FileExistsError(
            f"{out} exists already: pass --resume to go on with it, or choose another --out."
        )
    console = make_console()
    with status(console, "Loading the libraries"):
        from terramind_cube import inference as room
        from terramind_cube.cube.load import load_cube
        from terramind_cube.stac import open_catalog
        from terramind_cube.store.ledger import stored_batch
    if resume and compute_batch is None:
        compute_batch = stored_batch(out)
    chosen = room.Options(
        room.WeightsChoice(model, weights, tokenizers),
        room.Compute.choose(device, cast("Precision", precision), compute_batch, threads),
        seed=seed,
        decoding=room.Decoding(room.Sampling(temperature, top_p), decoding_steps),
        diffusion=room.Diffusion(steps),
        ensemble=room.Ensemble(samples),
        is_chained=chain,
        overlap_px=overlap,
        chunk_px=room.check_chunk(chunks),
    )
    with status(console, "Searching the catalog"):
        seen = inputs or ["S2L2A"]
        cube = load_cube(
            open_catalog(catalog),
            bbox=area,
            datetime=datetime,
            modalities=seen,
            radar_unit=cast("Any", radar_unit),
            lulc_legend=lulc_legend,
        )
        result, rows = _plan_result(cube, seen, outputs or ["LULC"], chosen)
    print_rows(console, [*rows, ("Store", str(out.absolute()))])
    try:
        write_store(console, result, out, resume=resume)
    except KeyboardInterrupt:
        hint = "What is finished is kept: the same command with --resume goes on."
        raise KeyboardInterrupt(hint) from None
    print_closing(console, out, next(iter(result.data_vars)), time.perf_counter() - begin)


def _plan_result(
    cube: xr.Dataset, inputs: Sequence[str], outputs: Sequence[str], options: Options
) -> tuple[xr.Dataset, list[tuple[str, str]]]:
    """Return the lazy result, and what to say about it before it is computed."""
    from terramind_cube.cube.layout import read_layout
    from terramind_cube.display import describe_plan
    from terramind_cube.inference.generate import plan_generation
    from terramind_cube.inference.mapping import map_plan

    layout = read_layout(cube, inputs)
    plan = plan_generation(layout, outputs, options)
    result = map_plan(layout, plan)
    return result, describe_plan(layout, plan)


def write_store(console: Console, result: xr.Dataset, out: Path, *, resume: bool) -> None:
    """Compute a result into its store, showing how far it is."""
    from terramind_cube.display import show_progress
    from terramind_cube.inference.mapping import generated_regions, read_fingerprint
    from terramind_cube.store.ledger import completed
    from terramind_cube.store.writer import write_result

    regions = generated_regions(result)
    already = len(completed(out)) if resume else 0
    with show_progress(console, len(regions), already) as report:
        write_result(
            result,
            out,
            regions=regions,
            fingerprint=read_fingerprint(result),
            resume=resume,
            progress=report,
        )


def print_closing(console: Console, store: Path, variable: object, seconds: float) -> None:
    """Say how long it took, and how the store is opened."""
    console.print(f"\nDone in {seconds:.1f} s. The result: {store}")
    console.print(f'  Python      xr.open_zarr("{store}")')
    console.print(f'  GDAL, QGIS  ZARR:"{store.absolute()}":/{variable}')
