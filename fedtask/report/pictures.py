"""Pictures of a whole federation: how the global model got better, and who contributed what.

As in `fedtask.plots`, every function writes one PNG and is content with one round, one client and missing values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from fedtask import drawing
from fedtask.drawing import BLUE, GREY, LIGHT_GREY, PALETTE, VERMILION, figure, shown
from fedtask.report import tables
from fedtask.report.record import Contribution, RoundRecord

_STACK_COLOURS = (*PALETTE[:7], GREY)
"""One client each; with more clients than these, the smallest share a light grey."""

_MOST_BARS = 40
"""With so many rounds, a bar and the room beside it are some ten pixels wide."""

Floats = npt.NDArray[np.float64]


def global_progress(rounds: Sequence[RoundRecord], best_round: int | None, path: Path, loss_name: str = "") -> None:
    """Scores of every global model on the holdout, a panel each, the best round marked, clients as thin lines.

    `rounds` are those with a global model, by number; `tables.scores_of` says which scores. `loss_name` is what the
    loss is, empty where nobody knows.
    """
    names = tables.scores_of(rounds) or ["loss"]
    with figure(path, 10, 4.4 * drawing.rows_of(len(names))) as drawn:
        panels = drawing.panels(drawn, len(names))
        for axes, name in zip(panels, names, strict=True):
            axes.set_title(f"{tables.title(shown(name))} per round")
            axes.set_ylabel(f"loss ({loss_name})" if name == "loss" and loss_name else shown(name))
            _draw_score(axes, rounds, best_round, name)
        handles, labels = drawing.legend_entries(*panels)
        legend = drawn.legend(handles, labels, loc="outside lower center", ncols=4)
        for line, text in zip(legend.legend_handles, labels, strict=True):
            if line is not None and text == _CLIENTS:
                line.set_alpha(1)  # many clients are drawn so faintly that their line here could not be seen


_CLIENTS = "each client after training, on its own data"


def _draw_score(axes: Axes, rounds: Sequence[RoundRecord], best_round: int | None, name: str) -> None:
    values = _score(rounds, name)
    _global_line(axes, rounds, values, best_round)
    band = _interval_band(axes, rounds, name)
    local = _client_lines(axes, rounds) if name == "accuracy" else []
    drawing.score_limits(axes, name, [*values, *local, *band])


def _score(rounds: Sequence[RoundRecord], name: str) -> list[float]:
    return drawing.numbers(one.evaluation.metrics.get(name) if one.evaluation else None for one in rounds)


def _global_line(axes: Axes, rounds: Sequence[RoundRecord], values: Sequence[float], best_round: int | None) -> None:
    numbers = [one.number for one in rounds]
    size = 4.5 if len(rounds) <= 40 else 2.5
    axes.plot(numbers, values, color=BLUE, marker="o", markersize=size, zorder=4, label="global model on the holdout")
    for number, value in zip(numbers, values, strict=True):
        if number == best_round and not math.isnan(value):
            axes.set_title(f"{value:.4f} in round {number}", loc="right", color=VERMILION)
            star: dict[str, Any] = {"markersize": 15, "markeredgecolor": "white", "linestyle": "none", "zorder": 5}
            axes.plot([number], [value], "*", color=VERMILION, label="best model", **star)
    axes.set_xlabel("round")
    axes.set_xlim(min(numbers, default=1) - 0.6, max(numbers, default=1) + 0.6)
    drawing.whole_numbers(axes.xaxis)


def _interval_band(axes: Axes, rounds: Sequence[RoundRecord], name: str) -> list[float]:
    """The 95% interval of each score `name`, a gap where a round has none; all its ends, which need room too."""
    found = [one.evaluation.intervals.get(name) if one.evaluation else None for one in rounds]
    if not any(found):
        return []
    low = drawing.numbers(interval.low if interval else None for interval in found)
    high = drawing.numbers(interval.high if interval else None for interval in found)
    numbers = [one.number for one in rounds]
    label = "its 95% interval"
    if len(rounds) == 1:
        axes.vlines(numbers, low, high, color=BLUE, alpha=0.25, linewidth=10, label=label)
    else:
        axes.fill_between(numbers, low, high, color=BLUE, alpha=0.14, linewidth=0, label=label)
    return [*low, *high]


def _client_lines(axes: Axes, rounds: Sequence[RoundRecord]) -> list[float]:
    """A thin line per client that has local accuracies; their values."""
    by_round = [{one.client_name: one.accuracy for one in each.contributions} for each in rounds]
    names = list(dict.fromkeys(itertools.chain.from_iterable(by_round)))
    drawn: list[float] = []
    faint = max(0.12, 0.65 / (1 + len(names) / 12))
    for name in names:
        values = drawing.numbers(each.get(name) for each in by_round)
        if all(math.isnan(value) for value in values):
            continue
        axes.plot(
            [each.number for each in rounds],
            values,
            color=GREY,
            linewidth=0.8,
            alpha=faint,
            marker="." if len(names) <= 12 else None,
            markersize=4,
            label=_CLIENTS,
        )
        drawn += values
    return drawn


def contributions(rounds: Sequence[RoundRecord], path: Path) -> None:
    """Examples and weight of every client per round, stacked, for the updates that are in the aggregate."""
    groups = _client_groups(rounds)
    with figure(path, 10, 3.9) as drawn:
        left, right = drawn.subplots(1, 2)
        left.set_title("Training examples per round")
        right.set_title("Weight in the global model per round")
        _stack(left, rounds, groups, lambda one: one.num_examples)
        _stack(right, rounds, groups, lambda one: one.weight)
        left.set_ylabel("training examples")
        drawing.whole_numbers(left.yaxis)
        right.set_ylabel("weight, all together 1")
        right.set_ylim(0, 1.001)
        handles, labels = left.get_legend_handles_labels()
        if handles:
            # From the top down, as they are stacked.
            drawn.legend(handles[::-1], labels[::-1], loc="outside right center", title="client", alignment="left")


def _client_groups(rounds: Sequence[RoundRecord]) -> dict[str, Sequence[str]]:
    """Label to client names: every client by itself, or the largest, and all others together."""
    totals: dict[str, float] = {}
    for one in itertools.chain.from_iterable(each.contributions for each in rounds):
        if one.outcome == "completed":
            totals[one.client_name] = totals.get(one.client_name, 0) + (one.num_examples or 0)
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    alone = ranked if len(ranked) <= len(_STACK_COLOURS) else ranked[: len(_STACK_COLOURS) - 1]
    groups: dict[str, Sequence[str]] = {name: [name] for name in sorted(alone)}
    if len(alone) < len(ranked):
        groups[f"{len(ranked) - len(alone)} others"] = ranked[len(alone) :]
    return groups


def _stack(
    axes: Axes,
    rounds: Sequence[RoundRecord],
    groups: Mapping[str, Sequence[str]],
    size: Callable[[Contribution], float | None],
) -> None:
    """`size` of each group, on top of one another: as bars, one per round, or as areas where rounds are many."""
    numbers = [each.number for each in rounds]
    bottom = np.zeros(len(rounds))
    draw = _bars if len(rounds) <= _MOST_BARS else _areas
    for (label, members), colour in zip(groups.items(), _STACK_COLOURS, strict=False):
        within = set(members)
        height = np.array([_sum(size, each, within) for each in rounds])
        fill = LIGHT_GREY if len(within) > 1 else colour
        draw(axes, numbers, bottom, bottom + height, {"color": fill, "label": shown(label)})
        bottom += height
    axes.set_xlim(min(numbers, default=1) - 0.6, max(numbers, default=1) + 0.6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("round")
    axes.grid(visible=False, axis="x")
    drawing.whole_numbers(axes.xaxis)


def _sum(size: Callable[[Contribution], float | None], one_round: RoundRecord, clients: Container[str]) -> float:
    """`size` of these clients' updates that are in the aggregate, together."""
    completed = (one for one in one_round.contributions if one.outcome == "completed" and one.client_name in clients)
    return math.fsum(size(one) or 0.0 for one in completed)


def _bars(axes: Axes, numbers: Sequence[int], low: Floats, high: Floats, look: Mapping[str, Any]) -> None:
    # One round alone is a narrow bar, not one with room beside it, where rounds would stand that there never were.
    width = 0.8 if len(numbers) > 1 else 0.32
    axes.bar(numbers, high - low, width, low, edgecolor="white", linewidth=0.6, **look)


def _areas(axes: Axes, numbers: Sequence[int], low: Floats, high: Floats, look: Mapping[str, Any]) -> None:
    """A rectangle of width 1 per round that there is, all as one shape.

    Room between bars of some pixels comes out as stripes, as if rounds were missing; and matplotlib draws each bar by
    itself, which takes seconds with many rounds and sites.
    """
    known = {number: place for place, number in enumerate(numbers)}
    places = [known.get(number) for number in range(numbers[0], numbers[-1] + 1)]
    edges = np.arange(numbers[0], numbers[-1] + 2) - 0.5
    top, base = (np.array([math.nan if at is None else values[at] for at in places]) for values in (high, low))
    axes.stairs(top, edges, baseline=base, fill=True, linewidth=0, **look)
