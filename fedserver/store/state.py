"""The state directory: one server's whole memory, and the lock that keeps a second server out of it."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from filelock import FileLock, Timeout

from fedserver.store import keys, retention
from fedserver.store.database import LOG_BACK
from fedserver.store.disk import WAYS_OUT, require_writable, trouble_of
from fedserver.store.errors import BackupAtWork, StateError, StateInUse
from fedserver.store.facts import fact, remembering
from fedserver.store.folder import (
    COLLECTION_LOCK,
    CONTACT,
    LOCK,
    MODELS,
    UNCLAIMED,
    UPDATES,
    open_database,
    read_contact,
)
from fedserver.store.journal import Journal
from fedserver.store.models import ModelStore
from fedserver.store.uploads import UploadStore
from fedstream.certificates import facts_of, is_issued_by, issue_server, make_authority
from fedstream.files import FileSystem, RealFileSystem, write_durably
from fedstream.tls import Identity

log = structlog.get_logger()

_LOCK_SECONDS = 1.0
"""Whoever asks whether a server runs holds its lock for an instant, and is not to keep one from starting."""


class State:
    """Opens a state directory, made if need be, for one process that writes: a server, or `fedserver gc`.

    Args:
        folder: the directory.
        files: the file system; the real one by default.
        lock_seconds: how long to wait for another process that is at it.

    Raises:
        StateError: another server uses it, it cannot be written, or its database is damaged, gone or newer.
    """

    def __init__(self, folder: Path, files: FileSystem | None = None, lock_seconds: float = _LOCK_SECONDS) -> None:
        self.folder = folder
        self.files = files or RealFileSystem()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _close_to_others(folder)
            self._lock = FileLock(folder / LOCK, timeout=lock_seconds, mode=0o600)
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
        try:
            require_writable(self.folder, self.files)
            self.database = open_database(self.folder)
            try:
                self._open_stores()
            except BaseException:
                self.database.close()
                raise
        except (OSError, sqlite3.OperationalError) as error:
            raise _refused(self.folder, error) from error

    def _open_stores(self) -> None:
        folder = self.folder
        self.models = ModelStore(folder / MODELS, self.database, self.files)
        self.uploads = UploadStore(folder / UPDATES, self.database, self.files)
        self.journal = Journal(self.database)
        self._collecting = FileLock(folder / COLLECTION_LOCK, blocking=False, mode=0o600)

    def authority(self) -> Identity:
        """The federation's own certificate authority, made at the first start and kept.

        Raises:
            StateError: its key or certificate is gone or not what it was.
        """
        return self._pair(keys.AUTHORITY, make_authority, lambda _kept: False)

    def identity(self, hosts: Sequence[str]) -> Identity:
        """The server's key and certificate, signed by the authority; made anew when a third of its time is left.

        So is one that was made while this machine's clock was ahead. Where the authority is not valid yet either, it is
        the clock of now that is wrong, as that of a machine that has just started may be.

        Raises:
            StateError: one of them is gone or not what it was.
        """
        authority = self.authority()

        def is_outdated(certificate: bytes) -> bool:
            now, facts = datetime.now(UTC), facts_of(certificate)
            is_of_later = facts_of(authority.certificate).begins <= now < facts.begins
            return is_of_later or facts.is_due(now) or not is_issued_by(certificate, authority.certificate)

        return self._pair(keys.SERVER, lambda: issue_server(authority, hosts), is_outdated)

    def _pair(self, pair: keys.Pair, make: Callable[[], Identity], is_outdated: Callable[[bytes], bool]) -> Identity:
        return keys.kept_pair(self.folder, self.database, self.files, pair, make, is_outdated)

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

    def collect(self, keep_rounds: int, best: Collection[int]) -> retention.Expired:
        """Throw away what falls out of the retention; returns what that was.

        A round is over then, so it is also when the log is copied to the database: whoever loses the log afterwards,
        or makes a copy without it, has what there was up to here.

        Raises:
            BackupAtWork: a backup is being made of what is here.
        """
        try:
            with self._collecting:
                expired = retention.expired(self.database, keep_rounds, best)
                if expired.rounds:
                    self.uploads.collect(expired.rounds)
                if expired.models:
                    self.models.collect(expired.models)
                return expired
        except Timeout:
            raise BackupAtWork(f"a backup of {self.folder} is being made; collect when it is done") from None
        finally:
            self.database.checkpoint()

    def sweep(self) -> list[Path]:
        """Remove files that no row claims; returns which. Only before anything is on its way: at start-up.

        Models that no row names are set aside instead, where they are more than one interrupted step leaves: then rows
        were lost, and the models are what is left.
        """
        self._set_aside(retention.lost_models(self.database, self.folder))
        found = retention.orphans(self.database, self.folder)
        for path in found:
            self.files.remove(path)
        return found

    def _set_aside(self, models: Sequence[Path]) -> None:
        if not models:
            return
        aside = self.folder / UNCLAIMED
        aside.mkdir(mode=0o700, exist_ok=True)
        for path in models:
            self.files.rename(path, aside / path.name)
        self.files.sync_folder(aside)
        self.files.sync_folder(self.folder / MODELS)
        names = [path.name for path in models]
        log.warning("set aside models that the database does not know", folder=str(aside), files=names, hint=LOG_BACK)

    def write_contact(self, contact: dict[str, Any]) -> None:
        """Say how local commands reach this server: its pid, address and administration socket; and how it ended."""
        text = json.dumps({"pid": os.getpid(), **contact}, indent=2).encode()
        write_durably(self.files, self.folder / CONTACT, [text])

    def close(self) -> None:
        """Close the database and let another server in."""
        self.journal.close()
        self.database.close()
        self._lock.release()


def _close_to_others(folder: Path) -> None:
    """Take the rights of everybody else on a folder that somebody made before, with more rights than it needs.

    One that is another user's, or that is for all like /tmp, stays as it is: what is in it only its owner can read.
    """
    found = folder.stat()
    if not found.st_mode & 0o077:
        return
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~0o077)
        log.warning("the state directory was open to others and is closed to them now", folder=str(folder))
    else:
        log.warning("the state directory is open to others; give one that is the server's alone", folder=str(folder))


def _refused(folder: Path, error: OSError | sqlite3.Error) -> StateError:
    trouble = trouble_of(error)
    if trouble is None:
        return StateError(f"{folder} cannot be used ({error}); give another --state")
    return StateError(f"the disk of {folder} {trouble.value} ({error}); {WAYS_OUT[trouble]}")
