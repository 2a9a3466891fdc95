"""``terramind-cube``: the demo, and generating a store from a catalog without writing Python.

Exit codes: 0 done, 1 something unexpected (with a traceback), 2 bad input, 130 interrupted. Heavy
libraries are imported inside the commands, after the cheap checks.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as package_version
from typing import Annotated

import typer

from terramind_cube.cli import catalogs, scenes, stores
from terramind_cube.cli.options import AreaCommand
from terramind_cube.cli.terminal import INTERRUPTED

__all__ = ["app", "main"]

app = typer.Typer(
    help="Generate missing modalities of Earth observation with TerraMind, from a STAC catalog to "
    "a georeferenced Zarr store.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(scenes.demo)
app.command()(scenes.synthesize)
app.command(cls=AreaCommand)(catalogs.index)
app.command(cls=AreaCommand)(stores.generate)
app.command()(stores.info)


def main() -> None:
    """Run the command line interface."""
    try:
        app(prog_name="terramind-cube")
    except SystemExit as leaving:
        if leaving.code != INTERRUPTED:
            raise
        # Python would wait for the tile group that runs in a thread; the store needs no such care.
        sys.stdout.flush()
        os._exit(INTERRUPTED)


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
