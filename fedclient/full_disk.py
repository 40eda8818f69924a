"""Writing what a site must not lose to a disk that may be full."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from fedstream.files import may_pass

log = structlog.get_logger()

T = TypeVar("T")

_RETRY_SECONDS = 2.0


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
            if not may_pass(error) or time.monotonic() + _RETRY_SECONDS >= give_up:
                raise
            if str(error) != told:
                told = str(error)
                log.warning(waiting, because=told)
        await asyncio.sleep(_RETRY_SECONDS)
