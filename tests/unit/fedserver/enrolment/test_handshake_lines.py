"""Which lines of gRPC's do not reach the server's output."""

from __future__ import annotations

import pytest

from fedserver.enrolment.handshakes import HandshakeWatch

GOAWAY = (
    b"E0000 00:00:1795890000.123456   31 chttp2_transport.cc:1403] ipv4:10.0.0.7:8443: Got goaway [11] "
    b"err=UNAVAILABLE: GOAWAY received; Error code: 11; Debug Text: ping_timeout {http2_error:11}\n"
)


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        (GOAWAY, True),
        (GOAWAY.replace(b"E0000 00:00:1795890000.123456", b"I1128 18:06:23.614468"), True),
        (b"Got goaway\n", False),
        (b"Fatal Python error: Segmentation fault\n", False),
        (b"E0000 00:00:1795890000.123456   31 server.cc:1] the port is in use\n", False),
    ],
)
def test_line_about_a_connection_that_was_closed_is_left_out_and_all_that_is_not_known_stays(
    line: bytes, taken: bool
) -> None:
    assert HandshakeWatch().take(line) is taken
