"""The rounds that are over, read from rows. A moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fedserver.store.database import Database
from fedserver.store.history import History, record_text
from fedserver.store.rounds import concluding
from fedtask.report import RoundRecord

pytestmark = pytest.mark.numpy_task

RECORDS = [RoundRecord(number, succeeded=True, reason="", duration_seconds=1.5 * number) for number in range(1, 6)]


def keep(database: Database, record: RoundRecord) -> None:
    for statement in concluding(record_text(record), record.number, None):
        database.execute(statement.sql, *statement.values)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(tmp_path / "state.db")
    for record in RECORDS[:3]:
        keep(database, record)
    return database


def test_history_is_what_was_kept_and_grows_with_each_round(database: Database) -> None:
    history = History(database)
    assert (list(history), len(history), history[-1]) == (RECORDS[:3], 3, RECORDS[2])
    for record in RECORDS[3:]:
        keep(database, record)
        assert record not in list(history), "it is over once it is said to be"
        history.append(record)
    assert (list(history), len(history), history[-1]) == (RECORDS, 5, RECORDS[4])
    assert list(History(database)) == RECORDS


@pytest.mark.parametrize("place", [slice(1, 3), slice(-1, None), slice(None, None, -1), slice(3, 1), slice(0, 9, 2)])
def test_history_is_cut_as_a_list_is(database: Database, place: slice) -> None:
    assert History(database)[place] == RECORDS[:3][place]


def test_round_is_found_by_its_number_and_0_is_the_last_one(database: Database) -> None:
    history = History(database)
    assert [history.of_number(number) for number in (1, 3, 0, 4)] == [*(RECORDS[i] for i in (0, 2, 2)), None]
    keep(database, RECORDS[3])
    assert history.of_number(4) is None, "it is over once it is said to be"


def test_history_of_no_round_is_empty(tmp_path: Path) -> None:
    history = History(Database(tmp_path / "state.db"))
    assert (len(history), list(history), history[-1:], history.of_number(0)) == (0, [], [], None)
    with pytest.raises(IndexError):
        history[-1]


def test_history_that_is_gone_through_is_read_a_few_rounds_at_a_time(database: Database) -> None:
    for number in range(4, 101):
        keep(database, replace(RECORDS[0], number=number))
    sizes: list[int] = []

    class Noting:
        def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
            rows = database.query(sql, *values)
            sizes.append(len(rows))
            return rows

    assert [record.number for record in History(cast(Any, Noting()))] == list(range(1, 101))
    assert max(sizes) <= 20


def test_history_holds_the_last_record_alone(database: Database) -> None:
    history = History(database)
    assert history[2] is history[-1]
    assert history[1] is not history[1]
