"""Waiting for an event: it comes, it does not, and whoever waits is cancelled at any moment of it."""

from __future__ import annotations

import asyncio

import pytest

from fedstream.waiting import comes

pytestmark = pytest.mark.numpy_task


async def test_event_that_is_set_already_comes_whatever_the_time() -> None:
    event = asyncio.Event()
    event.set()
    assert await comes(event, 0.0)
    assert await comes(event, -1.0)


async def test_event_that_does_not_come_is_told_when_the_time_is_up() -> None:
    assert not await comes(asyncio.Event(), 0.001)


async def test_event_that_comes_wakes_whoever_waits() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(comes(event, 60.0))
    await asyncio.sleep(0)
    event.set()
    assert await waiting


@pytest.mark.parametrize("steps_before_the_cancel", range(6))
async def test_cancel_that_arrives_with_the_event_is_not_lost(steps_before_the_cancel: int) -> None:
    """As many steps of the loop as lie between an event and the task that waits for it, and some more."""
    event, rounds = asyncio.Event(), 0

    async def for_ever() -> None:
        nonlocal rounds
        while True:
            await comes(event, 60.0)
            event.clear()
            rounds += 1

    task = asyncio.create_task(for_ever())
    await asyncio.sleep(0)
    event.set()
    for _ in range(steps_before_the_cancel):
        await asyncio.sleep(0)
    task.cancel()
    ended, _ = await asyncio.wait({task}, timeout=5.0)
    assert ended, f"it goes on after {rounds} rounds"
    assert task.cancelled()
