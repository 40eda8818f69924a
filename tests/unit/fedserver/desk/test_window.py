"""The share that an upload has of what may be in flight."""

from __future__ import annotations

import pytest

from fedserver.desk.window import BUDGET_BYTES, MIN_WINDOW_BYTES, window_of
from fedstream import limits


@pytest.mark.parametrize("num_uploads", [0, 1, 2, 8])
def test_few_uploads_have_the_whole_window_each(num_uploads: int) -> None:
    assert window_of(num_uploads) == limits.WINDOW_BYTES


@pytest.mark.parametrize("num_uploads", [9, 32, 100, BUDGET_BYTES // MIN_WINDOW_BYTES])
def test_many_uploads_share_the_budget_and_leave_little_of_it(num_uploads: int) -> None:
    assert 0.9 * BUDGET_BYTES < num_uploads * window_of(num_uploads) <= BUDGET_BYTES


def test_window_is_never_too_small_to_be_worth_an_fsync() -> None:
    assert window_of(10_000) == MIN_WINDOW_BYTES
