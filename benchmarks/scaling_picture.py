"""The picture of `benchmarks.scaling`: two panels with logarithmic axes, and in each a line of slope 1 to compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from benchmarks.points import Point
from fedtask.drawing import BLUE, GREY, ORANGE, figure


def draw(points: Sequence[Point], path: Path) -> None:
    """Write it as PNG: sizes of the smallest model by clients, and those of the fewest clients by the model's size."""
    smallest, fewest = min(point.size.mib for point in points), min(point.size.clients for point in points)
    by_clients = [point for point in points if point.size.mib == smallest]
    by_model = [point for point in points if point.size.clients == fewest]
    with figure(path, 10, 4.4) as drawn:
        left, right = drawn.subplots(1, 2)
        left.set_title(f"a model of {smallest:g} MiB")
        _panel(left, by_clients, lambda point: point.size.clients, "clients")
        right.set_title(f"{fewest} client" + ("s" if fewest > 1 else ""))
        _panel(right, by_model, lambda point: point.size.mib, "model, MiB")


def _panel(axes: Axes, points: Sequence[Point], place: Callable[[Point], float], label: str) -> None:
    for is_bare, name, color, marker in ((False, "fedclient", BLUE, "o"), (True, "bare sites", ORANGE, "s")):
        chosen = sorted((point for point in points if point.is_bare == is_bare), key=place)
        if chosen:
            seconds = [point.median for point in chosen]
            axes.plot([place(point) for point in chosen], seconds, color=color, marker=marker, label=name)
    _slope_of_one(axes, max(points, key=place), min(map(place, points)), place)
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds per round")
    axes.set_xticks(sorted({place(point) for point in points}), minor=False)
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend()


def _slope_of_one(axes: Axes, last: Point, start: float, place: Callable[[Point], float]) -> None:
    """Through the largest size: what smaller ones would take if a round's time were all in proportion."""
    ends = [start, place(last)]
    seconds = [last.median * end / place(last) for end in ends]
    axes.plot(ends, seconds, color=GREY, linestyle=(0, (4, 3)), linewidth=1.2, label="in proportion (slope 1)")
