"""A server whose start is interrupted, or fails. 3 s."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fedserver.config import ServerConfig
from fedserver.server import Server

pytestmark = pytest.mark.numpy_task


async def interrupted(folder: Path, after: int) -> bool:
    """Start a server, interrupt that after so many turns of the loop, close it; returns whether it had started."""
    settings = {"task": "linear", "listen": "127.0.0.1:0", "state": folder / "state", "out": folder / "out"}
    server = Server(ServerConfig.model_validate(settings))
    starting = asyncio.create_task(server.start())
    for _ in range(after):
        await asyncio.sleep(0)
    has_started = starting.done()
    starting.cancel()
    with suppress(asyncio.CancelledError):
        await starting
    await asyncio.wait_for(server.close(), 10.0)
    return has_started


async def test_server_that_is_interrupted_at_any_turn_of_its_start_closes_without_a_word(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: said.append(context))
    turns = 0
    while not await interrupted(tmp_path, turns):
        turns += 1
    assert turns > 3
    assert said == []


@pytest.mark.parametrize(
    ("port", "more"), [(443, r" Ports below 1024 need a right that only root has by default\."), (8443, "")]
)
async def test_port_that_cannot_be_had_is_told_with_what_may_be_in_the_way(
    tmp_path: Path, port: int, more: str
) -> None:
    settings = {"task": "linear", "listen": f"192.0.2.1:{port}", "state": tmp_path / "state", "out": tmp_path / "out"}
    server = Server(ServerConfig.model_validate(settings))
    with pytest.raises(OSError, match=rf"is that an address of this machine\?{more}$"):
        await server.start()
    await server.close()
