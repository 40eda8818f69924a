"""Handshakes that fail, for the audit log. gRPC tells a program nothing of them; it writes a line to standard error.

So what anything but this program writes to the process's standard error is read, line by line: such a line becomes one
in the audit log, and every other goes on to where it was bound for. What this program itself has to say does not take
this way: it goes there directly, and neither waits for it nor is lost in it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

from fedserver.enrolment.audit import AuditEvent, AuditLog

_FAILED = re.compile(
    rb"\] Handshake failed with error \w+: error:[0-9a-f]+:[^:]*:[^:]*:(?P<reason>[A-Z0-9_]+)(: (?P<detail>.+))?"
)
"""What gRPC writes, as of 1.85, with OpenSSL's words for the reason. If a later one writes something else, its lines
stay in the server's output, as all that is not recognised, and a test fails."""

_TOLD_OTHERWISE = re.compile(rb"^[EWI]\d{4} .*chttp2_transport\.cc:\d+\] .*Got goaway")
"""That a connection is closed, of which this program says in its own words what it means for a site."""

_LAST_LINES_SECONDS = 5.0

_WORDS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate was shown",
    "UNSUPPORTED_PROTOCOL": "TLS before 1.2",
    "HTTP_REQUEST": "this is not TLS",
    "WRONG_VERSION_NUMBER": "this is not TLS",
}
_OF_CERTIFICATES = "CERTIFICATE_VERIFY_FAILED"
_ANOTHER_AUTHORITY = "unable to get local issuer certificate"


class HandshakeWatch:
    """Reads standard error. Lines go to the audit log from when it is given one on."""

    def __init__(self) -> None:
        self.audit: AuditLog | None = None

    def take(self, line: bytes) -> bool:
        """Whether a line need not be shown: of a failed handshake, and in the audit log now, or told otherwise."""
        if _TOLD_OTHERWISE.search(line):
            return True
        if self.audit is None or (found := _FAILED.search(line)) is None:
            return False
        reason, detail = found["reason"].decode(), (found["detail"] or b"").decode(errors="replace")
        self.audit.note_refusal(AuditEvent.HANDSHAKE_REFUSED, reason=reason, said=_in_words(reason, detail))
        return True


def _in_words(reason: str, detail: str) -> str:
    if reason == _OF_CERTIFICATES:  # the detail means something for this one only
        return "the certificate is of another authority" if detail == _ANOTHER_AUTHORITY else detail
    return _WORDS.get(reason, reason.replace("_", " ").lower())


@contextlib.contextmanager
def watching_handshakes() -> Iterator[HandshakeWatch]:
    """Watch for as long as the context lasts; `sys.stderr` and crash reports go to where standard error was."""
    watch, direct = HandshakeWatch(), os.dup(2)
    reading, writing = os.pipe()
    # Whoever writes must never wait for the reader, who may be waiting for it: rather, a line is lost.
    os.set_blocking(writing, False)
    before = sys.stderr
    before.flush()
    own = os.fdopen(direct, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    sys.stderr = own
    faulthandler.enable(own)
    os.dup2(writing, 2)
    os.close(writing)
    reader = threading.Thread(target=_read, args=(os.fdopen(reading, "rb"), direct, watch), daemon=True)
    reader.start()
    try:
        yield watch
    finally:
        faulthandler.disable()
        with contextlib.suppress(OSError):
            own.flush()
        os.dup2(direct, 2)  # and with it, the last writing end is closed
        reader.join(_LAST_LINES_SECONDS)  # longer only where a process that was started here has kept a writing end
        sys.stderr = before
        with contextlib.suppress(OSError):  # what could not be written before
            own.close()


def _read(lines: BinaryIO, direct: int, watch: HandshakeWatch) -> None:
    with lines:
        for line in lines:
            if not watch.take(line):
                with contextlib.suppress(OSError):  # nobody reads it, or its disk is full; the watch goes on
                    os.write(direct, line)
