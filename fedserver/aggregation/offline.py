"""The aggregate of updates that are all at hand, as `fedserver aggregate` and `fedserver verify` have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedserver.aggregation.accumulator import Accumulator
from fedserver.aggregation.checks import ExampleLimits, weight_limits
from fedserver.aggregation.errors import NoUpdates, SchemaMismatch, UpdateRefused
from fedserver.aggregation.strategies import Strategy
from fedstream.schema import ModelSchema
from fedtask.task import Weights


def aggregate_all(
    schema: ModelSchema,
    base: Weights | None,
    updates: Iterable[tuple[int, int, Weights]],
    strategy: Strategy,
    *,
    limits: Mapping[int, float] | None = None,
) -> dict[str, np.ndarray]:
    """The weighted mean of `updates`, each a (rank, num_examples, weights), within the bound that `Accumulator` states.

    The bits depend on the updates, the base and the round's `limits` (the weight limits of its cohort, which a round
    records), and on nothing else: with all three, this gives the bits the federation gave. `limits` left out stands for
    a cohort of exactly these updates whose sites claimed the `num_examples` they then trained on, under the default
    `ExampleLimits`: again the federation's bits where that is what happened. In any other case two results may differ,
    each within the bound of the same exact mean.

    `base=None` takes the update of lowest rank, which must then be complete, for the base: what all models agree on
    passes through byte for byte, and integer and boolean tensors are that model's.

    Raises:
        NoUpdates: there are none.
        UpdateRefused: one, whose rank it has, is unfit (see `Accumulator.fold`); nobody is left out in silence here.
        RankError: two have the same rank, or one is not in `limits`.
    """
    by_rank = sorted(updates, key=lambda update: update[0])
    if not by_rank:
        raise NoUpdates
    start = _complete(schema, by_rank[0][2]) if base is None else base
    if limits is None:
        limits = weight_limits(strategy, {rank: examples for rank, examples, _ in by_rank}, ExampleLimits())
    accumulator = Accumulator(schema, start, limits)
    for rank, num_examples, tensors in by_rank:
        try:
            accumulator.fold(rank, strategy.weight(rank, num_examples), tensors)
        except UpdateRefused as error:
            error.rank = rank
            raise
    again = {rank: tensors for rank, _, tensors in by_rank}
    return accumulator.result(lambda rank, name: again[rank][name])


def _complete(schema: ModelSchema, tensors: Weights) -> Weights:
    missing = [spec.name for spec in schema if spec.name not in tensors]
    if missing:
        raise SchemaMismatch(
            f"the first model lacks {len(missing)} of {len(schema)} tensors, such as {missing[0]!r}; "
            "without a base model it must be complete"
        )
    return tensors
