"""A TCP proxy that is as bad as a network can be: slow, far, standing still, cut, wrong, or gone without a word.

It knows nothing of what it carries, so that TLS goes through it end to end. One direction of one connection is a
`Pipe`; what is changed on the proxy holds for connections that are open and for those that come.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_PIECE_BYTES = 64 << 10
_QUEUE_BYTES = 256 << 10
"""What may be on the way in one direction: a delay with a small buffer would be a limit on bandwidth as well."""


@dataclass(slots=True)
class Weather:
    """How the network is. Spans in seconds, of one direction; both directions of all connections have the same.

    `bytes_per_second` 0 is no limit, and is shared by nobody: each direction of each connection has it for itself.
    A stall of `stall_seconds` comes before a piece with the probability that makes one in `stall_every_bytes`.
    """

    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0
    stall_seconds: float = 0.0
    stall_every_bytes: int = 0


@dataclass(slots=True)
class Traffic:
    """Bytes that were passed on, connections that came, and how often each fault struck."""

    up_bytes: int = 0
    down_bytes: int = 0
    connections: int = 0
    cuts: int = 0
    stalls: int = 0


class Connection:
    """One connection of a client, and the one that the proxy has for it to the server."""

    def __init__(self, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.writers = writers
        self.swallowed = False
        self.tasks: list[asyncio.Task[None]] = []

    def reset(self) -> None:
        """End both sides at once, with a reset and not in good order, and drop what was on its way."""
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()


class FaultProxy:
    """Listens on a free port of loopback and passes everything on to `target`.

    Args:
        target: host and port of the server.
        weather: how the network is; may be changed at any time.
        seed: of the stalls.
    """

    def __init__(self, target: tuple[str, int], weather: Weather | None = None, seed: int = 0) -> None:
        self.weather = weather or Weather()
        self.traffic = Traffic()
        self._target = target
        self._random = random.Random(seed)
        self._open: set[Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._cut_after: int | None = None
        self._corrupt_after: int | None = None
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._moved = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def before(
        cls, target: tuple[str, int], weather: Weather | None = None, seed: int = 0
    ) -> AsyncIterator[FaultProxy]:
        """A proxy that listens as long as the block runs."""
        proxy = cls(target, weather, seed)
        proxy._server = await asyncio.start_server(proxy._take, "127.0.0.1", 0)
        try:
            yield proxy
        finally:
            proxy._server.close()
            for connection in list(proxy._open):
                connection.reset()
            for task in proxy._serving:
                task.cancel()
            await asyncio.gather(*proxy._serving, return_exceptions=True)

    @property
    def address(self) -> str:
        """Where clients are to connect, as HOST:PORT."""
        assert self._server is not None, "the proxy listens inside its block only"
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    # Faults.

    def cut(self) -> None:
        """Reset every connection that is open; new ones are taken."""
        self.traffic.cuts += bool(self._open)
        self._cut_after = None
        for connection in list(self._open):
            connection.reset()

    def cut_after(self, num_bytes: int) -> None:
        """Cut once so many more bytes have gone from clients to the server; no byte beyond them goes through."""
        self._cut_after = num_bytes

    @property
    def armed(self) -> bool:
        """Whether a cut is still to come."""
        return self._cut_after is not None

    def corrupt_after(self, num_bytes: int) -> None:
        """Flip one bit of the byte that comes after so many more from clients to the server."""
        self._corrupt_after = num_bytes

    def part(self) -> None:
        """From now on nothing arrives and nobody is told: open connections stay half open, and new ones hang."""
        self._reachable.clear()
        for connection in self._open:
            connection.swallowed = True

    def heal(self) -> None:
        """New connections get through again. Those of before stay half open: their packets are lost for good."""
        self._reachable.set()

    async def quiet(self, seconds: float) -> None:
        """Return when nothing has been passed on for so long."""
        while True:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), seconds)
            except TimeoutError:
                return

    # What goes on inside.

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.traffic.connections += 1
        await self._reachable.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        await self._reachable.wait()  # it may have been parted meanwhile
        connection = Connection((writer, far_writer))
        up = asyncio.create_task(self._carry(connection, reader, far_writer, up=True))
        down = asyncio.create_task(self._carry(connection, far_reader, writer, up=False))
        connection.tasks = [up, down]
        self._open.add(connection)
        try:
            await asyncio.gather(up, down, return_exceptions=True)
        finally:
            self._open.discard(connection)
            for side in connection.writers:
                side.close()

    async def _carry(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        pipe = _Pipe()
        pusher = asyncio.create_task(self._push(connection, pipe, writer, up=up))
        try:
            while data := await reader.read(_PIECE_BYTES):
                await pipe.put(asyncio.get_running_loop().time(), data)
            await pipe.put(asyncio.get_running_loop().time(), b"")
            await pusher
        except OSError:
            pass
        finally:
            pusher.cancel()

    async def _push(self, connection: Connection, pipe: _Pipe, writer: asyncio.StreamWriter, *, up: bool) -> None:
        loop = asyncio.get_running_loop()
        free_at = 0.0  # when the line has sent what came before
        while True:
            arrived, data = await pipe.get()
            weather = self.weather
            start = max(arrived, free_at) + self._stall(len(data))
            free_at = start + (len(data) / weather.bytes_per_second if weather.bytes_per_second else 0.0)
            await asyncio.sleep(max(0.0, free_at + weather.delay_seconds - loop.time()))
            if connection.swallowed:
                await asyncio.Future()  # for ever: neither passed on nor refused
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            await self._pass_on(data, writer, up=up)

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter, *, up: bool) -> None:
        if not up:
            self.traffic.down_bytes += len(data)
        else:
            data, last = self._strike(data)
            self.traffic.up_bytes += len(data)
            if last:
                writer.write(data)
                self.cut()
                return
        self._moved.set()
        with contextlib.suppress(OSError):
            writer.write(data)
            await writer.drain()

    def _strike(self, data: bytes) -> tuple[bytes, bool]:
        """What the faults that were ordered leave of a piece on its way up, and whether the cut comes after it."""
        if self._corrupt_after is not None:
            if self._corrupt_after < len(data):
                at, self._corrupt_after = self._corrupt_after, None
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            else:
                self._corrupt_after -= len(data)
        if self._cut_after is None:
            return data, False
        if self._cut_after > len(data):
            self._cut_after -= len(data)
            return data, False
        return data[: self._cut_after], True

    def _stall(self, num_bytes: int) -> float:
        weather = self.weather
        if not weather.stall_every_bytes or self._random.random() >= num_bytes / weather.stall_every_bytes:
            return 0.0
        self.traffic.stalls += 1
        return weather.stall_seconds


@dataclass(slots=True)
class _Pipe:
    """Pieces on their way in one direction, with the time at which each set out; holds so much and no more."""

    _pieces: deque[tuple[float, bytes]] = field(default_factory=deque)
    _held: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def put(self, now: float, data: bytes) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._held < _QUEUE_BYTES)
            self._pieces.append((now, data))
            self._held += len(data)
            self._changed.notify_all()

    async def get(self) -> tuple[float, bytes]:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._pieces))
            arrived, data = self._pieces.popleft()
            self._held -= len(data)
            self._changed.notify_all()
            return arrived, data
