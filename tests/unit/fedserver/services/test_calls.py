"""Calls whose peer goes away: nobody is to be told anything any more, and it is no defect of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

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
