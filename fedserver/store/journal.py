"""Group commit: what several callers write at the same time becomes durable in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fedserver.store.database import Database


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement and its values.

    Functions that make one are named for what it will do, such as `keeping` or `forgetting`. They write nothing: that
    takes `Journal.write`, so that what belongs together becomes durable together.
    """

    sql: str
    values: Sequence[Any] = ()


class Journal:
    """Writes to the database from the event loop, without blocking it.

    An fsync costs the same for one row as for a hundred. While one transaction is on its way to the medium, what
    comes in is gathered for the next: the busier the server, the more each fsync carries, and nobody is answered
    before theirs.

    Args:
        database: where to.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Its own: a commit that waited for a thread behind copying and digesting would keep every answer waiting.
        self._thread = ThreadPoolExecutor(1, "journal")
        self._waiting: list[tuple[Sequence[Statement], asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def write(self, *statements: Statement) -> None:
        """Return when all the statements are durable, or raise when none of them is.

        Raises:
            sqlite3.Error: the database refused them, for instance because the disk is full.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((statements, done))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        await asyncio.shield(done)

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._in_thread([statement for group, _ in batch for statement in group])
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
                await self._one_by_one(batch, error)
            else:
                for _, done in batch:
                    done.set_result(None)
        self._writer = None

    async def _one_by_one(
        self, batch: Sequence[tuple[Sequence[Statement], asyncio.Future[None]]], error: Exception
    ) -> None:
        """One caller's bad statement must not fail the others: try each group by itself."""
        for group, done in batch:
            if len(batch) == 1:
                done.set_exception(error)
                continue
            try:
                await self._in_thread(group)
            except Exception as own:  # noqa: BLE001 - as above
                done.set_exception(own)
            else:
                done.set_result(None)

    async def _in_thread(self, statements: Sequence[Statement]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, statements)

    def close(self) -> None:
        """Let the thread end, once it has done what it is at."""
        self._thread.shutdown()

    def _commit(self, statements: Sequence[Statement]) -> None:
        with self._database.transaction() as cursor:
            for statement in statements:
                cursor.execute(statement.sql, statement.values)
