"""Scores of a binary classifier on labelled examples, with intervals, and their form in JSON.

    >>> scored = binary_evaluation([0, 0, 1, 1], [0.1, 0.6, 0.7, 0.9], ("no", "yes"), "yes")
    >>> scored.metrics["accuracy"], scored.metrics["auc"], scored.confusion
    (0.75, 1.0, ((1, 1), (0, 2)))

A metric that has no value here (sensitivity without a positive example, say) is `None`, with the reason in `undefined`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedtask import intervals
from fedtask.task import Evaluation, Interval, TaskError

EPSILON = 1e-7
"""Probabilities are clipped to [EPSILON, 1 - EPSILON] inside the logarithm of the loss; Keras's own value."""

THRESHOLD = 0.5
"""A score above it, not at it, is a positive prediction, as in Keras's `BinaryAccuracy`."""

CALIBRATION_BINS = 10
"""Bins of equal width over 0 to 1, for the calibration curve and its expected error."""

METRIC_NAMES = (
    "loss",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "f1",
    "auc",
    "brier_score",
    "expected_calibration_error",
)
"""Every metric of `binary_evaluation`, in the order reports show them."""

MOST_POINTS = 1000
"""Of a curve. Keeps an evaluation of any number of examples to a few tens of KiB of JSON."""


def binary_evaluation(
    labels: ArrayLike,
    scores: ArrayLike,
    class_names: Sequence[str],
    positive_class: str,
    groups: np.ndarray | None = None,
) -> Evaluation:
    """Score a binary classifier.

    `labels` is int [n], 0 or 1, an index into the two `class_names`; `scores` is float [n], 0 to 1 inclusive, the
    predicted probability of `positive_class`; `groups` is int [n], not negative and the same for examples that may be
    alike, such as images of one patient. All metrics are means over examples or counts of them, none is weighted:

    - `loss`: binary cross-entropy in nats, clipped at `EPSILON`; `brier_score`: mean squared error of the score;
    - `accuracy`, `sensitivity` (recall of the positive class), `specificity` (of the other one), `precision` at
      `THRESHOLD`; `balanced_accuracy`: mean of sensitivity and specificity; `f1`: 2 TP / (2 TP + FP + FN);
    - `auc`: the share of pairs (positive, negative) that the scores order rightly, a tie counting one half;
    - `expected_calibration_error`: over `CALIBRATION_BINS`, the mean distance between mean score and share of
      positives, each bin weighted by its examples.

    Intervals are 95%: Wilson's for proportions, Newcombe's method 5 for `auc`, a seeded bootstrap for `loss` and
    `brier_score`; see `fedtask.intervals`. None for the calibration error, for which none is customary. With `groups`,
    those of proportions and `auc` are also given as if each group were one example, right or wrong as a whole: as wide
    as they could be.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, a score is outside 0 to 1, or `positive_class` is not one of
            two `class_names`.
        TaskError: a score is NaN or infinite.
    """
    positive, probability = _checked(labels, scores, class_names, positive_class)
    sheet = _Sheet()
    if len(positive) == 0:
        for name in METRIC_NAMES:
            sheet.undefined[name] = "there are no examples"
            sheet.metrics[name] = None
    else:
        _score_counts(sheet, positive, probability > THRESHOLD)
        _score_ranking(sheet, positive, probability)
        _score_probabilities(sheet, positive, probability)
        sheet.intervals |= _intervals(sheet.metrics, positive, probability > THRESHOLD, np.arange(len(positive)))
    grouped = {} if groups is None else _intervals(sheet.metrics, positive, probability > THRESHOLD, groups)
    return Evaluation(
        metrics={name: sheet.metrics[name] for name in METRIC_NAMES},
        num_examples=len(positive),
        intervals={name: sheet.intervals[name] for name in METRIC_NAMES if name in sheet.intervals},
        undefined=sheet.undefined,
        class_names=tuple(class_names),
        confusion=_confusion(positive, probability > THRESHOLD, positive_label=list(class_names).index(positive_class)),
        curves=sheet.curves,
        num_groups=0 if groups is None else len(np.unique(groups)),
        grouped_intervals=grouped,
    )


