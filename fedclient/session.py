"""One stream of the negotiation, from hello to its end; its states are those of a client's session in docs/protocol.md.

    GREETING --welcome--> MEMBER --federation_outcome--> OVER
    GREETING --schema_query--> GREETING      the schema is sent
    GREETING --declined--> OVER              raises `Stop`
    MEMBER --enough rounds--> OVER           raises `EnoughRounds`, after good-bye
    MEMBER --training is hopeless--> OVER    raises `Stop`, after good-bye
    any --cut--> OVER                        raises `TransportError`; the work goes on, and a new session takes it up

Two things go on at a time: what the server says is listened to, and signs of progress keep the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from fedclient import codec
from fedclient.calls import send, translated
from fedclient.declined import describe_declined
from fedclient.display import Display
from fedclient.events import (
    Cancellation,
    Confirmation,
    Declined,
    Event,
    FederationOutcome,
    LeaseRenewal,
    Offer,
    RoundOutcome,
    SchemaQuery,
    Waiting,
    Welcome,
    Withdrawal,
)
from fedclient.exit_codes import ExitCode, Stop
from fedclient.job import Job, JobState
from fedclient.offers import Offers
from fedclient.reply import Decline
from fedstream import limits
from fedstream.errors import FedstreamError, TransportError
from fedstream.progress import Phase, Progress
from fedstream.schema import ModelSchema
from fedstream.v1 import negotiation_pb2
from fedstream.waiting import comes

log = structlog.get_logger()

_LEASE_SHARE = 1 / 3
"""Part of a lease after which it is renewed: two signs of life may be lost before the third is due."""

_LEAST_PERIOD_SECONDS = 0.1
_PERIOD_SECONDS = 5.0
"""How often progress that changed is told, where the lease is not shorter."""

_PAUSE_SECONDS = 1.0
"""How long to let news gather before it is told."""

_LAST_WORDS_SECONDS = 3.0

_COLLECTING_SECONDS = 20.0
_NO_OFFER = "final models"
"""Stands where an offer's id does in what is told when there are no more."""


class EnoughRounds(FedstreamError):
    """The site has taken part in as many rounds as it allows itself, and has said good-bye. The message says so."""


@dataclass(slots=True)
class Lease:
    """A claim on one offer: what was last told, and when."""

    offer_id: str
    seconds: float
    told: Progress | None = None
    told_at: float = -math.inf

    @property
    def period(self) -> float:
        """Seconds between two looks at the progress."""
        return max(_LEAST_PERIOD_SECONDS, min(_PERIOD_SECONDS, self.seconds * _LEASE_SHARE))

    @property
    def pause(self) -> float:
        """Least seconds between two signs of progress."""
        return min(_PAUSE_SECONDS, self.period / 2)

    def is_due(self, progress: Progress, now: float) -> bool:
        """Whether to tell: it is news, or the next look would come too late for the lease."""
        return progress != self.told or now - self.told_at + self.period >= self.seconds * _LEASE_SHARE


