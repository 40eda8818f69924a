"""The database's versions, and how it is looked at beside its server. A moment."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from fedserver.store import State, StateError, StateReader
from fedserver.store import database as database_module
from fedserver.store.database import MIGRATIONS, Database
from fedserver.store.row_checks import checked

pytestmark = pytest.mark.numpy_task

STEP_2 = f"""
    CREATE TABLE painted (name TEXT PRIMARY KEY, row TEXT NOT NULL, colour TEXT NOT NULL,
        {checked("name", "row", "colour")}) STRICT;
    INSERT INTO painted SELECT name, row, 'grey' FROM clients;
    DROP TABLE clients;
    ALTER TABLE painted RENAME TO clients;
    CREATE TABLE more (a TEXT PRIMARY KEY, {checked("a")}) STRICT;
"""  # noqa: S608 - nothing from outside is in it


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
    assert version_of(first) == len(MIGRATIONS)
    for _ in range(2):
        database = Database(first)
        assert database.query("SELECT name, row, colour FROM clients") == [("alpha", "{}", "grey")]
        assert database.query("SELECT * FROM more") == []
        database.close()
        assert version_of(first) == len(MIGRATIONS) + 1


def test_conversion_that_breaks_off_changes_nothing_and_is_done_the_next_time(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "MIGRATIONS", [*MIGRATIONS, f"{STEP_2} CREATE TABLE more (a TEXT) STRICT;"])
    with pytest.raises(StateError, match="table more already exists"):
        Database(first)
    assert version_of(first) == len(MIGRATIONS)
    monkeypatch.setattr(database_module, "MIGRATIONS", [*MIGRATIONS, STEP_2])
    Database(first).close()
    assert version_of(first) == len(MIGRATIONS) + 1


def test_reader_converts_nothing_and_says_who_does(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "MIGRATIONS", [*MIGRATIONS, STEP_2])
    with pytest.raises(StateError, match="start `fedserver run` on it once, to convert it"):
        Database(first, read_only=True)
    assert version_of(first) == len(MIGRATIONS)


@pytest.mark.parametrize("read_only", [False, True])
def test_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path, *, read_only: bool) -> None:
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (a TEXT)")
    before = path.read_bytes()
    with pytest.raises(StateError, match=r"state\.db is not a fedserver database; restore a backup"):
        Database(path, read_only=read_only)
    assert path.read_bytes() == before


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


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such names")
def test_reader_finds_the_database_in_a_folder_whose_name_is_no_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"klinik-m\xfcnchen # ?")
    folder.mkdir()
    with closing(State(folder)) as state, closing(StateReader(folder)) as reader:
        state.remember("a", "1")
        assert reader.database.query("SELECT value FROM facts WHERE key = 'a'") == [("1",)]


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
    database.execute("PRAGMA max_page_count = 30")
    with pytest.raises(sqlite3.OperationalError, match="full") as caught:
        database.execute("INSERT INTO facts VALUES ('a', ?)", "x" * 1_000_000)
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_FULL
    database.execute("PRAGMA max_page_count = 3000")
    database.execute("INSERT INTO facts VALUES ('a', ?)", "x" * 1_000_000)
    assert database.query("SELECT length(value) FROM facts") == [(1_000_000,)]
    database.close()


def test_query_does_not_wait_for_a_commit_and_sees_nothing_of_it_before(tmp_path: Path) -> None:
    database = Database(tmp_path / "some.db")
    begun, go = threading.Event(), threading.Event()

    def slow_commit() -> None:
        with database.transaction() as cursor:
            cursor.execute("INSERT INTO facts VALUES ('a', '1')")
            begun.set()
            assert go.wait(20.0)  # as a medium that takes its time

    writing = threading.Thread(target=slow_commit)
    writing.start()
    try:
        assert begun.wait(20.0)
        reading = threading.Thread(target=lambda: seen.append(database.query("SELECT count(*) FROM facts")))
        seen: list[list[tuple[int]]] = []
        reading.start()
        reading.join(10.0)
        assert seen == [[(0,)]]
    finally:
        go.set()
        writing.join()
    assert database.query("SELECT count(*) FROM facts") == [(1,)]
    database.close()


def test_query_changes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "some.db")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.query("INSERT INTO facts VALUES ('a', '1')")
    database.close()


def damage(path: Path, old: bytes, new: bytes) -> None:
    """Change what stands in the file, behind SQLite's back."""
    data = path.read_bytes()
    assert len(old) == len(new)
    assert data.count(old) == 1, "there is just one such place to change"
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("read_only", [False, True])
def test_row_that_the_disk_changed_is_named_at_opening(first: Path, *, read_only: bool) -> None:
    database = Database(first)
    database.execute("INSERT INTO late_updates VALUES (7, 2, 'too late')")
    database.close()
    damage(first, b"too late", b"too mate")
    with pytest.raises(StateError, match=r"table late_updates, round 7, rank 2\); restore"):
        Database(first, read_only=read_only)


def test_key_that_the_disk_changed_is_found_by_its_index(first: Path) -> None:
    damaged = first.read_bytes()
    place = damaged.rindex(b"alpha")
    first.write_bytes(damaged[:place] + b"\xff" + damaged[place + 1 :])
    with pytest.raises(StateError, match="clients"):
        Database(first)


def test_definition_that_the_disk_changed_is_named_at_opening(first: Path) -> None:
    damage(first, b"uploads_by_round ON uploads (round)", b"uploads_by_round ON uploads (state)")
    with pytest.raises(StateError, match="uploads_by_round"):
        Database(first)


def test_plain_tool_reads_the_tables_and_cannot_change_a_row(first: Path) -> None:
    with closing(sqlite3.connect(first)) as tool:
        assert tool.execute("SELECT name, row FROM clients").fetchall() == [("alpha", "{}")]
        with pytest.raises(sqlite3.OperationalError, match="row_crc32c"):
            tool.execute("UPDATE clients SET row = '[]'")


def test_checksum_follows_every_statement_that_changes_a_row(first: Path) -> None:
    database = Database(first)
    database.execute("UPDATE clients SET row = '[1]'")
    database.execute("INSERT OR REPLACE INTO clients VALUES ('alpha', '[2]')")
    database.execute("INSERT INTO clients VALUES ('beta', '[]') ON CONFLICT (name) DO UPDATE SET row = '[3]'")
    database.close()
    Database(first).close()