@dataclass(slots=True)
class _Sheet:
    """An evaluation as it is filled in."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def put(self, name: str, value: float, interval: Interval | None = None) -> None:
        self.metrics[name] = float(value)
        if interval is not None:
            self.intervals[name] = interval

    def leave_out(self, reason: str, *names: str) -> None:
        for name in names:
            self.metrics[name] = None
            self.undefined[name] = reason

    def put_proportion(self, name: str, successes: int, trials: int, reason: str) -> None:
        """A share of `trials`; without trials, undefined for that `reason`."""
        if trials:
            self.put(name, successes / trials)
        else:
            self.leave_out(reason, name)


def require_finite(scores: np.ndarray) -> None:
    """See that what a model gave for examples, float [n] or [n, classes], can be scored.

    Raises:
        TaskError: of some it is NaN or infinite.
    """
    bad = int((~np.isfinite(scores)).any(axis=tuple(range(1, scores.ndim))).sum())
    if bad:
        why = "the model's weights have diverged, or the inputs of these examples hold NaN"
        raise TaskError(f"the model's outputs for {bad} of {len(scores)} examples are NaN or infinite: {why}")


def _checked(
    labels: ArrayLike, scores: ArrayLike, class_names: Sequence[str], positive_class: str
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each example is positive, bool [n], and its score, float64 [n]; or a ValueError saying what is wrong."""
    if len(class_names) != 2 or positive_class not in class_names:
        raise ValueError(f"two class names are needed, {positive_class!r} one of them; got {list(class_names)}")
    label, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise ValueError(f"labels and scores must have one length, [n] each; got {label.shape} and {score.shape}")
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"a label must be 0 or 1, an index into {list(class_names)}")
    require_finite(score)
    if ((score < 0) | (score > 1)).any():
        raise ValueError(f"a score must be a probability, 0 to 1; got {score.min()} to {score.max()}")
    return label == list(class_names).index(positive_class), score


def _score_counts(sheet: _Sheet, positive: np.ndarray, predicted: np.ndarray) -> None:
    """What follows from the four cells of the confusion matrix."""
    true_positives, true_negatives = int((positive & predicted).sum()), int((~positive & ~predicted).sum())
    positives, total = int(positive.sum()), len(positive)
    mistakes = total - true_positives - true_negatives
    sheet.put_proportion("accuracy", total - mistakes, total, "")
    sheet.put_proportion("sensitivity", true_positives, positives, _NO_POSITIVE)
    sheet.put_proportion("specificity", true_negatives, total - positives, _NO_NEGATIVE)
    sheet.put_proportion("precision", true_positives, int(predicted.sum()), "no example was predicted as positive")
    sensitivity, specificity = sheet.metrics["sensitivity"], sheet.metrics["specificity"]
    if sensitivity is None or specificity is None:
        sheet.leave_out(_one_class(positive), "balanced_accuracy")
    else:
        sheet.put("balanced_accuracy", (sensitivity + specificity) / 2)
    if positives:
        sheet.put("f1", 2 * true_positives / (2 * true_positives + mistakes))
    else:
        sheet.leave_out(_NO_POSITIVE, "f1")


