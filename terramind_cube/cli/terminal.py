"""What the commands print, and how they end: messages, progress lines, exit codes."""

from __future__ import annotations

import functools
import time
import warnings
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ParamSpec

import typer
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["INTERRUPTED", "make_console", "print_rows", "reporting", "status", "step"]

INTERRUPTED = 130
"""Exit code of an interrupted command."""

_INPUT_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    ConnectionError,
    BlockingIOError,
)

P = ParamSpec("P")


def reporting(command: Callable[P, None]) -> Callable[P, None]:
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
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if not _is_bad_input(error):
                    raise
                # The rooms speak Python; here the same choice is an option.
                message = str(error).replace("resume=True", "--resume")
                message = message.replace("overwrite=True", "--overwrite")
                typer.echo(f"Error: {message}", err=True)
                raise typer.Exit(2) from None

    return run


def make_console() -> Console:
    """Return a console that prints as it is told."""
    return Console(highlight=False, soft_wrap=True, markup=False)


def status(console: Console, text: str) -> Any:
    """Show what is being done while it lasts, where somebody watches."""
    # Where nobody watches, rich would still print the text once more.
    return console.status(text) if console.is_terminal else nullcontext()


@contextmanager
def step(console: Console, text: str, *, is_live: bool = True) -> Iterator[None]:
    """Print a step with the time that it took."""
    begin = time.perf_counter()
    with status(console, text) if is_live else nullcontext():
        yield
    console.print(f"{text:<68}{time.perf_counter() - begin:6.1f} s")


def print_rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Print labels with their texts."""
    for label, text in rows:
        console.print(f"{label:<11}{text}")


def _print_warning(message: Warning | str, *_: Any) -> None:
    typer.echo(f"Warning: {message}", err=True)


def _is_bad_input(error: Exception) -> bool:
    """Whether the caller can put it right: what was asked for, or a file that was named."""
    if isinstance(error, BrokenPipeError):  # of whoever reads what is printed
        return False
    if isinstance(error, OSError) and not isinstance(error, _INPUT_ERRORS):
        from terramind_cube.cube.failures import AssetError

        return isinstance(error, AssetError)
    from terramind_cube.store.writer import RegionError

    if isinstance(error, RegionError):
        return isinstance(error.__cause__, OSError) and _is_bad_input(error.__cause__)
    return isinstance(error, _INPUT_ERRORS)
