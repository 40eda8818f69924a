"""How sites are listed, and what is done about them while another command is at work."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import typer
from filelock import FileLock

from fedserver.clock import SystemClock
from fedserver.commands import admin
from fedserver.commands.init import initialise
from fedserver.commands.members import Listed, invite, revoke, show_clients, state_words
from fedserver.config import ServerConfig
from fedserver.coordinator.population import Client, ClientState, Introduction
from fedserver.gate import Gate
from fedserver.store import State
from fedserver.store.clients import keeping
from fedserver.store.folder import LOCK
from fedstream.certificates import make_authority

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


def let_in_without_invitation(state: Path, client_ca: Path | None, *names: str) -> None:
    """What a server leaves on which sites have been: with certificates of a further authority, if there is one."""
    with closing(State(state)) as kept:
        Gate.open(ServerConfig(state=state, client_ca=client_ca), kept, SystemClock())
        for name in names:
            introduction = Introduction(name, num_examples=8, software="test")
            statement = keeping(Client(introduction, ClientState.DISCONNECTED, first_seen=NOW, last_seen=NOW))
            kept.database.execute(statement.sql, *statement.values)


@pytest.fixture
def client_ca(tmp_path: Path) -> Path:
    """The authority of sites that need no invitation."""
    path = tmp_path / "ca.pem"
    path.write_bytes("# Kliniken im Süden\n".encode() + make_authority().certificate)
    return path


def test_site_with_a_certificate_of_its_own_authority_is_kept_out_where_no_server_runs(
    state: Path, client_ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    let_in_without_invitation(state, client_ca, "hospital")
    capsys.readouterr()
    revoke(state, "hospital")
    assert capsys.readouterr().out == "hospital is revoked: 0 certificates, 0 open invitations\n"
    let_in_without_invitation(state, None)
    with pytest.raises(typer.Exit):
        revoke(state, "clinic")
    assert "no site called clinic was invited" in capsys.readouterr().err


def test_revocation_of_a_name_that_nobody_had_says_so(
    state: Path, client_ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    let_in_without_invitation(state, client_ca)
    for _ in range(2):  # the first one makes it no better known
        capsys.readouterr()
        revoke(state, "hosptal")
        assert "No site called hosptal was invited or has been seen" in capsys.readouterr().out
    invite(state, "hosptal", None)
    capsys.readouterr()
    revoke(state, "hosptal")
    assert capsys.readouterr().out == "hosptal is revoked: 0 certificates, 1 open invitations\n"


def test_invitation_says_that_a_certificate_of_another_authority_counts_no_more_under_its_name(
    state: Path, client_ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "a certificate for hospital by the authority of --client-ca is refused"
    said = []
    for authority in (None, client_ca):
        let_in_without_invitation(state, authority, "hospital")
        invite(state, "hospital", None)
        said.append(words in capsys.readouterr().out)
    assert said == [False, True]


def test_sites_that_came_without_an_invitation_are_listed(
    state: Path, client_ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    let_in_without_invitation(state, client_ca, "hospital", "clinic")
    invite(state, "delta", None)
    revoke(state, "clinic")
    capsys.readouterr()
    show_clients(state, as_json=True)
    listed = json.loads(capsys.readouterr().out)["sites"]
    seen = "1970-01-01 00:16:40 UTC"
    assert [(one["name"], one["state"], one["last_seen"]) for one in listed] == [
        ("clinic", "revoked", seen),
        ("delta", "invited", ""),
        ("hospital", "uninvited", seen),
    ]