def _intervals(
    metrics: Mapping[str, float | None], positive: np.ndarray, predicted: np.ndarray, groups: np.ndarray
) -> dict[str, Interval]:
    """Of the proportions and the AUC, as far as they are defined, with each of `groups` taken as one example."""
    found: dict[str, Interval] = {}
    right = positive == predicted
    among = {"accuracy": np.full(len(positive), True), "sensitivity": positive, "specificity": ~positive}
    for name, counted in (among | {"precision": predicted}).items():
        if metrics[name] is not None:
            share = intervals.effective_share(groups[counted])
            found[name] = intervals.wilson(int(right[counted].sum()) * share, int(counted.sum()) * share)
    sensitivity, specificity, area = metrics["sensitivity"], metrics["specificity"], metrics["auc"]
    if sensitivity is not None and specificity is not None:
        both = (sensitivity, found["sensitivity"], specificity, found["specificity"])
        found["balanced_accuracy"] = intervals.mean_of_two(*both)
    if metrics["f1"] is not None:
        concerned = positive | predicted
        share = intervals.effective_share(groups[concerned])
        found["f1"] = intervals.f1(int((positive & predicted).sum()) * share, int((concerned & ~right).sum()) * share)
    if area is not None:
        sizes = [int(each.sum()) * intervals.effective_share(groups[each]) for each in (positive, ~positive)]
        found["auc"] = intervals.auc(area, *sizes)
    return found


_NO_POSITIVE = "there are no positive examples"
_NO_NEGATIVE = "there are no negative examples"


def _one_class(positive: np.ndarray) -> str:
    return _NO_NEGATIVE if positive.all() else _NO_POSITIVE


def _score_ranking(sheet: _Sheet, positive: np.ndarray, score: np.ndarray) -> None:
    """The area under the ROC curve, from mid-ranks, and the curve."""
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        sheet.leave_out(_one_class(positive), "auc")
        return
    distinct, place, count = np.unique(score, return_inverse=True, return_counts=True)
    positives_at = np.bincount(place, weights=positive, minlength=len(distinct))
    negatives_at = count - positives_at
    below = np.cumsum(negatives_at) - negatives_at
    # Counts of pairs are integers and halves, exact in float64 up to 2**52 pairs.
    area = float((positives_at * (below + negatives_at / 2)).sum()) / (num_positive * num_negative)
    sheet.put("auc", area)
    false_rate = np.concatenate([[0.0], np.cumsum(negatives_at[::-1]) / num_negative])
    true_rate = np.concatenate([[0.0], np.cumsum(positives_at[::-1]) / num_positive])
    kept = _corners(false_rate, true_rate)
    sheet.curves["roc_fpr"] = tuple(false_rate[kept].tolist())
    sheet.curves["roc_tpr"] = tuple(true_rate[kept].tolist())


