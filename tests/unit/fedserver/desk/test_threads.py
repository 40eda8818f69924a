"""The threads for bytes: apart from each other, named, bounded, and gone at the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fedserver.desk.threads import ByteThreads

pytestmark = pytest.mark.numpy_task


def of_uploads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("upload-")}


async def test_writes_go_on_while_more_syncs_wait_than_there_are_threads_and_all_end_at_the_close() -> None:
    threads, medium, before = ByteThreads(), threading.Event(), of_uploads()
    try:
        waiting = [asyncio.create_task(threads.sync(medium.wait, 20.0)) for _ in range(100)]
        names = [await asyncio.wait_for(threads.write(lambda: threading.current_thread().name), 5.0) for _ in range(20)]
        assert {name.split("_")[0] for name in names} == {"upload-write"}
        syncing = [thread for thread in of_uploads() - before if thread.name.startswith("upload-sync")]
        assert len(syncing) == 16
    finally:
        medium.set()
    assert all(await asyncio.gather(*waiting))
    threads.close()
    assert of_uploads() <= before


async def test_what_a_thread_raises_reaches_the_caller() -> None:
    threads = ByteThreads()
    with pytest.raises(ZeroDivisionError):
        await threads.sync(lambda: 1 // 0)
    threads.close()


async def test_memory_is_given_back_now_and_then_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[str] = []
    monkeypatch.setattr(
        "fedserver.desk.threads.give_back_freed_memory", lambda: given_back.append(threading.current_thread().name)
    )
    threads = ByteThreads()
    for _ in range(40):
        threads.let_go(1 << 20)
    threads.close()
    assert len(given_back) == 2
    assert all(name.startswith("upload-sync") for name in given_back)
