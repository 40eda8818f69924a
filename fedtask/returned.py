"""What a task returns, checked where it comes from: a mistake in one is told in words to whoever wrote it."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsFloat

import numpy as np

from fedstream.errors import SchemaMismatch
from fedstream.manifest import require_names
from fedstream.schema import ModelSchema
from fedtask.task import EpochReport, Evaluation, FineTuned, Metrics, TaskError


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
    """What `Task.evaluate` has returned, its metrics as Python's own numbers.

    Raises:
        TaskError: it is none.
    """
    if not isinstance(evaluation, Evaluation):
        raise TaskError(f"evaluate returned {_kind(evaluation)}; it must return an Evaluation")
    return replace(evaluation, metrics=_metrics(evaluation.metrics, "metrics"))


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
