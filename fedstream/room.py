"""Room on a disk, waited for: whoever makes it should not have to start anything again."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from fedstream.checkup.machine import existing_part
from fedstream.sizes import size
from fedstream.waiting import comes

log = structlog.get_logger()


async def comes_room(
    folders: Sequence[Path], least_bytes: int, pause_seconds: float, stopped: asyncio.Event | None = None
) -> bool:
    """Wait until so much is free where each folder is, or will be made, and say so; whether it came before a stop.

    For a start, as after a reboot, on a disk that is full: a process that runs waits for one that fills up likewise.
    """
    stopped = stopped or asyncio.Event()
    for folder in folders:
        told = False
        while (free := _free_bytes(folder)) < least_bytes:
            if not told:
                found = f"{size(free)} are free where {folder} is, and {size(least_bytes)} are the least to start with"
                log.error("waiting for the disk", because=found, hint="make space; it goes on by itself then")
                told = True
            if await comes(stopped, pause_seconds):
                return False
        if told:
            log.info("there is room on the disk again", folder=str(folder))
    return True


def _free_bytes(folder: Path) -> int:
    """No end of it where nobody can be asked, or there is no disk, as of /proc: whoever uses it says why better."""
    try:
        disk = shutil.disk_usage(existing_part(folder))
    except OSError:
        return sys.maxsize
    return disk.free if disk.total else sys.maxsize
