"""When a federation may be over. A moment."""

from __future__ import annotations

import pytest

from fedserver.pace import Pace
from fedtask.report import RoundRecord

pytestmark = pytest.mark.numpy_task


@pytest.mark.parametrize(
    ("took", "rounds_after", "elapsed", "expected"),
    [
        ([], 9, 5.0, None),
        ([-1.0], 9, 5.0, None),  # which made no model
        ([90.0], 8, 0.0, 9 * 90.0),
        ([90.0, 30.0], 7, 10.0, 20.0 + 7 * 30.0),  # the first had more to do
        ([90.0, 30.0, 40.0], 6, 10.0, 30.0 + 6 * 40.0),
        ([1.0, 30.0, 40.0, 50.0], 5, 60.0, 5 * 40.0),  # it takes longer than the others
        ([30.0, 40.0, -1.0, -2.0, -1.0], 4, 0.0, 5 * 30.0),
        ([30.0] * 9, 0, 31.0, 0.0),
    ],
)
def test_rounds_that_are_left_take_as_long_as_the_latest_that_made_a_model(
    took: list[float], rounds_after: int, elapsed: float, expected: float | None
) -> None:
    pace = Pace()
    for number, seconds in enumerate(took, start=1):
        pace.note(RoundRecord(number, seconds > 0, "", abs(seconds)))
    assert pace.expected_seconds(rounds_after, elapsed) == expected
