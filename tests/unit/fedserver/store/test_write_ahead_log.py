"""A log that SQLite itself has written, and what may be wrong with it. 2 s."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedserver.store import StateError
from fedserver.store.database import Database
from fedserver.store.write_ahead_log import SpoiltFrame, SpoiltHeader, first_spoilt_frame

pytestmark = pytest.mark.numpy_task

HEADER_BYTES, FRAME_BYTES = 32, 24 + 4096
COMMITS = 20


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """A database whose process ended without closing it: twenty commits after the log was last emptied."""
    path = tmp_path / "running.db"
    running = Database(path)
    running.query("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(COMMITS):
        running.execute("INSERT INTO clients VALUES (?, ?)", f"client_{number:02}", "x" * 5000)
    killed = tmp_path / "killed.db"
    shutil.copy(path, killed)
    shutil.copy(log_of(path), log_of(killed))
    yield killed
    running.close()


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def commit_frames(log: Path) -> list[int]:
    """Places of the frames that end a transaction, by the field of their header that says so."""
    data = log.read_bytes()
    starts = range(HEADER_BYTES, len(data), FRAME_BYTES)
    return [start for start in starts if any(data[start + 4 : start + 8])]


def clients_in(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM clients").fetchone()[0])


def test_log_of_a_killed_server_is_whole(killed: Path) -> None:
    assert len(commit_frames(log_of(killed))) == COMMITS
    assert first_spoilt_frame(log_of(killed)) is None
    Database(killed).close()
    assert clients_in(killed) == COMMITS


def test_flipped_bit_would_cost_commits_without_a_word_and_is_named_instead(killed: Path, tmp_path: Path) -> None:
    place = commit_frames(log_of(killed))[4]
    flip(log_of(killed), place + 24 + 100)
    for name in ("killed.db", "killed.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / name.replace("killed", "lenient"))
    assert clients_in(tmp_path / "lenient.db") == 4  # what SQLite by itself makes of it

    number = (place - HEADER_BYTES) // FRAME_BYTES + 1
    assert first_spoilt_frame(log_of(killed)) == SpoiltFrame(number, COMMITS - 4)
    for read_only in (False, True):
        with pytest.raises(StateError, match=f"killed.db-wal is spoilt at frame {number}, and 16 commits.*restore"):
            Database(killed, read_only=read_only)


@pytest.mark.parametrize("field", [0, 4, 8, 12, 16, 20])
def test_flipped_bit_in_a_frames_header_is_found(killed: Path, field: int) -> None:
    flip(log_of(killed), commit_frames(log_of(killed))[4] + field)
    found = first_spoilt_frame(log_of(killed))
    assert found is not None
    assert found.commits >= COMMITS - 5


@pytest.mark.parametrize("place", [0, 9, 17, 25])
def test_flipped_bit_in_the_logs_header_is_named(killed: Path, place: int) -> None:
    flip(log_of(killed), place)
    with pytest.raises(SpoiltHeader):
        first_spoilt_frame(log_of(killed))
    with pytest.raises(StateError, match=r"the header of killed\.db-wal is damaged"):
        Database(killed)


def test_last_commit_that_a_power_cut_interrupted_is_said_and_left_out(killed: Path) -> None:
    log = log_of(killed)
    flip(log, commit_frames(log)[-1] + 24)
    database = Database(killed)
    assert "in the last commit: a power cut interrupted it" in database.interrupted
    assert database.query("SELECT count(*) FROM clients") == [(COMMITS - 1,)]
    database.close()


def test_log_that_ends_in_the_middle_of_a_frame_is_whole_up_to_there(killed: Path) -> None:
    log = log_of(killed)
    log.write_bytes(log.read_bytes()[: commit_frames(log)[-1] + 1000])
    assert first_spoilt_frame(log) is None


def test_frames_of_an_earlier_use_of_the_log_are_not_taken_for_damage(tmp_path: Path) -> None:
    path = tmp_path / "running.db"
    running = Database(path)
    for number in range(COMMITS):
        running.execute("INSERT OR REPLACE INTO clients VALUES ('same', ?)", str(number) * 5000)
    running.query("PRAGMA wal_checkpoint(RESTART)")
    running.execute("INSERT OR REPLACE INTO clients VALUES ('same', 'new')")
    log = log_of(path)
    assert log.stat().st_size > 10 * FRAME_BYTES, "old frames stand behind the new ones"
    assert first_spoilt_frame(log) is None
    running.close()
    assert first_spoilt_frame(log) is None, "closing removed the log"
