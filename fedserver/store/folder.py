"""A state directory from outside: what is in it under which name, whether it is in use, and opening its database.

For commands and the doctor, which look at a directory beside its server, and for `fedserver.store.state`, which is that
server's.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedserver.store import keys, retention
from fedserver.store.database import LOG_BACK, RESTORE, Database
from fedserver.store.errors import StateError

DATABASE, LOCK = "state.db", "server.lock"
MODELS, UPDATES = "models", "updates"
UNCLAIMED = "unclaimed"
"""Where models are put of which the database knows nothing, though no interrupted step explains them."""

AUDIT_LOG = "audit.jsonl"
ADDRESSES = "addresses.json"
"""What `fedserver init` was told; without it a server listens on loopback only."""

COLLECTION_LOCK = "collection.lock"
"""Held while files are collected, and while a backup copies them."""

CONTACT = "server.json"
"""How local commands reach the server, and how it ended."""


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
        StateError: models or keys are there, and no database that could say what they are.
    """
    database = folder / DATABASE
    if database.exists() and database.stat().st_size:
        return
    if trace := _trace(folder):
        state = "is empty" if database.exists() else "is missing"
        raise StateError(f"{database} {state}, though {trace}; {RESTORE}")


def open_database(folder: Path, *, read_only: bool = False) -> Database:
    """The database of a state directory, unless it is another one than that with which the directory was in use.

    One that has lost its log, in which all of a young federation is, would begin anew without a word as well: with new
    keys, and with what is left of the old federation swept away as litter.

    Raises:
        StateError: models or keys are there that the database does not know; or it is damaged or of another version.
    """
    require_database(folder)
    opened = Database(folder / DATABASE, read_only=read_only, trace=_trace(folder))
    try:
        keys.require_remembered(folder, opened)
        _require_any_model_known(folder, opened)
    except BaseException:
        opened.close()
        raise
    return opened


def _require_any_model_known(folder: Path, database: Database) -> None:
    """Of a federation without keys, its models are the trace; one may be of a first start that was interrupted."""
    if retention.lost_models(database, folder) and not database.query("SELECT 1 FROM models LIMIT 1"):
        raise StateError(f"{database.path} knows none of the models in {folder / MODELS}; {LOG_BACK}")


def _trace(folder: Path) -> str:
    """What only a federation that has begun leaves, in words; empty if there is nothing of the kind."""
    if any((folder / MODELS).glob("*.safetensors")):
        return f"{folder / MODELS} holds models"
    found = [folder / name for name in keys.IDENTITY_FILES if (folder / name).exists()]
    return f"{found[0]} is there" if found else ""


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
        contact: Any = json.loads((folder / CONTACT).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise unreadable(folder, error) from error
    return contact if isinstance(contact, dict) else {}
