"""Both ends of an upload with Arrow Flight, each a process, run in an environment that has pyarrow.

python flight_ends.py serve FILE         prints its port, writes what is put to FILE, and syncs it before it answers
python flight_ends.py put PORT MIB       prints the seconds until the answer
"""

from __future__ import annotations

import os
import sys
import time

import pyarrow as pa
from pyarrow import flight

_BLOCK_BYTES = 1 << 20
_SCHEMA = pa.schema([("data", pa.uint8())])


class Receiver(flight.FlightServerBase):
    """Keeps one body."""

    def __init__(self, path: str) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._path = path

    def do_put(self, _context, _descriptor, reader, _writer):
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            offset = 0
            for chunk in reader:
                offset += os.pwrite(descriptor, chunk.data.column(0).buffers()[1], offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def serve(path: str) -> None:
    """Until the process is ended."""
    server = Receiver(path)
    print(server.port, flush=True)
    server.serve()


def put(port: str, mib: str) -> None:
    """Send so many MiB in batches of 1 MiB."""
    data = os.urandom(int(mib) * _BLOCK_BYTES)
    blocks = [pa.py_buffer(memoryview(data)[i : i + _BLOCK_BYTES]) for i in range(0, len(data), _BLOCK_BYTES)]
    client = flight.connect(f"grpc://127.0.0.1:{port}")
    began = time.perf_counter()
    writer, _ = client.do_put(flight.FlightDescriptor.for_path("update"), _SCHEMA)
    for block in blocks:
        array = pa.Array.from_buffers(pa.uint8(), block.size, [None, block])
        writer.write_batch(pa.record_batch([array], schema=_SCHEMA))
    writer.close()
    print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    {"serve": serve, "put": put}[sys.argv[1]](*sys.argv[2:])
