"""Requests that cannot be parsed: the peer is told so, and the log needs no traceback for it.

What cannot be parsed in a stream of requests is raised where the stream is read, within the handler. A call's single
request is parsed by gRPC before the handler begins, so here the handler is given `MALFORMED` in its place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

MALFORMED: Final = object()
"""In place of a request that could not be parsed."""

_PACKAGE = "/fedstream."


class ParsingInterceptor(grpc.aio.ServerInterceptor):
    """Lets handlers of this project's services say what is wrong with a single request that cannot be parsed."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler, with a parser that does not raise."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or not handler_call_details.method.startswith(_PACKAGE):
            return handler
        parse = handler.request_deserializer

        def parse_or_mark(data: bytes) -> Any:
            try:
                return parse(data)
            except DecodeError:
                return MALFORMED

        return handler._replace(request_deserializer=parse_or_mark)
