"""The one pass over an update that learns all that is needed of it: finite or not, how large, how far from the base.

Reading a tensor from memory costs more than the arithmetic on it, so everything is done block by block while the block
is in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedserver.aggregation.blocks import BLOCK_ELEMENTS, Span, flat, run, spans
from fedserver.aggregation.errors import NotFinite
from fedstream.schema import ModelSchema, TensorSpec
from fedtask.task import Weights


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """What one pass over an update finds.

    `largest`: largest absolute value of each averaged tensor that differs from the base, by name, in schema order.
    `norm`: L2 norm of the pseudo-gradient (trained minus base) over all averaged tensors; infinity if it overflows.
    """

    largest: Mapping[str, float]
    norm: float


def survey(schema: ModelSchema, base: Weights, tensors: Weights, *, threads: int = 1) -> UpdateFacts:
    """Look at every averaged tensor of an update whose names, shapes and dtypes fit the schema.

    Raises:
        NotFinite: names the first tensor, in schema order, and the first index in it.
    """
    tasks = spans((i, spec) for i, spec in enumerate(schema) if spec.dtype.is_floating and spec.name in tensors)
    found = run(threads, tasks, lambda: _surveyor(schema, base, tensors))
    return _facts(schema, tensors, tasks, found)


def largest_absolute(spec: TensorSpec, array: np.ndarray) -> float:
    """Largest absolute value of a floating tensor, 0.0 for one without elements, NaN or infinity where it holds one."""
    values = flat(array)
    buffer = np.empty(min(values.size, BLOCK_ELEMENTS) if spec.dtype.itemsize < 4 else 0, np.float32)
    peaks = [_largest(_widened(values[block], buffer)) for block in Span(0, 0, values.size).blocks(BLOCK_ELEMENTS)]
    return math.nan if any(math.isnan(peak) for peak in peaks) else max(peaks, default=0.0)


@dataclass(frozen=True, slots=True)
class _SpanFacts:
    """Of one span: whether all bytes equal the base's, the largest absolute value (NaN or infinite if one value is),
    and the sum of squared differences from the base, block by block."""

    equal: bool
    largest: float
    squares: tuple[float, ...]


def _surveyor(schema: ModelSchema, base: Weights, tensors: Weights) -> Callable[[Span], _SpanFacts]:
    """A worker with its own buffers. The block size is fixed: a sum of squares depends on it in its last bits.

    Arrays are asked for span by span and let go: where they come from files, what is not held is not in memory.
    """
    float32s = np.empty((2, BLOCK_ELEMENTS), np.float32)
    float64s = np.empty((2, BLOCK_ELEMENTS), np.float64)

    def survey(span: Span) -> _SpanFacts:
        name = schema.tensors[span.index].name
        trained, started = flat(tensors[name]), flat(base[name])
        equal, largest, squares = True, 0.0, []
        for block in span.blocks(BLOCK_ELEMENTS):
            values, origin = trained[block], started[block]
            # Stops comparing at the first difference: next to nothing for a trained tensor.
            equal = equal and _same_bytes(values, origin)
            values = _widened(values, float32s[0])
            peak = _largest(values)
            if not math.isfinite(peak):
                return _SpanFacts(False, peak, ())
            largest = max(largest, peak)
            if not equal:
                squares.append(_squared_distance(values, _widened(origin, float32s[1]), float32s[1], float64s))
        return _SpanFacts(equal, largest, tuple(squares))

    return survey


def _same_bytes(values: np.ndarray, origin: np.ndarray) -> bool:
    """Bytes, not values: -0.0 is not 0.0 here, as it is not for a digest."""
    bits = np.dtype(f"u{values.itemsize}")
    return np.array_equal(values.view(bits), origin.view(bits))


def _widened(values: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """float16 and bfloat16 as float32, which numpy has fast loops for; others as they are."""
    if values.itemsize >= 4:
        return values
    wide = buffer[: values.size]
    np.copyto(wide, values)
    return wide


def _largest(values: np.ndarray) -> float:
    low, high = float(values.min()), float(values.max())
    return math.nan if math.isnan(low) else max(high, -low)  # one NaN makes both NaN


def _squared_distance(values: np.ndarray, origin: np.ndarray, difference: np.ndarray, wide: np.ndarray) -> float:
    """Sum of (values - origin)**2: the difference in the tensor's precision, squares and sum in float64."""
    squares = wide[0, : values.size]
    step = wide[1, : values.size] if values.dtype == np.float64 else difference[: values.size]
    with np.errstate(over="ignore"):
        np.subtract(values, origin, out=step)
        np.copyto(squares, step)
        np.square(squares, out=squares)
        return float(squares.sum())


def _facts(schema: ModelSchema, tensors: Weights, tasks: list[Span], found: list[_SpanFacts]) -> UpdateFacts:
    largest: dict[int, float] = {}
    differs: set[int] = set()
    squares: list[float] = []
    for task, facts in zip(tasks, found, strict=True):
        if not math.isfinite(facts.largest):
            spec = schema.tensors[task.index]
            raise _not_finite(spec, tensors[spec.name])
        largest[task.index] = max(largest.get(task.index, 0.0), facts.largest)
        squares.extend(facts.squares)
        if not facts.equal:
            differs.add(task.index)
    by_name = {schema.tensors[i].name: value for i, value in largest.items() if i in differs}
    return UpdateFacts(by_name, _root_of_sum(squares))


def _root_of_sum(squares: list[float]) -> float:
    try:
        return math.sqrt(math.fsum(squares))
    except OverflowError:
        return math.inf


def _not_finite(spec: TensorSpec, array: np.ndarray) -> NotFinite:
    values = flat(array)
    for block in Span(0, 0, values.size).blocks(BLOCK_ELEMENTS):
        bad = np.flatnonzero(~np.isfinite(values[block]))
        if bad.size:
            place = block.start + int(bad[0])
            index = tuple(int(i) for i in np.unravel_index(place, spec.shape))
            return NotFinite(spec.name, index, float(values[place]))
    raise AssertionError(f"tensor {spec.name!r} changed while it was checked")
