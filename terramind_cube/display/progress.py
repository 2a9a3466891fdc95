"""How far a run is: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import functools
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from terramind_cube.store.ledger import Receipt

    Report = Callable[[int, int, Receipt], object]

__all__ = ["check_progress", "following", "show_progress"]

_EVERY_S = 0.5


@contextmanager
def show_progress(
    console: Console, total: int, already: int = 0
) -> Iterator[Callable[[int, int, Receipt], None]]:
    """Show how many tile groups are done.

    Parameters
    ----------
    console : rich.console.Console
        A bar with rate and time left where it is a terminal, else a line per tenth of the groups.
    total, already : int
        Tile groups of the store, and those that were done before.

    Yields
    ------
    callable
        To be called as ``report(done, total, receipt)`` after each tile group.
    """
    if not console.is_terminal:
        yield functools.partial(_print_tenth, console)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    begin = time.perf_counter()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Tile groups", total=total, completed=already, rate="")

        def report(done: int, _total: int, _receipt: Receipt) -> None:
            per_minute = 60 * (done - already) / (time.perf_counter() - begin)
            bar.update(task, completed=done, rate=f"{per_minute:.3g}/min")

        yield report


def _print_tenth(console: Console, done: int, total: int, receipt: Receipt) -> None:
    if 10 * done // total > 10 * (done - 1) // total:
        console.print(f"  {done} of {total} tile groups, the last in {receipt.seconds:.1f} s")


def check_progress(progress: Any) -> bool | str | Report:
    """Return what was asked for, False for None.

    Raises
    ------
    ValueError
        If it is neither True, False, None, "auto" nor a function.
    """
    if progress is None or isinstance(progress, bool) or progress == "auto" or callable(progress):
        return False if progress is None else progress
    raise ValueError(
        f"progress={progress!r}: give True, False, 'auto', or a function of (done, total, receipt)."
    )


@contextmanager
def following(progress: bool | str | Report, total: int, already: int) -> Iterator[Report | None]:
    """Yield what is to be called after each tile group, None where nobody watches.

    Parameters
    ----------
    progress : bool, "auto" or callable
        "auto" is True on a terminal and in Jupyter.
    total, already : int
        See `show_progress`.
    """
    if callable(progress):
        yield progress
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    is_watched = already < total and (console.is_jupyter or console.is_terminal)
    if not progress or (progress == "auto" and not is_watched):
        yield None
    elif console.is_jupyter:
        yield _follow_in_jupyter(total, already)
    else:
        with show_progress(console, total, already) as report:
            yield report


def _follow_in_jupyter(total: int, already: int) -> Report:
    """Return what writes one line over again; rich's own bar needs ipywidgets there."""
    display: Any = sys.modules["IPython"].display
    begin = last = time.perf_counter()

    def tell(done: int) -> dict[str, str]:
        spent = time.perf_counter() - begin
        text = f"{done} of {total} tile groups, {spent:.0f} s"
        if already < done < total:
            text += f", {spent / (done - already) * (total - done):.0f} s left"
        return {"text/plain": text}

    handle = display.display(tell(already), raw=True, display_id=True)

    def report(done: int, total: int, receipt: Receipt) -> None:
        nonlocal last
        now = time.perf_counter()
        if done == total or now - last > _EVERY_S:
            last = now
            handle.update(tell(done), raw=True)

    return report
