"""How long things take here, measured while they go on: a fine-tune that is stopped in the middle teaches it too."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fedtask.task import EpochReport

_LEAST_SHARE = 0.02
"""Share of a fine-tune that must have gone by before it is taken as a measure of the rest."""


@dataclass(slots=True)
class Pace:
    """One fine-tune's pace. `epoch_seconds` is `None` until enough has gone by.

    It is the time from one epoch to a later one; within the first, it is judged by the share that is done. What comes
    before training, such as reading the base model or computing features, is no part of it: it does not grow with the
    number of epochs.
    """

    epoch_seconds: float | None = None
    _first: tuple[float, EpochReport] | None = None
    _epoch: int = 0

    def note(self, report: EpochReport, now: float) -> None:
        """Take in a report from training. `now` is in seconds of any steady clock."""
        if self._first is None:
            self._first, self._epoch = (now, report), report.epoch
        started, first = self._first
        gone, share = report.epoch - first.epoch, report.fraction - first.fraction
        if report.epoch > self._epoch:
            self._epoch, self.epoch_seconds = report.epoch, (now - started) / gone
        elif gone == 0 and share >= _LEAST_SHARE and report.epochs:
            self.epoch_seconds = (now - started) / share * (1 - first.fraction) / report.epochs


@dataclass(slots=True)
class TransferTime:
    """How many seconds the bytes of one transfer were on their way.

    A time at whose end no more bytes are there than at its beginning does not count. So each try begins with a note of
    what was there before: how long the server was away says nothing of the next round.
    """

    seconds: float = 0.0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    _noted: tuple[float, int] | None = None

    def note(self, done: int) -> None:
        """`done` bytes are there."""
        now = self.clock()
        if self._noted is not None and done > self._noted[1]:
            self.seconds += now - self._noted[0]
        self._noted = now, done
