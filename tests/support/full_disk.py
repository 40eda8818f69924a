"""A disk that refuses to write for a while, beginning at a chosen step."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedserver.store.database import Database
from fedstream.files import RealFileSystem


class FullDisk(RealFileSystem):
    """Counts every step that can fail for want of space. From step `first` on, so many steps fail."""

    def __init__(self, error: int = errno.ENOSPC) -> None:
        self.error = error
        self.steps = 0
        self.failing = range(0)

    @property
    def is_full(self) -> bool:
        return self.steps in self.failing

    def fill(self, steps: int = 10**9, start: int | None = None) -> None:
        """Refuse the next `steps` steps, or those from number `start` on."""
        first = self.steps + 1 if start is None else start
        self.failing = range(first, first + steps)

    def free(self) -> None:
        """Refuse no more."""
        self.failing = range(0)

    def _step(self) -> None:
        self.steps += 1
        if self.is_full:
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Path) -> int:
        self._step()
        return super().open(path)

    def write_at(self, descriptor: int, offset: int, data: bytes | memoryview) -> None:
        self._step()
        super().write_at(descriptor, offset, data)

    def sync(self, descriptor: int) -> None:
        self._step()
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._step()
        super().sync_folder(folder)

    def join(self, database: Database) -> None:
        """Let the database's commits be steps too."""
        real = database.transaction

        @contextmanager
        def transaction() -> Iterator[sqlite3.Cursor]:
            with real() as cursor:
                yield cursor
                self.steps += 1
                if self.is_full:
                    refusal = sqlite3.OperationalError("database or disk is full")
                    refusal.sqlite_errorcode = sqlite3.SQLITE_FULL
                    raise refusal

        database.transaction = transaction  # type: ignore[method-assign]
