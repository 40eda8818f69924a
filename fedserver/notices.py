"""When idle clients are told what the server waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_SECONDS = 1.0
"""Between two notices about the same state, at least. While a thousand clients join, what is waited for changes with
each: if all who are there heard every change, half a million messages would keep the rest from joining."""


class Notices:
    """A new state is told at once, a new reason in the same state soon; of several, the last. On the event loop only.

    Args:
        tell: tells everybody what is true now.
        seconds: between two notices about the same state, at least.
    """

    def __init__(self, tell: Callable[[], None], seconds: float = _SECONDS) -> None:
        self._tell, self._seconds = tell, seconds
        self._told = -seconds
        self._due: asyncio.TimerHandle | None = None

    def state_changed(self) -> None:
        """Tell at once; what was to be told later is in it."""
        if self._due is not None:
            self._due.cancel()
        self._tell_now()

    def reason_changed(self) -> None:
        """Tell as soon as the last notice is old enough."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_at(self._told + self._seconds, self._tell_now)

    def _tell_now(self) -> None:
        self._due, self._told = None, asyncio.get_running_loop().time()
        self._tell()
