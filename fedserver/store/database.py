"""The facts, in SQLite with a write-ahead log. Every commit is on the medium before it returns."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedserver.store.errors import StateError

MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE models (sha256 BLOB PRIMARY KEY, manifest BLOB NOT NULL, kept INTEGER NOT NULL) STRICT;
    CREATE INDEX models_kept ON models (sha256) WHERE kept = 1;
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
    CREATE INDEX uploads_by_round ON uploads (round);
    CREATE TABLE late_updates (
        round INTEGER NOT NULL,
        rank INTEGER NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (round, rank)
    ) STRICT;
    CREATE TABLE ledger (number INTEGER PRIMARY KEY, entry TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
    CREATE TABLE clients (name TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT;
    """,
)
"""Step n takes a database from `user_version` n to n + 1. Released steps are never changed, only followed.

A model's row stays when its file is collected; `kept` says whether there is a file.
"""

RESTORE = "restore a backup (`fedserver restore`), or give another --state to begin anew"


class Database:
    """One connection, shared by threads.

    Args:
        path: of the file; made if need be, unless it is only read.
        read_only: look at it beside a running server, or without any: nothing is written.

    Raises:
        StateError: at opening, when the file is damaged, cannot be read or was made by a newer version.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()  # guards the connection; nothing else is called under it
        try:
            self._connection = _connect_reading(path) if read_only else _connect_writing(path)
            try:
                self._prepare(read_only=read_only)
            except BaseException:
                self._connection.close()  # also lets go of a conversion that broke off
                raise
        except sqlite3.DatabaseError as error:
            raise StateError(f"{path} cannot be read ({error}); {RESTORE}") from error

    def _prepare(self, *, read_only: bool) -> None:
        version = self._require_known_version()
        if read_only and version < len(MIGRATIONS):
            raise StateError(f"{self.path} is of an earlier version: start `fedserver run` on it once, to convert it")
        self._migrate(version)
        self._check()

    def _require_known_version(self) -> int:
        version: int = self.query("PRAGMA user_version")[0][0]
        if version > len(MIGRATIONS):
            message = f"{self.path} is of version {version}, this program knows {len(MIGRATIONS)}: upgrade fedstream"
            raise StateError(f"{message}, or give another --state")
        return version

    def _migrate(self, version: int) -> None:
        for step in range(version, len(MIGRATIONS)):
            self._connection.executescript(f"BEGIN; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")

    def _check(self) -> None:
        # A file that lost its end opens without a word and fails at the first row that is not there.
        found = self.query("PRAGMA quick_check(1)")[0][0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a statement that only reads."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is queried inside the block is of one instant, whatever a server writes meanwhile."""
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        """A cursor whose statements all take effect, durably, or none does."""
        with self._lock:
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # on a full disk SQLite may have rolled back by itself
                    cursor.execute("ROLLBACK")
                raise

    def execute(self, sql: str, *values: Any) -> None:
        """One statement in a transaction of its own."""
        with self.transaction() as cursor:
            cursor.execute(sql, values)

    def copy_to(self, path: Path) -> None:
        """Write the database as it is at this instant to a new file, whole and without a log beside it."""
        target = sqlite3.connect(path)
        try:
            path.chmod(0o600)
            with self._lock:
                self._connection.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
        finally:
            target.close()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


def _connect_writing(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    path.chmod(0o600)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _connect_reading(path: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        return _opened(address)
    except sqlite3.OperationalError:
        # On a read-only medium SQLite cannot make the file through which readers of a log find each other. Where there
        # is no log, nobody writes, and it can do without.
        log = path.with_name(f"{path.name}-wal")
        if not path.exists() or (log.exists() and log.stat().st_size):
            raise
        return _opened(f"{address}&immutable=1")


def _opened(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA user_version").fetchone()
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection
