"""The figure: panels of one size, the legend of the classes and the colour bar beneath them.

Made without pyplot: nothing is registered anywhere, and it draws in Jupyter, in a script and on a
machine without a display alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from terramind_cube.modalities import LULC_CLASSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["DPI", "NODATA_GREY", "Panel", "QuicklookFigure", "lay_out"]

DPI = 160
NODATA_GREY = 176

# Layout, in inches.
_PANEL_IN = 4.2
_NARROWEST_IN = 2.4
_MARGIN_IN = {"left": 0.62, "right": 0.2, "top": 0.95, "gap_x": 0.3, "gap_y": 0.42}
_AXIS_IN = 0.52
_LEGEND_ROW_IN, _LEGEND_COLUMN_IN = 0.2, 1.4
_BAR_IN = 0.52
_NOTE_IN = 0.26
_INK, _FAINT = "#222222", "#6b6b6b"


class QuicklookFigure(Figure):
    """A figure that Jupyter shows without pyplot having been imported."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=DPI / 1.6)
        return buffer.getvalue()


@dataclass(frozen=True)
class Panel:
    """One picture: colours (y, x, 3) uint8, or numbers (y, x) float 0..1 for the colour bar."""

    title: str
    pixels: NDArray[Any]
    classes: tuple[int, ...] = ()


def lay_out(
    panels: Sequence[Panel],
    size_km: tuple[float, float],
    heading: tuple[str, str],
    note: str | None,
) -> Figure:
    """Place panels of one size in a grid; the legend and the colour bar stand beneath."""
    height_in, width_in = _panel_size(size_km)
    columns = 2 if len(panels) == 4 and width_in > _NARROWEST_IN else min(len(panels), 4)
    rows = -(-len(panels) // columns)
    classes = sorted({code for panel in panels for code in panel.classes})
    has_bar = panels[-1].pixels.ndim == 2
    legend_columns = max(columns - has_bar, 1)
    per_row = max(1, int(legend_columns * width_in / _LEGEND_COLUMN_IN))
    legend_in = -(-len(classes) // per_row) * _LEGEND_ROW_IN
    margin = _MARGIN_IN
    foot_in = _AXIS_IN + max(legend_in, _BAR_IN * has_bar) + 0.1 + (_NOTE_IN if note else 0)
    total_in = (
        margin["left"] + columns * width_in + (columns - 1) * margin["gap_x"] + margin["right"],
        foot_in + rows * height_in + (rows - 1) * margin["gap_y"] + margin["top"],
    )
    figure = QuicklookFigure(figsize=total_in, facecolor="white")

    def box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        return x / total_in[0], y / total_in[1], width / total_in[0], height / total_in[1]

    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        left = margin["left"] + column * (width_in + margin["gap_x"])
        bottom = foot_in + (rows - 1 - row) * (height_in + margin["gap_y"])
        axes = figure.add_axes(box(left, bottom, width_in, height_in))
        image = _draw_panel(axes, panel, size_km)
        _label_axes(axes, is_left=column == 0, is_bottom=row == rows - 1)
        if panel.pixels.ndim == 2:
            bar = figure.add_axes(box(left, foot_in - _AXIS_IN - 0.15, width_in, 0.13))
            figure.colorbar(image, cax=bar, orientation="horizontal")
            _style_bar(bar)
    if classes:
        corner = box(margin["left"], foot_in - _AXIS_IN, 1, 1)[:2]
        _draw_legend(figure, classes, corner, per_row)
    _write_heading(figure, heading, margin["left"], total_in)
    if note:
        x, y = box(margin["left"], 0.12, 1, 1)[:2]
        figure.text(x, y, note, fontsize=10, style="italic", color="#a03020", va="bottom")
    return figure


def _panel_size(size_km: tuple[float, float]) -> tuple[float, float]:
    """Return height and width of a panel in inches; no panel is narrower than its title."""
    scale = _PANEL_IN / max(size_km)
    scale = min(max(scale, _NARROWEST_IN / size_km[1]), 1.6 * scale)
    return size_km[0] * scale, max(size_km[1] * scale, _NARROWEST_IN)


def _draw_panel(axes: Axes, panel: Panel, size_km: tuple[float, float]) -> Any:
    axes.set_title(panel.title, loc="left", fontsize=11, color=_INK, pad=5)
    axes.set_facecolor(f"#{NODATA_GREY:02x}{NODATA_GREY:02x}{NODATA_GREY:02x}")
    axes.set_anchor("W")
    extent = (0.0, size_km[1], 0.0, size_km[0])
    if panel.pixels.ndim == 2:
        return axes.imshow(panel.pixels, cmap="viridis", vmin=0, vmax=1, extent=extent)
    kind = "nearest" if panel.classes else "antialiased"
    return axes.imshow(panel.pixels, extent=extent, interpolation=kind)


def _label_axes(axes: Axes, *, is_left: bool, is_bottom: bool) -> None:
    axes.locator_params(nbins=5)
    axes.tick_params(
        labelsize=9, labelleft=is_left, labelbottom=is_bottom, color=_FAINT, labelcolor=_FAINT
    )
    if is_left:
        axes.set_ylabel("km north", fontsize=9, color=_FAINT)
    if is_bottom:
        axes.set_xlabel("km east", fontsize=9, color=_FAINT, labelpad=2)
    for spine in axes.spines.values():
        spine.set_color(_FAINT)


def _style_bar(bar: Axes) -> None:
    bar.tick_params(labelsize=9, color=_FAINT, labelcolor=_FAINT, pad=2)
    bar.set_xlabel("probability of the class shown", fontsize=9, color=_FAINT, labelpad=2)
    for spine in bar.spines.values():
        spine.set_visible(False)


def _draw_legend(
    figure: Figure, classes: Sequence[int], corner: tuple[float, float], per_row: int
) -> None:
    rows = {row.value: row for row in LULC_CLASSES}
    patches = [
        Patch(
            facecolor=rows[code].color, edgecolor=_FAINT, linewidth=0.5,
            label=rows[code].name.replace("_", " "),
        )
        for code in classes if code in rows
    ]  # fmt: skip
    figure.legend(
        handles=patches, loc="upper left", bbox_to_anchor=corner, ncols=min(per_row, len(patches)),
        frameon=False, fontsize=9.5, labelcolor=_INK, borderaxespad=0, borderpad=0,
        handlelength=1.3, handleheight=1.0, columnspacing=1.4, labelspacing=0.45,
    )  # fmt: skip


def _write_heading(
    figure: Figure, heading: tuple[str, str], left_in: float, total_in: tuple[float, float]
) -> None:
    """Write the date in bold and the scene's size and CRS below it."""
    x = left_in / total_in[0]
    title, subtitle = heading
    if title:
        y = 1 - 0.34 / total_in[1]
        figure.text(x, y, title, fontsize=14, fontweight="bold", color=_INK)
    figure.text(x, 1 - 0.57 / total_in[1], subtitle, fontsize=9.5, color=_FAINT)
