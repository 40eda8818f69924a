"""The files of the coordinator's data: of a holdout, of a test set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def files_with_sizes(place: Path) -> Iterator[tuple[Path, int]]:
    """A file, or every file in a folder and below, with how many bytes it has. Hidden ones do not count.

    Links to folders are followed, since class folders may be some; each folder is listed once, however many lead there.
    """
    for path in [place] if place.is_file() else _files_below(place):
        with contextlib.suppress(OSError):  # it was removed meanwhile, or is a link to nothing
            if path.is_file():
                yield path, path.stat().st_size


def _files_below(folder: Path) -> Iterator[Path]:
    listed: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in listed:
            folders.clear()
            continue
        listed.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names if not name.startswith("."))
