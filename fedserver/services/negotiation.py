"""The NegotiationService: one stream per client, from hello to the federation's outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from fedserver.bounds import each_in_time, in_time
from fedserver.coordinator.effects import Effect, TellFederationOutcome
from fedserver.coordinator.population import ClientState, Introduction
from fedserver.coordinator.round import Round
from fedserver.federation import Federation
from fedserver.handshake import Decline, TheirTensors, check_introduction, check_meaning
from fedserver.services import messages
from fedserver.services.callers import require_name
from fedserver.services.calls import Context, end_unheard, give_way, translates_errors
from fedserver.sessions import LONGEST_FAREWELL_SECONDS, Session
from fedstream import limits, wire
from fedstream.errors import InvalidRequest, UnexpectedMessage
from fedstream.schema import ModelSchema
from fedstream.v1 import common_pb2, negotiation_pb2, negotiation_pb2_grpc

log = structlog.get_logger()

_FAREWELL_SECONDS = 60.0
"""How long a client that has heard the outcome may be silent. It fetches the final models, and then closes its side."""

_CUT_SECONDS = 0.1
"""Of a lost connection gRPC first tells the end of what the client sends, and cancels the call a moment later."""

Requests = AsyncIterator[negotiation_pb2.NegotiateRequest]


class NegotiationServicer(negotiation_pb2_grpc.NegotiationServiceServicer):
    """Says what the federation learns, and holds clients' sessions."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation

    @translates_errors
    async def DescribeTask(
        self, _request: negotiation_pb2.DescribeTaskRequest, _context: Context
    ) -> negotiation_pb2.DescribeTaskResponse:
        """Says which task this federation learns."""
        federation = self.federation
        response = negotiation_pb2.DescribeTaskResponse(
            protocol=common_pb2.ProtocolRange(min=limits.PROTOCOL_VERSION, max=limits.PROTOCOL_VERSION),
            federation_name=federation.config.name,
            task_name=federation.config.task,
            task_settings=federation.config.task_settings,
            capabilities=common_pb2.Capabilities(
                encodings=wire.write_encodings(federation.update_encodings), max_chunk_bytes=limits.MAX_CHUNK_BYTES
            ),
            server_time=messages.write_unix_time(federation.clock.wall()),
        )
        if federation.description is not None:
            response.meaning.CopyFrom(wire.write_meaning(federation.meaning))
            response.schema_sha256 = federation.schema.digest()
        return response

    @translates_errors
    async def Negotiate(self, requests: Requests, context: Context) -> None:
        """Holds one client's session."""
        hello = await self._hello(requests, context)
        introduction = messages.read_introduction(hello)
        if limits.is_client_name(introduction.name):  # one that is none is declined below, with what a name is
            await require_name(introduction.name)
        if not await self._handshake(hello, introduction, requests, context):
            return
        session = self.federation.sessions.open(introduction.name)
        state, reason = ClientState.DISCONNECTED, "the connection was lost"
        try:
            with structlog.contextvars.bound_contextvars(client=introduction.name):
                self.federation.sessions.say(self.federation.welcome(introduction))
                await context.write(self._welcome(hello))  # said when it is true: from here on the client counts
                message = "a newer stream of this client took over"
                left = await give_way(self._converse(session, requests, context), session.superseded, message)
                if left is not None:
                    state, reason = ClientState.LEFT, left
                elif self.federation.outcome is not None:
                    # A client that was killed meanwhile has closed nothing: it comes back, and is waited for.
                    await asyncio.sleep(_CUT_SECONDS)
                    self.federation.heard_the_end.add(introduction.name)
                    reason = "heard how the federation ended"
        finally:
            if self.federation.sessions.close(session):
                self.federation.gone(introduction.name, state, reason)

    # The handshake.

    async def _hello(self, requests: Requests, context: Context) -> negotiation_pb2.Hello:
        first = await in_time(anext(aiter(requests), None), self.federation.config.message_timeout_seconds)
        if first is None or self.federation.is_leaving:
            await end_unheard(context)
        if first.WhichOneof("kind") != "hello":
            raise UnexpectedMessage("the first message must be hello")
        return first.hello

    async def _handshake(
        self, hello: negotiation_pb2.Hello, introduction: Introduction, requests: Requests, context: Context
    ) -> bool:
        """Whether the client may take part; if not, it has been told why."""
        most = self.federation.config.max_examples
        decline = check_introduction(introduction, hello.protocol.min, hello.protocol.max, most)
        if decline is None:
            await self._until_ready(introduction.name, context)
            decline = await self._check_task(hello, requests, context)
        if decline is not None:
            # A malformed name is not kept: nothing is ever listed or logged under it.
            if limits.is_client_name(introduction.name):
                self.federation.turn_away(introduction, decline)
            await context.write(messages.write_decline(decline))
        return decline is None

    async def _until_ready(self, client: str, context: Context) -> None:
        if not self.federation.ready.is_set():
            notice = self.federation.waiting_notice(client)
            await context.write(messages.write_effect(notice, self.federation.clock))
            await self.federation.ready.wait()

    async def _check_task(self, hello: negotiation_pb2.Hello, requests: Requests, context: Context) -> Decline | None:
        decline = check_meaning(self.federation.meaning, wire.read_meaning(hello.meaning))
        if decline is not None:
            return decline
        if hello.schema_sha256 == self.federation.schema.digest():
            return None
        query = negotiation_pb2.NegotiateResponse(schema_query=negotiation_pb2.SchemaQuery())
        await context.write(query)
        return await self._compare_schema(self.federation.schema, requests, context)

    async def _compare_schema(self, ours: ModelSchema, requests: Requests, context: Context) -> Decline:
        theirs = TheirTensors(ours)
        async for request in each_in_time(requests, self.federation.config.message_timeout_seconds):
            if request.WhichOneof("kind") != "schema_part":
                raise UnexpectedMessage("schema parts must follow a schema query")
            part = request.schema_part
            if not part.tensors and not part.last:  # a stream could be kept open with them for ever
                raise InvalidRequest("a part of a schema that is not the last has tensors", field="tensors")
            if len(part.tensors) > limits.MAX_TENSORS_PER_PART:
                most = f"a part of a schema has at most {limits.MAX_TENSORS_PER_PART} tensors"
                raise InvalidRequest(f"{most}, this one {len(part.tensors)}", field="tensors")
            theirs.add([wire.read_spec(spec) for spec in part.tensors])
            if part.last:
                break
        else:  # of a schema that came in part nothing can be said, least of all that it differs
            await end_unheard(context, "the last part of its schema")
        try:
            return theirs.compare()
        except ValueError as error:
            raise InvalidRequest(str(error), field="tensors") from error

    def _welcome(self, hello: negotiation_pb2.Hello) -> negotiation_pb2.NegotiateResponse:
        theirs = hello.capabilities.max_chunk_bytes or limits.DEFAULT_CHUNK_BYTES
        they_take = wire.read_encodings(hello.capabilities.encodings)
        both_take = [encoding for encoding in self.federation.update_encodings if encoding in they_take]
        welcome = negotiation_pb2.Welcome(
            protocol=limits.PROTOCOL_VERSION,
            max_chunk_bytes=min(theirs, limits.MAX_CHUNK_BYTES),
            encodings=wire.write_encodings(both_take),
            window_bytes=limits.WINDOW_BYTES,
            rounds=self.federation.config.rounds,
            client_name=hello.client_name,
        )
        return negotiation_pb2.NegotiateResponse(welcome=welcome)

    # The conversation.

    async def _converse(self, session: Session, requests: Requests, context: Context) -> str | None:
        """Speak and listen until one side is done; returns the client's reason if it left by its own will."""
        speaking = asyncio.ensure_future(self._speak(session, context))
        listening = asyncio.ensure_future(self._listen(session, requests))
        try:
            await asyncio.wait({speaking, listening}, return_when=asyncio.FIRST_COMPLETED)
            if speaking.done():
                speaking.result()
                await self._let_fetch(session, listening)
            return listening.result() if listening.done() else None
        finally:
            for task in (speaking, listening):
                task.cancel()
            await asyncio.gather(speaking, listening, return_exceptions=True)

    async def _let_fetch(self, session: Session, listening: asyncio.Future[str | None]) -> None:
        """The last word is said. The client fetches the final models before it closes its side.

        On a slow line that takes long, and what the server has sent may be on its way for minutes: the client says so.
        """
        until = self.federation.now + LONGEST_FAREWELL_SECONDS
        session.heard_at = self.federation.now
        session.fall_silent()
        while not listening.done():
            left = min(until, session.heard_at + _FAREWELL_SECONDS) - self.federation.now
            if left <= 0:
                return
            await asyncio.wait({listening}, timeout=left)

    async def _speak(self, session: Session, context: Context) -> None:
        while True:
            effect = await session.next_to_say()
            await context.write(messages.write_effect(effect, self.federation.clock))
            if isinstance(effect, TellFederationOutcome):
                return

    async def _listen(self, session: Session, requests: Requests) -> str | None:
        client = session.client
        async for request in requests:
            session.heard_at = self.federation.now
            await session.has_room()
            kind = request.WhichOneof("kind")
            self.federation.population.seen(client, self.federation.clock.wall())
            if kind == "leave":
                return messages.read_reason(request.leave.reason) or "no reason given"
            await self._hear(client, kind, request)
        return None

    async def _hear(self, client: str, kind: str | None, request: negotiation_pb2.NegotiateRequest) -> None:
        if kind in ("hello", "schema_part"):
            raise UnexpectedMessage(f"{kind} belongs to the handshake, which is over")
        if kind is None:  # of a newer version
            return
        messages.check_offer_id(request, kind)
        round_ = self.federation.round
        if round_ is None:
            if self.federation.has_caught_up:
                self.federation.sessions.say(messages.answer_of_ended_offer(client, kind, request))
            return
        effects = self._tell(round_, client, kind, request)
        log.debug("heard", client=client, kind=kind)
        if kind == "progress":
            self.federation.sessions.say(effects)
            return
        part = round_.of_client(client)
        if part is not None:
            await self.federation.keep(round_, part)
        self.federation.apply(effects)

    def _tell(self, round_: Round, client: str, kind: str, request: negotiation_pb2.NegotiateRequest) -> list[Effect]:
        """Tell the round what a client says of its offer; returns what the client is to hear."""
        now = self.federation.now
        match kind:
            case "accept":
                return round_.accept(client, request.accept.offer_id, now)
            case "decline":
                reason = messages.read_reason(request.decline.reason)
                return round_.decline(client, request.decline.offer_id, reason, now)
            case "counter_offer":
                counter = request.counter_offer
                seconds = messages.read_counter_seconds(counter)
                reason = messages.read_reason(counter.reason)
                return round_.counter(client, counter.offer_id, counter.epochs or None, seconds, reason, now)
            case "progress":
                report = messages.read_progress(request.progress)
                return round_.progress(client, request.progress.offer_id, report, now)
            case "failure":
                reason = messages.read_reason(request.failure.reason)
                return round_.fail(client, request.failure.offer_id, reason, now)
            case _:  # nothing else is about an offer
                return []
