"""How sites are listed, and what is done about them while another command is at work."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import typer
from filelock import FileLock

from fedserver.commands import admin
from fedserver.commands.init import initialise
from fedserver.commands.members import Listed, invite, revoke, state_words
from fedserver.store.state import LOCK

pytestmark = pytest.mark.numpy_task

NOW = 1_000.0


@pytest.mark.parametrize(
    ("state", "invited_until", "certificate_until", "words"),
    [
        ("invited", NOW + 1, None, "invited"),
        ("invited", NOW, None, "invitation expired"),
        ("enrolled", None, NOW + 1, "enrolled"),
        ("enrolled", None, NOW - 1, "certificate expired"),
        ("enrolled", NOW - 1, NOW + 1, "enrolled"),
        ("revoked", None, None, "revoked"),
    ],
)
def test_site_whose_time_is_over_is_listed_as_such(
    state: str, invited_until: float | None, certificate_until: float | None, words: str
) -> None:
    assert state_words(Listed("a", state, invited_until, certificate_until, None), NOW) == words


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory on which no server has run yet."""
    initialise(tmp_path / "state", "127.0.0.1:8443", "", [])
    return tmp_path / "state"


def test_commands_on_sites_wait_for_another_that_writes(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invite(state, "a", None)
    busy = FileLock(state / LOCK, thread_local=False)
    busy.acquire()
    threading.Timer(1.5, busy.release).start()  # longer than a server waits at its start
    begun = time.monotonic()
    revoke(state, "a")
    assert time.monotonic() - begun > 1
    assert "a is revoked: 0 certificates, 1 open invitations" in capsys.readouterr().out


def test_command_that_waits_in_vain_says_that_another_is_at_work(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "MOMENT_SECONDS", 0.2)
    with FileLock(state / LOCK), pytest.raises(typer.Exit):
        revoke(state, "a")
    assert "is in use by another command, or by a server that is starting or ending" in capsys.readouterr().err
