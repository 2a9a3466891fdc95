"""How far a run is: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import functools
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

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

    from rich.console import Console

    from terramind_cube.store.ledger import Receipt

__all__ = ["show_progress"]


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
