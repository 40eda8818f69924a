"""How long a federation may take to its end, by how long its latest rounds took."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from fedtask.report import RoundRecord

_LATEST = 3
"""So many rounds say how long one takes. The first often takes longer, since sites prepare their data in it: the lower
median of two or three leaves it out."""


def expected_seconds(over: Sequence[RoundRecord], planned: int, elapsed: float) -> float | None:
    """How long the round at work and those after it may take yet; `None` before one is over.

    Args:
        over: the rounds that are, in their order.
        planned: rounds in all.
        elapsed: seconds since the round at work opened. One that takes longer than expected may end at any moment.
    """
    if not over:
        return None
    a_round = median_low(one.duration_seconds for one in over[-_LATEST:])
    rounds_after = planned - over[-1].number - 1
    return max(0.0, a_round - elapsed) + a_round * rounds_after
