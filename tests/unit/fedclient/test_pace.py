"""A fine-tune's pace."""

from __future__ import annotations

import pytest

from fedclient.pace import Pace
from fedtask.task import EpochReport

pytestmark = pytest.mark.numpy_task


def pace_of(*reports: tuple[float, int, float]) -> float | None:
    """The pace after reports of ten epochs at most, each as (now, epoch, fraction)."""
    pace = Pace()
    for now, epoch, fraction in reports:
        pace.note(EpochReport("training", epoch, 10, fraction), now)
    return pace.epoch_seconds


def test_pace_of_a_first_epoch_is_judged_by_the_share_done() -> None:
    assert pace_of((100.0, 1, 0.0), (105.0, 1, 0.025)) == pytest.approx(20.0)


def test_pace_of_a_first_epoch_leaves_out_the_share_that_preparation_took() -> None:
    assert pace_of((100.0, 1, 0.5), (110.0, 1, 0.525)) == pytest.approx(20.0)


def test_pace_of_several_epochs_is_the_time_from_one_to_another() -> None:
    assert pace_of((100.0, 1, 0.1), (130.0, 2, 0.2), (190.0, 4, 0.4), (215.0, 4, 0.49)) == pytest.approx(30.0)


def test_pace_of_a_fine_tune_that_has_hardly_begun_is_not_known() -> None:
    assert pace_of((100.0, 1, 0.0), (101.0, 1, 0.01)) is None
