"""A whole client against a server that follows a script: how it is run, and what a round takes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from fedclient.client import Client
from fedclient.exit_codes import Stop
from tests.support.scripted import Script, Scripted, Talk


def count(logs: list[EventDict], event: str) -> int:
    """How often something was logged."""
    return sum(entry["event"] == event for entry in logs)


async def until(condition: Any, within: float = 15.0) -> None:
    """Wait for a condition; too long is a failure."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.01)


async def run(client: Client) -> tuple[str, list[EventDict]]:
    """Run a client to its end; returns its last words, and its log."""
    with capture_logs() as logs:
        async with asyncio.timeout(40):
            return await client.run(), logs


async def stopped(client: Client) -> Stop:
    """Run a client that is to end with an error."""
    with pytest.raises(Stop) as caught:
        await run(client)
    return caught.value


async def deliver(talk: Talk, server: Scripted, number: int = 1) -> None:
    """A round in which the client does its part."""
    await talk.agree(server.base, number)
    await until(lambda: f"upload-{number}" in server.transfer.uploads and finished(server, number))
    await asyncio.sleep(0.2)  # for the acknowledgement to arrive: a federation's end may overtake it


def last_round(here: Sequence[Scripted]) -> Script:
    """A round in which the client does its part, and after it the federation's end. `here` has the server by then."""

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await deliver(talk, here[0])
        await talk.end(here[0].base)

    return script


def finished(server: Scripted, number: int = 1) -> bool:
    """Whether the server has acknowledged a round's update."""
    return server.transfer.uploads[f"upload-{number}"].finished
