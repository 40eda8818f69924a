"""A file system in memory that can lose its power: what was not synced may then be gone, or not, as on a real one."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class PowerCut(Exception):
    """The power went before or after a step."""


class Survival(enum.Enum):
    """What is found after the power came back. A real file system promises no more than the first, and does any."""

    SYNCED_ONLY = "what was synced, names and contents"
    NAMES_BUT_NOT_CONTENTS = "every name, but only synced contents"
    EVERYTHING = "all that was written"


@dataclass(slots=True)
class _File:
    written: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


class CrashingFileSystem:
    """Behaves as `fedstream.files.FileSystem`.

    Args:
        content: what is there, and synced, at the start.
        fails_at: the step, counted from 0, at which the power goes; `None` for never.
        after: whether the step still takes effect.
    """

    def __init__(self, content: Mapping[Path, bytes], fails_at: int | None = None, *, after: bool = False) -> None:
        self._names = {path: _File(bytearray(data), data) for path, data in content.items()}
        self._synced_names = dict(self._names)
        self._open: dict[int, _File] = {}
        self._fails_at, self._after = fails_at, after
        self.steps: list[str] = []

    def after_power_cut(self, survival: Survival) -> dict[Path, bytes]:
        """Path to content, as the next process finds it."""
        names = self._synced_names if survival is Survival.SYNCED_ONLY else self._names
        if survival is Survival.EVERYTHING:
            return {path: bytes(file.written) for path, file in names.items()}
        return {path: file.synced for path, file in names.items()}

    def _step(self, name: str, effect: object) -> None:
        fails = len(self.steps) == self._fails_at
        self.steps.append(name)
        if not fails or self._after:
            effect()  # type: ignore[operator]
        if fails:
            raise PowerCut(name)

    def open(self, path: Path) -> int:
        descriptor = 100 + len(self.steps)
        self._step("open", lambda: self._open.update({descriptor: self._names.setdefault(path, _File())}))
        return descriptor

    def write_at(self, descriptor: int, offset: int, data: bytes | memoryview) -> None:
        def effect() -> None:
            written = self._open[descriptor].written
            written.extend(bytes(max(0, offset - len(written))))
            written[offset : offset + memoryview(data).nbytes] = bytes(data)

        self._step("write_at", effect)

    def sync(self, descriptor: int) -> None:
        file = self._open[descriptor]
        self._step("sync", lambda: setattr(file, "synced", bytes(file.written)))

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)  # no step: a process that dies closes its files as well

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", lambda: self._names.update({target: self._names.pop(source)}))

    def sync_folder(self, folder: Path) -> None:
        def effect() -> None:
            elsewhere = {path: file for path, file in self._synced_names.items() if path.parent != folder}
            here = {path: file for path, file in self._names.items() if path.parent == folder}
            self._synced_names = elsewhere | here

        self._step("sync_folder", effect)

    def remove(self, path: Path) -> None:
        self._step("remove", lambda: self._names.pop(path, None))
