"""The facts, in SQLite with a write-ahead log. Every commit is on the medium before it returns."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE models (sha256 BLOB PRIMARY KEY, manifest BLOB NOT NULL) STRICT;
    CREATE TABLE versions (version INTEGER PRIMARY KEY, sha256 BLOB NOT NULL) STRICT;
    CREATE TABLE rounds (number INTEGER PRIMARY KEY, model_sha256 BLOB, record TEXT NOT NULL) STRICT;
    CREATE TABLE open_rounds (number INTEGER PRIMARY KEY, row TEXT NOT NULL) STRICT;
    CREATE TABLE participations (
        round INTEGER NOT NULL,
        rank INTEGER NOT NULL,
        upload_id TEXT NOT NULL UNIQUE,
        row TEXT NOT NULL,
        PRIMARY KEY (round, rank)
    ) STRICT;
    CREATE TABLE uploads (
        upload_id TEXT PRIMARY KEY,
        round INTEGER NOT NULL,
        manifest BLOB NOT NULL,
        missing TEXT NOT NULL,
        facts TEXT NOT NULL,
        committed_size INTEGER NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    CREATE TABLE clients (name TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;
    """,
)
"""Step n takes a database from `user_version` n to n + 1. Released steps are never changed, only followed."""


class Database:
    """One connection, shared by threads.

    Raises:
        sqlite3.DatabaseError: at opening, when the file is damaged or was made by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()  # guards the connection; nothing else is called under it
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        path.chmod(0o600)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._migrate()

    def _migrate(self) -> None:
        version = self.query("PRAGMA user_version")[0][0]
        if version > len(_MIGRATIONS):
            message = f"the state directory is of version {version}, this program knows {len(_MIGRATIONS)}: upgrade it"
            raise sqlite3.DatabaseError(message)
        for step in range(version, len(_MIGRATIONS)):
            self._connection.executescript(f"BEGIN; {_MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a statement that only reads."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        """A cursor whose statements all take effect, durably, or none does."""
        with self._lock:
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def execute(self, sql: str, *values: Any) -> None:
        """One statement in a transaction of its own."""
        with self.transaction() as cursor:
            cursor.execute(sql, values)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()
