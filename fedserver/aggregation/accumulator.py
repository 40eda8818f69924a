"""The weighted mean of updates, exact to a stated bound and independent of the order they came in.

**What it guarantees.** With x_i the values of the updates that are in (the base's, where an update left a tensor
unchanged), w_i their weights, and M the largest |x_i| in a tensor, every element of the result is within one unit in
the last place of M, in the tensor's dtype, of sum(w_i * x_i) / sum(w_i) evaluated without any rounding. That holds for
every finite input: tiny next to the base, denormal, or of weights of very different size. For float64 the bound is
2**-31 * M, or 2**-1032 where that is more. The same set of updates gives the same bits, whatever the order of `fold`
and `remove`, the number of threads and the block size. A tensor that no update changed passes through untouched, byte
for byte. Integer and boolean tensors are never averaged: they keep the base's values.

**How.** fold adds rint(w * x / grid) as int64, and remove subtracts the same integers. `grid` is a power of two, fixed
by the base and the cohort's largest possible weight, with 16 bits of headroom; see `fedserver.aggregation.grid`. Where
the grid is too coarse for the bound, which is decided from the set of updates alone, the tensor is summed again in
float64, in the order of ranks, from the updates themselves (`reread`).

**What it costs.** 8 bytes an element (twice a float32 model), allocated for a tensor when the first update changes it
and dropped when the last is removed, and 8 bytes a tensor and update. Base and updates are asked for tensor by tensor,
when their turn comes, and let go: where they come from files, a few MiB of them are in memory. A result takes its own
size again, one tensor at a time with `iter_result`; a tensor that is summed again takes another 8 bytes an element
meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from fedserver.aggregation import kernels
from fedserver.aggregation.blocks import BLOCK_ELEMENTS, Span, flat, run, spans, zeros
from fedserver.aggregation.checks import check_update
from fedserver.aggregation.errors import (
    BaseNotFinite,
    BeyondHeadroom,
    ImplausibleExamples,
    NoUpdates,
    RankError,
    RereadNeeded,
)
from fedserver.aggregation.grid import MAX_UPDATES, Grid
from fedserver.aggregation.survey import Surveyed, largest_absolute
from fedstream.schema import ModelSchema
from fedtask.task import Weights

Reread = Callable[[int, str], np.ndarray]
"""The values of one tensor (by name) of a folded update (by rank), as they were when it was folded."""

MIN_WEIGHT, MAX_WEIGHT = 1e-30, 1e11
"""Within these, inclusive, products and sums of 2**20 updates of any dtype stay inside float64's exponents."""

_UNCHANGED = -1.0


@dataclass(slots=True)
class _TensorSum:
    """The running sum of one tensor. `total` is int64 `[num_elements]`, plus `lifted` times `kernels.LIFT_BITS`."""

    total: np.ndarray
    num_folded: int = 0
    lifted: int = 0


@dataclass(frozen=True, slots=True)
class _Folded:
    """What is remembered of an update that is in: float64 `largest` `[num_tensors]`, -1 where unchanged."""

    weight: float
    largest: np.ndarray


@dataclass(frozen=True, slots=True)
class _Mix:
    """How the updates that are in meet in one tensor; a function of their set, not of their order."""

    num_folded: int
    sum_of_weights: float
    unchanged_weight: float
    largest: float


