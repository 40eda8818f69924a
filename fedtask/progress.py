"""Reports of a fine-tune as it goes: often enough to be cancelled promptly, seldom enough to cost nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedtask.task import EpochReport, Metrics, Report

INTERVAL_SECONDS = 0.5
"""Least time between two reports, epochs' ends apart: what a cancellation waits for, beside one batch."""


class Progress:
    """Turns work done into reports.

    Args:
        report: where they go; it may raise `Cancelled`, which passes through every method here.
        epochs: the most that may be run.
        preparing_share: the part of the whole time that preparation is expected to take, from 0 to below 1.
        clock: seconds from any start.
    """

    def __init__(
        self, report: Report, epochs: int, preparing_share: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report = report
        self._epochs = epochs
        self._share = preparing_share
        self._clock = clock
        self._last = -INTERVAL_SECONDS + clock()

    def preparing(self, done: float) -> None:
        """`done` of the preparation, 0 to 1. Epoch 0 stands for "none begun"."""
        if self._is_due():
            self._send(EpochReport("preparing", 0, self._epochs, self._share * done))

    def training(self, epoch: int, done: float) -> None:
        """`done`, 0 to 1, of an epoch counted from 1."""
        if self._is_due():
            self._send(self._training(epoch, done, {}))

    def epoch_ended(self, epoch: int, metrics: Metrics) -> None:
        """An epoch is over; always reported."""
        self._send(self._training(epoch, 1.0, metrics))

    def _training(self, epoch: int, done: float, metrics: Metrics) -> EpochReport:
        fraction = self._share + (1 - self._share) * (epoch - 1 + done) / self._epochs
        return EpochReport("training", epoch, self._epochs, min(fraction, 1.0), metrics)

    def _is_due(self) -> bool:
        return self._clock() - self._last >= INTERVAL_SECONDS

    def _send(self, report: EpochReport) -> None:
        self._last = self._clock()
        self._report(report)
