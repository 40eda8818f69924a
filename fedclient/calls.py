"""What every call to the server has in common: its errors in the project's words, and coming back after them.

`stamina` gives the exponential back-off with jitter. What it does not know is progress: an upload that is cut again and
again, but moves each time, should not wait longer and longer. So each sign of progress starts the back-off anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import grpc
import stamina
import structlog

from fedstream.errors import LimitExceeded, TransportError
from fedstream.status import from_rpc_error

log = structlog.get_logger()

T = TypeVar("T")

QUICK_CALL_SECONDS = 60.0
"""Deadline of a call that only asks or tells: over it, the connection is taken for broken."""

LONG_CALL_SECONDS = 600.0
"""Deadline of a call in which the server digests a model of up to 64 GiB; sha256 runs at over 1 GB/s."""

STALL_SECONDS = 120.0
"""How long a stream of chunks may stand still: longer than a stall of a slow link. Other messages keep the lease."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How to come back after an error: waits from `first_seconds`, doubling, up to `longest_seconds`, with jitter.

    `give_up_after_seconds` bounds the time without any progress; `None` is never.
    """

    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    give_up_after_seconds: float | None = None


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn an error of gRPC into `TransportError` or the `ProtocolError` that the server meant.

    Where a call was cancelled and not the task that makes it, gRPC raises a cancellation all the same: that would end
    the task in silence.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise TransportError("the call was cut") from error


class Stalled(TransportError):
    """A stream stood still for too long. A chunk that is smaller may get through."""


@contextlib.asynccontextmanager
async def moving() -> AsyncIterator[None]:
    """Take a step of a stream that stands still for `STALL_SECONDS` for a broken connection."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            yield
    except TimeoutError as error:
        raise Stalled(f"nothing moved for {STALL_SECONDS:.0f} s") from error


_PLAIN = {
    "UNAVAILABLE": "the server cannot be reached or went away",
    "DEADLINE_EXCEEDED": "the server did not answer in time",
    "UNIMPLEMENTED": "what answers at this address is no fedstream server",
    "INTERNAL": "the connection broke in the middle of a message",
    "UNKNOWN": "the server had an error of its own",
    "CANCELLED": "the server or something on the way cut the call",
}


def plain_words(error: Exception) -> str:
    """What happened, without gRPC's own words where they are known."""
    text = str(error)
    code, _, said = text.partition(": ")
    return said if said.startswith("the server") else _PLAIN.get(code, text)


async def send(call: Any, message: Any) -> None:
    """Write one message to a stream; if the stream has ended, raise what it ended with."""
    with translated():
        try:
            async with moving():
                await call.write(message)
        except asyncio.InvalidStateError:
            await call.read()  # raises the status that the stream ended with
            raise TransportError("the server ended the stream") from None


class _Moved(Exception):
    """A try failed, but not before it had got further.

    `retry_after` is what the server said of coming back, if it did.
    """

    def __init__(self, error: TransportError | LimitExceeded) -> None:
        super().__init__(str(error))
        self.retry_after = error.retry_after if isinstance(error, LimitExceeded) else None


async def until_done(once: Callable[[], Awaitable[T]], how_far: Callable[[], int], patience: Patience, doing: str) -> T:
    """Try `once` until it returns, through every error of the network and every bound of the server.

    Args:
        once: one try; it resumes where the last one got to.
        how_far: grows with every progress.
        patience: how to wait.
        doing: for the log, such as `sending the update`.

    Raises:
        TransportError: no progress for `give_up_after_seconds`.
        ProtocolError: the server decided; `LimitExceeded` is waited for instead.
    """

    async def attempt() -> T:
        mark = how_far()
        try:
            return await once()
        except (TransportError, LimitExceeded) as error:
            if how_far() > mark:
                raise _Moved(error) from error
            _log_again("trying again", doing, error)
            raise

    while True:
        try:
            return await _backed_off(attempt, patience)
        except _Moved as moved:
            _log_again("resuming", doing, moved)
            # Whoever was cut off together should not come back together.
            soon = patience.first_seconds * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load only
            await asyncio.sleep(soon if moved.retry_after is None else soon + moved.retry_after.total_seconds())


def _log_again(event: str, doing: str, error: Exception) -> None:
    words, detail = plain_words(error), str(error)
    log.warning(event, doing=doing, because=words, **({} if words == detail else {"detail": detail}))


async def _backed_off(attempt: Callable[[], Awaitable[T]], patience: Patience) -> T:
    tries = stamina.retry_context(
        on=partial(_wait_for, patience),
        attempts=None,
        timeout=patience.give_up_after_seconds,
        wait_initial=patience.first_seconds,
        wait_max=patience.longest_seconds,
        wait_jitter=patience.first_seconds,
    )
    async for one in tries:
        with one:
            return await attempt()
    raise AssertionError("stamina either returns or raises")


def _wait_for(patience: Patience, error: Exception) -> bool | timedelta:
    if isinstance(error, LimitExceeded):
        # Whoever is told to come back at once, and is told so again, would do nothing else all the time.
        return max(error.retry_after, timedelta(seconds=patience.first_seconds))
    return isinstance(error, TransportError)
