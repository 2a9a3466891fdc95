"""``terramind-cube``: the demo, and generating a store from a catalog without writing Python.

Exit codes: 0 done, 1 something unexpected (with a traceback), 2 bad input, 130 interrupted. Heavy
libraries are imported inside the commands, after the cheap checks.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, cast

import typer
from rich.console import Console
from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import xarray as xr

    from terramind_cube.inference.generate import Options
    from terramind_cube.model.loading import Precision

__all__ = ["app", "main"]

DEMO_MARKER = ".terramind_cube_demo"
_DEMO_INPUTS = ("S2L2A", "S1RTC", "DEM")
_INTERRUPTED = 130
_INPUT_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)

P = ParamSpec("P")

app = typer.Typer(
    help="Generate missing modalities of Earth observation with TerraMind, from a STAC catalog to "
    "a georeferenced Zarr store.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line interface."""
    try:
        app(prog_name="terramind-cube")
    except SystemExit as leaving:
        if leaving.code != _INTERRUPTED:
            raise
        # Python would wait for the tile group that runs in a thread; the store needs no such care.
        sys.stdout.flush()
        os._exit(_INTERRUPTED)


class _AreaCommand(TyperCommand):
    """A command whose ``--bbox`` takes four numbers, quoted as one argument or not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the numbers behind ``--bbox`` into one argument."""
        if "--bbox" in args:
            begin = end = args.index("--bbox") + 1
            while end < min(begin + 4, len(args)) and _is_number(args[end]):
                end += 1
            if end > begin:
                args = [*args[:begin], " ".join(args[begin:end]), *args[end:]]
        return super().parse_args(ctx, args)


