"""A file system of which every step that can fail is seen first."""

from __future__ import annotations

from pathlib import Path

from fedstream.files import RealFileSystem


class SteppingFileSystem(RealFileSystem):
    """Counts steps. `step` is called before each, and may raise in its place."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> None:
        """Count one."""
        self.steps += 1

    def open(self, path: Path) -> int:
        self.step()
        return super().open(path)

    def write_at(self, descriptor: int, offset: int, data: bytes | memoryview) -> None:
        self.step()
        super().write_at(descriptor, offset, data)

    def sync(self, descriptor: int) -> None:
        self.step()
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self.step()
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self.step()
        super().sync_folder(folder)
