"""Commits beside a stream: when they happen, what they cover, who hears of them, and how either of the two ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from fedserver.desk import Committer

pytestmark = pytest.mark.numpy_task

ENOUGH = 2


@dataclass(slots=True)
class Scene:
    """An upload that wants a commit at 2 bytes, a medium that waits for `medium`, and a sender that is told."""

    received: int = 0
    committed: int = 0
    medium: asyncio.Event = field(default_factory=asyncio.Event)
    line: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    failure: Exception | None = None
    at_work: int = 0

    def __post_init__(self) -> None:
        self.line.set()

    @property
    def committer(self) -> Committer:
        return Committer(self.is_due, self.commit, self.tell)

    def is_due(self) -> bool:
        return self.received - self.committed >= ENOUGH

    async def commit(self) -> int:
        covered = self.received
        if covered > self.committed:
            self.begun.append(covered)
            self.at_work += 1
            assert self.at_work == 1, "two commits at once"
            await asyncio.wait_for(self.medium.wait(), 5.0)  # also ends what a failed test leaves
            self.at_work -= 1
            if self.failure is not None:
                raise self.failure
            self.committed = covered
        return self.committed

    async def tell(self, committed: int) -> None:
        assert committed <= self.committed, "told before it was durable"
        await self.line.wait()
        self.told.append(committed)

    async def begin(self, receive: Callable[[Committer], Awaitable[None]]) -> asyncio.Task[int]:
        """A stream that does what `receive` says; returns when nothing moves any more."""
        committer = self.committer

        async def receiving() -> None:
            await receive(committer)

        task = asyncio.create_task(committer.during(receiving()))
        await asyncio.sleep(0.02)
        return task

    async def receive(self, committer: Committer, *sizes: int) -> None:
        for size in sizes:
            self.received += size
            committer.note_received()
            await settled()


async def settled() -> None:
    """Everything has happened that can happen without time going by."""
    for _ in range(20):
        await asyncio.sleep(0)


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_stream_goes_on_while_a_commit_is_under_way_and_the_next_covers_all_that_came() -> None:
    scene = Scene()
    task = await scene.begin(lambda committer: scene.receive(committer, 1, 1, 1, 1, 1))
    assert (scene.received, scene.begun, scene.told) == (5, [2], [])
    scene.medium.set()
    assert await task == 5
    assert (scene.begun, scene.told) == ([2, 5], [2])


async def test_what_came_during_a_commit_and_is_not_worth_one_waits_for_more() -> None:
    scene = Scene()

    async def receive(committer: Committer) -> None:
        await scene.receive(committer, 2, 1)
        scene.medium.set()
        await settled()
        assert (scene.begun, scene.told) == ([2], [2])
        await scene.receive(committer, 1)
        assert (scene.begun, scene.told) == ([2, 4], [2, 4])

    assert await (await scene.begin(receive)) == 4


async def test_rest_is_committed_at_the_end_and_left_to_the_caller_to_tell() -> None:
    scene = Scene()
    scene.medium.set()
    assert await (await scene.begin(lambda committer: scene.receive(committer, 1))) == 1
    assert (scene.committed, scene.told) == (1, [])


async def test_failed_commit_ends_a_stream_that_waits_for_its_sender() -> None:
    scene = Scene(failure=OSError("full"))

    async def receive(committer: Committer) -> None:
        await scene.receive(committer, 2)
        await for_ever()

    task = await scene.begin(receive)
    scene.medium.set()
    with pytest.raises(OSError, match="full"):
        await asyncio.wait_for(task, 5.0)
    assert (scene.begun, scene.told) == ([2], [])


async def test_failed_commit_is_raised_before_what_follows_from_it() -> None:
    scene = Scene(failure=OSError("full"))

    async def receive(committer: Committer) -> None:
        await scene.receive(committer, 2)
        raise ValueError("bytes are missing")

    task = await scene.begin(receive)
    assert not task.done(), "the commit under way is waited for"
    scene.medium.set()
    with pytest.raises(OSError, match="full"):
        await task


async def test_stream_with_an_error_commits_what_it_received() -> None:
    scene = Scene()
    scene.medium.set()

    async def receive(committer: Committer) -> None:
        await scene.receive(committer, 1)
        raise ValueError("wrong offset")

    with pytest.raises(ValueError, match="wrong offset"):
        await (await scene.begin(receive))
    assert scene.committed == 1


async def test_stream_that_is_cut_commits_what_it_received_and_tells_nobody() -> None:
    scene = Scene()

    async def receive(committer: Committer) -> None:
        await scene.receive(committer, 2, 1)
        await for_ever()

    task = await scene.begin(receive)
    task.cancel()
    await settled()
    assert not task.done(), "the commit under way is waited for"
    scene.medium.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (scene.begun, scene.committed, scene.told) == ([2, 3], 3, [])


async def test_stream_that_is_cut_does_not_wait_for_a_sender_who_does_not_listen() -> None:
    scene = Scene()
    scene.medium.set()
    scene.line.clear()
    task = await scene.begin(lambda committer: scene.receive(committer, 2))
    assert not task.done(), "one answer at a time"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5.0)
    assert (scene.committed, scene.told) == (2, [])
