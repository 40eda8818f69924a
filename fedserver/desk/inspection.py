"""Looking at an update while the rest of it still comes: its digests and its values, in one pass over each tensor."""

from __future__ import annotations

import asyncio
import contextlib

from fedserver.aggregation import Survey
from fedserver.desk.threads import ByteThreads
from fedserver.store import Upload
from fedstream.errors import DigestMismatch, RoundClosed
from fedtask.task import Weights


class Inspection:
    """Of one upload. What it finds ahead of the end is kept in memory only, and found again after a restart.

    Args:
        upload: on its way in.
        base: what it started from.
        survey: of the round that it is for.
        threads: to read in.
    """

    def __init__(self, upload: Upload, base: Weights, survey: Survey, threads: ByteThreads) -> None:
        self._upload, self._base, self._survey, self._threads = upload, base, survey, threads
        self._ahead: asyncio.Task[None] | None = None

    def go_on(self) -> None:
        """Look at what was committed since, beside all else. What is wrong with it is said at the end."""
        if self._upload.has_unverified and (self._ahead is None or self._ahead.done()):
            self._ahead = asyncio.create_task(self._look_ahead())

    def stop(self) -> None:
        """Look ahead no more: nobody will `finish`."""
        if self._ahead is not None:
            self._ahead.cancel()

    async def _look_ahead(self) -> None:
        # Whatever is wrong is found again at the end, and told there.
        with contextlib.suppress(DigestMismatch, RoundClosed, OSError):
            await self._look()

    async def _look(self) -> None:
        await self._threads.read(self._verify)

    def _verify(self) -> None:
        # The buffers of a looker are made by the thread that uses them, not for each upload that waits for one.
        self._upload.verify(self._base, self._survey.looker())

    async def finish(self) -> Survey:
        """Look at the rest, once all is committed. Safe to repeat.

        Raises:
            DigestMismatch: a tensor is not what its digest says.
        """
        if self._ahead is not None:
            await self._ahead
        if self._upload.has_unverified:
            await self._look()
        return self._survey
