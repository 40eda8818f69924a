"""`fedserver rounds` of a state directory alone. A moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from fedserver.commands.rounds import show_rounds
from fedserver.store import State
from fedserver.store.history import record_text
from fedserver.store.rounds import concluding
from fedtask.report import RoundRecord

pytestmark = pytest.mark.numpy_task


@pytest.fixture
def state(tmp_path: Path) -> Path:
    opened = State(tmp_path / "state")
    for number in range(1, 4):
        record = RoundRecord(number, succeeded=True, reason="", duration_seconds=1.0)
        for statement in concluding(record_text(record), number, None):
            opened.database.execute(statement.sql, *statement.values)
    opened.close()
    return opened.folder


@pytest.mark.parametrize(("asked", "shown"), [(1, 1), (3, 3), (0, 3)])
def test_round_is_shown_by_its_number_and_0_is_the_last_one_as_with_a_server(
    state: Path, capsys: pytest.CaptureFixture[str], asked: int, shown: int
) -> None:
    show_rounds(state, asked, as_json=True)
    assert json.loads(capsys.readouterr().out)["round"]["number"] == shown


def test_round_that_there_was_not_is_said(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        show_rounds(state, 4, as_json=True)
    assert f"there is no round 4 in {state}" in capsys.readouterr().err


def test_rounds_are_listed_oldest_first(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_rounds(state, None, as_json=True)
    assert [one["number"] for one in json.loads(capsys.readouterr().out)["rounds"]] == [1, 2, 3]
