"""The processes of `benchmarks.floor`: `python -m benchmarks.floor_ends ORDER`, prints the seconds of each round.

Processes come in pairs, one of the server's and one of the clients', and each pair has a share of the connections, one
where there are as many pairs as clients: Python's TLS takes a record of 16 KiB a call, for which threads would wait for
one another. A pair serves its connections in turn, all models down and then all up, and syncs the files together.
Nothing here imports grpc, which does not survive a fork.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import multiprocessing
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.plain_file import BLOCK_BYTES, write_and_sync
from fedserver.open_files import allow_many_open_files

_PATIENCE_SECONDS = 300.0
_SYNCERS = 16
"""fsyncs of one process that wait together, as many as a federation's server has."""

_SERVER_NAME = "fedstream-server"  # `fedstream.tls.SERVER_NAME`, which comes with grpc


@dataclass(frozen=True, slots=True)
class Order:
    """What to move. With `tls` there is `folder/identity.pem`, a certificate and its key, for both ends."""

    clients: int
    pairs: int
    num_bytes: int
    rounds: int
    folder: str
    tls: bool

    def path(self, name: str) -> Path:
        """Of a file in the folder."""
        return Path(self.folder) / name

    def share(self, pair: int) -> range:
        """Which clients a pair of processes serves."""
        return range(self.clients * pair // self.pairs, self.clients * (pair + 1) // self.pairs)


def main() -> None:
    """The server's main process: begins each round, and makes its new model durable."""
    allow_many_open_files()
    order = Order(**json.loads(sys.argv[1]))
    write_and_sync(order.path("model"), memoryview(os.urandom(order.num_bytes)))
    new_model = memoryview(os.urandom(order.num_bytes))
    fork = multiprocessing.get_context("fork")
    begin, over = fork.Barrier(order.pairs + 1), fork.Barrier(order.pairs + 1)
    for pair in range(order.pairs):
        with socket.create_server(("127.0.0.1", 0), backlog=order.clients) as listener:
            address = listener.getsockname()
            fork.Process(target=serve, args=(order, pair, listener, begin, over), daemon=True).start()
            fork.Process(target=take_part, args=(order, pair, address), daemon=True).start()
    print(json.dumps([_round(order, new_model, begin, over) for _ in range(order.rounds)]))


def _round(order: Order, new_model: memoryview, begin: Barrier, over: Barrier) -> float:
    for number in range(order.clients):
        with contextlib.suppress(FileNotFoundError):
            order.path(f"update-{number}").unlink()
    order.path("new-model").unlink(missing_ok=True)
    begin.wait(_PATIENCE_SECONDS)
    began = time.perf_counter()
    over.wait(_PATIENCE_SECONDS)
    write_and_sync(order.path("new-model"), new_model)
    return time.perf_counter() - began


def serve(order: Order, pair: int, listener: socket.socket, begin: Barrier, over: Barrier) -> None:
    """The server's end of a pair's connections."""
    with contextlib.ExitStack() as stack:
        connections = {number: stack.enter_context(_accept(order, listener)) for number in order.share(pair)}
        file = stack.enter_context(order.path("model").open("rb"))
        model = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        syncers = stack.enter_context(ThreadPoolExecutor(_SYNCERS))
        for _ in range(order.rounds):
            begin.wait(_PATIENCE_SECONDS)
            for connection in connections.values():
                if order.tls:
                    _send(connection, memoryview(model))
                else:
                    _send_file(connection, file.fileno(), order.num_bytes)
            for synced in [syncers.submit(_sync, update) for update in _receive_all(order, connections)]:
                synced.result()
            over.wait(_PATIENCE_SECONDS)


def _accept(order: Order, listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _server_context(order).wrap_socket(connection, server_side=True) if order.tls else connection


def _receive_all(order: Order, connections: Mapping[int, socket.socket]) -> Iterator[int]:
    """Each client's update in turn, in an open file."""
    for number, connection in connections.items():
        yield _receive_into_file(connection, order.path(f"update-{number}"), order.num_bytes)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_part(order: Order, pair: int, address: tuple[str, int]) -> None:
    """The pair's clients: each receives all of the model, and sends as much back."""
    received = memoryview(bytearray(b"\1") * order.num_bytes)  # touched, so that no page is made while it is timed
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(_connect(order, address)) for _ in order.share(pair)]
        for _ in range(order.rounds):
            for connection in connections:
                _receive(connection, received)
            for connection in connections:
                _send(connection, received)


def _connect(order: Order, address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _client_context(order).wrap_socket(connection, server_hostname=_SERVER_NAME) if order.tls else connection


def _send(connection: socket.socket, data: memoryview) -> None:
    for start in range(0, len(data), BLOCK_BYTES):
        connection.sendall(data[start : start + BLOCK_BYTES])


def _send_file(connection: socket.socket, file: int, num_bytes: int) -> None:
    sent = 0
    while sent < num_bytes:
        sent += os.sendfile(connection.fileno(), file, sent, num_bytes - sent)


def _receive(connection: socket.socket, into: memoryview) -> None:
    flags = 0 if isinstance(connection, ssl.SSLSocket) else socket.MSG_WAITALL  # TLS has no flags
    while into:
        count = connection.recv_into(into, min(len(into), BLOCK_BYTES), flags)
        if not count:
            raise ConnectionError("the other end has gone")
        into = into[count:]


def _receive_into_file(connection: socket.socket, path: Path, num_bytes: int) -> int:
    """Gives the file, open and not synced."""
    block = memoryview(bytearray(BLOCK_BYTES))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for start in range(0, num_bytes, BLOCK_BYTES):
        due = block[: min(BLOCK_BYTES, num_bytes - start)]
        _receive(connection, due)
        os.pwrite(descriptor, due, start)
    return descriptor


def _server_context(order: Order) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(order.path("identity.pem"))
    context.load_verify_locations(order.path("identity.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _client_context(order: Order) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(order.path("identity.pem"))
    context.load_cert_chain(order.path("identity.pem"))
    return context


if __name__ == "__main__":
    main()
