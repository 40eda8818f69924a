"""The facts, in SQLite with a write-ahead log. Every commit is on the medium before it returns."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fedserver.store.disk import WAYS_OUT, DiskTrouble, is_full
from fedserver.store.errors import EarlierVersion, StateError
from fedserver.store.row_checks import checked, damaged_rows, register
from fedserver.store.write_ahead_log import SpoiltHeader, first_spoilt_frame

MIGRATIONS: Sequence[str] = (
    f"""
    CREATE TABLE facts (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL,
        {checked("key", "value")}
    ) STRICT;
    CREATE TABLE models (
        sha256 BLOB PRIMARY KEY,
        manifest BLOB NOT NULL,
        kept INTEGER NOT NULL,
        {checked("sha256", "manifest", "kept")}
    ) STRICT;
    CREATE INDEX models_kept ON models (sha256) WHERE kept = 1;
    CREATE TABLE versions (
        version INTEGER PRIMARY KEY,
        sha256 BLOB NOT NULL,
        {checked("version", "sha256")}
    ) STRICT;
    CREATE TABLE rounds (
        number INTEGER PRIMARY KEY,
        model_sha256 BLOB,
        record TEXT NOT NULL,
        {checked("number", "model_sha256", "record")}
    ) STRICT;
    CREATE TABLE open_rounds (
        number INTEGER PRIMARY KEY,
        row TEXT NOT NULL,
        {checked("number", "row")}
    ) STRICT;
    CREATE TABLE participations (
        round INTEGER NOT NULL,
        rank INTEGER NOT NULL,
        upload_id TEXT NOT NULL UNIQUE,
        row TEXT NOT NULL,
        {checked("round", "rank", "upload_id", "row")},
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
        reason TEXT NOT NULL,
        {checked("upload_id", "round", "manifest", "missing", "facts", "committed_size", "state", "reason")}
    ) STRICT;
    CREATE INDEX uploads_by_round ON uploads (round);
    CREATE TABLE late_updates (
        round INTEGER NOT NULL,
        rank INTEGER NOT NULL,
        reason TEXT NOT NULL,
        {checked("round", "rank", "reason")},
        PRIMARY KEY (round, rank)
    ) STRICT;
    CREATE TABLE ledger (
        number INTEGER PRIMARY KEY,
        entry TEXT NOT NULL,
        hash BLOB NOT NULL,
        {checked("number", "entry", "hash")}
    ) STRICT;
    CREATE TABLE clients (
        name TEXT PRIMARY KEY,
        row TEXT NOT NULL,
        {checked("name", "row")}
    ) STRICT;
    """,
    f"""
    CREATE TABLE sites (
        name TEXT PRIMARY KEY,
        state TEXT NOT NULL,
        since INTEGER NOT NULL,
        {checked("name", "state", "since")}
    ) STRICT;
    CREATE TABLE invitations (
        token_id BLOB PRIMARY KEY,
        name TEXT NOT NULL,
        secret_hash BLOB NOT NULL,
        created INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        state TEXT NOT NULL,
        key_sha256 TEXT NOT NULL,
        {checked("token_id", "name", "secret_hash", "created", "expires", "state", "key_sha256")}
    ) STRICT;
    CREATE TABLE certificates (
        fingerprint TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        key_sha256 TEXT NOT NULL,
        certificate TEXT NOT NULL,
        begins INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        is_revoked INTEGER NOT NULL,
        {checked("fingerprint", "name", "key_sha256", "certificate", "begins", "expires", "is_revoked")}
    ) STRICT;
    """,
)
"""Step n takes a database from `user_version` n to n + 1. Released steps are never changed, only followed.

Every table has a checksum over all other columns (`row_checks`), so a step that adds a column makes the table anew.

