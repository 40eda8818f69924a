"""Writing what a site must not lose to a disk that may be full."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog

from fedstream.files import FULL, gone_folder, may_pass, refusal_words

log = structlog.get_logger()

T = TypeVar("T")

RETRY_SECONDS = 2.0
"""Between two looks whether somebody has made space."""


def disk_words(error: OSError, folder: Path) -> str:
    """What the disk refuses where, and what to do, for people here; `folder` is for an error that names none."""
    if gone_folder(error) is not None:
        return refusal_words(error)
    advice = "make space there" if error.errno in FULL else "see to that folder and its disk"
    return f"{error.filename or folder}: {error.strerror or error}; {advice}"


async def when_the_disk_can(write: Callable[[], Awaitable[T]], waiting: str, within_seconds: float = math.inf) -> T:
    """Do what writes; where the disk refuses, say so, and try again: somebody may make space meanwhile.

    Args:
        write: may be done again after it has failed.
        waiting: the words for it, such as `what was trained waits for the disk`.
        within_seconds: how long to go on.

    Raises:
        OSError: the disk refuses for another reason, or has for so long.
    """
    give_up, told = time.monotonic() + within_seconds, ""
    while True:
        try:
            return await write()
        except OSError as error:
            if not may_pass(error) or time.monotonic() + RETRY_SECONDS >= give_up:
                raise
            if refusal_words(error) != told:
                told = refusal_words(error)
                log.warning(waiting, because=told)
        await asyncio.sleep(RETRY_SECONDS)