@dataclass(slots=True)
class Accumulator:
    """Sums updates as they commit, and gives their mean when the round closes.

    `weight_limits` has every rank of the cohort with the largest weight its update can have: whether an update is taken
    depends on it alone, never on what else is in. `base` holds every tensor of the schema, and must not change.
    `threads` work inside one call; calls themselves are not guarded: **one caller at a time**, and whoever shares an
    accumulator holds one lock over `fold`, `remove` and the whole of `result` or `iter_result`.

    Raises:
        ValueError: a weight limit is not between 1e-30 and 1e11, or the cohort is empty or over 2**20.
    """

    schema: ModelSchema
    base: Weights
    weight_limits: Mapping[int, float]
    threads: int = 1
    block_elements: int = BLOCK_ELEMENTS
    _total_weight: float = field(init=False)
    _index: dict[str, int] = field(init=False, repr=False)
    _folded: dict[int, _Folded] = field(init=False, repr=False, default_factory=dict)
    _sums: dict[int, _TensorSum] = field(init=False, repr=False, default_factory=dict)
    _base_largest: dict[int, float] = field(init=False, repr=False, default_factory=dict)
    _grids: dict[int, Grid] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= len(self.weight_limits) <= MAX_UPDATES:
            raise ValueError(f"a cohort has 1 to {MAX_UPDATES:,} ranks, not {len(self.weight_limits):,}")
        for rank, limit in self.weight_limits.items():
            if not MIN_WEIGHT <= limit <= MAX_WEIGHT:
                raise ValueError(f"rank {rank} has a weight limit of {limit}; it must be within 1e-30 to 1e11")
        self._total_weight = math.fsum(self.weight_limits.values())
        self._index = {spec.name: index for index, spec in enumerate(self.schema)}

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks whose updates are in, ascending."""
        return tuple(sorted(self._folded))

    def __contains__(self, rank: int) -> bool:
        return rank in self._folded

    @property
    def sum_bytes(self) -> int:
        """Memory that the running sums take now."""
        return sum(summed.total.nbytes for summed in self._sums.values())

    def fold(self, rank: int, weight: float, tensors: Weights, facts: Surveyed | None = None) -> None:
        """Add an update. When it raises one of the errors below, nothing has changed.

        Tensors that come from a file are read as they are added. Where reading fails, that error is raised, some of the
        update is in, and the accumulator is of no use any more; `remove` likewise.

        `tensors` may leave out what equals the base. `facts` is what `check_update` found of these very tensors against
        this base, if that was called before; it saves a pass over the update.

        Raises:
            UpdateRefused: what `check_update` refuses; `BeyondHeadroom`; `BaseNotFinite`; `ImplausibleExamples` for a
                weight that is not between 1e-30 and the rank's limit.
            RankError: the rank is not in the cohort, or is in already.
        """
        self._check_rank_and_weight(rank, weight)
        facts = check_update(self.schema, self.base, tensors, threads=self.threads) if facts is None else facts
        self.require_fit(rank, weight, facts)
        largest = np.full(len(self.schema), _UNCHANGED)
        for name, value in facts.largest.items():
            largest[self._index[name]] = value
        folded = _Folded(weight, largest)
        self._allocate(folded)
        self._add(folded, tensors, kernels.Direction.IN)
        self._folded[rank] = folded

    def require_fit(self, rank: int, weight: float, facts: Surveyed) -> None:
        """Check that an update of which `check_update` found `facts` can be added. Unlike all else it may be called at
        any time.

        Raises:
            UpdateRefused: `BeyondHeadroom` names the first tensor that has a value beyond its grid, `BaseNotFinite` one
                that had to stay as it was; `ImplausibleExamples` as `fold`.
            RankError: as `fold`.
        """
        self._check_rank_and_weight(rank, weight)
        for name, value in facts.largest.items():
            limit = self._grid(self._index[name]).limit
            if value > limit:
                raise BeyondHeadroom(name, value, limit)

    def remove(self, rank: int, tensors: Weights) -> None:
        """Take an update out again, bit for bit as if it had never been in. `tensors` are those that were folded.

        Raises:
            RankError: the rank is not in.
            KeyError: a tensor that was folded is missing; nothing has changed.
        """
        if rank not in self._folded:
            raise RankError(f"the update of rank {rank} is not in; in are {list(self.ranks)}")
        folded = self._folded[rank]
        self._add(folded, tensors, kernels.Direction.OUT)
        del self._folded[rank]
        for index in _changed(folded):
            if self._sums[index].num_folded == 0:
                del self._sums[index]

    def tensors_to_reread(self) -> tuple[str, ...]:
        """Names of the tensors that `result` would read again from the updates, in schema order."""
        mixes = self._mixes()
        return tuple(self.schema.tensors[i].name for i in sorted(mixes) if self._is_refolded(i, mixes[i]))

    def tensors_changed(self) -> frozenset[str]:
        """Names of the tensors that some update changed. All others come out as the base has them."""
        return frozenset(self.schema.tensors[i].name for i, summed in self._sums.items() if summed.num_folded)

    def result(self, reread: Reread | None = None) -> dict[str, np.ndarray]:
        """The mean, every tensor in schema order; see `iter_result`."""
        return dict(self.iter_result(reread))

    def iter_result(self, reread: Reread | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """The mean, tensor by tensor in schema order, so that no more than one need be held.

        A tensor that no update changed is the base's. `reread` is called, for the `tensors_to_reread` only,
        once per update that changed the tensor, in the order of ranks.

        Raises:
            NoUpdates: nothing is in.
            RereadNeeded: `reread` is `None` and needed.
        """
        if not self._folded:
            raise NoUpdates
        needed = self.tensors_to_reread()
        if needed and reread is None:
            raise RereadNeeded(needed)
        mixes, again = self._mixes(), frozenset(needed)
        for index, spec in enumerate(self.schema):
            if index not in mixes:
                yield spec.name, self.base[spec.name]
            elif reread is not None and spec.name in again:
                yield spec.name, self._refolded(index, mixes[index], reread)
            else:
                yield spec.name, self._mean(index, mixes[index])

    def _check_rank_and_weight(self, rank: int, weight: float) -> None:
        if rank not in self.weight_limits:
            raise RankError(f"rank {rank} is not in this round's cohort of {len(self.weight_limits)}")
        if rank in self._folded:
            raise RankError(f"the update of rank {rank} is in already")
        limit = self.weight_limits[rank]
        if not MIN_WEIGHT <= weight <= limit:
            raise ImplausibleExamples(f"the update of rank {rank} would weigh {weight:g}; {limit:g} is the most it may")

    def _largest_of_base(self, index: int) -> float:
        """Looked up when first needed: most tensors of a frozen backbone never are."""
        if index not in self._base_largest:
            spec = self.schema.tensors[index]
            value = largest_absolute(spec, self.base[spec.name])
            if not math.isfinite(value):
                raise BaseNotFinite(spec.name, value)
            self._base_largest[index] = value
        return self._base_largest[index]

    def _grid(self, index: int) -> Grid:
        """Kept once made: with thousands of small updates, making it anew was a sixth of their cost."""
        if index not in self._grids:
            dtype = self.schema.tensors[index].dtype
            self._grids[index] = Grid.for_tensor(dtype, self._largest_of_base(index), self._total_weight)
        return self._grids[index]

    def _allocate(self, folded: _Folded) -> None:
        new = [i for i in _changed(folded) if i not in self._sums]
        totals = zeros([self.schema.tensors[i].num_elements for i in new])
        self._sums |= {i: _TensorSum(total) for i, total in zip(new, totals, strict=True)}

    def _add(self, folded: _Folded, tensors: Weights, direction: kernels.Direction) -> None:
        additions = {i: self._addition(i, folded, tensors, direction) for i in _changed(folded)}
        self._over(additions, partial(kernels.adder, additions))
        for index, addition in additions.items():
            self._sums[index].num_folded += direction.value
            self._sums[index].lifted += direction.value * addition.small

    def _addition(self, index: int, folded: _Folded, tensors: Weights, way: kernels.Direction) -> kernels.Addition:
        name = self.schema.tensors[index].name
        if name not in tensors:
            raise KeyError(name)
        multiplier = self._grid(index).multiplier(folded.weight)
        small = float(folded.largest[index]) * multiplier <= kernels.SMALL
        return kernels.Addition(self._sums[index].total, lambda: flat(tensors[name]), multiplier, small, way)

    def _mixes(self) -> dict[int, _Mix]:
        """By index, of the tensors that some update changed."""
        updates = list(self._folded.values())
        weights = np.array([update.weight for update in updates])
        largest = np.array([update.largest for update in updates])
        return {i: self._mix(i, weights, largest[:, i]) for i, summed in self._sums.items() if summed.num_folded}

    def _mix(self, index: int, weights: np.ndarray, largest: np.ndarray) -> _Mix:
        idle = weights[largest == _UNCHANGED]
        peak = max(float(largest.max()), self._largest_of_base(index) if idle.size else 0.0)
        # fsum rounds once, whatever the order.
        return _Mix(weights.size - idle.size, math.fsum(weights), math.fsum(idle), peak)

    def _is_refolded(self, index: int, mix: _Mix) -> bool:
        return self._grid(index).is_too_coarse(mix.num_folded, mix.sum_of_weights, mix.largest)

    def _mean(self, index: int, mix: _Mix) -> np.ndarray:
        spec, summed = self.schema.tensors[index], self._sums[index]
        out = np.empty(spec.shape, spec.dtype.numpy)
        mean = kernels.Mean(
            total=summed.total,
            lifted=summed.lifted,
            unit=math.ldexp(1.0, self._grid(index).exponent) / mix.sum_of_weights,
            base=flat(self.base[spec.name]),
            base_share=mix.unchanged_weight / mix.sum_of_weights,
            largest=mix.largest,
            out=flat(out),
        )
        self._over([index], partial(kernels.divider, mean))
        return out

    def _refolded(self, index: int, mix: _Mix, reread: Reread) -> np.ndarray:
        """The tensor from the updates themselves: float64, the base's share first, then by rank."""
        spec = self.schema.tensors[index]
        out, total = np.empty(spec.shape, spec.dtype.numpy), np.zeros(spec.num_elements, np.float64)
        for values, weight in self._parts(index, mix, reread):
            share = kernels.Share(total, flat(values), weight / mix.sum_of_weights)
            self._over([index], partial(kernels.sharer, share))
        self._over([index], partial(kernels.rounder, total, flat(out), mix.largest))
        return out

    def _over(self, indices: Iterable[int], make_worker: Callable[[int], Callable[[Span], None]]) -> None:
        tasks = spans(((i, self.schema.tensors[i]) for i in indices), self.block_elements)
        run(self.threads, tasks, partial(make_worker, self.block_elements), self.block_elements)

    def _parts(self, index: int, mix: _Mix, reread: Reread) -> Iterator[tuple[np.ndarray, float]]:
        """Values and weight of each part of a refolded tensor. One at a time: `reread` may have to load them."""
        name = self.schema.tensors[index].name
        if mix.unchanged_weight:
            yield self.base[name], mix.unchanged_weight
        for rank in self.ranks:
            if self._folded[rank].largest[index] != _UNCHANGED:
                yield reread(rank, name), self._folded[rank].weight


def _changed(folded: _Folded) -> list[int]:
    return [int(index) for index in np.flatnonzero(folded.largest != _UNCHANGED)]
