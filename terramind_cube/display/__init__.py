"""Pictures of a cube and of its results, what there is to say about a store, and progress."""

from __future__ import annotations

from terramind_cube.display.figure import QuicklookFigure
from terramind_cube.display.pictures import quicklook, save_quicklook, true_colour
from terramind_cube.display.progress import show_progress
from terramind_cube.display.report import (
    describe_dates,
    describe_grid,
    describe_plan,
    describe_store,
    describe_training,
)

__all__ = [
    "QuicklookFigure",
    "describe_dates",
    "describe_grid",
    "describe_plan",
    "describe_store",
    "describe_training",
    "quicklook",
    "save_quicklook",
    "show_progress",
    "true_colour",
]
