"""Calls whose peer goes away, or whose place a newer one takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fedserver.services.calls import give_way
from fedstream.errors import Superseded
from fedstream.v1 import negotiation_pb2
from tests.support.serving import BareSite, serving

pytestmark = pytest.mark.numpy_task


async def never() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield None


async def test_peer_that_goes_before_its_first_message_leaves_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as (_, listening), BareSite.dial(listening) as site:
        silent: list[Any] = [site.negotiation.Negotiate(), site.transfer.PutManifest(never())]
        beginning = [asyncio.ensure_future(call.wait_for_connection()) for call in silent]
        await site.negotiation.DescribeTask(negotiation_pb2.DescribeTaskRequest())  # by now the others have begun
        for call in silent:
            call.cancel()
        await asyncio.gather(*beginning, return_exceptions=True)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("grpc")] == []


async def test_work_that_is_done_before_a_newer_stream_comes_gives_its_result_and_else_it_ends_and_says_so() -> None:
    newer, ended = asyncio.Event(), asyncio.Event()

    async def work(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        finally:
            ended.set()
        return "done"

    assert await give_way(work(0.0), newer, "a newer stream took over") == "done"
    ended.clear()
    asyncio.get_running_loop().call_later(0.01, newer.set)
    with pytest.raises(Superseded, match="a newer stream took over"):
        await give_way(work(60.0), newer, "a newer stream took over")
    assert ended.is_set()
