"""The clock as a seam: a steady one for rules, and the wall clock for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Two readings of time, in seconds."""

    def monotonic(self) -> float:
        """Never jumps; deadlines and leases are measured by it."""

    def wall(self) -> float:
        """Unix time; only ever shown, and compared with what ends by the calendar: certificates and invitations."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


def wall_time_of(clock: Clock, instant: float) -> datetime:
    """The wall-clock time of an instant of the steady clock, as the wall clock goes now."""
    return datetime.fromtimestamp(clock.wall() + instant - clock.monotonic(), UTC)
