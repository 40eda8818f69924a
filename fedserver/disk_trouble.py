"""What a federation does while its disk refuses writes: it says so, waits, and goes on by itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fedserver.federation import Federation, FederationState

T = TypeVar("T")


async def durably(federation: Federation, step: Callable[[], Awaitable[T]]) -> T:
    """Do a step that needs the disk; while the disk refuses, say so, wait, and do it again.

    Raises:
        DiskRefuses: the federation is ending, and the disk still refuses.
    """
    has_failed = False
    while True:
        try:
            return await step()
        except (OSError, sqlite3.Error) as error:
            if federation.disk.note(error) is None:
                raise
            if federation.ending.is_set():
                raise federation.disk.final_words() from error
        # The disk may take the write that tries it out, and still not this step: no hot loop then.
        await outlast_disk_trouble(federation, whatever_it_says=has_failed)
        has_failed = True


async def outlast_disk_trouble(federation: Federation, *, whatever_it_says: bool = False) -> None:
    """Wait until the disk takes writes again, or the federation is ending; `whatever_it_says`, wait at first.

    The time is given back to everybody who is at work: they could not have been served.
    """
    before, since = federation.standing, federation.now
    while not federation.ending.is_set() and (whatever_it_says or not await federation.disk.is_well_again()):
        whatever_it_says = False
        words = f"{federation.disk.words()}; {federation.disk.ways_out()}, and the server goes on by itself"
        federation.stand(FederationState.WAITING, f"for the disk: {words}")
        await federation.rest(federation.disk.retry_seconds)
    if federation.round is not None:
        federation.round.postpone(federation.now - since)
    federation.register.catch_up()
    if federation.standing.state is FederationState.WAITING:
        federation.stand(before.state, before.reason)
