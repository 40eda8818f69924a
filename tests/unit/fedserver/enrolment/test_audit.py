"""The audit log: whole lines that are on the medium, few of what nobody granted. Milliseconds."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from pathlib import Path

import pytest

from fedserver.enrolment import AuditLog
from fedserver.enrolment.audit import AuditEvent
from tests.support.clocks import SetClock

pytestmark = pytest.mark.numpy_task


@pytest.fixture
def clock() -> SetClock:
    return SetClock(1_000.0)


def test_audit_log_is_appended_to_and_readable_by_its_owner_only(tmp_path: Path, clock: SetClock) -> None:
    for name in ("alpha", "beta"):
        AuditLog(tmp_path, clock).note(AuditEvent.INVITED, site=name)
    path = tmp_path / "audit.jsonl"
    assert [json.loads(line)["site"] for line in path.read_text().splitlines()] == ["alpha", "beta"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_audit_log_of_a_flood_of_refusals_stays_small_and_says_how_many_were_left_out(
    tmp_path: Path, clock: SetClock
) -> None:
    audit = AuditLog(tmp_path, clock)
    for _ in range(1_000):
        audit.note_refusal(AuditEvent.CALL_REFUSED, site="x")
        clock.advance(0.01)  # all in one minute
    audit.note(AuditEvent.REVOKED, site="x")  # what is granted or taken is always written
    clock.advance(60)
    audit.note_refusal(AuditEvent.CALL_REFUSED, site="y")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert len(lines) == 62
    assert lines[-1]["refusals_left_out"] == 940


def test_audit_log_line_is_one_line_whatever_is_in_it(tmp_path: Path, clock: SetClock) -> None:
    AuditLog(tmp_path, clock).note_refusal(AuditEvent.CALL_REFUSED, site='a\n{"event": "enrolled"}', said="x" * 9_999)
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 1


def test_audit_log_keeps_nothing_of_a_line_that_the_disk_refused_in_the_middle(tmp_path: Path, clock: SetClock) -> None:
    audit, path = AuditLog(tmp_path, clock), tmp_path / "audit.jsonl"
    audit.note(AuditEvent.INVITED, site="alpha")
    whole, limits_before = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, limits_before[1]))  # as a disk with 20 bytes left
    try:
        with pytest.raises(OSError, match="File too large"):
            audit.note(AuditEvent.INVITED, site="beta")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits_before)
    assert path.read_bytes() == whole
    audit.note(AuditEvent.INVITED, site="gamma")
    assert [json.loads(line)["site"] for line in path.read_text().splitlines()] == ["alpha", "gamma"]


def test_audit_log_keeps_nothing_of_a_line_that_did_not_reach_the_medium(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = AuditLog(tmp_path, clock)
    audit.note(AuditEvent.INVITED, site="alpha")
    before = (tmp_path / "audit.jsonl").read_bytes()

    def refuses(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fedserver.enrolment.audit.sync_to_medium", refuses)
    with pytest.raises(OSError, match="Input/output error"):
        audit.note(AuditEvent.INVITED, site="beta")
    audit.note_refusal(AuditEvent.CALL_REFUSED, site="gamma")  # of what is not granted, the caller hears all the same
    assert (tmp_path / "audit.jsonl").read_bytes() == before


def test_audit_log_begins_a_new_line_behind_the_piece_that_a_power_cut_left(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(tmp_path, clock).note(AuditEvent.INVITED, site="alpha")
    whole = path.read_text()
    path.write_text(whole + whole[:30])
    for site in ("beta", "gamma"):
        AuditLog(tmp_path, clock).note(AuditEvent.INVITED, site=site)
    first, piece, *later = path.read_text().splitlines()
    assert (first + "\n", piece) == (whole, whole[:30])
    assert [json.loads(line)["site"] for line in later] == ["beta", "gamma"]


def test_audit_log_has_whole_lines_of_a_disk_that_takes_a_few_bytes_at_a_time(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
    AuditLog(tmp_path, clock).note(AuditEvent.INVITED, site="alpha")
    monkeypatch.undo()
    assert [json.loads(line)["site"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()] == ["alpha"]
