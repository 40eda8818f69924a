"""A fine-tune by the clock: what is paid once, and what each epoch takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedtask.task import Weights


@dataclass(frozen=True, slots=True)
class Moment:
    """Seconds by the clock, and of the processor time that this process has used in all its threads."""

    clock: float
    processor: float

    @classmethod
    def now(cls) -> Moment:
        """This one."""
        return cls(time.perf_counter(), time.process_time())


@dataclass(frozen=True, slots=True)
class Fit:
    """A fine-tune that was timed.

    `once_seconds` is what the first epoch took longer than the others: computing features where they are kept, and
    compiling. `epoch_seconds` and `processor_seconds` are the medians of the others.
    """

    total_seconds: float
    once_seconds: float
    epoch_seconds: float
    processor_seconds: float
    weights: Weights


def fit_of(began: Moment, ended: Sequence[Moment], weights: Weights) -> Fit:
    """Sum up a fine-tune of at least two epochs, from when it began and when each epoch ended."""
    epoch = statistics.median(end.clock - start.clock for start, end in pairwise(ended))
    processor = statistics.median(end.processor - start.processor for start, end in pairwise(ended))
    total = ended[-1].clock - began.clock
    return Fit(total, ended[0].clock - began.clock - epoch, epoch, processor, weights)
