"""The one pass over an update that learns all that is needed of it: finite or not, how large, how far from the base.

Reading a tensor from memory costs more than the arithmetic on it, so everything is done block by block while the block
is in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedserver.aggregation.blocks import BLOCK_ELEMENTS, Span, flat, run, spans
from fedserver.aggregation.errors import NotFinite
from fedstream.schema import ModelSchema, TensorSpec
from fedtask.task import Weights


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What one pass over an update finds.

    `largest`: largest absolute value of each averaged tensor that differs from the base, by name, in schema order.
    `norm`: L2 norm of the pseudo-gradient (trained minus base) over all averaged tensors; infinity if it overflows.
    """

    largest: Mapping[str, float]
    norm: float


Look = Callable[[str, int, np.ndarray], None]
"""Takes a tensor's name, an element's place in the flat tensor (a multiple of `BLOCK_ELEMENTS`), and values from there
on; those of one tensor in order, and gone after the call. What is not averaged is passed over."""


class Survey:
    """A pass over an update that may be made in pieces, in any order of tensors, such as while the update still comes.

    Args:
        schema: that the names, shapes and dtypes of the update fit.
        base: what the update started from. Asked for in spans and let go: what is not held is not in memory.
    """

    def __init__(self, schema: ModelSchema, base: Weights) -> None:
        self._schema, self._base = schema, base
        self._seen: list[_Seen] = []

    def looker(self) -> Look:
        """What is to be shown every piece of some of the tensors, by one thread. It has buffers of some MiB."""
        seen = _Seen()
        self._seen.append(seen)
        return _Looker(self._schema, self._base, seen)

    def facts(self) -> Surveyed:
        """What was found, once all was shown. A frozen tensor may hold anything, as long as it is the base's.

        Raises:
            NotFinite: names the first tensor, in schema order, and the first index in it.
        """
        differing = {name for seen in self._seen for name in seen.differing}
        flaws = [
            flaw
            for seen in self._seen
            for flaw in seen.not_finite
            if flaw[0] in differing or self._schema[flaw[0]].trainable
        ]
        if flaws:
            order = {spec.name: index for index, spec in enumerate(self._schema)}
            name, place, value = min(flaws, key=lambda flaw: (order[flaw[0]], flaw[1]))
            raise NotFinite(name, tuple(int(i) for i in np.unravel_index(place, self._schema[name].shape)), value)
        largest = {
            spec.name: max(seen.largest[spec.name] for seen in self._seen if spec.name in seen.largest)
            for spec in self._schema
            if spec.name in differing
        }
        squares = {place: square for seen in self._seen for place, square in seen.squares.items()}
        return Surveyed(largest, _root_of_sum(squares.values()))


def survey(schema: ModelSchema, base: Weights, tensors: Weights, *, threads: int = 1) -> Surveyed:
    """Look at every averaged tensor of an update whose names, shapes and dtypes fit the schema.

    Raises:
        NotFinite: names the first tensor, in schema order, and the first index in it.
    """
    whole = Survey(schema, base)

    def worker() -> Callable[[Span], None]:
        look = whole.looker()

        def look_at(span: Span) -> None:
            name = schema.tensors[span.index].name
            look(name, span.start, flat(tensors[name])[span.start : span.stop])

        return look_at

    run(threads, spans((i, spec) for i, spec in enumerate(schema) if spec.name in tensors), worker)
    return whole.facts()


def largest_absolute(spec: TensorSpec, array: np.ndarray) -> float:
    """Largest absolute value of a floating tensor, 0.0 for one without elements, NaN or infinity where it holds one."""
    values = flat(array)
    buffer = np.empty(min(values.size, BLOCK_ELEMENTS) if spec.dtype.itemsize < 4 else 0, np.float32)
    peaks = [_largest(_widened(values[block], buffer)) for block in Span(0, 0, values.size).blocks(BLOCK_ELEMENTS)]
    return math.nan if any(math.isnan(peak) for peak in peaks) else max(peaks, default=0.0)


@dataclass(slots=True)
class _Seen:
    """What one looker found, the same where it is shown something twice.

    `largest`: absolute value by tensor. `squares`: sum of squared differences from the base, by tensor and place of a
    block. `differing`: tensors of which a byte differs. `not_finite`: tensor, place and value of a block's first.
    """

    largest: dict[str, float] = field(default_factory=dict)
    squares: dict[tuple[str, int], float] = field(default_factory=dict)
    differing: set[str] = field(default_factory=set)
    not_finite: list[tuple[str, int, float]] = field(default_factory=list)


class _Looker:
    """Looks at blocks of a fixed size: a sum of squares depends on it in its last bits."""

    def __init__(self, schema: ModelSchema, base: Weights, seen: _Seen) -> None:
        self._schema, self._base, self._seen = schema, base, seen
        self._float32s = np.empty((2, BLOCK_ELEMENTS), np.float32)
        self._float64s = np.empty((2, BLOCK_ELEMENTS), np.float64)

    def __call__(self, name: str, start: int, values: np.ndarray) -> None:
        if not self._schema[name].dtype.is_floating:
            return
        assert start % BLOCK_ELEMENTS == 0, "blocks lie elsewhere than in any other pass"
        started = flat(self._base[name])[start : start + values.size]
        for block in Span(0, 0, values.size).blocks(BLOCK_ELEMENTS):
            self._look(name, start + block.start, values[block], started[block])

    def _look(self, name: str, start: int, values: np.ndarray, origin: np.ndarray) -> None:
        seen = self._seen
        # Not compared any more after the first difference: next to nothing for a trained tensor.
        if name not in seen.differing and not _same_bytes(values, origin):
            seen.differing.add(name)
        values = _widened(values, self._float32s[0])
        peak = _largest(values)
        if not math.isfinite(peak):
            place = int(np.flatnonzero(~np.isfinite(values))[0])
            seen.not_finite.append((name, start + place, float(values[place])))
            return
        seen.largest[name] = max(seen.largest.get(name, 0.0), peak)
        if name in seen.differing:
            origin = _widened(origin, self._float32s[1])
            seen.squares[name, start] = _squared_distance(values, origin, self._float32s[1], self._float64s)


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


def _root_of_sum(squares: Iterable[float]) -> float:
    try:
        return math.sqrt(math.fsum(squares))
    except OverflowError:
        return math.inf
