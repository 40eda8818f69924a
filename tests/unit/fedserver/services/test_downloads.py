"""Downloads that are at work, for whoever waits for their end."""

from __future__ import annotations

import asyncio

import pytest

from fedserver.services.downloads import Downloads

pytestmark = pytest.mark.numpy_task


async def test_over_waits_for_the_last_download_also_of_one_without_a_name() -> None:
    downloads = Downloads()
    await downloads.over(0.0)
    with downloads.one("a"):
        with downloads.one(""):
            waiting = asyncio.create_task(downloads.over(60.0))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    async with asyncio.timeout(30.0):
        await waiting


async def test_over_waits_no_longer_than_it_is_told() -> None:
    downloads = Downloads()
    with downloads.one("a"):
        async with asyncio.timeout(30.0):
            await downloads.over(0.01)
