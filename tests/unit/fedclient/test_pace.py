"""A fine-tune's pace, and a transfer's time."""

from __future__ import annotations

import pytest

from fedclient.pace import Pace, TransferTime
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


def seconds_of(*notes: tuple[float, int]) -> float:
    """The seconds after notes of so many bytes, each as (now, done)."""
    moments = iter([now for now, _ in notes])
    transfer = TransferTime(clock=lambda: next(moments))
    for _, done in notes:
        transfer.note(done)
    return transfer.seconds


def test_transfer_takes_the_time_in_which_bytes_came() -> None:
    assert seconds_of((100.0, 0), (102.0, 10), (105.0, 30)) == pytest.approx(5.0)


def test_transfer_leaves_out_how_long_the_server_was_away() -> None:
    assert seconds_of((100.0, 0), (102.0, 10), (9000.0, 10), (9500.0, 10), (9503.0, 30)) == pytest.approx(5.0)


def test_transfer_that_begins_anew_counts_what_it_took_in_all() -> None:
    assert seconds_of((100.0, 0), (102.0, 10), (103.0, 0), (106.0, 30)) == pytest.approx(5.0)
