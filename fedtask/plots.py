"""Pictures of one model: a client's training history, and how a model does on a labelled set.

Every function writes one PNG and is content with little: one round, one epoch, missing values (`None`). Importing this
module imports matplotlib: the server and the client's own process leave that to others. The pictures of a whole
federation are in `fedtask.report.pictures`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fedtask import drawing, intervals
from fedtask.drawing import BLUE, GREY, INK, LIGHT_GREY, ORANGE, figure, shown
from fedtask.history import HistoryRow
from fedtask.metrics import CALIBRATION_BINS, leading
from fedtask.task import Evaluation


def training_history(rows: Sequence[HistoryRow], path: Path, title: str) -> None:
    """Accuracy and loss per epoch of one client, training and validation, over all its rounds so far.

    Of a task without accuracy, every metric that it gives has a panel; see `fedtask.metrics.leading`. Lines break where
    a round begins, since every round starts from a new global model.
    """
    bounds = [i for i, row in enumerate(rows) if i == 0 or row["round"] != rows[i - 1]["round"]]
    names = _measured(rows) or ["loss"]
    with figure(path, 10, 4.2 * drawing.rows_of(len(names))) as drawn:
        drawn.suptitle(shown(title, 90), x=0.01, ha="left")
        panels = drawing.panels(drawn, len(names))
        for axes, name in zip(panels, names, strict=True):
            training, validation = _column(rows, name), _column(rows, f"{_VALIDATION}{name}")
            _epoch_lines(axes, bounds, training, label="training", color=ORANGE, marker="s")
            _epoch_lines(axes, bounds, validation, label="validation", color=BLUE, marker="o")
            _mark_rounds(axes, rows, bounds)
            axes.set_xlabel("epoch, all rounds in a row")
            axes.set_ylabel(shown(name))
            drawing.score_limits(axes, name, [*training, *validation])
        handles, labels = drawing.legend_entries(*panels)
        drawn.legend(handles, labels, loc="outside lower center", ncols=2)


_VALIDATION = "val_"


def _measured(rows: Sequence[HistoryRow]) -> list[str]:
    """The metrics to show, of those that have a number in any row, training or validation."""
    columns = dict.fromkeys(itertools.chain.from_iterable(rows))
    there = [name for name in columns if not np.isnan(_column(rows, name)).all()]
    return leading(name.removeprefix(_VALIDATION) for name in there if name not in ("round", "epoch"))


def _column(rows: Sequence[HistoryRow], name: str) -> list[float]:
    return drawing.numbers(row.get(name) for row in rows)


def _epoch_lines(axes: Axes, bounds: Sequence[int], values: Sequence[float], **look: Any) -> None:
    """One line per round, from each of `bounds` to the next. Nothing at all, not even a legend, without values."""
    if all(math.isnan(value) for value in values):
        return
    size = 4.5 if len(values) <= 40 else 0 if len(values) > 150 else 2.5
    for start, stop in itertools.pairwise([*bounds, len(values)]):
        # A round of one epoch is a dot: without a marker it could not be seen.
        dot = max(size, 2.5) if stop - start == 1 else size
        axes.plot(range(start + 1, stop + 1), values[start:stop], markersize=dot, **look)


def _mark_rounds(axes: Axes, rows: Sequence[HistoryRow], bounds: Sequence[int]) -> None:
    """A thin line before each round, and its number above it, on as many rounds as there is room for."""
    few = len(bounds) <= 5
    every = -(-len(bounds) // 12)
    above: dict[str, Any] = {
        "xycoords": ("data", "axes fraction"),
        "textcoords": "offset points",
        "fontsize": 8,
        "color": INK,
    }
    for place, start in enumerate(bounds):
        if start and len(bounds) <= 60:
            axes.axvline(start + 0.5, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        if place % every == 0:
            number = f"{rows[start]['round']:.0f}"
            axes.annotate(f"round {number}" if few else number, (start + 0.5, 1), xytext=(2, 3), **above)
    if not few:
        axes.annotate("round", (0.5, 1), xytext=(-4, 3), ha="right", **above)
    axes.set_xlim(0.5, max(len(rows), 1) + 0.5)
    drawing.whole_numbers(axes.xaxis)


_SQUARE = (4.4, 4.6)
"""Inches of the three pictures of one model: alike, so that a page can put them side by side."""


_ROOMY_CLASSES = 4
"""So many have room for their numbers in a picture of that size; for each further one it grows by `_CLASS_INCHES`."""
_CLASS_INCHES = 0.65
_MOST_NUMBERED = 20
"""With more classes, colours tell alone: numbers would be too many to be read."""
_CHARACTERS_ABREAST = 36
"""Longer names than these, in all, would run into each other."""


def confusion_matrix(evaluation: Evaluation, path: Path) -> None:
    """Counts of each class (rows) predicted as each class (columns), with their share of the row."""
    counts = np.asarray(evaluation.confusion, dtype=np.int64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    names = [shown(name, 18) for name in evaluation.class_names]
    more = max(0, min(len(names), _MOST_NUMBERED) - _ROOMY_CLASSES) * _CLASS_INCHES
    with figure(path, _SQUARE[0] + more, _SQUARE[1] + more) as drawn:
        axes = drawn.subplots()
        axes.set_title("Confusion matrix")
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(counts if len(names) <= _MOST_NUMBERED else counts[:0]):
            share = f"\n{shares[i, j]:.1%}" if totals[i, 0] else ""
            colour = "white" if shares[i, j] > 0.55 else INK
            axes.text(j, i, f"{count}{share}", ha="center", va="center", color=colour, fontsize=9 if more else 11)
        aslant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), names, **(aslant if sum(map(len, names)) > _CHARACTERS_ABREAST else {}))
        axes.set_yticks(range(len(names)), [f"{name}\n(n = {n})" for name, n in zip(names, totals[:, 0], strict=True)])
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)


def roc(evaluation: Evaluation, path: Path) -> None:
    """The ROC curve (`roc_fpr`, `roc_tpr`): sensitivity over 1 - specificity at every threshold, with its area."""
    false_rate, true_rate = evaluation.curves["roc_fpr"], evaluation.curves["roc_tpr"]
    area, interval = evaluation.metrics.get("auc"), evaluation.intervals.get("auc")
    told = "" if area is None else f"AUC {area:.4f}"
    if interval is not None:
        told += f"\n95% interval {interval.low:.4f} to {interval.high:.4f}"
    with figure(path, *_SQUARE) as drawn:
        axes = drawn.subplots()
        axes.set_title("ROC curve")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (3, 3)), label="guessing")
        axes.fill_between(false_rate, true_rate, color=BLUE, alpha=0.10, linewidth=0)
        axes.plot(false_rate, true_rate, color=BLUE, clip_on=False, zorder=3, label="model")
        axes.text(0.97, 0.2, told, ha="right", va="bottom", fontsize=10, transform=axes.transAxes)
        axes.legend(loc="lower right")
        axes.set_xlabel("1 - specificity (false alarms)")
        axes.set_ylabel("sensitivity (found)")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")


_FEW_EXAMPLES = 10
"""A bin of fewer says next to nothing: of 3 examples, a share of 0 has an interval up to 0.56."""


def calibration(evaluation: Evaluation, positive_class: str, path: Path) -> None:
    """Share of positives over mean predicted probability per bin, with Wilson intervals, and examples per bin.

    A line joins neighbouring bins; those of few examples are small points off it.
    """
    columns = [evaluation.curves[f"calibration_{part}"] for part in ("predicted", "observed", "count")]
    bins = np.array([one for one in zip(*columns, strict=True) if one[2] >= 1]).reshape(-1, 3)
    places = np.minimum(np.floor(bins[:, 0] * CALIBRATION_BINS), CALIBRATION_BINS - 1)
    name = shown(positive_class, 18)
    with figure(path, *_SQUARE) as drawn:
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        upper.set_title("Calibration")
        _calibration_points(upper, bins, places)
        upper.set_ylabel(f"share that is “{name}”")
        _calibration_counts(lower, bins[:, 2], places)
        lower.set_xlabel(f"predicted probability of “{name}”")
        # Below and not in the axes: no corner is free for every model.
        drawn.legend(*drawing.legend_entries(upper), loc="outside lower center", ncols=2)


def _calibration_points(axes: Axes, bins: np.ndarray, places: np.ndarray) -> None:
    """A point with its interval for each of `bins` [n, 3], and lines between neighbours that have enough examples."""
    predicted, observed, count = bins.T
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (3, 3)), label="perfectly calibrated")
    many = count >= _FEW_EXAMPLES
    joined = many[:-1] & many[1:] & (np.diff(places) <= 1)
    for start in np.flatnonzero(joined):
        axes.plot(predicted[start : start + 2], observed[start : start + 2], color=BLUE, zorder=2.5)
    lengths = _wilson_lengths(observed, count)
    for chosen, size, alpha, label in (
        (many, 4.5, 1.0, "model, 95% interval"),
        (~many, 2.5, 0.6, f"fewer than {_FEW_EXAMPLES} examples"),
    ):
        if chosen.any():
            look: dict[str, Any] = {"elinewidth": 0.22 * size, "capsize": 2, "clip_on": False, "zorder": 3}
            look |= {"color": BLUE, "markersize": size, "alpha": alpha, "label": label}
            axes.errorbar(predicted[chosen], observed[chosen], lengths[:, chosen], fmt="o", **look)
    axes.set_ylim(0, 1)


def _calibration_counts(axes: Axes, count: np.ndarray, places: np.ndarray) -> None:
    """A bar with its number for each bin."""
    centres = (places + 0.5) / CALIBRATION_BINS
    bars = axes.bar(centres, count, width=0.94 / CALIBRATION_BINS, color=LIGHT_GREY)
    axes.bar_label(bars, [f"{n:.0f}" for n in count], fontsize=7.5, padding=1)
    axes.set_ylim(0, count.max(initial=1) * 1.35)
    axes.set_ylabel("examples")
    axes.set_xlim(0, 1)
    axes.grid(visible=False)


def _wilson_lengths(observed: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Lengths [2, n] of error bars below and above each share `observed` of `count`."""
    limits = [intervals.wilson(round(share * n), round(n)) for share, n in zip(observed, count, strict=True)]
    below = observed - [limit.low for limit in limits]
    above = [limit.high for limit in limits] - observed
    # Rounding may take a limit a hair past the share itself; a length is never negative.
    return np.maximum([below, above], 0)
