"""Waiting for what happens in a server of this process, and reading what came of it."""

from __future__ import annotations

from fedserver.coordinator.participation import Phase
from fedserver.server import Server
from tests.support.processes import soon


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
