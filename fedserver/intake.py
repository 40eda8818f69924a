"""A round's updates on their way into the aggregate: checks of each alone, folding, and the checks of the cohort."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import structlog

from fedserver.aggregation import (
    Accumulator,
    ExampleLimits,
    Quarantine,
    Strategy,
    Survey,
    Surveyed,
    UpdateRefused,
    check_cohort,
    check_num_examples,
    check_update,
    weight_limits,
)
from fedserver.ahead import ahead
from fedserver.coordinator.participation import Participation
from fedserver.coordinator.round import Round
from fedserver.store import DamagedFile, ModelStore
from fedserver.store.models import WAY_OUT as MODEL_WAY_OUT
from fedserver.store.models import StoredModel
from fedserver.store.updates import WAY_OUT, Update
from fedstream.manifest import Digest, TensorEntry, entry_of, raw_bytes
from fedstream.schema import ModelSchema
from fedstream.weights_file import WeightsFileError

log = structlog.get_logger()


_FOLDING_THREADS = 2
"""That add one update to the sums. Sites are answered meanwhile, which wants a core as well."""


@dataclass(frozen=True, slots=True)
class _Taken:
    update: Update
    weight: float
    facts: Surveyed


class Intake:
    """Takes the updates of one round, and adds to the sums, in a thread, what is in.

    A client is answered before its update is added: the update is durable and checked, and the sums can be made of it
    at any time, to the same bits. They take twice a float32 model, are made when the first update comes, and let go by
    `release`; whatever needs them afterwards makes them again.

    Args:
        schema: of the federation's model.
        base: the model that the round started from.
        strategy: what each update weighs.
        round_: whose updates they are, and whose cohort bounds the weights.

    Raises:
        DamagedFile: the base model's file cannot be used.
    """

    def __init__(self, schema: ModelSchema, base: StoredModel, strategy: Strategy, round_: Round) -> None:
        self._schema, self._base_model = schema, base
        self.base = base.weights()
        self.round = round_
        self._strategy = strategy
        self._limits = ExampleLimits()
        self._taken: dict[int, _Taken] = {}
        self._added: set[int] = set()
        """Ranks that were in the sums at some time."""
        self._lock = asyncio.Lock()  # guards the sums, which take one caller at a time
        claims = {part.rank: part.claimed_examples for part in round_.participations}
        self.weight_limits: Mapping[int, float] = weight_limits(strategy, claims, self._limits)
        self._sums = self._no_sums()
        self._folding: asyncio.Task[None] | None = None
        self._released = False

    def _no_sums(self) -> Accumulator:
        return Accumulator(self._schema, self.base, self.weight_limits, threads=_FOLDING_THREADS)

    def survey(self) -> Survey:
        """For a pass over an update while it comes, for `admit`."""
        return Survey(self._schema, self.base)

    async def release(self) -> None:
        """Let the sums go, when the round has made its model, or will make none."""
        self._released = True
        async with self._lock:
            self._sums = self._no_sums()

    async def admit(self, part: Participation, store: Callable[[], Update], survey: Survey | None = None) -> str:
        """Check a stored update by itself. Returns why it is kept aside, or nothing if it is in.

        Admitting what is in already changes nothing: the recording of an admission may fail, and be repeated.

        Args:
            part: whose update it is.
            store: gives the update, stored, and what its manifest says; called in a thread.
            survey: that was shown all of it; else it is read once more.
        """
        if part.rank in self._taken:
            return ""
        try:
            self._taken[part.rank] = await asyncio.to_thread(self._check, part, store, survey)
        except UpdateRefused as error:
            return f"{error.reason.value}: {error}"
        if not self._released and (self._folding is None or self._folding.done()):
            self._folding = asyncio.create_task(self._fold_what_is_in())
        return ""

    def _check(self, part: Participation, store: Callable[[], Update], survey: Survey | None) -> _Taken:
        update = store()
        check_num_examples(update.facts.num_examples, part.claimed_examples, self._limits)
        facts = check_update(self._schema, self.base, update.tensors()) if survey is None else survey.facts()
        weight = self._strategy.weight(part.rank, update.facts.num_examples)
        self._sums.require_fit(part.rank, weight, facts)
        return _Taken(update, weight, facts)

    async def caught_up(self) -> None:
        """Return when nothing is being added to the sums."""
        if self._folding is not None:
            await self._folding

    async def _fold_what_is_in(self) -> None:
        while not self._released and any(rank not in self._sums for rank in self._taken):
            try:
                async with self._lock:
                    await asyncio.to_thread(self._catch_up)
            except (OSError, DamagedFile, WeightsFileError) as error:
                log.warning("an update could not be added yet; it is tried again at the end", because=str(error))
                return

    def _catch_up(self) -> Accumulator:
        """The sums of all that is in."""
        for rank, taken in list(self._taken.items()):  # more may be taken meanwhile
            if rank not in self._sums:
                self._fold(rank, taken)
        return self._sums

    def _fold(self, rank: int, taken: _Taken) -> None:
        if rank in self._added:
            taken.update.check()  # that was long ago, and what is added must be what was checked
        try:
            self._sums.fold(rank, taken.weight, taken.update.tensors(), taken.facts)
        except BaseException:  # an update that cannot be read to its end leaves sums of no use
            self._sums = self._no_sums()
            raise
        self._added.add(rank)
        taken.update.set_aside()

    def unfit(self, completed: Collection[int]) -> Mapping[int, Quarantine]:
        """Which updates of `completed` ranks do not fit the others, as far as they are in."""
        return check_cohort({rank: taken.facts.norm for rank, taken in self._taken.items() if rank in completed})

    async def screen(self, completed: Collection[int]) -> Mapping[int, str]:
        """Keep just the updates of `completed` ranks, check them against each other, take out what does not fit.

        Taking out is exact. An update that is in and not completed is one whose admission could not be recorded.

        Returns:
            Rank to reason, of those that were completed and do not fit.

        Raises:
            DamagedFile: an update that is needed for it has changed since it was folded.
        """
        async with self._lock:
            strays = [rank for rank in self._taken if rank not in completed]
            unfit = self.unfit(completed)
            for rank in [*strays, *unfit]:
                await asyncio.to_thread(self._take_out, rank)
        return {rank: f"{found.reason.value}: {found.message}" for rank, found in unfit.items()}

    def _take_out(self, rank: int) -> None:
        taken = self._taken[rank]
        if rank in self._sums:
            taken.update.check()  # what is subtracted must be what was added
            try:
                self._sums.remove(rank, taken.update.tensors())
            except BaseException:
                self._sums = self._no_sums()
                raise
        del self._taken[rank]

    def shares(self) -> Mapping[int, float]:
        """Each update's share of the aggregate by rank, to the same bits whoever came first; they add up to 1."""
        total = math.fsum(taken.weight for taken in self._taken.values())
        return {rank: taken.weight / total for rank, taken in self._taken.items()}

    @property
    def weights(self) -> Mapping[int, float]:
        """What each update that is in weighs, by rank, as the strategy gives it."""
        return {rank: taken.weight for rank, taken in self._taken.items()}

    async def publish(self, models: ModelStore, version: int) -> StoredModel:
        """Make the new global model of what is in, and store it. Safe to repeat.

        Raises:
            DamagedFile: the base, or an update that must be read again, is not what it was.
        """
        async with self._lock:
            return await asyncio.to_thread(self._publish, models, version)

    def _publish(self, models: ModelStore, version: int) -> StoredModel:
        with closing(self._results()) as results:  # or a mean might still be in the making when this is repeated
            return models.add(version, self._schema, results)

    def _results(self) -> Generator[tuple[TensorEntry, np.ndarray]]:
        """Each tensor of the new model with its entry. One is made while the one before is digested and written.

        What passes through from the base is digested like the rest: see that it still is the base.
        """
        sums, known = self._catch_up(), self._base_model.manifest.by_name()
        changed = sums.tensors_changed()
        for name, values in ahead(sums.iter_result(self._reread)):
            entry = entry_of(self._schema[name], values)
            if name not in changed and entry != known[name]:
                problem = f"is damaged: tensor {name} does not match its digest"
                raise DamagedFile(self._base_model.path, problem, MODEL_WAY_OUT, name)
            yield entry, values

    def _reread(self, rank: int, name: str) -> np.ndarray:
        update = self._taken[rank].update
        values = update.tensors()[name]
        if Digest.of(raw_bytes(values)) != update.manifest.by_name()[name].digest:
            raise DamagedFile(update.path, f"is damaged: tensor {name} does not match its digest", WAY_OUT, name)
        return values
