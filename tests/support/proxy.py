"""A TCP relay between clients and a server, which cuts what it carries: on command, or after so many bytes."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from fedserver.server import Listening
from fedstream.tls import split_address

_SLOW_BUFFER_BYTES = 1 << 16
_PIECE_BYTES = 1 << 14  # small beside what tests count, so that a cut comes within so much of the byte asked for


@dataclass
class _Line:
    """One connection on its way through: its two ends here, and how many bytes it has carried."""

    ends: set[asyncio.StreamWriter]
    carried: int = 0
    is_cut: bool = False

    def cut(self) -> None:
        self.is_cut = True
        for end in self.ends:
            end.transport.abort()


class Proxy:
    """Relays every connection to one server.

    `bytes_up` counts what went from clients to the server, TLS and all, and `bytes_down` what came back; `cuts` the
    times that it cut. Each connection is cut when it has carried `bytes_per_connection`, both ways. While
    it is `refusing`, a connection is ended as soon as it is made, as if nobody were there.
    """

    def __init__(self, target: str, bytes_per_second: float = math.inf) -> None:
        self._bytes_per_second = bytes_per_second
        self._target = split_address(target)
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut_at: int | None = None
        self._refuses_then = False
        self.bytes_up = self.bytes_down = 0
        self.cuts = 0
        self.bytes_per_connection = math.inf
        self.refusing = False

    def cut(self) -> None:
        """End all connections at once, without a word to either side. New ones are taken as before."""
        self.cuts += 1
        self.refusing = self.refusing or self._refuses_then
        for writer in self._writers:
            writer.transport.abort()

    def cut_after(self, num_bytes: int, *, and_refuse: bool = False) -> None:
        """Cut, once, when so many more bytes have come from clients; the last of them do not arrive.

        With `and_refuse`, nobody gets through from then on until `refusing` is taken back.
        """
        self._cut_at, self._refuses_then = self.bytes_up + num_bytes, and_refuse

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection to its end."""
        if self.refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await self._dial()
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        line = _Line(pair)
        try:
            await asyncio.gather(
                self._relay(reader, far_writer, line, up=True), self._relay(far_reader, writer, line, up=False)
            )
        finally:
            self._writers -= pair
            for end in pair:
                end.close()

    async def listen(self) -> asyncio.Server:
        """Take connections at a free port."""
        near = self._socket()
        near.bind(("127.0.0.1", 0))
        return await asyncio.start_server(self.serve, sock=near)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        far = self._socket()
        far.setblocking(False)
        await asyncio.get_running_loop().sock_connect(far, self._target)
        return await asyncio.open_connection(sock=far)

    def _socket(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if self._bytes_per_second < math.inf:  # or what was given up would be on it for long
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SLOW_BUFFER_BYTES)
        return made

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: _Line, *, up: bool
    ) -> None:
        try:
            while piece := await reader.read(_PIECE_BYTES):
                if up:
                    self.bytes_up += len(piece)
                else:
                    self.bytes_down += len(piece)
                if self._cut_at is not None and self.bytes_up >= self._cut_at:
                    self._cut_at = None
                    self.cut()
                    return
                line.carried += len(piece)
                if line.carried >= self.bytes_per_connection:
                    self.cuts += not line.is_cut
                    line.cut()
                    return
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(len(piece) / self._bytes_per_second)
            writer.close()
        except OSError:
            return  # cut, from here or from one of the ends


@asynccontextmanager
async def proxied(listening: Listening, bytes_per_second: float = math.inf) -> AsyncIterator[tuple[Proxy, Listening]]:
    """A proxy before a server, and how clients reach the server through it; so much goes each way of a connection."""
    proxy = Proxy(listening.address, bytes_per_second)
    server = await proxy.listen()
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield proxy, replace(listening, address=f"{host}:{port}")
    finally:
        server.close()
        proxy.cut()
