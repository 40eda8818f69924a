"""The audit log: one JSON line per event that matters for security, appended to a file that only its owner reads.

A grant is written, durably, before it takes effect: what is not in the log was not granted. Refusals are written after
they were decided, and no more than sixty a minute, since anybody can cause them; the next line says how many were left
out. What a site is given a second time counts with them: it can ask for it as often as it likes. No line holds a token,
a key or a certificate. How failed handshakes come here is in `handshakes`.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import structlog

from fedserver.clock import Clock
from fedserver.store.folder import AUDIT_LOG
from fedstream import limits
from fedstream.files import sync_to_medium

log = structlog.get_logger()

_UNBIDDEN_A_MINUTE = 60
"""Lines that others than the coordinator can cause, as many as they like."""


class AuditEvent(enum.Enum):
    """What can be in the log."""

    AUTHORITY_MADE = "authority made"
    INVITED = "invited"
    INVITATION_CLOSED = "invitation closed"
    ENROLLED = "enrolled"
    ENROLMENT_REPEATED = "enrolment repeated"
    ENROLMENT_REFUSED = "enrolment refused"
    RENEWED = "renewed"
    REVOKED = "revoked"
    CALL_REFUSED = "call refused"
    HANDSHAKE_REFUSED = "handshake refused"


class AuditLog:
    """Appends to `audit.jsonl` of a state directory. Safe to use from several threads.

    Args:
        folder: the state directory.
        clock: what time it is.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._path, self._clock = folder / AUDIT_LOG, clock
        self._lock = threading.Lock()  # guards what follows; only the file is written under it
        self._window, self._unbidden = -1, 0
        self._left_out: Counter[str] = Counter()

    def note(self, event: AuditEvent, **facts: object) -> None:
        """Write a line, durably.

        Raises:
            OSError: it cannot be written; then what it says must not be done.
        """
        with self._lock:
            self._append(event, facts)

    def note_refusal(self, event: AuditEvent, **facts: object) -> None:
        """Write a line, or leave it out where there are too many. Never fails."""
        with self._lock:
            try:
                self._append_unless_too_many(event, facts, "refusals_left_out")
            except OSError as error:
                log.error("the audit log cannot be written", event_left_out=event.value, error=str(error))

    def note_repeat(self, event: AuditEvent, **facts: object) -> None:
        """Write a line about what was granted before, durably, or leave it out where there are too many.

        Raises:
            OSError: it cannot be written; then what it says must not be done.
        """
        with self._lock:
            self._append_unless_too_many(event, facts, "repeats_left_out")

    def _append_unless_too_many(self, event: AuditEvent, facts: dict[str, object], kind: str) -> None:
        window = int(self._clock.wall() // 60)
        if window != self._window:
            self._window, self._unbidden = window, 0
        self._unbidden += 1
        if self._unbidden > _UNBIDDEN_A_MINUTE:
            self._left_out[kind] += 1
            return
        self._append(event, facts | dict(self._left_out))
        self._left_out.clear()

    def _append(self, event: AuditEvent, facts: dict[str, object]) -> None:
        time = datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="milliseconds")
        shown = {key: limits.clip_reason(value) if isinstance(value, str) else value for key, value in facts.items()}
        line = json.dumps({"time": time, "event": event.value, **shown}) + "\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _append_durably(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _append_durably(descriptor: int, line: bytes) -> None:
    """All of a line, or nothing of it: the next one is not to be glued to a piece."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        line = b"\n" + line  # behind a piece that a killed process, or a power cut, has left
    try:
        left = line
        while left:  # the last bytes of a disk may take half a line; the next try says that it is full
            left = left[os.write(descriptor, left) :]
        sync_to_medium(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise
