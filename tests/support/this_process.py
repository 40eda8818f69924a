"""What the process that runs the tests holds."""

from __future__ import annotations

import contextlib
from pathlib import Path


def open_files(below: Path) -> int:
    """How many descriptors are open of files in a folder. Of others, an earlier test's may go at any moment."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += descriptor.readlink().is_relative_to(below)
    return found


def mapped_mib(below: Path) -> float:
    """Memory that is resident of mapped files in a folder, in MiB."""
    kib, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):  # a mapping's own line, with the file's name at its end
            counts = len(fields) == 6 and Path(fields[5]).is_relative_to(below)
        elif counts and fields[0] == "Rss:":
            kib += int(fields[1])
    return kib / 1024


def children() -> int:
    """How many processes it has started that run or are not awaited yet. A thread of an earlier test's may end."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += len((task / "children").read_text().split())
    return found


def own_mib() -> float:
    """Memory that is resident and not of files, in MiB."""
    return _resident_mib("RssAnon")


def _resident_mib(kind: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) / 1024
