"""The state directory: one server's whole memory, and the lock that keeps a second server out of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedserver.store import retention
from fedserver.store.database import RESTORE, Database
from fedserver.store.disk import WAYS_OUT, require_writable, trouble_of
from fedserver.store.errors import BackupAtWork, StateError, StateInUse
from fedserver.store.facts import fact, remembering
from fedserver.store.journal import Journal
from fedserver.store.models import ModelStore
from fedserver.store.uploads import UploadStore
from fedstream.certificates import facts_of, is_issued_by, issue_server, make_authority
from fedstream.files import FileSystem, RealFileSystem, write_durably
from fedstream.tls import Identity

DATABASE, LOCK = "state.db", "server.lock"
MODELS, UPDATES = "models", "updates"
KEY, CERTIFICATE = "server.key", "server.crt"
AUTHORITY_KEY, AUTHORITY_CERTIFICATE = "authority.key", "authority.crt"
IDENTITY_FILES = (AUTHORITY_KEY, AUTHORITY_CERTIFICATE, KEY, CERTIFICATE)
"""Each of them is remembered by its digest."""

AUDIT_LOG = "audit.jsonl"
ADDRESSES = "addresses.json"
"""What `fedserver init` was told; without it a server listens on loopback only."""

COLLECTION_LOCK = "collection.lock"
"""Held while files are collected, and while a backup copies them."""

KEEP_ROUNDS_FACT = "keep_rounds"
TASK_FACT = "task and its settings"
MEANING_FACT = "what classes and inputs mean"
SOURCES_FACT = "what the first model was made of"

_LOCK_SECONDS = 1.0
"""Whoever asks whether a server runs holds its lock for an instant, and is not to keep one from starting."""


class State:
    """Opens a state directory, made if need be, for one process that writes: a server, or `fedserver gc`.

    Args:
        folder: the directory.
        files: the file system; the real one by default.

    Raises:
        StateError: another server uses it, it cannot be written, or its database is damaged, gone or newer.
    """

    def __init__(self, folder: Path, files: FileSystem | None = None) -> None:
        self.folder = folder
        self.files = files or RealFileSystem()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FileLock(folder / LOCK, timeout=_LOCK_SECONDS)
            self._lock.acquire()
        except Timeout:
            pid = read_contact(folder).get("pid", "unknown")
            message = f"{folder} is in use by another fedserver (pid {pid}); stop that one or give another --state"
            raise StateInUse(message) from None
        except OSError as error:
            raise _refused(folder, error) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        folder = self.folder
        try:
            require_writable(folder, self.files)
            require_database(folder)
            self.database = Database(folder / DATABASE)
            self.models = ModelStore(folder / MODELS, self.database, self.files)
            self.uploads = UploadStore(folder / UPDATES, self.database, self.files)
        except (OSError, sqlite3.OperationalError) as error:
            raise _refused(folder, error) from error
        self.journal = Journal(self.database)
        self._collecting = FileLock(folder / COLLECTION_LOCK, blocking=False)

    def authority(self) -> Identity:
        """The federation's own certificate authority, made at the first start and kept.

        Raises:
            StateError: its key or certificate is gone or not what it was.
        """
        every = f"{AUTHORITY_KEY}, {AUTHORITY_CERTIFICATE}, {KEY} and {CERTIFICATE}"
        way_out = f"or remove {every} and invite every site anew"
        return self._pair(AUTHORITY_KEY, AUTHORITY_CERTIFICATE, make_authority, way_out, lambda _kept: False)

    def identity(self, hosts: Sequence[str]) -> Identity:
        """The server's key and certificate, signed by the authority; made anew when a third of its time is left.

        Raises:
            StateError: one of them is gone or not what it was.
        """
        authority = self.authority()

        def is_outdated(certificate: bytes) -> bool:
            is_due = facts_of(certificate).is_due(datetime.now(UTC))
            return is_due or not is_issued_by(certificate, authority.certificate)

        way_out = f"or remove {KEY} and {CERTIFICATE}: sites that have joined will not notice, open invitations end"
        return self._pair(KEY, CERTIFICATE, lambda: issue_server(authority, hosts), way_out, is_outdated)

    def _pair(
        self,
        key_name: str,
        certificate_name: str,
        make: Callable[[], Identity],
        way_out: str,
        is_outdated: Callable[[bytes], bool],
    ) -> Identity:
        """A key and its certificate as they are kept, or made if both are missing or the certificate is outdated."""
        paths = [self.folder / key_name, self.folder / certificate_name]
        changed = [path for path in paths if is_changed(path, self.database)]
        if changed and any(path.exists() for path in paths):
            raise StateError(f"{changed[0]} is not what it was; restore a backup, {way_out}")
        # Of an interrupted first start nothing is remembered yet, and it is begun again.
        is_kept = all(path.exists() and fact(self.database, _digest_fact(path)) is not None for path in paths)
        if is_kept and not is_outdated(paths[1].read_bytes()):
            return Identity(*(path.read_bytes() for path in paths))
        made = make()
        if is_kept:
            self._forget(paths)
        for path, contents in zip(paths, (made.key, made.certificate), strict=True):
            write_durably(self.files, path, [contents])
        for path, contents in zip(paths, (made.key, made.certificate), strict=True):
            self.remember(_digest_fact(path), hashlib.sha256(contents).hexdigest())
        return made

    def _forget(self, paths: Sequence[Path]) -> None:
        """Before both files are replaced: a crash in between is to look like an interrupted first start."""
        with self.database.transaction() as cursor:
            for path in paths:
                cursor.execute("DELETE FROM facts WHERE key = ?", (_digest_fact(path),))

    def fact(self, key: str) -> str | None:
        """A remembered fact."""
        return fact(self.database, key)

    def remember(self, key: str, value: str) -> None:
        """Keep a fact."""
        statement = remembering(key, value)
        self.database.execute(statement.sql, *statement.values)

    def require_writable(self) -> None:
        """Make a file and a row durable, for the sake of knowing that it works.

        Raises:
            OSError, sqlite3.Error: the disk refuses.
        """
        require_writable(self.folder, self.files)
        self.remember("last_probe", "written")

    def collect(self, keep_rounds: int, best_version: int) -> retention.Expired:
        """Throw away what falls out of the retention; returns what that was.

        Raises:
            BackupAtWork: a backup is being made of what is here.
        """
        try:
            with self._collecting:
                expired = retention.expired(self.database, keep_rounds, best_version)
                if expired.rounds:
                    self.uploads.collect(expired.rounds)
                if expired.models:
                    self.models.collect(expired.models)
                return expired
        except Timeout:
            raise BackupAtWork(f"a backup of {self.folder} is being made; collect when it is done") from None

    def sweep(self) -> list[Path]:
        """Remove files that no row claims; returns which. Only before anything is on its way: at start-up."""
        found = retention.orphans(self.database, self.folder)
        for path in found:
            self.files.remove(path)
        return found

    def write_contact(self, contact: dict[str, Any]) -> None:
        """Say how local commands reach this server: its pid, address and administration socket; and how it ended."""
        text = json.dumps({"pid": os.getpid(), **contact}, indent=2).encode()
        write_durably(self.files, self.folder / "server.json", [text])

    def close(self) -> None:
        """Close the database and let another server in."""
        self.journal.close()
        self.database.close()
        self._lock.release()


def is_changed(path: Path, database: Database) -> bool:
    """Whether a key or certificate is not what was remembered of it, or gone."""
    known = fact(database, _digest_fact(path))
    return known is not None and not (path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == known)


def _digest_fact(path: Path) -> str:
    return f"sha256 of {path.name}"


def is_state_directory(folder: Path) -> bool:
    """Whether a server has ever run here.

    Raises:
        StateError: the rights to look are missing.
    """
    try:
        return (folder / DATABASE).exists()
    except OSError as error:
        raise unreadable(folder, error) from error


def is_in_use(folder: Path) -> bool:
    """Whether a server, or a command that writes, is at it now.

    Raises:
        StateError: the rights to look are missing.
    """
    try:
        if not (folder / LOCK).exists():  # taking it would make it
            return False
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        return True
    except OSError as error:
        if error.errno == errno.EROFS:  # where nothing can be written, nobody does
            return False
        raise unreadable(folder, error) from error


def require_database(folder: Path) -> None:
    """Check that a directory that was in use still has its database: an empty one would begin anew without a word.

    Raises:
        StateError: models are there, and no database that could say what they are.
    """
    database = folder / DATABASE
    if database.exists() and database.stat().st_size:
        return
    if any((folder / MODELS).glob("*.safetensors")):
        state = "is empty" if database.exists() else "is missing"
        raise StateError(f"{database} {state}, though {folder / MODELS} holds models; {RESTORE}")


def _refused(folder: Path, error: OSError | sqlite3.Error) -> StateError:
    trouble = trouble_of(error)
    if trouble is None:
        return StateError(f"{folder} cannot be used ({error}); give another --state")
    return StateError(f"the disk of {folder} {trouble.value} ({error}); {WAYS_OUT[trouble]}")


def unreadable(folder: Path, error: OSError) -> StateError:
    """What to say where a state directory cannot be looked at."""
    why = error.strerror or error
    return StateError(f"{folder} cannot be looked at ({why}); do it as the user as whom the server runs")


def read_contact(folder: Path) -> dict[str, Any]:
    """What the server of a state directory said of itself; empty if there is none.

    Raises:
        StateError: the rights to look are missing.
    """
    try:
        contact: Any = json.loads((folder / "server.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise unreadable(folder, error) from error
    return contact if isinstance(contact, dict) else {}