def _reporting(command: Callable[P, None]) -> Callable[P, None]:
    """Turn bad input and interrupts into short messages and exit codes, and warnings into lines."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=UserWarning, module="terramind_cube")
            warnings.showwarning = _print_warning  # type: ignore[assignment]
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt as interrupt:
                typer.echo(f"\nInterrupted. {interrupt}".rstrip(), err=True)
                raise typer.Exit(_INTERRUPTED) from None
            except Exception as error:
                if not _is_bad_input(error):
                    raise
                # The rooms speak Python; here the same choice is an option.
                message = str(error).replace("resume=True", "--resume")
                typer.echo(f"Error: {message}", err=True)
                raise typer.Exit(2) from None

    return run


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"terramind-cube {package_version('terramind-cube')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def _option(
    text: str, panel: str | None = None, metavar: str | None = None, least: int | None = None
) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, metavar=metavar, min=least)


_READ, _MODEL, _WORK = "What to read", "How to generate", "How to compute"
_Size = Annotated[int, _option("Side of the scene in pixels of 10 m.", None, "PX", 16)]
_Place = Annotated[int, _option("Which place; 900000 and more are never trained on.", None, "N", 0)]
_Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to write.")]
_Source = Annotated[
    str, typer.Argument(metavar="CATALOG", help="Path of a catalog or items, or a STAC API's URL.")
]
_Out = Annotated[Path, _option("Zarr store to write.", None, "STORE")]
_Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an unfinished store; new if there is none.")
]
_Bbox = Annotated[str | None, _option("Area in degrees; all by default.", _READ, "W S E N")]
_Datetime = Annotated[
    str | None, _option("Such as 2024-05 or 2024-05-01/2024-06-30; all by default.", _READ, "TIME")
]
_Inputs = Annotated[
    list[str] | None, _option("Modality to look at; may be repeated. S2L2A by default.", _READ, "M")
]
_Outputs = Annotated[
    list[str] | None,
    _option("Modality to generate; may be repeated. LULC by default.", _MODEL, "M"),
]
_Model = Annotated[str, _option("terramind_nano, terramind_v1_tiny, ...", _MODEL)]
_Weights = Annotated[
    str | None, _option('"pretrained" or a path; untrained by default.', _MODEL, "PATH")
]
_TokenizerWeights = Annotated[
    list[str] | None, _option("Tokenizer of an output; may be repeated.", _MODEL, "M=PATH")
]
_Seed = Annotated[int, _option("Of the random numbers.", _MODEL, "N")]
_Temperature = Annotated[float, _option("0 takes the most probable token.", _MODEL)]
_TopP = Annotated[float, _option("Share of the probability that is drawn from.", _MODEL)]
_Steps = Annotated[int, _option("Diffusion steps.", _MODEL, "N")]
_DecodingSteps = Annotated[int, _option("Steps in which tokens are decided.", _MODEL, "N")]
_Chain = Annotated[
    bool, typer.Option("--chain", help="Each output sees those before it.", rich_help_panel=_MODEL)
]
_Samples = Annotated[int, _option("Members of an ensemble.", _MODEL, "N")]
_Overlap = Annotated[int, _option("Overlap of neighbouring tiles.", _MODEL, "PX")]
_Chunks = Annotated[int, _option("Side of the store's chunks.", _WORK, "PX")]
_Precision = Annotated[str, _option("float32, bfloat16 or auto.", _WORK)]
_Device = Annotated[str | None, _option("cpu or cuda; the GPU where there is one.", _WORK)]
_Batch = Annotated[int | None, _option("Tiles per forward pass.", _WORK, "N")]
_Threads = Annotated[int | None, _option("Threads inside an operation.", _WORK, "N")]


@app.command()
@_reporting
def demo(
    directory: _Directory = Path("demo"),
    size: _Size = 896,
    seed: _Place = 900_001,
) -> None:
    """Show the main job: catalog, cube, generated land cover, Zarr store and picture.

    Works without internet and without a GPU, on a synthetic scene. A directory of an earlier demo
    is replaced, any other one is refused.
    """
    console = _make_console()
    begin = time.perf_counter()
    console.print("From a STAC catalog to a land-cover map, without internet and without a GPU.\n")
    _claim_demo(directory)
    with _status(console, "Loading the libraries"):
        import xarray as xr

        from terramind_cube import accessor, display  # noqa: F401  # registers the accessor
        from terramind_cube.cube.load import load_cube
        from terramind_cube.stac import open_catalog
        from terramind_cube.synthetic import write_catalog
    with _step(console, f"Writing a synthetic place of {size} x {size} px as GeoTIFFs and STAC"):
        path = write_catalog(directory / "catalog", size_px=size, seed=seed)
    with _step(console, "Opening the catalog and describing the cube, lazily"):
        cube = load_cube(open_catalog(path), modalities=(*_DEMO_INPUTS, "LULC"))
    result = cube.terramind.generate(["LULC"], inputs=_DEMO_INPUTS, model="terramind_nano")
    note = display.describe_training(result["LULC"].attrs)
    sizes = f"{cube.sizes['time']} dates, {cube.sizes['x']} x {cube.sizes['y']} px of 10 m"
    console.print(f"  {', '.join(map(str, cube.data_vars))}: {sizes}")
    store, picture = directory / "lulc.zarr", directory / "lulc.png"
    with _step(console, "Generating land cover with terramind_nano", is_live=False):
        _write_store(console, result, store, resume=False)
    with _step(console, "Drawing the picture"):
        display.save_quicklook(picture, cube, xr.open_zarr(store), note=note)
    _print_closing(console, store, "LULC", time.perf_counter() - begin)
    console.print(f"  Picture     {picture}")
    if note:
        console.print(f"\n{note} Give trained ones to terramind-cube generate, with --weights.")


@app.command()
@_reporting
def synthesize(
    directory: _Directory,
    size: _Size = 896,
    seed: _Place = 900_001,
) -> None:
    """Write a synthetic place as Cloud-Optimized GeoTIFFs with a static STAC catalog."""
    console = _make_console()
    with _step(console, f"Writing a synthetic place of {size} x {size} px"):
        from terramind_cube.synthetic import write_catalog

        path = write_catalog(directory, size_px=size, seed=seed)
    console.print(f"The catalog: {path}")
    console.print(f"  Next        terramind-cube generate {path} --out lulc.zarr")


@app.command()
@_reporting
def info(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Store that this package wrote.")],
) -> None:
    """Say what a store holds, how it was made, and whether it is complete."""
    from terramind_cube.display import describe_store

    _print_rows(_make_console(), describe_store(store))


@app.command(cls=_AreaCommand)
@_reporting
def generate(  # noqa: PLR0913  # the public surface
    catalog: _Source,
    out: _Out,
    resume: _Resume = False,
    bbox: _Bbox = None,
    datetime: _Datetime = None,
    inputs: _Inputs = None,
    outputs: _Outputs = None,
    model: _Model = "terramind_nano",
    weights: _Weights = None,
    tokenizer_weights: _TokenizerWeights = None,
    seed: _Seed = 0,
    temperature: _Temperature = 1.0,
    top_p: _TopP = 0.8,
    steps: _Steps = 10,
    decoding_steps: _DecodingSteps = 1,
    chain: _Chain = False,
    samples: _Samples = 1,
    overlap: _Overlap = 32,
    chunks: _Chunks = 896,
    precision: _Precision = "float32",
    device: _Device = None,
    compute_batch: _Batch = None,
    threads: _Threads = None,
) -> None:
    """Generate modalities over the items of a catalog, into a Zarr store.

    Without --bbox and --datetime it takes everything that the catalog holds.
    """
    begin = time.perf_counter()
    area, tokenizers = _parse_bbox(bbox), _parse_pairs(tokenizer_weights)
    if os.path.lexists(out) and not resume:
        raise FileExistsError(
            f"{out} exists already: pass --resume to go on with it, or choose another --out."
        )
    console = _make_console()
    with _status(console, "Loading the libraries"):
        from terramind_cube import inference as room
        from terramind_cube.cube.load import load_cube
        from terramind_cube.stac import open_catalog
        from terramind_cube.store.ledger import stored_batch
    if resume and compute_batch is None:
        compute_batch = stored_batch(out)
    options = room.Options(
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
    with _status(console, "Searching the catalog"):
        seen = inputs or ["S2L2A"]
        cube = load_cube(open_catalog(catalog), bbox=area, datetime=datetime, modalities=seen)
        result, rows = _plan_result(cube, seen, outputs or ["LULC"], options)
    _print_rows(console, [*rows, ("Store", str(out.absolute()))])
    try:
        _write_store(console, result, out, resume=resume)
    except KeyboardInterrupt:
        hint = "What is finished is kept: the same command with --resume goes on."
        raise KeyboardInterrupt(hint) from None
    _print_closing(console, out, next(iter(result.data_vars)), time.perf_counter() - begin)


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


def _write_store(console: Console, result: xr.Dataset, out: Path, *, resume: bool) -> None:
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


def _make_console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False)


def _status(console: Console, text: str) -> Any:
    # Where nobody watches, rich would still print the text once more.
    return console.status(text) if console.is_terminal else nullcontext()


@contextmanager
def _step(console: Console, text: str, *, is_live: bool = True) -> Iterator[None]:
    """Print a step with the time that it took."""
    begin = time.perf_counter()
    with _status(console, text) if is_live else nullcontext():
        yield
    console.print(f"{text:<68}{time.perf_counter() - begin:6.1f} s")


def _print_rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    for label, text in rows:
        console.print(f"{label:<11}{text}")


def _print_closing(console: Console, store: Path, variable: object, seconds: float) -> None:
    console.print(f"\nDone in {seconds:.1f} s. The result: {store}")
    console.print(f'  Python      xr.open_zarr("{store}")')
    console.print(f'  GDAL, QGIS  ZARR:"{store.absolute()}":/{variable}')


def _print_warning(message: Warning | str, *_: Any) -> None:
    typer.echo(f"Warning: {message}", err=True)


def _is_bad_input(error: Exception) -> bool:
    """Whether the caller can put it right: what was asked for, or a file that was named."""
    if isinstance(error, OSError) and not isinstance(error, _INPUT_ERRORS):
        from terramind_cube.cube.reading import AssetError

        return isinstance(error, AssetError)
    from terramind_cube.store.writer import RegionError

    if isinstance(error, RegionError):
        return isinstance(error.__cause__, OSError) and _is_bad_input(error.__cause__)
    return isinstance(error, _INPUT_ERRORS)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_bbox(text: str | None) -> list[float] | None:
    if text is None:
        return None
    words = text.replace(",", " ").split()
    if len(words) != 4 or not all(map(_is_number, words)):
        raise ValueError(f"--bbox takes four numbers, W S E N in degrees, got {text!r}.")
    return [float(word) for word in words]


def _parse_pairs(pairs: Sequence[str] | None) -> dict[str, str] | None:
    """Read ``M=PATH`` pairs."""
    found = {}
    for pair in pairs or ():
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--tokenizer-weights takes M=PATH, such as LULC=l.pt, got {pair!r}.")
        found[name] = path
    return found or None
