"""What a task returns, checked where it comes from: a mistake in one is told in words to whoever wrote it."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from fedstream.errors import SchemaMismatch
from fedstream.manifest import require_names
from fedstream.schema import ModelSchema
from fedtask.metrics import thinned
from fedtask.task import EpochReport, Evaluation, FineTuned, Interval, Metrics, SiteSummary, TaskError


def checked_tuned(tuned: Any, schema: ModelSchema) -> FineTuned:
    """What `Task.fine_tune` has returned, its numbers as Python's own.

    Raises:
        TaskError: it is none, or one that no server would take.
    """
    if not isinstance(tuned, FineTuned):
        raise TaskError(f"fine_tune returned {_kind(tuned)}; it must return a FineTuned")
    _check_weights(tuned.weights, schema)
    count: Any = tuned.num_examples
    if not isinstance(count, numbers.Integral) or count < 1:
        raise TaskError(f"num_examples of what fine_tune returned is {count!r}; it must be a whole number, 1 or more")
    rows: Any = tuned.history
    if not isinstance(rows, Sequence):
        raise TaskError(f"history of what fine_tune returned is {_kind(rows)}; it must be a list of metrics")
    metrics, history = _metrics(tuned.metrics, "metrics"), [_metrics(row, "history") for row in rows]
    return replace(tuned, num_examples=int(count), metrics=metrics, history=history)


def checked_evaluation(evaluation: Any) -> Evaluation:
    """What `Task.evaluate` has returned, its numbers as Python's own.

    Raises:
        TaskError: it is none, or has something else where there should be numbers.
    """
    if not isinstance(evaluation, Evaluation):
        raise TaskError(f"evaluate returned {_kind(evaluation)}; it must return an Evaluation")
    metrics = _metrics(evaluation.metrics, "metrics")
    if not metrics.keys() & {"loss", "accuracy"}:
        given = ", ".join(sorted(metrics)) or "no metrics"
        raise TaskError(
            f"evaluate gave {given}, but neither loss nor accuracy, by which the best round is chosen: give `loss` as "
            "well, which is to be small, or `accuracy`, which is to be large"
        )
    return replace(
        evaluation,
        metrics=metrics,
        num_examples=_count(evaluation.num_examples, "num_examples", "evaluate"),
        intervals=_intervals(evaluation.intervals, "intervals"),
        undefined={str(name): str(reason) for name, reason in _by_name(evaluation.undefined, "undefined").items()},
        class_names=tuple(map(str, _listed(evaluation.class_names, "class_names"))),
        confusion=[
            [_count(count, "a count in confusion", "evaluate") for count in _listed(row, "a row of confusion")]
            for row in _listed(evaluation.confusion, "confusion")
        ],
        curves={
            str(name): _curve(values, f"curve {name}") for name, values in _by_name(evaluation.curves, "curves").items()
        },
        num_groups=_count(evaluation.num_groups, "num_groups", "evaluate"),
        grouped_intervals=_intervals(evaluation.grouped_intervals, "grouped_intervals"),
    )


def checked_summary(summary: Any, call: str) -> SiteSummary:
    """What `Task.open_site` or `Task.open_holdout` has returned, its counts as Python's own numbers.

    Raises:
        TaskError: it is none.
    """
    if not isinstance(summary, SiteSummary):
        raise TaskError(f"{call} returned {_kind(summary)}; it must return a SiteSummary")
    if not isinstance(summary.counts, Mapping):
        raise TaskError(f"counts of what {call} returned are {_kind(summary.counts)}; they must be numbers by split")
    return replace(
        summary,
        num_examples=_count(summary.num_examples, "num_examples", call),
        counts={str(split): _counts(counts, call) for split, counts in summary.counts.items()},
        skipped=_counts(summary.skipped, call),
        warnings=_sentences(summary.warnings, "warnings", call),
        weaknesses=_sentences(summary.weaknesses, "weaknesses", call),
        synthetic=bool(summary.synthetic),
    )


def checked_files(files: Any) -> list[str]:
    """What `Task.export` has returned.

    Raises:
        TaskError: it is no list of files that are there.
    """
    if isinstance(files, str) or not isinstance(files, Sequence):
        raise TaskError(f"export returned {_kind(files)}; it must return a list of the files that it has written")
    for file in files:
        if not isinstance(file, str | os.PathLike) or not Path(file).is_file():
            raise TaskError(f"export returned {file!r} among its files; there is no such file")
    return [os.fspath(file) for file in files]


def checked_report(report: Any) -> EpochReport:
    """What a task has reported of an epoch, its metrics as Python's own numbers.

    Raises:
        TaskError: it is none.
    """
    if not isinstance(report, EpochReport):
        raise TaskError(f"the task reported {_kind(report)}; it must report an EpochReport")
    return replace(report, metrics=_metrics(report.metrics, "metrics"))


def _check_weights(weights: Any, schema: ModelSchema) -> None:
    if not isinstance(weights, Mapping):
        raise TaskError(f"weights of what fine_tune returned are {_kind(weights)}; they must be arrays by name")
    try:
        require_names(schema, weights.keys())
    except SchemaMismatch as error:
        raise TaskError(f"weights of what fine_tune returned are not those of the schema: {error.message}") from error
    for spec in schema:
        values = weights[spec.name]
        wanted = f"{spec.dtype.name.lower()} {spec.shape}"
        if not isinstance(values, np.ndarray | np.generic):
            raise TaskError(f"tensor {spec.name} of fine_tune is {_kind(values)}; it must be a numpy array, {wanted}")
        if values.shape != spec.shape or values.dtype != spec.dtype.numpy:
            raise TaskError(f"tensor {spec.name} of fine_tune is {values.dtype} {values.shape}; it must be {wanted}")


def _counts(counts: Any, call: str) -> dict[str, int]:
    if not isinstance(counts, Mapping):
        raise TaskError(f"{call} returned {_kind(counts)} as counts; they must be numbers by name")
    return {str(name): _count(count, f"the count of {name}", call) for name, count in counts.items()}


def _count(count: Any, what: str, call: str) -> int:
    if not isinstance(count, numbers.Integral) or count < 0:
        raise TaskError(f"{what} of what {call} returned is {count!r}; it must be a whole number, 0 or more")
    return int(count)


def _sentences(texts: Any, what: str, call: str) -> tuple[str, ...]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TaskError(f"{what} of what {call} returned are {_kind(texts)}; they must be a list of sentences")
    return tuple(map(str, texts))


def _intervals(intervals: Any, where: str) -> dict[str, Interval]:
    for name, interval in _by_name(intervals, where).items():
        if not isinstance(interval, Interval):
            raise TaskError(f"{name} in the task's {where} is {interval!r}; it must be an Interval")
    return {
        str(name): Interval(_coordinate(interval.low, where), _coordinate(interval.high, where))
        for name, interval in intervals.items()
    }


def _by_name(values: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(values, Mapping):
        raise TaskError(f"{where} of what evaluate returned is {_kind(values)}; it must be by name")
    return values


def _listed(values: Any, what: str) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TaskError(f"{what} of what evaluate returned is {_kind(values)}; it must be a list")
    return list(values)


def _curve(values: Any, where: str) -> list[float]:
    """As many of its points as a picture needs: they are kept for each round, and told in one line."""
    points = _listed(values, where)
    return [_coordinate(points[place], where) for place in thinned(len(points))]


def _coordinate(value: Any, where: str) -> float:
    """A number of a curve or an interval; what a task leaves out is no number, and is left out of the report."""
    number = _number("a value", value, where)
    return math.nan if number is None else number


def _metrics(metrics: Any, where: str) -> Metrics:
    if not isinstance(metrics, Mapping):
        raise TaskError(f"the task gave {_kind(metrics)} as {where}; it must give numbers by name")
    return {str(name): _number(name, value, where) for name, value in metrics.items()}


def _number(name: object, value: object, where: str) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, SupportsFloat):
            return float(value)
    except (TypeError, ValueError):  # an array of several, or what only looks like a number
        pass
    raise TaskError(f"{name} in the task's {where} is {value!r}; it must be a number, or None where it is undefined")


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