A model's row stays when its file is collected; `kept` says whether there is a file.
"""

RESTORE = "restore a backup (`fedserver restore`), or give another --state to begin anew"
LOG_BACK = f"was its state.db-wal removed, or not copied with it? Put that back, {RESTORE}"
"""What to do where the database knows less than there must have been."""


class Database:
    """One connection that writes, and one that reads beside it: both are shared by threads.

    A commit waits for the medium, and whoever reads is not to wait with it: that is the event loop.

    Args:
        path: of the file; made if need be, unless it is only read.
        read_only: look at it beside a running server, or without any: nothing is written.
        trace: what is there that no database without tables can belong to, in words.

    Raises:
        StateError: at opening, when the file is damaged, cannot be read, is another program's or was made by a newer
            version.
    """

    def __init__(self, path: Path, *, read_only: bool = False, trace: str = "") -> None:
        self.path = path
        # Each guards its connection; nothing else is called under it.
        self._lock = self._reading_lock = threading.RLock()
        self.interrupted = ""
        """Where the log's last commit is spoilt, by a power cut before it was acknowledged, or by the disk."""
        try:
            self._check_log(path.with_name(f"{path.name}-wal"))
            connect = _connect_reading if read_only else _connect_writing
            self._connection = self._reading = connect(path, trace)
            try:
                self._prepare(read_only=read_only)
                if not read_only:
                    self._reading, self._reading_lock = _connect_beside(path), threading.RLock()
            except BaseException:
                self._connection.close()  # also lets go of a conversion that broke off
                raise
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter from SQLite's words on damaged names
            if is_full(error, path.parent):
                way_out = WAYS_OUT[DiskTrouble.FULL]
                raise StateError(f"the disk of {path.parent} {DiskTrouble.FULL.value} ({error}); {way_out}") from error
            raise StateError(f"{path} cannot be read ({error}); {RESTORE}") from error

    def _prepare(self, *, read_only: bool) -> None:
        version = self._require_known_version()
        if read_only and version < len(MIGRATIONS):
            raise EarlierVersion(
                f"{self.path} is of an earlier version: start `fedserver run` on it once, to convert it"
            )
        self._migrate(version)
        self._check_pages()
        self._check_schema()
        self._check_rows()

    def _require_known_version(self) -> int:
        version: int = self.query("PRAGMA user_version")[0][0]
        if version > len(MIGRATIONS):
            message = f"{self.path} is of version {version}, this program knows {len(MIGRATIONS)}: upgrade fedstream"
            raise StateError(f"{message}, or give another --state")
        return version

    def _migrate(self, version: int) -> None:
        for step in range(version, len(MIGRATIONS)):
            self._connection.executescript(f"BEGIN; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")

    def _check_log(self, log: Path) -> None:
        """See that SQLite is about to read all commits that the log has. Afterwards nobody can know."""
        try:
            spoilt = first_spoilt_frame(log)
        except SpoiltHeader:
            raise sqlite3.DatabaseError(f"the header of {log.name} is damaged") from None
        if spoilt is None:
            return
        where = f"{log.name} is spoilt at frame {spoilt.number}"
        if spoilt.commits > 1:
            raise sqlite3.DatabaseError(f"{where}, and {spoilt.commits} commits from there on with it")
        self.interrupted = f"{where}, in the last commit: a power cut interrupted it, or the file is damaged"

    def _check_pages(self) -> None:
        # A file that lost its end opens without a word and fails at the first row that is not there.
        found = self.query("PRAGMA integrity_check(1)")[0][0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    def _check_schema(self) -> None:
        """Compare the tables' definitions, which no row's checksum covers, with this program's own."""
        with closing(_connected(":memory:")) as sound:
            for step in MIGRATIONS:
                sound.executescript(step)
            expected = sound.execute(_DEFINITIONS).fetchall()
        for ours, theirs in itertools.zip_longest(expected, self.query(_DEFINITIONS)):
            if ours != theirs:
                raise sqlite3.DatabaseError(f"the definition of {(ours or theirs)[0]} is damaged")

    def _check_rows(self) -> None:
        with self._lock:
            damaged = list(itertools.islice(damaged_rows(self._connection), _MOST_NAMED + 1))
        if damaged:
            named = "; ".join(damaged[:_MOST_NAMED]) + ("; and more" if len(damaged) > _MOST_NAMED else "")
            raise sqlite3.DatabaseError(f"not what was written there: {named}")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a statement that only reads. Of a transaction that is under way it sees nothing."""
        with self._reading_lock:
            return self._reading.execute(sql, values).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is queried inside the block is of one instant, whatever a server writes meanwhile."""
        with self._reading_lock:
            self._reading.execute("BEGIN")
            try:
                yield
            finally:
                self._reading.execute("COMMIT")

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

    def checkpoint(self) -> None:
        """Copy what is in the log to the database itself, as far as nobody reads what was before. Blocks for a moment.

        SQLite does so by itself only when the log has a few megabytes, which a small federation does not come to.
        """
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

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
        """Close both connections."""
        with self._reading_lock:
            self._reading.close()
        with self._lock:
            self._connection.close()


_DEFINITIONS = "SELECT name, type, tbl_name, sql FROM sqlite_schema ORDER BY name"
_MOST_NAMED = 10
"""How many damaged rows an error names."""


def _connected(address: str, *, uri: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=uri, check_same_thread=False, isolation_level=None)
    register(connection)
    return connection


def _require_own(connection: sqlite3.Connection, path: Path, trace: str) -> None:
    """Refuse a database that is not this federation's, before anything of it is changed.

    Version 0 is of a file without tables: another program's if it has some, and if there is a `trace` of a federation,
    what is left of its database where the log is gone.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and not version:
        raise StateError(f"{path} is not a fedserver database; {RESTORE}")
    if trace and not version:
        raise StateError(f"{path} holds nothing, though {trace}; {LOG_BACK}")


def _connect_writing(path: Path, trace: str) -> sqlite3.Connection:
    connection = _opened(str(path), path, trace)
    path.chmod(0o600)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    for pragma in ("fullfsync", "checkpoint_fullfsync"):  # on macOS alone: as `fedstream.files.sync_to_medium` does
        connection.execute(f"PRAGMA {pragma} = ON")
    return connection


def _connect_beside(path: Path) -> sqlite3.Connection:
    connection = _connected(str(path))
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect_reading(path: Path, trace: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode=ro"  # of the name's bytes, which may be no text in UTF-8
    try:
        return _opened(address, path, trace, uri=True)
    except sqlite3.OperationalError:
        # On a read-only medium SQLite cannot make the file through which readers of a log find each other. Where there
        # is no log, nobody writes, and it can do without.
        log = path.with_name(f"{path.name}-wal")
        if not path.exists() or (log.exists() and log.stat().st_size):
            raise
        return _opened(f"{address}&immutable=1", path, trace, uri=True)


def _opened(address: str, path: Path, trace: str, *, uri: bool = False) -> sqlite3.Connection:
    connection = _connected(address, uri=uri)
    try:
        _require_own(connection, path, trace)
    except BaseException:
        connection.close()
        raise
    return connection
