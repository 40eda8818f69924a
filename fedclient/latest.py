"""Errands of which only the newest matters, such as drawing a picture again: put off, and run once for many reasons."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

import structlog

from fedstream.waiting import comes

log = structlog.get_logger()


class Latest:
    """Runs an errand after it was asked for, one run at a time, not too often, and only while nothing forbids it.

    Whatever is asked for before a run begins is served by that run, and what is asked for during one by the next. A
    failure is told in the log, and costs that run only.

    Args:
        errand: what to do. It finds out by itself what is newest.
        pause_seconds: least time from the beginning of one run to that of the next.
        first_at: when the first run may begin, by `time.monotonic`; by default at once.
    """

    def __init__(
        self, errand: Callable[[], Awaitable[None]], pause_seconds: float, first_at: float = -math.inf
    ) -> None:
        self._errand = errand
        self._pause_seconds = pause_seconds
        self._first_at = first_at
        self._allowed = asyncio.Event()
        self._allowed.set()
        self._hurry = asyncio.Event()
        self._asked = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Have the errand run, soon."""
        self._asked = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve())

    def forbid(self) -> None:
        """Begin no run until `allow`. One that has begun goes on."""
        self._allowed.clear()

    def allow(self) -> None:
        """Undo `forbid`."""
        self._allowed.set()

    async def finish(self) -> None:
        """Run at once what was asked for, forbidden or not, and wait for it. Idempotent."""
        self._hurry.set()
        self._allowed.set()
        if self._task is not None:
            await asyncio.shield(self._task)

    async def cancel(self) -> None:
        """Stop, and forget what was asked for."""
        task, self._task, self._asked = self._task, None, False
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _serve(self) -> None:
        """Run as long as there is a reason, and stay for the pause: the next reason may come within it."""
        await self._rest(self._first_at - time.monotonic())
        while self._asked:
            while not self._allowed.is_set():  # it may have been forbidden again before this task got its turn
                await self._allowed.wait()
            self._asked = False
            await asyncio.gather(self._run(), self._rest(self._pause_seconds))

    async def _run(self) -> None:
        try:
            await self._errand()
        except Exception as error:  # noqa: BLE001 - of whatever kind, the rounds go on
            log.warning("a local model or plot could not be saved", because=str(error) or repr(error))

    async def _rest(self, seconds: float) -> None:
        """Wait for the pause to pass, or for somebody in a hurry."""
        if seconds > 0:
            await comes(self._hurry, seconds)
