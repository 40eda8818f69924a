"""The state directory: one server's whole memory, and the lock that keeps a second server out of it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedserver.store.database import Database
from fedserver.store.journal import Journal
from fedserver.store.models import ModelStore
from fedserver.store.rounds import records
from fedserver.store.uploads import UploadStore
from fedstream.errors import FedstreamError
from fedstream.files import FileSystem, RealFileSystem, write_durably
from fedstream.tls import Identity, make_self_signed
from fedtask.report import RoundRecord


class StateError(FedstreamError):
    """The state directory cannot be used. The message says why and what to do."""


class State:
    """Opens a state directory, made if need be, for one server process.

    Args:
        folder: the directory.
        files: the file system; the real one by default.

    Raises:
        StateError: another server uses it, it cannot be written, or its database is damaged.
    """

    def __init__(self, folder: Path, files: FileSystem | None = None) -> None:
        self.folder = folder
        self.files = files or RealFileSystem()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FileLock(folder / "server.lock", blocking=False)
            self._lock.acquire()
            self.database = Database(folder / "state.db")
        except Timeout:
            pid = read_contact(folder).get("pid", "unknown")
            message = f"{folder} is in use by another fedserver (pid {pid}); stop that one or give another --state"
            raise StateError(message) from None
        except sqlite3.DatabaseError as error:
            raise StateError(f"{folder}/state.db cannot be read ({error}); restore a backup of {folder}") from error
        except OSError as error:
            raise StateError(f"{folder} cannot be used ({error}); give another --state") from error
        self.models = ModelStore(folder / "models", self.database, self.files)
        self.uploads = UploadStore(folder / "updates", self.database, self.files)
        self.journal = Journal(self.database)

    def identity(self, hosts: Sequence[str]) -> Identity:
        """The server's key and certificate, made at the first start and kept."""
        key_path, certificate_path = self.folder / "server.key", self.folder / "server.crt"
        if not (key_path.exists() and certificate_path.exists()):
            made = make_self_signed(hosts)
            write_durably(self.files, key_path, [made.key])
            write_durably(self.files, certificate_path, [made.certificate])
        return Identity(key_path.read_bytes(), certificate_path.read_bytes())

    def rounds(self) -> list[RoundRecord]:
        """All rounds that are over, oldest first."""
        return records(self.database)

    def fact(self, key: str) -> str | None:
        """A remembered fact."""
        rows = self.database.query("SELECT value FROM facts WHERE key = ?", key)
        return rows[0][0] if rows else None

    def remember(self, key: str, value: str) -> None:
        """Keep a fact."""
        self.database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", key, value)

    def write_contact(self, contact: dict[str, Any]) -> None:
        """Say how local commands reach this server: its pid, address and administration socket."""
        text = json.dumps({"pid": os.getpid(), **contact}, indent=2).encode()
        write_durably(self.files, self.folder / "server.json", [text])

    def close(self) -> None:
        """Close the database and let another server in."""
        self.database.close()
        self._lock.release()


def read_contact(folder: Path) -> dict[str, Any]:
    """What the server of a state directory said of itself; empty if there is none."""
    try:
        contact: dict[str, Any] = json.loads((folder / "server.json").read_text())
        return contact
    except (OSError, ValueError):
        return {}
