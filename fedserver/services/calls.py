"""What every servicer does around a domain call: translate errors, and give way to a newer stream."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc
import structlog
from grpc_status import rpc_status

from fedstream.errors import ProtocolError, Superseded
from fedstream.status import to_status

log = structlog.get_logger()
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


def translates_errors(handler: Callable[..., Awaitable[Any]]) -> Any:
    """End a call whose domain method raised `ProtocolError` with that error's status and `ErrorInfo`.

    Returns `Any` because the generated base classes type streaming methods as generators only, while grpc.aio
    also takes coroutines that write to the context.
    """

    @functools.wraps(handler)
    async def call(servicer: Any, request: Any, context: Context) -> Any:
        try:
            return await handler(servicer, request, context)
        except ProtocolError as error:
            log.info("refused", call=handler.__name__, reason=error.reason, said=error.message)
            await _abort(context, error)

    return call


async def _abort(context: Context, error: ProtocolError) -> None:
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


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
