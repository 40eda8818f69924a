"""What a machine has to give: memory, disk space, folders that can be written."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from fedstream.checkup.runner import Result, failed, ok, warning
from fedstream.files import FULL
from fedstream.sizes import size

GB, MB = 10**9, 10**6


def judge_memory(wanted_bytes: int, purpose: str, available_bytes: int | None) -> Result:
    """Whether there is memory for `purpose`; a warning at most, since others may give some back."""
    if available_bytes is None:
        return ok("this system does not say how much is free")
    if available_bytes < wanted_bytes:
        advice = f"{purpose} takes about {size(wanted_bytes)}: close other programs, or give the container more"
        return warning(f"{size(available_bytes)} available", advice)
    return ok(f"{size(available_bytes)} available")


def available_memory(system: Path = Path("/proc"), control_group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that may be used without swapping, by the system or the container's limit; `None` where it is not said."""
    found = []
    with contextlib.suppress(OSError):
        match = re.search(r"^MemAvailable:\s+(\d+) kB", (system / "meminfo").read_text(), flags=re.MULTILINE)
        found += [int(match[1]) * 1024] if match else []
    with contextlib.suppress(OSError, ValueError):  # `max` where there is no limit
        limit = int((control_group / "memory.max").read_text())
        found.append(max(0, limit - int((control_group / "memory.current").read_text())))
    return min(found, default=None)


def judge_folder(folder: Path, least_bytes: int, comfortable_bytes: int) -> Result:
    """Whether a folder, or the one it will be made in, can be written, and has space. Leaves nothing behind."""
    place = existing_part(folder)
    try:
        free = shutil.disk_usage(place).free
        _try_to_write(place)
    except OSError as error:
        mending = "Make space there" if error.errno in FULL else f"Give this user the right to write in {place}"
        return failed(f"{place} cannot be written ({error.strerror or error})", f"{mending}, or name another folder")
    found = f"{folder} {'can be written' if place == folder.absolute() else 'can be made'}, {size(free)} free"
    if free < least_bytes:
        return failed(found, f"Make space: {size(least_bytes)} is the least that works")
    if free < comfortable_bytes:
        return warning(found, f"Make space: {size(comfortable_bytes)} is a comfortable margin")
    return ok(found)


def existing_part(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    whole = folder.absolute()
    return next(place for place in (whole, *whole.parents) if place.exists())


def _try_to_write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
