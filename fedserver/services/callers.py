"""Who calls: on every call of the clients' port, the site whose certificate the connection was made with.

A call of nobody that counts is refused before its handler begins. When a site is revoked, its open calls are cancelled
where they stand and end with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog

from fedserver.enrolment import AuditEvent, AuditLog, Membership
from fedserver.enrolment.attempts import address_of
from fedserver.services.calls import Context, abort
from fedstream import limits
from fedstream.certificates import facts_of
from fedstream.errors import NameMismatch, ProtocolError

log = structlog.get_logger()

Behaviour = Callable[[Any, Context], Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """The site that makes a call. `certificate` is PEM, `peer` the address it comes from."""

    name: str
    certificate: bytes
    call: str
    peer: str
    audit: AuditLog

    async def deny(self, error: ProtocolError) -> NoReturn:
        """Write down that the call is refused for what this site may not do, and raise the error."""
        log.info("refused", call=self.call, client=self.name, reason=error.reason, said=error.message)
        facts = {"site": self.name, "call": self.call, "reason": error.reason, "said": error.message, "peer": self.peer}
        await asyncio.to_thread(self.audit.note_refusal, AuditEvent.CALL_REFUSED, **facts)
        raise error


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Who makes the call at work; `None` where the server asks for no certificates, and a name is all there is."""


@dataclass(eq=False, slots=True)
class _OpenCall:
    task: asyncio.Task[Any]
    ended: ProtocolError | None = None


def certificate_of(context: Context) -> bytes:
    """The certificate, PEM, that the connection was made with; empty for none."""
    shown: bytes = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
    return shown


class Callers(grpc.aio.ServerInterceptor):
    """Lets in calls of members only. Used from the event loop.

    Args:
        membership: knows whose a certificate is.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._open: defaultdict[str, set[_OpenCall]] = defaultdict(set)
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler with the check before it; made once for each method."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:  # no such method: gRPC says so
            return handler
        if method not in self._guarded:
            self._guarded[method] = _with_behaviour(handler, lambda behaviour: self._guard(method, behaviour))
        return self._guarded[method]

    def end(self, name: str, why: ProtocolError) -> None:
        """End all open calls of a site."""
        for call in self._open.pop(name, ()):
            call.ended = why
            call.task.cancel()

    def _guard(self, method: str, behaviour: Behaviour) -> Behaviour:
        if not inspect.isasyncgenfunction(behaviour):

            async def answer(request: Any, context: Context) -> Any:
                async with self._admitted(method, context):
                    return await behaviour(request, context)

            return answer

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._admitted(method, context):
                async for message in behaviour(request, context):
                    yield message

        return stream

    @contextlib.asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[None]:
        certificate = certificate_of(context)
        try:
            name = self._membership.identify(certificate)
        except ProtocolError as error:
            # Only now is the certificate taken apart: a member's was when it was made, and that is looked up.
            said = facts_of(certificate).name if certificate else ""
            await _refuse(self._caller(said, certificate, method, context), context, error)
        caller = self._caller(name, certificate, method, context)
        CALLER.set(caller)
        with self._registered(name) as call:
            try:
                yield
            except asyncio.CancelledError:
                if call.ended is None:
                    raise
                call.task.uncancel()
                await _refuse(caller, context, call.ended)

    def _caller(self, name: str, certificate: bytes, method: str, context: Context) -> Caller:
        return Caller(name, certificate, method.rpartition("/")[2], address_of(context.peer()), self._membership.audit)

    @contextlib.contextmanager
    def _registered(self, name: str) -> Iterator[_OpenCall]:
        task = asyncio.current_task()
        assert task is not None, "gRPC handles each call in a task of its own"
        call = _OpenCall(task)
        self._open[name].add(call)
        try:
            yield call
        finally:
            if name in self._open:
                self._open[name].discard(call)
                if not self._open[name]:
                    del self._open[name]


async def _refuse(caller: Caller, context: Context, error: ProtocolError) -> NoReturn:
    with contextlib.suppress(ProtocolError):
        await caller.deny(error)
    await abort(context, error)
    raise AssertionError("an abort always raises")


def _with_behaviour(
    handler: grpc.RpcMethodHandler[Any, Any], wrap: Callable[[Behaviour], Behaviour]
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler as the one given, whose behaviour is wrapped."""
    made: Any
    behaviour: Any
    if handler.request_streaming:
        made = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        behaviour = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        made = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    assert behaviour is not None, "a handler has the behaviour of its kind"
    wrapped: grpc.RpcMethodHandler[Any, Any] = made(
        wrap(behaviour),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return wrapped


async def require_name(said: str) -> None:
    """Check that a name is the caller's own.

    Raises:
        NameMismatch: its certificate is for another name.
    """
    caller = CALLER.get()
    if caller is not None and said != caller.name:
        message = f"this connection's certificate is for {caller.name}, not for the name that was said; say that one"
        await caller.deny(NameMismatch(message, name=limits.clip_reason(said, 64)))
