"""Commits of an upload while its stream goes on: one at a time, the next of all that came meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any


class Committer:
    """For one stream of one upload. The sender fills one half of the window while the other half becomes durable.

    Args:
        is_due: whether enough came for a commit to be worth its fsync.
        commit: makes durable what was received; returns the committed size.
        tell: says to the sender that so many bytes are committed.
    """

    def __init__(
        self,
        is_due: Callable[[], bool],
        commit: Callable[[], Coroutine[Any, Any, int]],
        tell: Callable[[int], Awaitable[None]],
    ) -> None:
        self._is_due, self._commit, self._tell = is_due, commit, tell
        self._received = asyncio.Event()
        self._all_came = False
        self._under_way: asyncio.Task[int] | None = None

    def note_received(self) -> None:
        """More was received: see whether it is enough for a commit, now or when the one under way has ended."""
        self._received.set()

    async def during(self, receiving: Coroutine[Any, Any, None]) -> int:
        """Commit while `receiving` runs, and what is left once it has ended, however it ended. A failed commit ends it.

        Returns:
            The committed size. It is for the caller to tell: a stream that is cut has nobody to be told.

        Raises:
            Whatever a commit raises, before whatever `receiving` raises: that may well follow from it.
        """
        receiver, committing = asyncio.create_task(receiving), asyncio.create_task(self._commit_what_comes())
        try:
            await asyncio.wait((receiver, committing), return_when=asyncio.FIRST_COMPLETED)
            if receiver.done():
                receiver.result()
                self._all_came = True
                self._received.set()
            await committing
        finally:
            for task in (receiver, committing):
                task.cancel()
            await asyncio.gather(receiver, committing, return_exceptions=True)
            committed = await self._commit_the_rest()
        return committed

    async def _commit_what_comes(self) -> None:
        while not self._all_came:
            await self._received.wait()
            self._received.clear()
            if self._is_due():
                self._under_way = asyncio.create_task(self._commit())
                # A stream that is cut cancels the telling. The commit goes on, and its end is waited for.
                await self._tell(await asyncio.shield(self._under_way))

    async def _commit_the_rest(self) -> int:
        if self._under_way is not None:
            await self._under_way
        return await self._commit()
