"""What becomes of handshakes that fail: a line in a real server's audit log, and none in its output. 20 s."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedserver.store.keys import AUTHORITY_CERTIFICATE, AUTHORITY_KEY
from fedstream.certificates import make_authority
from fedstream.tls import Identity, split_address
from tests.support.handshakes import described, identity_of, shake_hands
from tests.support.processes import RunningServer, stage, until
from tests.support.self_signed import make_self_signed

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with stage(tmp_path) as made:
        yield made.server()


def authority_of(server: RunningServer) -> Identity:
    return Identity((server.state / AUTHORITY_KEY).read_bytes(), (server.state / AUTHORITY_CERTIFICATE).read_bytes())


def refused(server: RunningServer) -> list[dict[str, Any]]:
    lines = (server.state / "audit.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "handshake refused"]


def words(server: RunningServer, count: int) -> list[str]:
    """Of so many refused handshakes, in order."""
    found = until(f"{count} lines", lambda: one if len(one := refused(server)) >= count else None)
    return [line["said"] for line in found]


def test_handshake_without_a_sound_certificate_is_a_line_in_the_audit_log_and_none_in_the_output(
    server: RunningServer,
) -> None:
    authority = authority_of(server)
    strangers = {
        "no certificate was shown": None,
        "the certificate is of another authority": identity_of(make_authority(), "alpha"),
        "self signed certificate": make_self_signed(["alpha"]),
        "certificate has expired": identity_of(authority, "alpha", timedelta(minutes=-1)),
    }
    for number, (said, identity) in enumerate(strangers.items(), start=1):
        ended = asyncio.run(described(server.listening, authority.certificate, identity))
        assert ended is grpc.StatusCode.UNAVAILABLE
        assert words(server, number)[number - 1] == said
    assert "Handshake failed" not in server.text
    assert "PRIVATE" not in (server.state / "audit.jsonl").read_text()


def test_old_tls_and_what_is_not_tls_are_lines_in_the_audit_log(server: RunningServer) -> None:
    with socket.create_connection(split_address(server.listening.address), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.recv(1)
    assert words(server, 1) == ["this is not TLS"]
    with pytest.raises(ssl.SSLError) as caught:
        shake_hands(server.listening.address, ssl.TLSVersion.TLSv1_1)
    if "NO_PROTOCOLS_AVAILABLE" in str(caught.value):
        pytest.skip("this OpenSSL does not offer TLS 1.1 at all")
    assert words(server, 2)[1] == "TLS before 1.2"


def test_flood_of_handshakes_is_counted_and_the_server_still_answers_and_stops(server: RunningServer) -> None:
    address = split_address(server.listening.address)
    for _ in range(300):
        with socket.create_connection(address, 10) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            plain.recv(1)
    assert len(words(server, 60)) <= 120  # sixty a minute, and the flood may reach into a second one
    authority = authority_of(server)
    member = identity_of(authority, "alpha")  # sound, but nobody has invited it: the handshake is over by then
    assert asyncio.run(described(server.listening, authority.certificate, member)) is grpc.StatusCode.UNAUTHENTICATED
    server.process.send_signal(signal.SIGTERM)
    assert server.wait(30.0) == 0
    assert server.said("finished") or server.said("stopped"), server.text  # it may not have been ready yet


def test_what_is_no_failed_handshake_still_reaches_standard_error(tmp_path: Path) -> None:
    """Whatever a library writes in there, and what this program says itself."""
    with stage(tmp_path) as made:
        echo = made.start("echo", ["tests.support.echo_stderr"])
        assert echo.wait(30.0) == 0
        assert echo.text.splitlines() == ["from a library", "from this program", "after it"]
