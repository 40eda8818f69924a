"""How every picture of this project looks: one style, one palette, one way to a file.

Figures are made without `matplotlib.pyplot`, so that there is no global figure list to leak and no display to ask for.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
"""Okabe and Ito's colours, told apart with every common kind of colour blindness."""

GREY = "#8A8F98"
LIGHT_GREY = "#D5D8DD"
INK = "#22262B"

# Any: matplotlib types the keys from 3.11 on, as a union of all their names.
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.dpi": 144,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": "#E8EAED",
    "grid.linewidth": 0.8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    # Names of clients and classes come from outside: a dollar sign in one is a dollar sign, not a formula.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches that is written to `path` as PNG when the block ends without an error."""
    with mpl.rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        yield made
        made.savefig(path, format="png")


def shown(text: str, longest: int = 28) -> str:
    """`text` from outside as one short line: no control characters, at most `longest` characters."""
    line = "".join(" " if unicodedata.category(char).startswith(("C", "Z")) else char for char in text)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only: there is no round 1.5, and no half of an example."""
    axis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def numbers(values: Iterable[float | None]) -> list[float]:
    """`values` with NaN for what is missing or not finite: a line has a gap there."""
    return [math.nan if value is None or not math.isfinite(value) else float(value) for value in values]


def legend_entries(*panels: Axes) -> tuple[list[Artist], list[str]]:
    """Handles and labels of what is drawn in `panels`, each label once."""
    by_label: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        by_label |= dict(zip(labels, handles, strict=True))
    return list(by_label.values()), list(by_label)


def rows_of(count: int) -> int:
    """Rows that `panels` needs."""
    return -(-count // 2)


def panels(made: Figure, count: int) -> list[Axes]:
    """Axes for `count` panels, 1 or more: two a row, one alone over the whole width."""
    grid = list(made.subplots(rows_of(count), min(count, 2), squeeze=False).flat)
    for unused in grid[count:]:
        unused.remove()
    return grid[:count]


def loss_limits(axes: Axes, values: Sequence[float]) -> None:
    """A y axis for losses: from 0, or a little below the lowest of `values`, to a little above the highest."""
    there = [0.0, *(value for value in values if not math.isnan(value))]
    axes.set_ylim(min(there) * 1.08, max(there) * 1.08 if any(there) else 1.0)


def share_limits(axes: Axes, values: Sequence[float]) -> None:
    """A y axis for shares of 1: up to 1, and down to a tenth below the lowest of `values`, 0.2 at least in all.

    It never begins at the lowest itself, above 0: half of a mark there would be cut off.
    """
    low = min((value for value in values if not math.isnan(value)), default=0.0)
    tenths = math.ceil(max(0.0, min(1.0, low)) * 10)  # clamped first: 10 times the largest number has no whole one
    bottom = max(0, min(8, tenths - 1)) / 10
    axes.set_ylim(bottom, 1.0 + 0.03 * (1.0 - bottom))


def score_limits(axes: Axes, name: str, values: Sequence[float]) -> None:
    """The y axis for `values` of the metric `name`; of one that is not known here, as matplotlib chooses."""
    if name == "accuracy":
        share_limits(axes, values)
    elif name == "loss":
        loss_limits(axes, values)
