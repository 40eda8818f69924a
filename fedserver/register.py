"""The register of clients: keeps in the database what is known of each, without anybody waiting for it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable

import structlog

from fedserver.coordinator.population import Population
from fedserver.disk import DiskWatch
from fedserver.store import State
from fedserver.store.clients import forgetting, keeping, kept_clients

log = structlog.get_logger()


class Register:
    """Holds the population, and writes each change of it soon after. Used from the event loop only.

    A client is welcomed whether or not its row can be written: a round does not depend on it. With `kill -9`, the last
    changes may be missing, of the time that one commit takes. What a disk refused is written with the next change, or
    when the disk is well again.

    Args:
        state: the state directory.
        disk: is told when it refuses.
        refused: is called then, so that the federation sees to it.
    """

    def __init__(self, state: State, disk: DiskWatch, refused: Callable[[], None]) -> None:
        self.population = Population(self._note)
        self._state, self._disk, self._refused = state, disk, refused
        self._unkept: dict[str, None] = {}
        self._writer: asyncio.Task[None] | None = None
        # Set once what an earlier process kept is known: a client that was here before has its first row to keep.
        self._is_recalled = False

    def recall(self) -> None:
        """Learn which clients earlier processes met; what was noted meanwhile is kept from now on.

        Raises:
            StateError: a row is damaged.
        """
        for client in kept_clients(self._state.database):
            self.population.recall(client)
        self._is_recalled = True
        self.catch_up()

    def catch_up(self) -> None:
        """Begin to write what is not written yet, if anything."""
        if self._is_recalled and self._unkept and self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def settled(self) -> None:
        """Return once all that could be written is written."""
        self.catch_up()
        while self._writer is not None:
            await asyncio.shield(self._writer)

    def _note(self, name: str) -> None:
        self._unkept.pop(name, None)
        self._unkept[name] = None
        self.catch_up()

    async def _write(self) -> None:
        try:
            while self._unkept:
                names, self._unkept = self._unkept, {}
                try:
                    await self._write_rows(names)
                except (OSError, sqlite3.Error) as error:
                    self._unkept = {**names, **self._unkept}
                    self._report(error)
                    return
        finally:
            self._writer = None

    async def _write_rows(self, names: dict[str, None]) -> None:
        known = self.population
        rows = [keeping(known[name]) if name in known else forgetting(name) for name in names]
        await self._state.journal.write(*rows)

    def _report(self, error: Exception) -> None:
        if self._disk.note(error) is None:
            log.error("what is known of clients could not be kept", error=str(error))
            return
        self._refused()
