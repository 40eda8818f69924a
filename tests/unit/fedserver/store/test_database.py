"""The database's versions, and how it is looked at beside its server. A moment."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fedserver.store import State, StateError, StateReader
from fedserver.store import database as database_module
from fedserver.store.database import MIGRATIONS, Database

pytestmark = pytest.mark.numpy_task

STEP_2 = "ALTER TABLE clients ADD COLUMN colour TEXT NOT NULL DEFAULT 'grey'; CREATE TABLE more (a TEXT) STRICT;"


def version_of(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(version)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A database of the first step, with a row."""
    path = tmp_path / "state.db"
    database = Database(path)
    database.execute("INSERT INTO clients VALUES ('alpha', '{}')")
    database.close()
    return path


def test_database_of_an_earlier_version_is_converted_and_keeps_its_rows(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "MIGRATIONS", [*MIGRATIONS, STEP_2])
    assert version_of(first) == 1
    for _ in range(2):
        database = Database(first)
        assert database.query("SELECT * FROM clients") == [("alpha", "{}", "grey")]
        assert database.query("SELECT * FROM more") == []
        database.close()
        assert version_of(first) == 2


def test_conversion_that_breaks_off_changes_nothing_and_is_done_the_next_time(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "MIGRATIONS", [*MIGRATIONS, f"{STEP_2} CREATE TABLE more (a TEXT) STRICT;"])
    with pytest.raises(StateError, match="table more already exists"):
        Database(first)
    assert version_of(first) == 1
    monkeypatch.setattr(database_module, "MIGRATIONS", [*MIGRATIONS, STEP_2])
    Database(first).close()
    assert version_of(first) == 2


def test_reader_converts_nothing_and_says_who_does(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "MIGRATIONS", [*MIGRATIONS, STEP_2])
    with pytest.raises(StateError, match="start `fedserver run` on it once, to convert it"):
        Database(first, read_only=True)
    assert version_of(first) == 1


def test_reader_sees_what_a_server_commits_and_writes_nothing(tmp_path: Path) -> None:
    state = State(tmp_path)
    reader = StateReader(tmp_path)
    state.remember("a", "1")
    assert reader.database.query("SELECT value FROM facts WHERE key = 'a'") == [("1",)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.database.execute("INSERT INTO facts VALUES ('b', '2')")
    with reader.database.snapshot():
        assert reader.database.query("SELECT count(*) FROM facts") == [(1,)]
        state.remember("c", "3")
        assert reader.database.query("SELECT count(*) FROM facts") == [(1,)]
    assert reader.database.query("SELECT count(*) FROM facts") == [(2,)]
    reader.close()
    state.close()


def test_database_that_is_gone_though_models_are_there_is_not_begun_anew(tmp_path: Path) -> None:
    state = State(tmp_path)
    (tmp_path / "models" / f"{'0' * 64}.safetensors").write_bytes(b"weights")
    state.close()
    for harm, words in ((lambda path: path.write_bytes(b""), "is empty"), (lambda path: path.unlink(), "is missing")):
        harm(tmp_path / "state.db")
        for opening in (State, StateReader):
            with pytest.raises(StateError, match=f"state.db {words}, though .*models holds models; restore a backup"):
                opening(tmp_path)


def test_refused_transaction_does_not_hold_up_the_next_one(tmp_path: Path) -> None:
    database = Database(tmp_path / "some.db")
    database.query("PRAGMA max_page_count = 30")
    with pytest.raises(sqlite3.OperationalError, match="full") as caught:
        database.execute("INSERT INTO facts VALUES ('a', ?)", "x" * 1_000_000)
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_FULL
    database.query("PRAGMA max_page_count = 3000")
    database.execute("INSERT INTO facts VALUES ('a', ?)", "x" * 1_000_000)
    assert database.query("SELECT length(value) FROM facts") == [(1_000_000,)]
    database.close()
