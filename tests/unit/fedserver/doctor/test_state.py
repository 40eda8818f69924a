"""What the server's doctor says of certificates that a wrong clock has dated. A moment."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import time_machine

from fedserver.config import ServerConfig
from fedserver.doctor.state import certificate
from fedserver.gate import server_identity
from fedserver.store import State
from fedstream.checkup.runner import Verdict

pytestmark = pytest.mark.numpy_task


@pytest.mark.parametrize("days", [-20_000, 5_000])
def test_authority_that_was_made_by_a_wrong_clock_is_told_with_the_way_out(tmp_path: Path, days: int) -> None:
    config = ServerConfig(task="linear", state=tmp_path, out=tmp_path / "out")
    with closing(State(tmp_path)) as state:
        with time_machine.travel(datetime.now(UTC) + timedelta(days=days)):
            state.identity([])
        with structlog.testing.capture_logs() as logs:
            server_identity(state, [])
    found = certificate(config)
    assert found.verdict is Verdict.FAILED
    assert found.found.startswith("authority.crt is for ")
    assert found.advice == (
        "Set the clock of this machine; if it is right, restore a backup, or remove authority.key, authority.crt, "
        "server.key and server.crt and invite every site anew"
    )
    [said] = [one for one in logs if one["log_level"] == "error"]
    assert (said["event"], said["because"]) == ("no site can trust this server now", found.found)


@pytest.mark.parametrize("name", ["authority.crt", "server.crt", "server.key"])
def test_key_or_certificate_that_was_damaged_is_named(tmp_path: Path, name: str) -> None:
    with closing(State(tmp_path)) as state:
        state.identity([])
    (tmp_path / name).write_bytes(b"what is this?")
    found = certificate(ServerConfig(task="linear", state=tmp_path, out=tmp_path / "out"))
    assert (found.verdict, found.found) == (Verdict.FAILED, f"{tmp_path / name} is not what it was")


def test_certificate_of_a_clock_that_was_ahead_is_made_anew_by_a_restart(tmp_path: Path) -> None:
    with closing(State(tmp_path)) as state:
        state.authority()
        with time_machine.travel(datetime.now(UTC) + timedelta(days=1_000)):
            state.identity([])
    found = certificate(ServerConfig(task="linear", state=tmp_path, out=tmp_path / "out"))
    assert found.verdict is Verdict.FAILED
    assert found.advice.startswith("Restart the server: it makes the next one by itself")
