"""The port where Prometheus reads the numbers of a federation and of its process, in plain HTTP.

Anybody who reaches it may ask, so what they can take is bounded: threads, and the time of each. The library's own
server has no bound on either, looks up the name of its address, and prints a traceback where a caller hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

from fedserver.federation import Federation
from fedserver.metrics import FederationCollector
from fedstream.tls import shown_address, split_address

log = structlog.get_logger()

_AT_ONCE = 64
"""Callers; one more is hung up on. Prometheus asks a few times a minute."""
_CALLER_SECONDS = 10.0
"""For which a caller may be silent, or not take what it has asked for."""
_WHOLE_SECONDS = 60.0
"""For a caller in all: one that says a byte now and then is never silent for long."""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsPort:
    """The port, served by threads of its own.

    Args:
        listen: HOST:PORT.
        federation: whose numbers they are; on the running event loop.

    Raises:
        OSError: it cannot be listened on.
    """

    def __init__(self, listen: str, federation: Federation) -> None:
        registry = CollectorRegistry()
        registry.register(FederationCollector(federation, asyncio.get_running_loop()))
        ProcessCollector(registry=registry)
        host, port = split_address(listen)
        try:
            self._server = _Server(host, port, _answering(make_wsgi_app(registry)))
        except OSError as error:
            raise OSError(f"cannot listen on {listen} for metrics: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.address = shown_address(host, self._server.server_port)

    async def close(self) -> None:
        """Close it; a question that is being answered is not waited for."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()


def _answering(app: App) -> App:
    """The same, with a short answer where the numbers cannot be had, as of a server that is busy or about to end."""

    def answer(environment: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            return app(environment, start_response)
        except Exception as error:  # noqa: BLE001 - whatever it is, the federation goes on without these numbers
            log.warning("no numbers for whoever asked for metrics", because=str(error) or type(error).__name__)
            start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"the numbers cannot be had now; ask again\n"]

    return answer


class _Caller(WSGIRequestHandler):
    timeout = _CALLER_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library calls it
        """Say nothing: they ask all day."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, app: App) -> None:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        self._places = threading.Semaphore(_AT_ONCE)
        self._begun: dict[socket.socket, float] = {}  # when each caller came, by the steady clock
        super().__init__(address[:2], _Caller)  # type: ignore[arg-type]
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind, without asking the DNS for the name of the address: a server may have none, and would wait for it."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a caller a thread, if one is left."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._begun[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._let_go(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one caller."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._let_go(request)

    def _let_go(self, request: socket.socket) -> None:
        del self._begun[request]
        self._places.release()

    def service_actions(self) -> None:
        """Hang up on callers whose time is over. Called several times a second."""
        for request, begun in list(self._begun.items()):
            if time.monotonic() > begun + _WHOLE_SECONDS:
                with contextlib.suppress(OSError):  # its thread has just let go of it
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hung up, or was too slow, is nothing to act on."""
        log.debug("a caller for metrics was not answered", peer=str(client_address[0]), because=str(sys.exc_info()[1]))
