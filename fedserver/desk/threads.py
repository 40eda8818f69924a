"""Threads for the bytes of uploads, apart from those for everything else (`asyncio.to_thread`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from fedstream.heap import give_back_freed_memory

P = ParamSpec("P")
T = TypeVar("T")

_WRITERS = 4
"""Writing a chunk is a copy to the page cache: more threads than cores gain nothing, one that must wait for memory
should not stop the others."""

_SYNCERS = 16
"""An fsync is waiting: the more wait at once, the more the file system puts into one commit of its own journal. Beyond
this, uploads queue; a thread costs some 30 KiB."""

_READERS = 2
"""Looking at what came is all processor time; two of them beside writers and gRPC keep two cores busy."""


_KEPT_BYTES = 16 << 20
"""After so many bytes, what they took in memory is given back: next to no time, by measurement, and bounded memory."""


class ByteThreads:
    """Bounded pools: an fsync takes as long as a hundred writes, and what waits must not hold up what works."""

    def __init__(self) -> None:
        self._writers = ThreadPoolExecutor(_WRITERS, "upload-write")
        self._syncers = ThreadPoolExecutor(_SYNCERS, "upload-sync")
        self._readers = ThreadPoolExecutor(_READERS, "upload-read")

        self._let_go_bytes = 0

    async def write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what copies bytes."""
        return await _run(self._writers, partial(function, *args, **kwargs))

    async def sync(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what waits for the medium."""
        return await _run(self._syncers, partial(function, *args, **kwargs))

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what looks at bytes that are there."""
        return await _run(self._readers, partial(function, *args, **kwargs))

    def let_go(self, num_bytes: int) -> None:
        """Take note that so many bytes are not in use any more; every now and then their memory is given back."""
        self._let_go_bytes += num_bytes
        if self._let_go_bytes >= _KEPT_BYTES:
            self._let_go_bytes = 0
            self._syncers.submit(give_back_freed_memory)

    def close(self) -> None:
        """Let the threads end, once they have done what they are at."""
        for pool in (self._writers, self._syncers, self._readers):
            pool.shutdown()


async def _run(pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, function)
