"""The inner loops, over flat tensors in blocks that stay in the cache.

Each maker returns a worker for `blocks.run` with buffers of its own. Workers write to disjoint spans, and no result
depends on how a tensor was cut into spans or blocks.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedserver.aggregation.blocks import Span

LIFT = 1.5 * 2.0**52
"""Added to a float64 below 2**51 in size, it leaves no bits for a fraction: the sum is rounded to an integer (ties to
even, as `rint` does), and its bits, read as int64, are `LIFT_BITS` plus that integer. One pass instead of rint and a
conversion, which makes the whole fold 1.5 times as fast. The multiples of `LIFT_BITS` are counted, and taken off at the
end modulo 2**64."""

LIFT_BITS = 0x4338_0000_0000_0000

SMALL = 2.0**50
"""Largest product, in grid units, that takes the lifted path. 2**62 units are the whole cohort at the limit of the
headroom, so products of ordinary updates are far below. Both paths give the same integers."""


class Direction(enum.Enum):
    """Whether an update comes in or is taken out. The value is the step of the counts."""

    IN = 1
    OUT = -1


@dataclass(frozen=True, slots=True)
class Addition:
    """total +- rint(values() * multiplier), `total` int64 and `values()` floating, both `[num_elements]`.

    `values` is called for each span, and the array let go after it: where it comes from a file, a span is in memory.
    `small` says that no product is over `SMALL`; the total then also gains or loses `LIFT_BITS` per element.
    """

    total: np.ndarray
    values: Callable[[], np.ndarray]
    multiplier: float
    small: bool
    direction: Direction


def adder(additions: Mapping[int, Addition], block_elements: int) -> Callable[[Span], None]:
    """A worker that does the additions, by index of tensor. int64 wraps, so their order is of no consequence."""
    products = np.empty(block_elements, np.float64)
    integers = np.empty(0 if all(each.small for each in additions.values()) else block_elements, np.int64)

    def add(span: Span) -> None:
        addition = additions[span.index]
        step = np.add if addition.direction is Direction.IN else np.subtract
        values = addition.values()
        for block in span.blocks(block_elements):
            total = addition.total[block]
            product = products[: total.size]
            # Converting first is faster than a multiplication that converts as it goes.
            np.copyto(product, values[block])
            np.multiply(product, addition.multiplier, out=product)
            if addition.small:
                np.add(product, LIFT, out=product)
                units = product.view(np.int64)
            else:
                np.rint(product, out=product)
                units = integers[: total.size]
                np.copyto(units, product, casting="unsafe")
            step(total, units, out=total)

    return add


@dataclass(frozen=True, slots=True)
class Mean:
    """out = total * unit + base * base_share, all `[num_elements]`, held within +-`largest` and rounded to out's dtype.

    `unit` is the grid over the sum of weights; `base_share` that of the updates that left the tensor as it was. A mean
    is never over the largest of its values; holding it there keeps the last rounding from reaching infinity.
    """

    total: np.ndarray
    lifted: int
    unit: float
    base: np.ndarray
    base_share: float
    largest: float
    out: np.ndarray


def divider(mean: Mean, block_elements: int) -> Callable[[Span], None]:
    """A worker that turns a running sum into the mean."""
    wide, more = np.empty((2, block_elements), np.float64)
    units = np.empty(block_elements, np.int64)
    lift = np.array(mean.lifted * LIFT_BITS % 2**64, np.uint64).astype(np.int64)

    def divide(span: Span) -> None:
        for block in span.blocks(block_elements):
            size = block.stop - block.start
            np.subtract(mean.total[block], lift, out=units[:size])
            np.copyto(wide[:size], units[:size])
            np.multiply(wide[:size], mean.unit, out=wide[:size])
            if mean.base_share:
                _add_share(wide[:size], mean.base[block], mean.base_share, more[:size])
            _round_into(mean.out[block], wide[:size], mean.largest)

    return divide


@dataclass(frozen=True, slots=True)
class Share:
    """total += values * share in float64, `[num_elements]`."""

    total: np.ndarray
    values: np.ndarray
    share: float


def sharer(share: Share, block_elements: int) -> Callable[[Span], None]:
    """A worker that adds one update's share to a float64 sum. The caller keeps the order of updates fixed."""
    buffer = np.empty(block_elements, np.float64)

    def add(span: Span) -> None:
        for block in span.blocks(block_elements):
            total = share.total[block]
            _add_share(total, share.values[block], share.share, buffer[: total.size])

    return add


def rounder(values: np.ndarray, out: np.ndarray, largest: float, block_elements: int) -> Callable[[Span], None]:
    """A worker that rounds float64 `values` into `out`, held within +-`largest`; changes `values`."""

    def round_span(span: Span) -> None:
        for block in span.blocks(block_elements):
            _round_into(out[block], values[block], largest)

    return round_span


def _add_share(total: np.ndarray, values: np.ndarray, share: float, buffer: np.ndarray) -> None:
    """total += values * share in float64; all `[block]`."""
    np.copyto(buffer, values)
    np.multiply(buffer, share, out=buffer)
    with np.errstate(over="ignore"):  # float64 at the end of its range; `_round_into` holds it
        np.add(total, buffer, out=total)


def _round_into(out: np.ndarray, values: np.ndarray, largest: float) -> None:
    """Hold float64 `values`, in place, within +-`largest` and round them to the nearest of out's dtype."""
    np.clip(values, -largest, largest, out=values)
    np.copyto(out, values, casting="same_kind")
