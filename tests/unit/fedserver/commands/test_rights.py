"""What commands say to somebody who may not look at the state directory. 5 s."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from fedserver.cli import app
from fedserver.config import ServerConfig
from fedserver.doctor import network, state
from fedserver.exit_codes import ExitCode
from fedserver.store import State
from fedstream.checkup.runner import Verdict

pytestmark = pytest.mark.numpy_task

COMMANDS = (
    ("rounds",),
    ("rounds", "--round", "1"),
    ("clients",),
    ("verify",),
    ("gc", "--dry-run"),
    ("gc",),
    ("invite", "site-a"),
    ("revoke", "site-a"),
    ("status",),
    ("pause",),
    ("export",),
)
NOBODY = 65_534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state directory on which no server has run yet."""
    assert run(tmp_path / "state", "init")[0] == ExitCode.FINISHED
    return tmp_path / "state"


def run(folder: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*words, "--state", str(folder)])
    assert result.exception is None or isinstance(result.exception, SystemExit), words
    return result.exit_code, result.output


@contextmanager
def without_rights(path: Path) -> Iterator[None]:
    """As somebody else, where the tests are run by root, who may do everything."""
    mode, owner = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    if owner == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(owner)
        path.chmod(mode)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_without_rights_says_so_in_one_sentence(folder: Path, words: tuple[str, ...]) -> None:
    run(folder, *words)  # whatever it says; a command's modules must be loaded by somebody who may read them
    with without_rights(folder):
        code, said = run(folder, *words)
    assert (code, said) == (
        ExitCode.BAD_STATE,
        f"fedserver: {folder} cannot be looked at (Permission denied); do it as the user as whom the server runs\n",
    )


def test_doctor_without_rights_finds_no_server_of_its_own_and_no_defect(folder: Path) -> None:
    config = ServerConfig(state=folder)
    with without_rights(folder / "server.lock"):
        assert state.lock(config).verdict is Verdict.FAILED
        assert network._contact(config) == {}


def test_state_directory_on_a_read_only_medium_is_in_nobodys_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert run(folder, "rounds")[0] == ExitCode.FINISHED


def test_server_that_starts_while_somebody_looks_waits_for_a_moment(folder: Path) -> None:
    looking = FileLock(folder / "server.lock", thread_local=False)
    looking.acquire()
    timer = threading.Timer(0.2, looking.release)
    timer.start()
    State(folder).close()
    timer.join()
