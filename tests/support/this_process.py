"""What the process that runs the tests holds."""

from __future__ import annotations

from pathlib import Path


def open_files() -> int:
    """How many descriptors are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped_mib() -> float:
    """Memory that is resident of mapped files, in MiB."""
    return _resident_mib("RssFile")


def children() -> int:
    """How many processes it has started that run or are not awaited yet."""
    return sum(len((task / "children").read_text().split()) for task in Path("/proc/self/task").iterdir())


def own_mib() -> float:
    """Memory that is resident and not of files, in MiB."""
    return _resident_mib("RssAnon")


def _resident_mib(kind: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) / 1024
