"""Which of two global models is the better one. The server goes by it, and sites can tell which one it will keep."""

from __future__ import annotations

import math
from collections.abc import Mapping

Score = tuple[float, float]


def score_of(metrics: Mapping[str, float | None]) -> Score:
    """What models are compared by, the larger the better. A value that is missing or NaN is worse than any other.

    A better score is a higher accuracy or, where that is equal or the task has none, a lower loss.
    """
    return _rank(metrics.get("accuracy"), sign=1), _rank(metrics.get("loss"), sign=-1)


def _rank(value: float | None, sign: int) -> float:
    # Every comparison with NaN is false: a diverged model that came first would stay the best for ever.
    return -math.inf if value is None or math.isnan(value) else sign * value
