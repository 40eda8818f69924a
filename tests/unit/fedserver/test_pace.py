"""When a federation may be over. A moment."""

from __future__ import annotations

import pytest

from fedserver.pace import expected_seconds
from fedtask.report import RoundRecord

pytestmark = pytest.mark.numpy_task


def took(*seconds: float) -> list[RoundRecord]:
    return [RoundRecord(number, True, "", one) for number, one in enumerate(seconds, start=1)]


@pytest.mark.parametrize(
    ("over", "elapsed", "expected"),
    [
        ([], 5.0, None),
        ([90.0], 0.0, 9 * 90.0),
        ([90.0, 30.0], 10.0, 20.0 + 7 * 30.0),  # the first had more to do
        ([90.0, 30.0, 40.0], 10.0, 30.0 + 6 * 40.0),
        ([1.0, 30.0, 40.0, 50.0], 60.0, 5 * 40.0),  # it takes longer than the others
        ([30.0] * 9, 30.0, 0.0),
    ],
)
def test_rounds_that_are_left_take_as_long_as_the_latest(
    over: list[float], elapsed: float, expected: float | None
) -> None:
    assert expected_seconds(took(*over), 10, elapsed) == expected
