"""When the disk refuses: which errors mean it, and what to say."""

from __future__ import annotations

import contextlib
import enum
import errno
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from fedstream.files import AWAY, FULL, TEMPORARY_SUFFIX, FileSystem

FreeBytes = Callable[[Path], int]
"""How many bytes may still be written below a folder."""


class DiskTrouble(enum.Enum):
    """What is wrong with the disk that the state directory is on. The value is for people."""

    FULL = "is full"
    READ_ONLY = "cannot be written: it is mounted read-only, or the rights are missing"
    FAILING = "reports errors of the medium"
    GONE = "is not there: the folder was moved or removed, or its disk was unmounted or cannot be reached"


_BY_ERRNO = {
    **dict.fromkeys(FULL, DiskTrouble.FULL),
    **dict.fromkeys(AWAY, DiskTrouble.GONE),
    errno.EROFS: DiskTrouble.READ_ONLY,
    errno.EACCES: DiskTrouble.READ_ONLY,
    errno.EPERM: DiskTrouble.READ_ONLY,
    errno.EIO: DiskTrouble.FAILING,
}

_BY_SQLITE_CODE = {
    sqlite3.SQLITE_FULL: DiskTrouble.FULL,
    sqlite3.SQLITE_READONLY: DiskTrouble.READ_ONLY,
    sqlite3.SQLITE_IOERR: DiskTrouble.FAILING,
    sqlite3.SQLITE_CANTOPEN: DiskTrouble.FAILING,
}

NEXT_TO_NOTHING_BYTES = 1 << 20
"""SQLite reports some failures of a full disk as errors of the medium; with less than this free, they are of that
kind."""

WAYS_OUT = {
    DiskTrouble.FULL: "make space",
    DiskTrouble.READ_ONLY: "make it writable again",
    DiskTrouble.FAILING: "look at the system's log, and make a copy with `fedserver backup`",
    DiskTrouble.GONE: "put it back",
}


def trouble_of(error: BaseException) -> DiskTrouble | None:
    """What an error says about the disk; `None` where it is about something else."""
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_ERRNO.get(error.errno)
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", None)
        # The low byte is the kind, the rest says in which operation.
        return _BY_SQLITE_CODE.get(code & 0xFF) if code is not None else None
    return None


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error means that the disk of a folder is full, whatever it is called."""
    trouble = trouble_of(error)
    if trouble is DiskTrouble.FAILING:
        with contextlib.suppress(OSError):
            return free_bytes(folder) < NEXT_TO_NOTHING_BYTES
    return trouble is DiskTrouble.FULL


def free_bytes(folder: Path) -> int:
    """Free space, as far as this user may use it."""
    return shutil.disk_usage(folder).free


def require_writable(folder: Path, files: FileSystem) -> None:
    """Make a small file durable, which does not stay.

    Raises:
        OSError: the disk refuses.
    """
    probe = folder / f"probe{TEMPORARY_SUFFIX}"
    descriptor = files.open(probe)
    try:
        files.write_at(descriptor, 0, bytes(4096))
        files.sync(descriptor)
    finally:
        files.close(descriptor)
        files.remove(probe)
