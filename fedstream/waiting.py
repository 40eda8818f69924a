"""Waiting for an event that may not come, by a task that may be cancelled meanwhile."""

from __future__ import annotations

import asyncio


async def comes(event: asyncio.Event, within_seconds: float) -> bool:
    """Wait until `event` is set, but no longer than that; whether it came in time.

    In place of `asyncio.wait_for`, which until Python 3.12 forgets that its task was cancelled where that happens in
    the same moment as what it waits for: a task that is to end then goes on for ever.
    """
    try:
        async with asyncio.timeout(within_seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
