"""How long a federation may take to its end, by how long its latest rounds took."""

from __future__ import annotations

from collections import deque
from statistics import median_low

from fedtask.report import RoundRecord

_LATEST = 3
"""So many rounds say how long one takes. The first often takes longer, since sites prepare their data in it: the lower
median of two or three leaves it out."""


class Pace:
    """How long the latest rounds took that made a model. How long one took that failed says nothing of others."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_LATEST)

    def note(self, record: RoundRecord) -> None:
        """A round is over."""
        if record.succeeded:
            self._seconds.append(record.duration_seconds)

    def expected_seconds(self, rounds_after: int, elapsed: float) -> float | None:
        """How long the round at work and those after it may take yet; `None` before one has made a model.

        Args:
            rounds_after: how many come after the one at work.
            elapsed: seconds since that one opened. If it takes longer than expected, it may end at any moment.
        """
        if not self._seconds:
            return None
        a_round = median_low(self._seconds)
        return max(0.0, a_round - elapsed) + a_round * rounds_after
