"""A round's updates on their way into the aggregate: checks of each alone, folding, and the checks of the cohort."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from fedserver.aggregation import (
    Accumulator,
    ExampleLimits,
    Strategy,
    UpdateRefused,
    check_cohort,
    check_num_examples,
    check_update,
    weight_limits,
)
from fedserver.coordinator.participation import Participation
from fedserver.coordinator.round import Round
from fedserver.store import ModelStore
from fedserver.store.models import StoredModel
from fedserver.store.uploads import Update
from fedstream.schema import ModelSchema


@dataclass(frozen=True, slots=True)
class _Taken:
    update: Update
    weight: float
    norm: float


class Intake:
    """Takes the updates of one round. Folding runs in a thread, one update at a time.

    Args:
        schema: of the federation's model.
        base: the model that the round started from.
        strategy: what each update weighs.
        round_: whose cohort bounds the weights.
        threads: to fold one update with.
    """

    def __init__(
        self, schema: ModelSchema, base: StoredModel, strategy: Strategy, round_: Round, threads: int = 2
    ) -> None:
        self._schema = schema
        self._base = base.weights()
        self._strategy = strategy
        self._limits = ExampleLimits()
        self._taken: dict[int, _Taken] = {}
        self._lock = asyncio.Lock()  # guards the accumulator, which takes one caller at a time
        claims = {part.rank: part.claimed_examples for part in round_.participations}
        weights = weight_limits(strategy, claims, self._limits)
        self._accumulator = Accumulator(schema, self._base, weights, threads=threads)

    async def admit(self, part: Participation, update: Update) -> str:
        """Check a stored update by itself and fold it. Returns why it is kept aside, or nothing if it is in.

        Folding what is in already changes nothing: the recording of an admission may fail, and be repeated.
        """
        async with self._lock:
            if part.rank in self._taken:
                return ""
            try:
                self._taken[part.rank] = await asyncio.to_thread(self._fold, part, update)
            except UpdateRefused as error:
                return f"{error.reason.value}: {error}"
        return ""

    def _fold(self, part: Participation, update: Update) -> _Taken:
        check_num_examples(update.facts.num_examples, part.claimed_examples, self._limits)
        tensors = update.tensors()
        facts = check_update(self._schema, self._base, tensors)
        weight = self._strategy.weight(part.rank, update.facts.num_examples)
        self._accumulator.fold(part.rank, weight, tensors, facts)
        return _Taken(update, weight, facts.norm)

    async def screen(self) -> Mapping[int, str]:
        """Check the updates against each other and take out those that do not fit, exactly. Rank to reason."""
        norms = {str(rank): taken.norm for rank, taken in self._taken.items()}
        unfit = {int(rank): found for rank, found in check_cohort(norms).items()}
        async with self._lock:
            for rank in unfit:
                taken = self._taken.pop(rank)
                await asyncio.to_thread(self._accumulator.remove, rank, taken.update.tensors())
        return {rank: f"{found.reason.value}: {found.message}" for rank, found in unfit.items()}

    def shares(self) -> Mapping[int, float]:
        """Each update's share of the aggregate by rank; they add up to 1."""
        total = sum(taken.weight for taken in self._taken.values())
        return {rank: taken.weight / total for rank, taken in self._taken.items()}

    async def publish(self, models: ModelStore, version: int) -> StoredModel:
        """Make the new global model of what is in, and store it."""
        async with self._lock:
            return await asyncio.to_thread(self._publish, models, version)

    def _publish(self, models: ModelStore, version: int) -> StoredModel:
        result = self._accumulator.result(lambda rank, name: self._taken[rank].update.tensors()[name])
        return models.add(version, self._schema, result)
