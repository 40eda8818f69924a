"""How much of the server peers may use of whom nothing is known yet, and how long it waits for them.

What they say is bounded by `fedstream.limits`. Here is what they can do without saying anything: open connections and
streams, and be slow. Once a client takes part, its lease says how long it may be silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import Any, TypeVar

from fedserver.config import ServerConfig
from fedstream import limits
from fedstream.errors import LimitExceeded

T = TypeVar("T")

WAITING_OPTION = "grpc.server_max_unrequested_time_in_server"
"""For how many seconds a call may wait until it is taken up."""
_WAITING_SECONDS = 600


def channel_options(config: ServerConfig) -> tuple[tuple[str, Any], ...]:
    """The bounds that gRPC keeps by itself, as options of a server. What is beyond them, it ends or leaves waiting."""
    return (
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.max_concurrent_streams", config.max_streams_per_connection),
        # Beyond the first, gRPC refuses some calls and not others, so as to make people notice; beyond the second, all.
        ("grpc.max_metadata_size", limits.MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", limits.MAX_METADATA_BYTES),
        # TLS, and then the first bytes of HTTP/2.
        ("grpc.server_handshake_timeout_ms", round(config.handshake_timeout_seconds * 1000)),
        # Calls are taken up one by one. On a busy machine, those of a thousand sites wait for longer than the 30 s
        # after which gRPC would cancel them, and are more than the 1,000 beyond which it would refuse some.
        (WAITING_OPTION, _WAITING_SECONDS),
        ("grpc.server.max_pending_requests", config.max_connections),
        ("grpc.server.max_pending_requests_hard_limit", config.max_connections),
    )


async def in_time(message: Awaitable[T], seconds: float) -> T:
    """What a peer sends next, if it comes in time.

    Raises:
        LimitExceeded: it did not.
    """
    try:
        async with asyncio.timeout(seconds):
            return await message
    except TimeoutError as error:
        text = f"the next message was due within {seconds:g} s; open the stream when there is something to send"
        raise LimitExceeded(text, timedelta(seconds=seconds), limit="message_timeout_seconds") from error


async def each_in_time(messages: AsyncIterator[T], seconds: float) -> AsyncIterator[T]:
    """The messages of a stream, each of which must come in time.

    Raises:
        LimitExceeded: one did not.
    """
    end = object()
    while (message := await in_time(anext(messages, end), seconds)) is not end:
        yield message  # type: ignore[misc]
