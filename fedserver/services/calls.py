"""What every servicer does around a domain call: translate errors, and give way to a newer stream."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from fedserver.federation import Federation
from fedserver.services.parsing import MALFORMED
from fedstream.errors import InvalidRequest, ProtocolError, Superseded
from fedstream.status import to_status

log = structlog.get_logger()
T = TypeVar("T")

_NO_MESSAGE = "a message is not in the form of its kind in the .proto files; do not retry"
Context = grpc.aio.ServicerContext[Any, Any]


def translates_errors(handler: Callable[..., Awaitable[Any]]) -> Any:
    """End a call whose domain method raised `ProtocolError` with that error's status and `ErrorInfo`.

    When the disk refuses, the client is told when to come back. Anything else that is raised is a defect or a damaged
    file: it is logged in full, and the call ends with INTERNAL and no `ErrorInfo`, since it was no decision.

    Returns `Any` because the generated base classes type streaming methods as generators only, while grpc.aio
    also takes coroutines that write to the context.
    """

    @functools.wraps(handler)
    async def call(servicer: Any, request: Any, context: Context) -> Any:
        try:
            return await _parsed(handler, servicer, request, context)
        except ProtocolError as error:
            log.info("refused", call=handler.__name__, reason=error.reason, said=error.message)
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError as error:  # of a message that cannot be written any more
            log.debug("the peer has gone", call=handler.__name__, error=str(error))
            raise asyncio.CancelledError from error
        except (OSError, sqlite3.Error) as error:
            federation: Federation = servicer.federation
            if federation.disk.note(error) is None:
                await _fail(context, handler.__name__, error)
            else:
                federation.touch()  # so that the round waits, and says for what
                await abort(context, federation.disk.refusal())
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end in silence
            await _fail(context, handler.__name__, error)

    return call


async def _parsed(handler: Callable[..., Awaitable[Any]], servicer: Any, request: Any, context: Context) -> Any:
    if request is MALFORMED:
        raise InvalidRequest(_NO_MESSAGE)
    try:
        return await handler(servicer, request, context)
    except DecodeError as error:
        raise InvalidRequest(_NO_MESSAGE) from error


async def _fail(context: Context, call: str, error: Exception) -> None:
    log.error("call failed", call=call, error=str(error), exc_info=error)
    await _end(context, grpc.StatusCode.INTERNAL, "the server failed; its log says how")


async def abort(context: Context, error: ProtocolError) -> None:
    """End a call with an error's status and its `ErrorInfo`."""
    status = rpc_status.to_status(to_status(error))
    await _end(context, status.code, status.details or "", status.trailing_metadata or ())


async def _end(context: Context, code: grpc.StatusCode, details: str, metadata: Any = ()) -> NoReturn:
    """End a call with a status. If the peer has gone meanwhile, nobody is to be told.

    Raises:
        AbortError: which is how gRPC learns that the call has ended. It takes no other one than its own.
        CancelledError: the peer has gone, as where gRPC is the first to notice.
    """
    try:
        await context.abort(code, details, metadata)
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error
    raise AssertionError("an abort always raises")


async def begin_answer(context: Context) -> None:
    """Send the head of a stream of answers. To be awaited before the first of them.

    gRPC would send it with the first. Where that is cut off on its way, as when a newer stream takes over, gRPC takes
    the head for unsent, and cannot send it once more with the status: the stream would never end.
    """
    await context.send_initial_metadata(())


async def end_unheard(context: Context, awaited: str = "its first message") -> NoReturn:
    """End a stream that came to its end before what was `awaited`, as the network does.

    To the server, a stream that broke looks like one that its client closed. So it is no defect of the client, which
    must come back and not give up.
    """
    await _end(context, grpc.StatusCode.UNAVAILABLE, f"the stream ended before {awaited}")


async def end_standing_still(context: Context) -> NoReturn:
    """End a stream of which nothing was taken for too long. Whoever reads it after all may come back."""
    await _end(context, grpc.StatusCode.UNAVAILABLE, "what was sent was not taken for too long")


async def give_way(work: Coroutine[Any, Any, T], superseded: asyncio.Event, message: str) -> T:
    """Run `work` until it is done or `superseded` is set.

    Raises:
        Superseded: a newer stream took over; `work` was cancelled.
    """
    task = asyncio.ensure_future(work)
    notice = asyncio.ensure_future(superseded.wait())
    try:
        await asyncio.wait({task, notice}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Superseded(message)
    finally:
        for pending in (task, notice):
            pending.cancel()
        await asyncio.gather(task, notice, return_exceptions=True)
