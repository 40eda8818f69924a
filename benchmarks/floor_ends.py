"""The processes of `benchmarks.floor`: `python -m benchmarks.floor_ends ORDER`, prints the seconds of each round.

A process per connection on the server's side too: Python's TLS takes a record of 16 KiB a call, for which threads would
wait for one another. Nothing here imports grpc, which does not survive a fork.
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
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.plain_file import BLOCK_BYTES, write_and_sync

_PATIENCE_SECONDS = 300.0
_SERVER_NAME = "fedstream-server"  # `fedstream.tls.SERVER_NAME`, which comes with grpc


@dataclass(frozen=True, slots=True)
class Order:
    """What to move. With `tls` there is `folder/identity.pem`, a certificate and its key, for both ends."""

    clients: int
    num_bytes: int
    rounds: int
    folder: str
    tls: bool
    mutual: bool

    def path(self, name: str) -> Path:
        """Of a file in the folder."""
        return Path(self.folder) / name


def main() -> None:
    """The server's main process: begins each round, and makes its new model durable."""
    order = Order(**json.loads(sys.argv[1]))
    write_and_sync(order.path("model"), memoryview(os.urandom(order.num_bytes)))
    new_model = memoryview(os.urandom(order.num_bytes))
    fork = multiprocessing.get_context("fork")
    begin, over = fork.Barrier(order.clients + 1), fork.Barrier(order.clients + 1)
    with socket.create_server(("127.0.0.1", 0), backlog=order.clients) as listener:
        address = listener.getsockname()
        handlers = [
            fork.Process(target=serve, args=(order, number, listener, begin, over), daemon=True)
            for number in range(order.clients)
        ]
        sites = [fork.Process(target=take_part, args=(order, address), daemon=True) for _ in range(order.clients)]
        for process in (*handlers, *sites):
            process.start()
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


def serve(order: Order, number: int, listener: socket.socket, begin: Barrier, over: Barrier) -> None:
    """The server's end of one connection."""
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if order.tls:
        connection = _server_context(order).wrap_socket(connection, server_side=True)
    with connection, order.path("model").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as model:
        for _ in range(order.rounds):
            begin.wait(_PATIENCE_SECONDS)
            if order.tls:
                _send(connection, memoryview(model))
            else:
                _send_file(connection, file.fileno(), order.num_bytes)
            _receive_into_file(connection, order.path(f"update-{number}"), order.num_bytes)
            over.wait(_PATIENCE_SECONDS)


def take_part(order: Order, address: tuple[str, int]) -> None:
    """A client: receives all of the model, and sends as much back."""
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if order.tls:
        connection = _client_context(order).wrap_socket(connection, server_hostname=_SERVER_NAME)
    received = memoryview(bytearray(b"\1") * order.num_bytes)  # touched, so that no page is made while it is timed
    with connection:
        for _ in range(order.rounds):
            _receive(connection, received)
            _send(connection, received)


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


def _receive_into_file(connection: socket.socket, path: Path, num_bytes: int) -> None:
    block = memoryview(bytearray(BLOCK_BYTES))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for start in range(0, num_bytes, BLOCK_BYTES):
            due = block[: min(BLOCK_BYTES, num_bytes - start)]
            _receive(connection, due)
            os.pwrite(descriptor, due, start)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _server_context(order: Order) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(order.path("identity.pem"))
    if order.mutual:
        context.load_verify_locations(order.path("identity.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _client_context(order: Order) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(order.path("identity.pem"))
    if order.mutual:
        context.load_cert_chain(order.path("identity.pem"))
    return context


if __name__ == "__main__":
    main()
