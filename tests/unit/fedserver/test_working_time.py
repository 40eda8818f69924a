"""The report covers all processes of a federation, and not the time between them. 2 s."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedserver.federation import FederationFailed
from fedserver.preparation import prepare
from fedserver.records import federation_record
from fedserver.upkeep import keep_end
from fedtask.report import FederationRecord
from tests.support.bench import Bench, image_of
from tests.support.clocks import SetClock

pytestmark = pytest.mark.numpy_task

FIRST = 1.6e9


def reported(bench: Bench) -> FederationRecord:
    return federation_record(bench.federation, "all rounds done", None, None, [])


def times(bench: Bench) -> tuple[datetime, float]:
    record = reported(bench)
    return record.started, record.duration_seconds


async def test_report_of_one_process_covers_its_whole_life(tmp_path: Path) -> None:
    clock = SetClock(50_000.0, FIRST)
    async with Bench.running(tmp_path, clock=clock) as bench:
        clock.advance(7.0)
        assert times(bench) == (datetime.fromtimestamp(FIRST, UTC), 7.0)


async def test_report_after_kills_has_the_first_start_and_the_time_in_which_a_server_ran(tmp_path: Path) -> None:
    first = SetClock(50_000.0, FIRST)
    async with Bench.running(tmp_path / "first", "a", clock=first) as bench:
        first.advance(100.0)
        await bench.play(1)
        first.advance(3.0)  # after the round's end, and lost
        image_of(tmp_path / "first", tmp_path / "second")
    second = SetClock(10.0, FIRST + 5_000.0)
    async with Bench.running(tmp_path / "second", "a", clock=second) as bench:
        second.advance(20.0)
        assert times(bench) == (datetime.fromtimestamp(FIRST, UTC), 120.0)
        await bench.play(2)
        image_of(tmp_path / "second", tmp_path / "third")
    third = SetClock(0.0, FIRST - 9.0)  # a wall clock that was set back
    async with Bench.running(tmp_path / "third", clock=third) as bench:
        third.advance(4.0)
        assert times(bench) == (datetime.fromtimestamp(FIRST, UTC), 124.0)


async def test_start_that_was_killed_before_any_round_ended_is_the_first_start_all_the_same(tmp_path: Path) -> None:
    first = SetClock(50_000.0, FIRST)
    async with Bench.running(tmp_path / "first", clock=first):
        first.advance(30.0)
        image_of(tmp_path / "first", tmp_path / "second")
    second = SetClock(0.0, FIRST + 60.0)
    async with Bench.running(tmp_path / "second", clock=second) as bench:
        second.advance(2.0)
        assert times(bench) == (datetime.fromtimestamp(FIRST, UTC), 2.0)


async def test_server_that_ended_by_itself_loses_no_working_time(tmp_path: Path) -> None:
    first = SetClock(50_000.0, FIRST)
    async with Bench.running(tmp_path, clock=first) as bench:
        first.advance(30.0)
        await keep_end(bench.federation)
    second = SetClock(0.0, FIRST + 60.0)
    async with Bench.running(tmp_path, clock=second) as bench:
        second.advance(2.0)
        assert times(bench) == (datetime.fromtimestamp(FIRST, UTC), 32.0)


async def test_start_that_failed_before_it_was_ready_is_not_the_first_start(tmp_path: Path) -> None:
    failed = Bench(tmp_path, clock=SetClock(50_000.0, FIRST), test=str(tmp_path / "nowhere"))
    with pytest.raises(FederationFailed):
        await prepare(failed.federation)
    failed.state.close()
    async with Bench.running(tmp_path, clock=SetClock(0.0, FIRST + 60.0)) as bench:
        assert times(bench) == (datetime.fromtimestamp(FIRST + 60.0, UTC), 0.0)
