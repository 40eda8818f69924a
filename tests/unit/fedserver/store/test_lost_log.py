"""A state directory that has lost the log of its database, or whose keys were being made when the power went. 3 s."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from fedserver.cli import app
from fedserver.exit_codes import ExitCode
from fedserver.store import State, StateError, StateReader, keys
from fedstream.certificates import issue_server
from fedstream.manifest import described
from tests.faults.forgetful import ForgetfulFileSystem, Power, PowerCut, PoweredDatabase, Survival
from tests.support.bench import SCHEMA, Bench
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task

SHAPES = "tests.support.tasks:Shapes"
KEYS = ("authority.key", "authority.crt", "server.key", "server.crt")


def without_log(folder: Path, copy: Path) -> Path:
    """A copy of what a killed server leaves, that missed the log."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("state.db-*", "*.lock"))
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".db-" not in path.name}


@pytest.fixture
def young(tmp_path: Path) -> Path:
    """A federation that has begun, and is in the log alone."""
    state = State(tmp_path / "state")
    state.identity([])
    for seed in (1, 2, 3):
        state.models.add(seed, SCHEMA, described(SCHEMA, random_weights(SCHEMA, seed)))
    copy = without_log(state.folder, tmp_path / "copy")
    state.close()
    return copy


@pytest.mark.parametrize("left", [KEYS, ("models",), (*KEYS, "models")], ids="+".join)
def test_database_that_lost_its_log_begins_no_new_federation(young: Path, left: tuple[str, ...]) -> None:
    for path in young.iterdir():
        if path.name not in (*left, "state.db"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(young)
    for opening in (State, StateReader):
        with pytest.raises(StateError, match=r"state\.db holds nothing, though .*state\.db-wal.*restore a backup"):
            opening(young)
    assert {name: data for name, data in contents(young).items() if name != "server.lock"} == before


@pytest.mark.parametrize(
    "words",
    [
        ("verify",),
        ("rounds",),
        ("init",),
        ("gc", "--keep-rounds", "3"),
        ("invite", "alpha"),
        ("backup", "--out", "b.tar"),
    ],
    ids=" ".join,
)
def test_every_command_says_so_with_the_status_for_a_bad_state(
    young: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (young / "authority.key").read_bytes()
    monkeypatch.chdir(young.parent)
    said = CliRunner().invoke(app, [*words, "--state", str(young)])
    assert (said.exit_code, "holds nothing, though" in said.output) == (ExitCode.BAD_STATE, True), said.output
    assert (young / "authority.key").read_bytes() == before


def test_start_of_a_server_says_so_and_overwrites_no_key(young: Path) -> None:
    before = contents(young)
    command = [sys.executable, "-m", "fedserver.cli", "run", "--listen", "127.0.0.1:0", "--task", SHAPES]
    command += ["--state", str(young), "--out", str(young.parent / "out")]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (said.returncode, "holds nothing, though" in said.stderr) == (ExitCode.BAD_STATE, True), said.stderr
    assert {name: data for name, data in contents(young).items() if name != "server.lock"} == before


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_keys_without_a_database_begin_no_new_federation(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    state = State(tmp_path)
    made = state.authority()
    state.close()
    harm(tmp_path / "state.db")
    for opening in (State, StateReader):
        with pytest.raises(
            StateError, match=r"state\.db is (missing|empty), though .*authority\.key is there; restore"
        ):
            opening(tmp_path)
    assert (tmp_path / "authority.key").read_bytes() == made.key


@pytest.mark.parametrize("name", ["authority.key", "server.key"])
def test_key_of_which_the_database_knows_nothing_is_never_overwritten(tmp_path: Path, name: str) -> None:
    state = State(tmp_path)
    state.close()
    (tmp_path / name).write_bytes(b"somebody's")
    for opening in (State, StateReader):
        with pytest.raises(StateError, match=rf"{name} is there, and .*state\.db knows nothing of it; .*restore a"):
            opening(tmp_path)
    (tmp_path / name).unlink()
    state = State(tmp_path)
    (tmp_path / name).write_bytes(b"somebody's, put there meanwhile")
    with pytest.raises(StateError, match="knows nothing of it"):
        state.identity([])
    state.close()
    assert (tmp_path / name).read_bytes() == b"somebody's, put there meanwhile"


def cut(folder: Path, step: int, *, survival: Survival, renewed: bool) -> bool:
    """Make the keys, or replace the server's, with the power gone after a step; returns whether it came so far.

    What is found then is what is found if it goes before the next.
    """
    power = Power(None)
    files = ForgetfulFileSystem(power)
    state = State(folder, files)
    if renewed:
        state.identity([])
    state.database.close()
    state.database = PoweredDatabase(folder / "state.db", power)
    power._fails_at, power._after = len(power.steps) + step, True
    with suppress(PowerCut):
        made = state.authority()
        if renewed:  # as when a third of its time is left
            keys.kept_pair(folder, state.database, files, keys.SERVER, lambda: issue_server(made, []), lambda _: True)
        else:
            state.identity([])
    is_cut = power.gone.is_set()
    if is_cut:
        files.lose_power(survival, random.Random(step))
    state.close()
    return is_cut


@pytest.mark.parametrize("survival", Survival)
@pytest.mark.parametrize("renewed", [False, True])
def test_keys_whose_making_was_interrupted_at_any_step_are_made_at_the_next_start(
    tmp_path: Path, survival: Survival, *, renewed: bool
) -> None:
    step = 0
    while cut(folder := tmp_path / str(step), step, survival=survival, renewed=renewed):
        StateReader(folder).close()
        state = State(folder)
        made = state.identity([])
        state.close()
        state = State(folder)
        assert state.identity([]) == made
        state.close()
        step += 1
    assert step >= 12


def test_models_that_no_row_names_are_set_aside_if_they_are_more_than_one(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.models.add(0, SCHEMA, described(SCHEMA, random_weights(SCHEMA, 0)))
    state.database.checkpoint()
    old = (tmp_path / "state.db").read_bytes()
    lost = [state.models.add(seed, SCHEMA, described(SCHEMA, random_weights(SCHEMA, seed))).path for seed in (1, 2)]
    state.close()
    (tmp_path / "state.db").write_bytes(old)
    said = CliRunner().invoke(app, ["gc", "--dry-run", "--keep-rounds", "3", "--state", str(tmp_path)])
    assert [f"would set aside {path}, which the database does not know" in said.output for path in lost] == [True] * 2
    assert "would remove" not in said.output
    state = State(tmp_path)
    with structlog.testing.capture_logs() as logs:
        assert state.sweep() == []
    assert sorted(path.name for path in (tmp_path / "unclaimed").iterdir()) == sorted(path.name for path in lost)
    (warning,) = logs
    assert warning["event"] == "set aside models that the database does not know"
    assert warning["files"] == sorted(path.name for path in lost)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [state.models.of_version(0).path.name]
    lost[0].write_bytes(b"what one interrupted step leaves")
    assert state.sweep() == [lost[0]]
    state.close()


def test_database_that_knows_none_of_several_models_begins_no_new_federation(tmp_path: Path) -> None:
    State(tmp_path).close()
    for seed in (1, 2):
        (tmp_path / "models" / f"{seed:064x}.safetensors").write_bytes(b"weights")
    for opening in (State, StateReader):
        with pytest.raises(StateError, match=r"state\.db knows none of the models in .*restore a backup"):
            opening(tmp_path)
    (tmp_path / "models" / f"{1:064x}.safetensors").unlink()
    StateReader(tmp_path).close()
    state = State(tmp_path)
    assert len(state.sweep()) == 1
    state.close()


async def test_log_is_in_the_database_when_a_round_is_over(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "state", "a") as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", random_weights(SCHEMA, 1))
        await bench.write(upload_id, random_weights(SCHEMA, 1))
        await bench.desk.finish(upload_id)
        await bench.end_round(running)
        copy = without_log(tmp_path / "state", tmp_path / "copy")
    with closing(sqlite3.connect(copy / "state.db")) as database:
        assert database.execute("SELECT number FROM rounds").fetchall() == [(1,)]
        assert database.execute("SELECT version FROM versions ORDER BY version").fetchall() == [(0,), (1,)]
