"""The state directory: one server at a time, what it remembers, and what it says when it cannot be used. 1 s."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
import time_machine

from fedserver.store import State, StateError
from fedserver.store.database import Database
from fedserver.store.folder import read_contact
from fedstream.certificates import facts_of, is_issued_by
from fedstream.tls import fingerprint

pytestmark = pytest.mark.numpy_task


def refused(folder: Path) -> str:
    with pytest.raises(StateError) as caught:
        State(folder).close()
    return str(caught.value)


def test_second_server_of_a_state_directory_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    first = State(tmp_path)
    first.write_contact({"address": "127.0.0.1:8443"})
    message = refused(tmp_path)
    assert message == (
        f"{tmp_path} is in use by another fedserver (pid {os.getpid()}); stop that one or give another --state"
    )
    first.close()
    State(tmp_path).close()


def test_second_server_in_another_process_is_refused_too(tmp_path: Path) -> None:
    script = "import sys, pathlib; from fedserver.store import State; State(pathlib.Path(sys.argv[1])).close()"
    first = State(tmp_path)
    try:
        run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    finally:
        first.close()
    assert run.returncode == 1
    assert "is in use by another fedserver (pid unknown)" in run.stderr


def test_state_directory_is_made_with_its_parents_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    state = State(folder)
    state.identity([])
    state.write_contact({})
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in folder.iterdir() if path.is_file()}
    state.close()
    assert "server.lock" in modes  # who may open it can hold it, and keep every server out
    assert {"state.db", "server.key", "server.crt", "server.json"} <= set(modes)
    assert set(modes.values()) == {0}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_state_directory_that_was_open_to_others_is_closed_to_them_with_a_word(tmp_path: Path) -> None:
    folder = tmp_path / "made before"
    folder.mkdir(mode=0o775)
    words: list[str] = []
    for _ in range(2):
        with structlog.testing.capture_logs() as logs:
            state = State(folder)
        state.collect(3, ())
        assert {path.name for path in folder.iterdir() if path.stat().st_mode & 0o077} == set()
        state.close()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        words += [entry["event"] for entry in logs]
    assert words == ["the state directory was open to others and is closed to them now"]


@pytest.mark.parametrize(("mode", "owner"), [(0o1777, os.geteuid()), (0o755, 65534)])
def test_state_directory_that_is_for_all_or_anothers_is_let_be_with_a_word(
    tmp_path: Path, mode: int, owner: int
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    if os.geteuid() != 0 and owner != os.geteuid():
        pytest.skip("only root can make a folder that is another user's")
    os.chown(folder, owner, -1)
    folder.chmod(mode)
    with structlog.testing.capture_logs() as logs:
        State(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    (entry,) = logs
    assert entry["event"] == "the state directory is open to others; give one that is the server's alone"


def damage(folder: Path, harm: Callable[[Path], object]) -> None:
    state = State(folder)
    for number in range(200):
        state.remember(f"key {number}", "x" * 500)
    state.close()
    harm(folder / "state.db")


HARMS: dict[str, Callable[[Path], object]] = {
    "is text": lambda path: path.write_text("this is no database, and quite long enough to be one" * 100),
    "is cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "is overwritten in the middle": lambda path: path.write_bytes(
        path.read_bytes()[:8_192] + b"\xff" * 30_000 + path.read_bytes()[38_192:]
    ),
}


@pytest.mark.parametrize("kind", HARMS)
def test_damaged_database_is_refused_with_what_to_do_and_again_at_the_next_try(kind: str, tmp_path: Path) -> None:
    damage(tmp_path, HARMS[kind])
    for _ in range(2):  # the lock must be free again
        message = refused(tmp_path)
        assert str(tmp_path) in message
        assert "restore a backup" in message


def test_database_of_a_newer_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    State(tmp_path).close()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("PRAGMA user_version = 1000")
    connection.close()
    message = refused(tmp_path)
    assert "is of version 1000, this program knows " in message
    assert "upgrade" in message
    with sqlite3.connect(tmp_path / "state.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1000,)
    connection.close()


def test_folder_that_cannot_be_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    message = refused(tmp_path / "file" / "state")
    assert message.startswith(f"{tmp_path / 'file' / 'state'} cannot be used (")
    assert message.endswith("give another --state")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable to root")
def test_folder_that_cannot_be_written_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o500)
    message = refused(folder)
    assert str(folder) in message


def test_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    state = State(tmp_path)
    made = state.identity(["192.0.2.1"])
    assert state.identity(["other.example.org"]) == made
    state.close()
    state = State(tmp_path)
    assert state.identity([]) == made
    state.close()


@pytest.mark.parametrize("damaged", ["server.key", "server.crt"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_identity_of_which_half_is_lost_or_changed_is_named(
    damaged: str, harm: Callable[[Path], Any], tmp_path: Path
) -> None:
    state = State(tmp_path)
    state.identity([])
    harm(tmp_path / damaged)
    for _ in range(2):
        with pytest.raises(StateError, match=rf"{damaged} is not what it was.*restore a backup, or remove server\.key"):
            state.identity([])
    state.close()


def test_identity_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    state = State(tmp_path)
    made = state.identity([])
    for name in ("server.key", "server.crt"):
        (tmp_path / name).unlink()
    anew = state.identity([])
    assert fingerprint(anew.certificate) != fingerprint(made.certificate)
    assert anew.key != made.key
    assert state.identity([]) == anew
    state.close()


def test_identity_that_was_made_while_the_clock_was_ahead_is_made_anew(tmp_path: Path) -> None:
    with closing(State(tmp_path)) as state:
        state.authority()
        with time_machine.travel(datetime.now(UTC) + timedelta(days=1_000)):
            later = state.identity([])
        made = state.identity([])
        assert made != later
        with time_machine.travel(100):  # seconds after 1970 began, as on a machine whose clock was not set yet
            assert state.identity([]) == made


def test_identity_is_made_anew_when_a_third_of_its_time_is_left(tmp_path: Path) -> None:
    state = State(tmp_path)
    made, authority = state.identity(["192.0.2.1"]), state.authority()
    facts = facts_of(made.certificate)
    third = (facts.expires - facts.begins) / 3
    with time_machine.travel(facts.expires - third - timedelta(hours=1)):
        assert state.identity(["192.0.2.1"]) == made
    with time_machine.travel(facts.expires - third + timedelta(hours=1)):
        anew = state.identity(["192.0.2.1"])
        assert state.authority() == authority
        assert facts_of(anew.certificate).expires > facts.expires
        assert is_issued_by(anew.certificate, authority.certificate)
        assert state.identity(["192.0.2.1"]) == anew
    state.close()


def test_identity_of_an_authority_that_was_removed_is_made_anew_by_the_next_one(tmp_path: Path) -> None:
    state = State(tmp_path)
    made = state.identity([])
    for name in ("authority.key", "authority.crt"):
        (tmp_path / name).unlink()
    anew = state.identity([])
    assert anew != made
    assert is_issued_by(anew.certificate, state.authority().certificate)
    state.close()


def test_facts_are_remembered_by_the_next_process(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.fact("name") is None
    state.remember("name", "größe' --")
    state.remember("name", "größe'; DROP TABLE facts")
    state.close()
    state = State(tmp_path)
    assert state.fact("name") == "größe'; DROP TABLE facts"
    state.close()


def test_contact_is_what_the_server_said_of_itself(tmp_path: Path) -> None:
    assert read_contact(tmp_path) == {}
    state = State(tmp_path)
    state.write_contact({"address": "127.0.0.1:8443", "admin": "unix:/x"})
    state.close()
    assert read_contact(tmp_path) == {"pid": os.getpid(), "address": "127.0.0.1:8443", "admin": "unix:/x"}


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b'"text"', b"null"])
def test_contact_that_is_no_contact_is_none(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "server.json").write_bytes(text)
    assert read_contact(tmp_path) == {}


# The database.


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "some.db")


def test_transaction_that_fails_changes_nothing_and_the_next_one_works(database: Database) -> None:
    def half_done() -> None:
        with database.transaction() as cursor:
            cursor.execute("INSERT INTO facts VALUES ('a', '1')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_done()
    database.execute("INSERT INTO facts VALUES (?, ?)", "b", "2")
    assert database.query("SELECT key, value FROM facts") == [("b", "2")]
    database.close()


def test_transaction_refused_at_its_commit_changes_nothing_and_the_next_one_works(database: Database) -> None:
    database._connection.execute("PRAGMA foreign_keys = ON")
    database.execute("CREATE TABLE child (fact TEXT REFERENCES facts (key) DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("INSERT INTO child VALUES ('nobody')")
    database.execute("INSERT INTO facts VALUES ('a', '1')")
    assert database.query("SELECT (SELECT count(*) FROM child), (SELECT count(*) FROM facts)") == [(0, 1)]
    database.close()


def test_database_writes_ahead_and_waits_for_the_medium(database: Database, tmp_path: Path) -> None:
    with database.transaction() as cursor:
        assert cursor.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        assert cursor.execute("PRAGMA synchronous").fetchall() == [(2,)]
    database.close()


def test_contact_is_written_as_json_that_a_person_can_read(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.write_contact({"address": "a"})
    state.close()
    text = (tmp_path / "server.json").read_text()
    assert json.loads(text) == {"pid": os.getpid(), "address": "a"}
    assert text.count("\n") == 3
