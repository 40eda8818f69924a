"""Asks a server for its status each second, and holds every answer against those before it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from fedserver.server import Listening
from fedstream.v1 import admin_pb2, negotiation_pb2
from tests.support.serving import administration

_PERIOD_SECONDS = 1.0
_SLACK_SECONDS = 2.5
"""What was on its way when a partition began may still be seen; the sampler itself may be late."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One client's part of a round as `status` showed it. Times are of this process's steady clock, in seconds."""

    at: float
    round: int
    client: str
    committed_size: int
    body_size: int
    age_seconds: float
    outcome: int
    reason: str


@dataclass(slots=True)
class StatusWatch:
    """What was seen, and what of it was not true."""

    samples: list[Sample] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)
    longest_gap_seconds: float = 0.0

    @classmethod
    @asynccontextmanager
    async def on(cls, listening: Listening) -> AsyncIterator[StatusWatch]:
        """Watches as long as the block runs."""
        watch = cls()
        channel, stub = administration(listening)
        task = asyncio.create_task(watch._look(stub))
        try:
            yield watch
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await channel.close()

    def latest(self, client: str) -> Sample | None:
        """The newest sample of a client."""
        return next((one for one in reversed(self.samples) if one.client == client), None)

    def check_partition(self, client: str, begin: float, end: float) -> float:
        """A client that cannot be heard must not look alive; returns the oldest `last_seen`, in seconds."""
        inside = [one for one in self.samples if one.client == client and begin + _SLACK_SECONDS < one.at < end]
        for one in inside:
            if one.age_seconds < one.at - begin - _SLACK_SECONDS:
                self.lies.append(f"{client} looked alive {one.at - begin:.0f} s into the partition: {one}")
            if one.outcome == negotiation_pb2.OUTCOME_COMPLETED:
                self.lies.append(f"{client} was said to have completed in the partition: {one}")
        return max((one.age_seconds for one in inside), default=0.0)

    async def _look(self, stub: Any) -> None:
        while True:
            before = time.monotonic()
            with contextlib.suppress(grpc.RpcError):
                self._take(await stub.GetRound(admin_pb2.GetRoundRequest(), timeout=10.0))
            self.longest_gap_seconds = max(self.longest_gap_seconds, time.monotonic() - before)
            await asyncio.sleep(_PERIOD_SECONDS)

    def _take(self, answer: admin_pb2.GetRoundResponse) -> None:
        now, wall = time.monotonic(), time.time()
        for part in answer.participations:
            seen = part.last_seen.ToNanoseconds() / 1e9
            sample = Sample(
                at=now,
                round=answer.round.number,
                client=part.client_name,
                committed_size=part.committed_size,
                body_size=part.body_size_bytes,
                age_seconds=wall - seen if seen else 0.0,
                outcome=part.outcome,
                reason=answer.round.reason,
            )
            self._compare(sample)
            self.samples.append(sample)

    def _compare(self, sample: Sample) -> None:
        before = self.latest(sample.client)
        if before is not None and before.round == sample.round and sample.committed_size < before.committed_size:
            self.lies.append(f"the committed size decreased from {before} to {sample}")
        if sample.outcome == negotiation_pb2.OUTCOME_COMPLETED and sample.committed_size < sample.body_size:
            self.lies.append(f"completed before all of it was there: {sample}")
        outstanding = sample.outcome == negotiation_pb2.OUTCOME_UNSPECIFIED
        if outstanding and "waiting for" in sample.reason and sample.client not in sample.reason:
            self.lies.append(f"the round waits for this client, but does not say so: {sample}")