def _corners(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the points that a curve needs: none in the middle of a vertical or horizontal run, 1000 at most."""
    flat = (np.diff(x[:-1]) == 0) & (np.diff(x[1:]) == 0) | (np.diff(y[:-1]) == 0) & (np.diff(y[1:]) == 0)
    kept = np.flatnonzero(np.concatenate([[True], ~flat, [True]]))
    return np.asarray(kept[thinned(len(kept))])


def thinned(num_points: int) -> np.ndarray:
    """Places, evenly spread, of the `MOST_POINTS` that are kept of a curve, the first and the last among them."""
    return np.linspace(0, num_points - 1, min(num_points, MOST_POINTS)).round().astype(int)


def _score_probabilities(sheet: _Sheet, positive: np.ndarray, score: np.ndarray) -> None:
    """What looks at the score itself: loss, Brier score and calibration."""
    clipped = np.clip(score, EPSILON, 1 - EPSILON)
    losses = -np.log(np.where(positive, clipped, 1 - clipped))
    squares = (score - positive) ** 2
    # One example says nothing about how much examples vary.
    several = len(score) > 1
    sheet.put("loss", losses.mean(), intervals.mean(losses) if several else None)
    sheet.put("brier_score", squares.mean(), intervals.mean(squares) if several else None)

    in_bin = np.minimum((score * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(in_bin, minlength=CALIBRATION_BINS)
    filled = count > 0
    predicted = np.bincount(in_bin, weights=score, minlength=CALIBRATION_BINS)[filled] / count[filled]
    observed = np.bincount(in_bin, weights=positive, minlength=CALIBRATION_BINS)[filled] / count[filled]
    gaps = np.abs(predicted - observed)
    sheet.put("expected_calibration_error", float((gaps * count[filled]).sum()) / len(score))
    sheet.curves["calibration_predicted"] = tuple(predicted.tolist())
    sheet.curves["calibration_observed"] = tuple(observed.tolist())
    sheet.curves["calibration_count"] = tuple(count[filled].tolist())


def _confusion(positive: np.ndarray, predicted: np.ndarray, positive_label: int) -> tuple[tuple[int, ...], ...]:
    """`[i][j]`: examples of class i predicted as class j."""
    true_label, predicted_label = (
        np.where(is_positive, positive_label, 1 - positive_label) for is_positive in (positive, predicted)
    )
    counts = np.bincount(true_label * 2 + predicted_label, minlength=4)
    return (int(counts[0]), int(counts[1])), (int(counts[2]), int(counts[3]))


MOST_LEADING = 6
"""As many pictures as fit on one sheet, and columns into a table; all the others stand in the table of scores."""


def leading(names: Iterable[str]) -> list[str]:
    """Which of a task's metrics are shown over time: accuracy and loss or, of a task without accuracy, all, loss first.

    `MOST_LEADING` at most. Without any, an empty list.
    """
    found = list(dict.fromkeys(names))
    chosen = ("accuracy", "loss") if "accuracy" in found else dict.fromkeys(["loss", *found])
    return [name for name in chosen if name in found][:MOST_LEADING]


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """`evaluation` as plain JSON types; `evaluation_from_json` gives an equal one back.

    JSON has no NaN. A metric that is not finite becomes null, an interval or a curve that is not finite is left out,
    and each is named in `undefined`.
    """
    undefined = dict(evaluation.undefined)

    def finite(name: str, *values: float | None) -> bool:
        if all(value is not None and math.isfinite(value) for value in values):
            return True
        undefined.setdefault(name, "the task gave a value that is not a finite number")
        return False

    metrics = {
        name: None if value is None or not finite(name, value) else float(value)
        for name, value in evaluation.metrics.items()
    }

    def shown(intervals_by_name: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
        return {
            name: {"low": float(interval.low), "high": float(interval.high)}
            for name, interval in intervals_by_name.items()
            if finite(f"interval of {name}", interval.low, interval.high)
        }

    curves = {
        name: [_plain(value) for value in values]
        for name, values in evaluation.curves.items()
        if finite(f"curve {name}", *values)
    }
    return {
        "metrics": metrics,
        "num_examples": int(evaluation.num_examples),
        "intervals": shown(evaluation.intervals),
        "undefined": undefined,
        "class_names": list(evaluation.class_names),
        "confusion": [[int(count) for count in row] for row in evaluation.confusion],
        "curves": curves,
        "num_groups": int(evaluation.num_groups),
        "grouped_intervals": shown(evaluation.grouped_intervals),
    }


def _plain(value: float) -> float:
    """A Python int or float for a number that may be numpy's; a count stays a count."""
    return int(value) if isinstance(value, int | np.integer) else float(value)


def evaluation_from_json(document: Mapping[str, Any]) -> Evaluation:
    """The evaluation that `evaluation_to_json` wrote.

    Raises:
        KeyError: a part is missing.
    """
    return Evaluation(
        metrics=dict(document["metrics"]),
        num_examples=document["num_examples"],
        intervals=_read_intervals(document["intervals"]),
        undefined=dict(document["undefined"]),
        class_names=tuple(document["class_names"]),
        confusion=tuple(tuple(row) for row in document["confusion"]),
        curves={name: tuple(values) for name, values in document["curves"].items()},
        # A state directory may have evaluations from before there were these two.
        num_groups=document.get("num_groups", 0),
        grouped_intervals=_read_intervals(document.get("grouped_intervals", {})),
    )


def _read_intervals(document: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    return {name: Interval(ends["low"], ends["high"]) for name, ends in document.items()}
