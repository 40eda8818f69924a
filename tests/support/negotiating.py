"""A server of this process with sites at its round: who is there, what they are at, and what came of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fedserver.server import Server
from fedstream.progress import Phase
from tests.support.processes import soon
from tests.support.serving import BareSite, serving


@asynccontextmanager
async def members(folder: Path, names: Sequence[str], **settings: Any) -> AsyncIterator[tuple[Any, ...]]:
    """A server, where it listens, and a site for each of `names`, all of which the first round is offered to."""
    settings = {"rounds": 2, "min_clients": 1, "retry_delay_seconds": 0.0, **settings}
    async with AsyncExitStack() as stack:
        server, listening = await stack.enter_async_context(serving(folder, **settings))
        server.federation.pause()  # nobody is offered anything before everybody is here
        sites = [await stack.enter_async_context(BareSite.dial(listening)) for _ in names]
        for name, site in zip(names, sites, strict=True):
            await site.join(name, server)
        server.federation.resume()
        yield (server, listening, *sites)


async def everybody(server: Server, *names: str) -> None:
    """Wait until all are here, then let a paused federation go on."""
    await soon(f"{names} to join", lambda: {client.name for client in server.federation.idle} >= set(names))
    server.federation.resume()


async def in_training(server: Server, client: str, number: int) -> None:
    """Wait until a client is in the fine-tune of a round."""

    def is_training() -> bool:
        round_ = server.federation.round
        part = round_.of_client(client) if round_ is not None and round_.number == number else None
        return part is not None and part.progress.phase is Phase.TRAINING

    await soon(f"{client} in training for round {number}", is_training)


async def over(server: Server, number: int) -> None:
    """Wait until a round is over."""
    await soon(f"the end of round {number}", lambda: len(server.federation.history) >= number)


def parts_of(server: Server, number: int) -> dict[str, tuple[str, str]]:
    """How each offer of a round that is over ended, and why."""
    record = server.federation.history[number - 1]
    return {one.client_name: (one.outcome, one.reason) for one in record.contributions}
