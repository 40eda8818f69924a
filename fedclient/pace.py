"""How long an epoch takes here, measured while it runs: a fine-tune that is stopped in the middle teaches it too."""

from __future__ import annotations

from dataclasses import dataclass

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
