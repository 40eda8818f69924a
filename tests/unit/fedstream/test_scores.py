from __future__ import annotations

import math

import pytest

from fedstream.scores import score_of

pytestmark = pytest.mark.numpy_task


def test_score_of_no_metrics_is_below_every_other() -> None:
    assert score_of({}) == (-math.inf, -math.inf) < score_of({"loss": 1e300}) < score_of({"accuracy": 0.0})
