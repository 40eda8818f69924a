"""When a federation began and how long servers have run for it, over all their processes."""

from __future__ import annotations

from dataclasses import dataclass

from fedserver.clock import Clock
from fedserver.store import State
from fedserver.store.facts import remembering
from fedserver.store.journal import Statement

_FIRST_START_FACT = "first_start"
_SECONDS_FACT = "seconds_at_work"


@dataclass(frozen=True, slots=True)
class WorkingTime:
    """The working time so far is that of earlier processes and that of this one; down-time is in neither.

    It is kept at each round's end, and when a server ends by itself. Of a process that was killed, the time since the
    last round's end is lost, which is all of it if no round ended.

    `first_start` is the first process's start in unix seconds, `earlier_seconds` the time of earlier processes, and
    `began` the start of this one by the steady clock.
    """

    first_start: float
    earlier_seconds: float
    began: float

    @classmethod
    def of_new_process(cls, clock: Clock) -> WorkingTime:
        """As if there had been no process before."""
        return cls(clock.wall(), 0.0, clock.monotonic())

    def going_on(self, state: State) -> WorkingTime:
        """With what earlier processes kept. The very first start is kept now."""
        first_start, seconds = state.fact(_FIRST_START_FACT), state.fact(_SECONDS_FACT)
        if first_start is None:
            state.remember(_FIRST_START_FACT, repr(self.first_start))
            return self
        return WorkingTime(float(first_start), float(seconds or 0.0), self.began)

    def seconds(self, now: float) -> float:
        """The working time until `now` by the steady clock; not by the wall clock, which may be set back."""
        return self.earlier_seconds + now - self.began

    def keeping(self, now: float) -> Statement:
        """What makes the working time until `now` durable."""
        return remembering(_SECONDS_FACT, repr(self.seconds(now)))
