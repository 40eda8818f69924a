"""A disk that refuses to write for a while, beginning at a chosen step."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedserver.store.database import Database
from tests.support.stepping import SteppingFileSystem


class FullDisk(SteppingFileSystem):
    """Counts every step that can fail for want of space. From step `first` on, so many steps fail."""

    def __init__(self, error: int = errno.ENOSPC) -> None:
        super().__init__()
        self.error = error
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

    def step(self) -> None:
        super().step()
        if self.is_full:
            raise OSError(self.error, os.strerror(self.error))

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


def fill(folder: Path, leave_bytes: int) -> Path:
    """Fill a file system up to so many bytes, with one file; once it is removed, there is room again."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    with ballast.open("wb") as file:
        file.write(b"x" * max(0, room.f_bavail * room.f_frsize - leave_bytes))
    return ballast
