"""A disk that loses its power at a chosen step, and then forgets what was not synced.

SIGKILL cannot show a missing fsync, since the page cache survives it. `ForgetfulFileSystem` works on real files, so
that everything that reads them goes on as usual, and notes what of each a power cut would spare; `lose_power` makes
the folder look as it would then be found. Commits of SQLite, whose own durability is taken for granted, are steps too.
"""

from __future__ import annotations

import enum
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Cursor

from fedserver.store.database import Database
from fedstream.files import RealFileSystem

_BLOCK_BYTES = 512


class PowerCut(BaseException):
    """The power went. No `Exception`: nothing in a program can handle it."""


class Survival(enum.Enum):
    """What is found after the power came back. A file system promises no more than the first, and does any of them."""

    SYNCED_ONLY = "what was synced, names and contents"
    NAMES_ONLY = "every name, but only synced contents"
    TORN = "every name, and of unsynced contents some blocks"
    EVERYTHING = "all that was written"


class Power:
    """Counts durable steps, and fails before or after one of them; from then on nothing takes effect any more.

    Args:
        fails_at: the step, counted from 0; `None` for never.
        after: whether that step still takes effect.
    """

    def __init__(self, fails_at: int | None = None, *, after: bool = False) -> None:
        self._fails_at, self._after = fails_at, after
        self._lock = threading.Lock()  # guards the count; steps come from several threads
        self.steps: list[str] = []
        self.gone = threading.Event()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One durable step, which is the block."""
        with self._lock:
            fails = self.begin(name)
            yield
            if fails:
                self.fail(name)

    def begin(self, name: str) -> bool:
        """Count a step before it takes effect; returns whether the power is to `fail` once it has.

        Raises:
            PowerCut: it fails before, or is gone already.
        """
        self._require()
        fails = len(self.steps) == self._fails_at
        self.steps.append(name)
        if fails and not self._after:
            self.fail(name)
        return fails

    def fail(self, name: str) -> None:
        """The power goes."""
        self.gone.set()
        raise PowerCut(f"{'after' if self._after else 'before'} {name}")

    def _require(self) -> None:
        if self.gone.is_set():
            raise PowerCut("the power is gone")


@dataclass(slots=True, eq=False)
class _File:
    """An inode: what a power cut spares of it."""

    synced: bytes = b""


@dataclass(slots=True)
class ForgetfulFileSystem:
    """Behaves as `fedstream.files.FileSystem`. What is there at the start is synced."""

    power: Power
    _real: RealFileSystem = field(default_factory=RealFileSystem)
    _names: dict[Path, _File] = field(default_factory=dict)
    _synced_names: dict[Path, _File] = field(default_factory=dict)
    _open: dict[int, tuple[Path, _File]] = field(default_factory=dict)

    def open(self, path: Path) -> int:
        with self.power.step(f"open {_kind(path)}"):
            self._know(path)
            descriptor = self._real.open(path)
            self._open[descriptor] = path, self._names.setdefault(path, _File())
            return descriptor

    def write_at(self, descriptor: int, offset: int, data: bytes | memoryview) -> None:
        with self.power.step(f"write {self._kind(descriptor)}"):
            self._real.write_at(descriptor, offset, data)

    def sync(self, descriptor: int) -> None:
        with self.power.step(f"sync {self._kind(descriptor)}"):
            self._open[descriptor][1].synced = _content(descriptor)

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor)
        self._real.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        with self.power.step(f"rename {_kind(target)}"):
            self._know(source)
            self._know(target)
            self._real.rename(source, target)
            self._names[target] = self._names.pop(source)

    def sync_folder(self, folder: Path) -> None:
        with self.power.step(f"sync folder {folder.name}"):
            kept = {path: file for path, file in self._synced_names.items() if path.parent != folder}
            self._synced_names = kept | {path: file for path, file in self._names.items() if path.parent == folder}

    def remove(self, path: Path) -> None:
        with self.power.step(f"remove {_kind(path)}"):
            self._know(path)
            self._real.remove(path)
            self._names.pop(path, None)

    def lose_power(self, survival: Survival, rng: random.Random) -> None:
        """Make the files look as after a power cut, with the open ones closed."""
        for descriptor in list(self._open):
            self.close(descriptor)
        if survival is Survival.EVERYTHING:
            return
        written = {file: path.read_bytes() for path, file in self._names.items()}
        found = self._synced_names if survival is Survival.SYNCED_ONLY else self._names
        for path in self._names.keys() | self._synced_names.keys():
            path.unlink(missing_ok=True)
        for path, file in found.items():
            torn = survival is Survival.TORN
            path.write_bytes(_tear(file.synced, written.get(file, b""), rng) if torn else file.synced)
            path.chmod(0o600)

    def _know(self, path: Path) -> None:
        """A file that was there before is whole and has a durable name."""
        if path not in self._names and path.exists():
            self._names[path] = self._synced_names[path] = _File(path.read_bytes())

    def _kind(self, descriptor: int) -> str:
        return _kind(self._open[descriptor][0])


def _kind(path: Path) -> str:
    """What a step is about, the same in every run: no invented names."""
    return f"{path.parent.name}/*{''.join(path.suffixes)}" if path.parent.name in ("models", "updates") else path.name


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _tear(synced: bytes, written: bytes, rng: random.Random) -> bytes:
    """Some blocks as they were written, the others as they were synced; what never was there reads as zeros."""
    size = len(written) if rng.random() < 0.5 else max(len(synced), rng.randrange(len(written) + 1))
    old = synced.ljust(size, b"\0")[:size]
    new = written.ljust(size, b"\0")[:size]
    blocks = range(0, size, _BLOCK_BYTES)
    return b"".join((new if rng.random() < 0.5 else old)[start : start + _BLOCK_BYTES] for start in blocks)


class PoweredDatabase(Database):
    """A database whose commits need power. What was committed survives, what was not is rolled back.

    Args:
        path: of the file.
        power: what may fail.
        read_only, trace: as of `Database`.
    """

    def __init__(self, path: Path, power: Power, *, read_only: bool = False, trace: str = "") -> None:
        self._power = power
        super().__init__(path, read_only=read_only, trace=trace)

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        with super().transaction() as cursor:
            yield cursor
            fails = self._power.begin("commit")
        if fails:
            self._power.fail("commit")
