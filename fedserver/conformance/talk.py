"""One negotiation stream, from the server's side: what a scene says on it, and waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from fedserver.conformance.faults import Refused, refuse
from fedserver.conformance.findings import Findings, UnmetError
from fedserver.conformance.inspection import inspect_hello, inspect_progress
from fedserver.conformance.material import Material, Model
from fedserver.conformance.office import shown_certificate
from fedserver.conformance.transfer import Transfer
from fedstream import limits, wire
from fedstream.encodings import Encoding
from fedstream.plan import Plan
from fedstream.v1 import common_pb2, negotiation_pb2

PATIENCE_SECONDS = 20.0
"""How long a scene waits for what a client is to do next."""

_LONG = 3600.0


class Talk:
    """One session. What comes is looked at and handed to the scene when it asks; leases are renewed by themselves."""

    def __init__(
        self,
        context: Any,
        material: Material,
        transfer: Transfer,
        findings: Findings,
        note: Callable[[str], None],
        given_up: dict[str, str],
    ) -> None:
        self.hello = negotiation_pb2.Hello()
        self.heard: list[tuple[float, str, Any]] = []
        self.lease_seconds = _LONG
        self.is_closed = False
        """Whether the client has closed its side, or is gone."""
        self.was_cut_off = False
        """Whether the client has gone, or cancelled its call, in place of closing its side."""
        self._context = context
        self._material = material
        self._transfer = transfer
        self._findings = findings
        self._note = note
        self._given_up = given_up
        self._inbox: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        self._writing = asyncio.Lock()
        self._ending: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()

    # The stream's own end of it

    async def serve(self, requests: Any) -> None:
        """Read what comes until the scene ends the session."""
        self._findings.check("R-TIM-4", self._context.time_remaining() is None, "the Negotiate call has a deadline")
        reading = asyncio.create_task(self._read(requests))
        try:
            ending = await self._ending
        except asyncio.CancelledError:
            self.was_cut_off = True
            raise
        finally:
            reading.cancel()
        if ending is not None:
            await refuse(self._context, ending)

    async def _read(self, requests: Any) -> None:
        try:
            async for message in requests:
                kind = message.WhichOneof("kind") or "a kind that is not known"
                self._note(f"client: {kind} {_line(message)}")
                await self._take(kind, getattr(message, kind, None))
        finally:
            self.is_closed = True
            self._inbox.put_nowait(None)

    async def _take(self, kind: str, content: Any) -> None:
        now = asyncio.get_running_loop().time()
        is_first = not self.heard
        self.heard.append((now, kind, content))
        self._findings.check("R-HEL-1", (kind == "hello") == is_first, f"{kind} came as message {len(self.heard)}")
        if kind == "progress":
            self._transfer.signs.append(now)
            inspect_progress(content, self._findings)
            renewal = negotiation_pb2.LeaseRenewal(offer_id=content.offer_id, lease=_span(self.lease_seconds))
            await self.say(lease_renewal=renewal)
            return
        if kind == "failure":
            self._given_up[content.offer_id] = content.reason
        self._inbox.put_nowait((kind, content))

    # What a scene does

    async def say(self, **kind: Any) -> None:
        """Send one message, unless the session has ended."""
        await self.send(negotiation_pb2.NegotiateResponse(**kind))

    async def send(self, message: Message) -> None:
        """Send a message as it is."""
        async with self._writing:  # the scene and the renewal of leases both write, and gRPC takes one at a time
            if self._ending.done() or self.is_closed:
                return
            self._note(f"server: {_line(message)}")
            try:
                await self._context.write(message)
            except grpc.aio.BaseError:
                self._note("the client is gone")  # what the scene waits for next will say so

    async def hear(self, kind: str, rule: str, within: float = PATIENCE_SECONDS) -> Any:
        """The next message, which by `rule` is to be of that kind.

        Raises:
            UnmetError: it is of another kind, or none came in time.
        """
        found = await self.hear_any((kind,), rule, within)
        return found[1]

    async def hear_any(self, kinds: Sequence[str], rule: str, within: float = PATIENCE_SECONDS) -> tuple[str, Any]:
        """As `hear`, of one of several kinds."""
        wanted = " or ".join(kinds)
        try:
            async with asyncio.timeout(within):
                found = await self._inbox.get()
        except TimeoutError:
            raise UnmetError(rule, f"{wanted} did not come within {within:g} s") from None
        if found is None:
            raise UnmetError(rule, f"the client ended its stream where {wanted} was due")
        if found[0] not in kinds:
            words = getattr(found[1], "reason", "")
            raise UnmetError(rule, f"{found[0]} came where {wanted} was due{': ' if words else ''}{words}")
        self._findings.check(rule, True, "")
        return found

    def shown_certificate(self) -> bytes:
        """The certificate, PEM, that the client showed; empty without one."""
        return shown_certificate(self._context)

    def unheard(self) -> list[str]:
        """Kinds of messages, other than progress, that came and no scene has asked for."""
        waiting = [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        return [one[0] for one in waiting if one is not None]

    def has_heard(self, kind: str) -> bool:
        """Whether a message of that kind has come, asked for or not."""
        return any(one == kind for _, one, _ in self.heard)

    async def greet(self) -> negotiation_pb2.Hello:
        """Hear the hello and look at it."""
        self.hello = await self.hear("hello", "R-HEL-2")
        inspect_hello(self.hello, self._material, self._findings)
        self._transfer.terms.most_examples = 2 * self.hello.num_examples
        return self.hello

    async def welcome(self, encodings: Sequence[Encoding] = (Encoding.RAW,), more: Sequence[int] = ()) -> None:
        """Hear the hello and welcome the client; `more` are numbers of encodings that nobody knows."""
        await self.greet()
        terms = self._transfer.terms
        terms.encodings = tuple(encodings)
        welcome = negotiation_pb2.Welcome(
            protocol=limits.PROTOCOL_VERSION,
            max_chunk_bytes=terms.chunk_bytes,
            encodings=[*more, *wire.write_encodings(encodings)],  # type: ignore[list-item]
            window_bytes=terms.window_bytes,
            rounds=2,
            client_name=self.hello.client_name,
        )
        await self.say(welcome=welcome)

    async def offer(
        self, number: int = 1, *, plan: Plan | None = None, base: Model | None = None, lease: float = _LONG
    ) -> None:
        """Offer round `number`."""
        await self.say(offer=self.offer_of(number, plan, base, lease))

    def offer_of(
        self, number: int, plan: Plan | None = None, base: Model | None = None, lease: float = _LONG
    ) -> negotiation_pb2.Offer:
        """The offer of a round, with an hour of time."""
        self.lease_seconds = lease
        self._transfer.bases[upload_id(number)] = base = base or self._material.base
        return negotiation_pb2.Offer(
            offer_id=offer_id(number),
            upload_id=upload_id(number),
            round=number,
            base_model=_ref(number - 1, base),
            plan=wire.write_plan(plan or self._material.plan),
            time_remaining=_span(_LONG),
            lease=_span(lease),
        )

    async def confirm(self, number: int = 1, plan: Plan | None = None, lease: float = _LONG) -> None:
        """Confirm what was agreed for round `number`."""
        self._transfer.terms.confirmed.add(upload_id(number))
        self.lease_seconds = lease
        confirmation = negotiation_pb2.Confirmation(
            offer_id=offer_id(number),
            plan=wire.write_plan(plan or self._material.plan),
            time_remaining=_span(_LONG),
            lease=_span(lease),
        )
        await self.say(confirm=confirmation)

    async def agree(
        self,
        number: int = 1,
        *,
        plan: Plan | None = None,
        base: Model | None = None,
        lease: float = _LONG,
        rule: str = "R-RND-1",
    ) -> None:
        """Offer round `number`, hear that it is accepted, and confirm."""
        await self.offer(number, plan=plan, base=base, lease=lease)
        accepted = await self.hear("accept", rule)
        if accepted.offer_id != offer_id(number):
            raise UnmetError(rule, f"{accepted.offer_id!r} was accepted where {offer_id(number)!r} was offered")
        await self.confirm(number, plan, lease)

    async def cancel(self, number: int = 1) -> None:
        """Take back what was agreed."""
        self._transfer.terms.closed.add(upload_id(number))
        await self.say(cancel=negotiation_pb2.Cancellation(offer_id=offer_id(number), reason="the scene wants it so"))

    async def round_over(self, number: int, outcome: int = negotiation_pb2.OUTCOME_COMPLETED) -> None:
        """Say how a round ended."""
        ended = negotiation_pb2.RoundOutcome(
            round=number,
            succeeded=True,
            reason="all updates are in",
            outcome=outcome,  # type: ignore[arg-type]
            global_model=_ref(number, self._material.base),
        )
        await self.say(round_outcome=ended)

    async def federation_over(self) -> None:
        """Say that the federation is over."""
        final = _ref(2, self._material.final)
        outcome = negotiation_pb2.FederationOutcome(reason="all rounds done", last_model=final, best_model=final)
        await self.say(federation_outcome=outcome)

    def end(self, ending: Refused | None = None) -> None:
        """End the session: with OK, or by a fault."""
        if not self._ending.done():
            self._note(f"server ends the session: {ending or 'OK'}")
            self._ending.set_result(ending)


def offer_id(number: int) -> str:
    """The id of a round's offer."""
    return f"offer-{number}"


def upload_id(number: int) -> str:
    """The id of a round's upload."""
    return f"upload-{number}"


def _ref(version: int, model: Model) -> common_pb2.ModelRef:
    return common_pb2.ModelRef(version=version, model_digest=wire.write_digest(model.manifest.model_digest()))


def _span(seconds: float) -> Duration:
    span = Duration()
    span.FromNanoseconds(round(seconds * 1e9))
    return span


def _line(message: Message) -> str:
    return text_format.MessageToString(message, as_one_line=True)[:300]
