"""The file system as a seam, and the one way in which files are made durable.

A durable write is: a temporary file in the same folder, fsync, rename, fsync of the folder. Whoever then records the
file in a database may rely on it. The seam exists because SIGKILL cannot show a missing fsync (the page cache survives
it): a test puts in a double that forgets whatever was not synced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

TEMPORARY_SUFFIX = ".partial"


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of errors by which a disk says that it takes no more."""

AWAY = frozenset({errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT})
"""Numbers by which a disk of the network says that the machine it is on cannot be reached, or has begun anew."""

_PASSING = FULL | AWAY | {errno.EROFS, errno.EIO}


def is_away(error: Exception) -> bool:
    """Whether it says nothing of what is on the disk, since the machine that the disk is on cannot be reached."""
    return isinstance(error, OSError) and error.errno in AWAY


def may_pass(error: OSError) -> bool:
    """Whether it is the disk that refuses, full or for another reason that somebody can mend meanwhile.

    So is a folder that is not there any more, as where it was moved, or its disk unmounted.
    """
    return error.errno in _PASSING or (error.errno == errno.ENOENT and _lacks_folder(error.filename))


def gone_folder(error: OSError) -> Path | None:
    """The folder whose absence is why a file could not be made: of those on its path that are gone, the uppermost."""
    if error.errno != errno.ENOENT or not _lacks_folder(error.filename):
        return None
    folder = Path(error.filename).parent
    while not folder.parent.is_dir():
        folder = folder.parent
    return folder


def refusal_words(error: OSError) -> str:
    """Why a file cannot be written, for people who can mend that; of a folder that is gone, with what to do."""
    gone = gone_folder(error)
    return str(error) if gone is None else f"the folder {gone} is gone; put it back, or make it again"


def _lacks_folder(filename: object) -> bool:
    return isinstance(filename, str | os.PathLike) and not Path(filename).parent.is_dir()


class FileSystem(Protocol):
    """The calls that durability depends on."""

    def open(self, path: Path) -> int:
        """A descriptor for reading and writing; the file is made if it is not there, readable by its owner only."""

    def write_at(self, descriptor: int, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`."""

    def sync(self, descriptor: int) -> None:
        """Return when what was written to the file is on the medium."""

    def close(self, descriptor: int) -> None:
        """Give the descriptor back. Says nothing about durability."""

    def rename(self, source: Path, target: Path) -> None:
        """Put `source` in the place of `target`, at once or not at all."""

    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's names are on the medium."""

    def remove(self, path: Path) -> None:
        """Remove the file, if it is there."""


class RealFileSystem:
    """The operating system's file system."""

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write_at(self, descriptor: int, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view.nbytes:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def sync(self, descriptor: int) -> None:
        sync_to_medium(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_to_medium(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


def sync_to_medium(descriptor: int) -> None:
    """Return when what was written to the file, or the names in the folder, are on the medium."""
    # On macOS, fsync leaves it in the drive's cache. The other call is not known to every file system, as of a network.
    if hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def write_durably(files: FileSystem, path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Make `path` hold `parts`, whole or not at all; when this returns, a power cut cannot undo it."""
    write_then_name(files, path.with_name(path.name + TEMPORARY_SUFFIX), parts, lambda: path)


def write_then_name(
    files: FileSystem, temporary: Path, parts: Iterable[bytes | memoryview], name: Callable[[], Path]
) -> Path:
    """`write_durably` of a file whose name is known only when all `parts` are, such as one named by its digest.

    Args:
        files: the file system.
        temporary: where the file is written; a leftover of an interrupted write may be there.
        parts: what it is to hold, one after another.
        name: asked once, after the last part; in the folder of `temporary`.

    Raises:
        OSError: the disk refuses. It names a file, or the folder where the system names none, as of a full disk.
    """
    files.remove(temporary)  # a leftover may be longer than what comes now
    try:
        _write_and_sync(files, temporary, parts)
        path = name()
        publish(files, temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # on a full disk, what is of no use must not take what space is left
            files.remove(temporary)
        if error.errno is not None and error.filename is None:  # whoever is to make space must know where
            error.filename = str(temporary.parent)
        raise
    return path


def _write_and_sync(files: FileSystem, path: Path, parts: Iterable[bytes | memoryview]) -> None:
    descriptor = files.open(path)
    try:
        offset = 0
        for part in parts:
            files.write_at(descriptor, offset, part)
            offset += memoryview(part).nbytes
        files.sync(descriptor)
    finally:
        files.close(descriptor)


def publish(files: FileSystem, temporary: Path, path: Path) -> None:
    """Give a written and synced file its final name, durably."""
    files.rename(temporary, path)
    files.sync_folder(path.parent)


def make_durable(files: FileSystem, path: Path) -> None:
    """Sync a file that was written without, and its name."""
    descriptor = files.open(path)
    try:
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    files.sync_folder(path.parent)


def forget_pages(path: Path) -> None:
    """Let the system use the memory in which it keeps a file that nobody will read soon. What the file holds stays.

    Else each round's updates would be in memory of their own, until the system has none left: what is written next goes
    to memory that is there already, which is several times as fast as to memory that is new to the machine. It is only
    advice, and means nothing for what is not synced.
    """
    if not hasattr(os, "posix_fadvise"):  # not on macOS
        return
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
