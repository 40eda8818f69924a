"""What a federation does, in numbers for Prometheus, which reads them at `fedserver.metrics_port`.

The numbers are put together on the event loop, where a federation lives, whenever they are asked for. No number is of
one site alone: whoever watches a machine need not know who takes part.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass, field, replace
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from fedserver.coordinator.population import ClientState
from fedserver.federation import Federation, FederationState
from fedserver.store.disk import free_bytes
from fedstream.outcomes import Outcome
from fedtask.report import RoundRecord

_PATIENCE_SECONDS = 5.0
"""Prometheus itself gives up after ten."""
_RECORDS_AT_ONCE = 200
"""Of rounds that are over, since there may be thousands. What is counted is kept, also where nobody waits any more."""


@dataclass(slots=True)
class Totals:
    """What has come of all rounds that are over; those that an earlier process ran too."""

    rounds: int = 0
    succeeded: int = 0
    offers: Counter[str] = field(default_factory=Counter)
    received_bytes: int = 0
    sent_bytes: int = 0

    def now(self) -> Totals:
        """A copy, for a thread that reads it while more is counted."""
        return replace(self, offers=Counter(self.offers))

    def add(self, record: RoundRecord) -> None:
        """Count one round more."""
        self.rounds += 1
        self.succeeded += record.succeeded
        self.offers.update(one.outcome for one in record.contributions)
        self.received_bytes += record.bytes_received
        self.sent_bytes += record.bytes_sent


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A federation at one moment. `round` is the one at work or the last one, 0 before the first; bytes are of all."""

    name: str
    task: str
    state: FederationState
    state_seconds: float
    rounds_planned: int
    round: int
    clients: Mapping[ClientState, int]
    totals: Totals
    received_bytes: int
    sent_bytes: int
    last_round_seconds: float | None
    scores: Mapping[str, float]
    best_round: int
    folder: Path


class FederationCollector(Collector):
    """Looks at a federation each time Prometheus asks, in a thread of its own.

    Args:
        federation: that is looked at.
        loop: on which it lives.
    """

    def __init__(self, federation: Federation, loop: asyncio.AbstractEventLoop) -> None:
        self._federation, self._loop = federation, loop
        self._counting = asyncio.Lock()  # guards the totals, since reading what is over lets go of the loop
        self._totals = Totals()
        self._most_received = self._most_sent = 0

    def collect(self) -> Iterator[Metric]:
        """The numbers. Called in a thread that is not the loop's.

        Raises:
            TimeoutError: the server is busy, or about to end.
        """
        looking = asyncio.run_coroutine_threadsafe(self.look(), self._loop)
        try:
            snapshot = looking.result(_PATIENCE_SECONDS)
        except NoAnswer as error:
            looking.cancel()
            raise TimeoutError("the server is busy, or about to end") from error
        yield from families(snapshot)

    async def look(self) -> Snapshot:
        """Put together what there is to say now."""
        federation = self._federation
        async with self._counting:
            while (counted := self._totals.rounds) < len(federation.history):
                for record in await asyncio.to_thread(self._some_records, counted):
                    self._totals.add(record)
        # A round's bytes are taken from the one count a moment before they are in the other.
        self._most_received = max(self._most_received, self._totals.received_bytes + federation.traffic.received)
        self._most_sent = max(self._most_sent, self._totals.sent_bytes + federation.traffic.sent)
        last = federation.history[-1] if federation.history else None
        scores = last.evaluation.metrics if last is not None and last.evaluation is not None else {}
        return Snapshot(
            name=federation.config.name,
            task=federation.config.task,
            state=federation.standing.state,
            state_seconds=federation.now - federation.standing.since,
            rounds_planned=federation.config.rounds,
            round=federation.round.number if federation.round is not None else last.number if last is not None else 0,
            clients=Counter(client.state for client in federation.population),
            totals=self._totals.now(),
            received_bytes=self._most_received,
            sent_bytes=self._most_sent,
            last_round_seconds=last.duration_seconds if last is not None else None,
            scores={name: value for name, value in scores.items() if value is not None},
            best_round=federation.scoreboard.best.version if federation.scoreboard.best is not None else 0,
            folder=federation.state.folder,
        )

    def _some_records(self, start: int) -> Sequence[RoundRecord]:
        return self._federation.history[start : start + _RECORDS_AT_ONCE]


def families(seen: Snapshot) -> Iterator[Metric]:
    """The numbers of a federation, by name; docs/operating.md has the same list."""
    about = {"federation": seen.name, "task": seen.task}
    yield InfoMetricFamily("fedstream", "Name of the federation and its task.", about)
    states = {state.value: float(state is seen.state) for state in FederationState}
    yield _labelled(GaugeMetricFamily, "fedstream_state", "1 for what the federation does now.", "state", states)
    yield GaugeMetricFamily("fedstream_state_seconds", "For how long it does that.", seen.state_seconds)
    clients = {state.value: seen.clients.get(state, 0) for state in ClientState}
    yield _labelled(GaugeMetricFamily, "fedstream_clients", "Clients by where they stand.", "state", clients)
    yield GaugeMetricFamily("fedstream_rounds_planned", "Rounds that are to be run.", seen.rounds_planned)
    yield GaugeMetricFamily("fedstream_round", "The round at work, or the last one; 0 before the first.", seen.round)
    over = {"succeeded": seen.totals.succeeded, "failed": seen.totals.rounds - seen.totals.succeeded}
    yield _labelled(CounterMetricFamily, "fedstream_rounds", "Rounds that are over.", "result", over)
    offers = {outcome.value: seen.totals.offers[outcome.value] for outcome in Outcome}
    words = "Offers of rounds that are over, by how they ended."
    yield _labelled(CounterMetricFamily, "fedstream_offers", words, "outcome", offers)
    if seen.last_round_seconds is not None:
        words = "How long the last round took that is over."
        yield GaugeMetricFamily("fedstream_last_round_seconds", words, seen.last_round_seconds)
    yield CounterMetricFamily("fedstream_received_bytes", "Bytes of updates that were received.", seen.received_bytes)
    yield CounterMetricFamily("fedstream_sent_bytes", "Bytes of models that were sent.", seen.sent_bytes)
    words = "Scores on the holdout of the model of the last round that is over."
    yield _labelled(GaugeMetricFamily, "fedstream_holdout_score", words, "metric", seen.scores)
    words = "The round whose model is the best so far on the holdout; 0 for none."
    yield GaugeMetricFamily("fedstream_best_round", words, seen.best_round)
    with contextlib.suppress(OSError):
        words = "Free bytes where the state directory is."
        yield GaugeMetricFamily("fedstream_disk_free_bytes", words, free_bytes(seen.folder))


def _labelled(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    words: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    family = kind(name, words, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