class Session:
    """One stream.

    Args:
        call: the stream, just opened.
        schema: of this client's model.
        offers: answers them, and has what is agreed done.
        display: for people.
        news: set whenever the work on an offer has got on.
        on_round: told of each round's end.
        goes_on: told when the server says anything from which it follows that the federation is not over.
        collect: gets from the server what the end takes. It stays for that until this side is closed.
    """

    def __init__(
        self,
        call: Any,
        schema: ModelSchema,
        offers: Offers,
        display: Display,
        news: asyncio.Event,
        on_round: Callable[[RoundOutcome], None],
        goes_on: Callable[[], Awaitable[None]],
        collect: Callable[[FederationOutcome], Awaitable[None]],
    ) -> None:
        self._call = call
        self._schema = schema
        self._offers = offers
        self._display = display
        self._news = news
        self._on_round = on_round
        self._goes_on = goes_on
        self._collect = collect
        self._sending = asyncio.Lock()  # guards the stream's sending side: gRPC takes one message at a time
        self._lease: Lease | None = None
        self._outcome: FederationOutcome | None = None
        self._is_collecting = False
        self._told_collecting_at = -math.inf
        self._rounds = 0  # of the federation in all, as the welcome says
        self._enough: str | None = None

    async def run(self, hello: negotiation_pb2.NegotiateRequest, on_welcome: Callable[[], None]) -> FederationOutcome:
        """Say hello, then listen to the end.

        Raises:
            Stop: declined, or training is hopeless.
            EnoughRounds: the site's limit on rounds is reached, and the server knows.
            TransportError: the stream broke.
            ProtocolError: the server ended it by a rule.
        """
        await self._send(hello)
        listener = asyncio.create_task(self._listen(on_welcome))
        keeper = asyncio.create_task(self._keep_lease())
        try:
            await asyncio.wait({listener, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if keeper.done() and isinstance(stop := keeper.exception(), Stop):
                await self.leave(stop.message)  # or the cancellation might overtake what was told last
                return await keeper
            if not listener.done():
                # The listener hears why the stream ended, the keeper only that it did.
                await asyncio.wait({listener}, timeout=_LAST_WORDS_SECONDS)
            if self._enough is not None:  # whichever of the two said good-bye, the other may only see the end
                raise EnoughRounds(self._enough)
            return await (listener if listener.done() else keeper)
        finally:
            for task in (listener, keeper):
                task.cancel()
            await asyncio.gather(listener, keeper, return_exceptions=True)
            self._call.cancel()

    async def leave(self, reason: str) -> None:
        """Say good-bye, and wait for the server to end the stream, both for a few seconds at most."""
        with contextlib.suppress(TransportError, TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._send(codec.write_leave(reason))
                await self._close()

    async def _close(self) -> None:
        """Close this side, and wait for the server to end the stream.

        Raises:
            TransportError: it broke instead.
        """
        async with self._sending:
            with translated():
                await self._call.done_writing()
                await self._call.code()

    async def _send(self, message: negotiation_pb2.NegotiateRequest) -> None:
        async with self._sending:
            await send(self._call, message)

    # Listening.

    async def _listen(self, on_welcome: Callable[[], None]) -> FederationOutcome:
        while True:
            with translated():
                message = await self._call.read()
            if not isinstance(message, negotiation_pb2.NegotiateResponse):
                raise TransportError("the server ended the session")
            event = codec.read_event(message)
            if isinstance(event, Welcome):
                on_welcome()
            if isinstance(event, Waiting | Offer):
                await self._goes_on()
            if event is not None:
                await self._handle(event)
            if self._outcome is not None:
                return self._outcome

    async def _handle(self, event: Event) -> None:
        match event:
            case Welcome():
                self._on_welcome(event)
            case Declined():
                raise Stop(ExitCode.DECLINED, describe_declined(event))
            case SchemaQuery():
                for part in codec.write_schema(self._schema):
                    await self._send(part)
            case Waiting(reason):
                self._display.idle(f"the server is waiting: {reason}")
            case RoundOutcome():
                _log_round(event)
                self._on_round(event)
            case FederationOutcome():
                self._is_collecting = True
                await self._collect(event)
                # By this the server knows that the final model is here, and need not wait for this client to come back:
                # also if it is killed from here on, it finds all that it needs on its disk.
                with contextlib.suppress(TransportError, TimeoutError):
                    async with asyncio.timeout(_LAST_WORDS_SECONDS):
                        await self._close()
                self._outcome = event
            case _:
                await self._handle_offer(event)

    async def _handle_offer(self, event: Offer | Confirmation | Withdrawal | LeaseRenewal | Cancellation) -> None:
        match event:
            case Offer():
                reply = await self._offers.consider(event)
                await self._send(codec.write_reply(event.offer_id, reply))
                if isinstance(reply, Decline):
                    await self._leave_if_enough()
            case Confirmation():
                self._offers.confirm(event)
                self._lease = Lease(event.offer_id, event.lease_seconds)
                self._news.set()
            case LeaseRenewal(offer_id, lease_seconds):
                if self._lease is not None and self._lease.offer_id == offer_id and lease_seconds > 0:
                    self._lease.seconds = lease_seconds
            case Withdrawal(offer_id, reason):
                self._offers.withdraw(offer_id, reason)
            case Cancellation(offer_id, reason):
                self._offers.cancel(offer_id, reason)

    async def _leave_if_enough(self) -> None:
        """Say good-bye once the site's limit on rounds is reached.

        Not later than with the last update: an offer that crossed the good-bye would count as failed.
        """
        self._enough = self._offers.enough()
        if self._enough is not None:
            await self.leave(self._enough)
            raise EnoughRounds(self._enough)

    def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.protocol != limits.PROTOCOL_VERSION:  # the only one that the hello offers
            words = f"the server welcomes this client in version {welcome.protocol} of the protocol"
            raise Stop(ExitCode.DEFECT, f"{words}, and it speaks {limits.PROTOCOL_VERSION}")
        self._rounds = welcome.rounds
        self._offers.welcome(welcome)
        self._display.idle("waiting for the next round")
        log.info("welcome", known_as=welcome.client_name, rounds=welcome.rounds)

    # Keeping the lease.

    async def _keep_lease(self) -> FederationOutcome:
        """Tell how the agreed work goes, whenever it got on, and often enough to keep the lease. Never returns."""
        while True:
            wait = _PERIOD_SECONDS if self._lease is None else self._lease.period - self._lease.pause
            await comes(self._news, wait)
            self._news.clear()
            await (self._tell_collecting() if self._is_collecting else self._tell_progress())
            if self._lease is None:  # what failed while progress was told of is told first, and ends the site then
                self._offers.check_health()
            await asyncio.sleep(0 if self._lease is None else self._lease.pause)

    async def _tell_progress(self) -> None:
        lease, job = self._lease, self._offers.job
        if lease is None or job is None or job.offer.offer_id != lease.offer_id:
            return
        if job.state is JobState.WORKING:
            now = time.monotonic()
            if lease.is_due(job.progress, now):
                lease.told, lease.told_at = job.progress, now
                await self._send(codec.write_progress(lease.offer_id, job.progress))
        else:
            self._lease = None
            await self._tell_end(job)

    async def _tell_collecting(self) -> None:
        """That the final models are still fetched: a server that hears nothing for a minute leaves."""
        now = time.monotonic()
        if now - self._told_collecting_at >= _COLLECTING_SECONDS:
            self._told_collecting_at = now
            await self._send(codec.write_progress(_NO_OFFER, Progress(Phase.DOWNLOADING)))

    async def _tell_end(self, job: Job) -> None:
        if job.state is JobState.FAILED:
            await self._send(codec.write_failure(job.offer.offer_id, job.reason))
        if job.state is JobState.DELIVERED:
            self._display.idle("waiting for the other clients")
            if job.offer.round < self._rounds:  # after the last one, the federation ends by itself, with its model
                await self._leave_if_enough()


def _log_round(event: RoundOutcome) -> None:
    metrics = {name: round(value, 4) for name, value in event.metrics.items() if value is not None}
    facts: dict[str, object] = {"round": event.round, "because": event.reason, **metrics}
    if event.outcome:
        facts["our_part"] = event.outcome
    if event.outcome_reason:
        facts["our_part_because"] = event.outcome_reason
    (log.info if event.succeeded else log.warning)("round over" if event.succeeded else "round failed", **facts)
