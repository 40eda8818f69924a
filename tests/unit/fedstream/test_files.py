"""Durable writes: whatever the step at which the power goes, the old content or the new one is there. A moment."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedstream.files import RealFileSystem, may_pass, publish, refusal_words, write_durably, write_then_name
from fedstream.manifest import raw_bytes
from tests.support.crashing_files import CrashingFileSystem, PowerCut, Survival

pytestmark = pytest.mark.numpy_task

PATH = Path("/state/models/a.safetensors")
LEFTOVER = Path("/state/models/a.safetensors.partial")
OLD, NEW = b"the old content", [b"the ", memoryview(b"new"), b""]
STEPS = ["remove", "open", "write_at", "write_at", "write_at", "sync", "rename", "sync_folder"]


def test_durable_write_takes_these_steps_in_this_order() -> None:
    files = CrashingFileSystem({PATH: OLD})
    write_durably(files, PATH, NEW)
    assert files.steps == STEPS


@pytest.mark.parametrize("survival", Survival)
def test_durable_write_that_returned_outlasts_a_power_cut(survival: Survival) -> None:
    files = CrashingFileSystem({PATH: OLD})
    write_durably(files, PATH, NEW)
    assert files.after_power_cut(survival) == {PATH: b"the new"}


@pytest.mark.parametrize("survival", Survival)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(len(STEPS)), ids=[f"{number}-{name}" for number, name in enumerate(STEPS)])
def test_durable_write_cut_at_any_step_leaves_the_old_content_or_the_new_one(
    step: int, after: bool, survival: Survival
) -> None:
    files = CrashingFileSystem({PATH: OLD}, step, after=after)
    with pytest.raises(PowerCut):
        write_durably(files, PATH, NEW)
    content = files.after_power_cut(survival)[PATH]
    assert content in (OLD, b"the new")
    renamed = (step, after) > (STEPS.index("rename"), False)
    if not renamed:
        assert content == OLD
    elif survival is not Survival.SYNCED_ONLY:
        assert content == b"the new"


@pytest.mark.parametrize("survival", Survival)
def test_durable_write_after_an_interrupted_longer_one_holds_nothing_of_it(survival: Survival) -> None:
    files = CrashingFileSystem({PATH: OLD, LEFTOVER: b"something much longer than what comes now"})
    write_durably(files, PATH, NEW)
    assert files.after_power_cut(survival) == {PATH: b"the new"}


def test_power_cut_double_forgets_what_was_not_synced() -> None:
    files = CrashingFileSystem({})
    descriptor = files.open(PATH)
    files.write_at(descriptor, 2, b"xy")
    assert files.after_power_cut(Survival.SYNCED_ONLY) == {}
    assert files.after_power_cut(Survival.NAMES_BUT_NOT_CONTENTS) == {PATH: b""}
    assert files.after_power_cut(Survival.EVERYTHING) == {PATH: b"\x00\x00xy"}
    files.sync(descriptor)
    assert files.after_power_cut(Survival.NAMES_BUT_NOT_CONTENTS) == {PATH: b"\x00\x00xy"}
    publish(files, PATH, LEFTOVER)
    assert files.after_power_cut(Survival.SYNCED_ONLY) == {LEFTOVER: b"\x00\x00xy"}


@pytest.mark.parametrize("survival", Survival)
def test_durable_write_named_at_its_end_takes_the_same_steps_and_asks_for_the_name_last(survival: Survival) -> None:
    files, written = CrashingFileSystem({LEFTOVER: b"something much longer than what comes now"}), []

    def parts() -> Iterator[bytes]:
        for part in NEW:
            written.append(bytes(part))
            yield bytes(part)

    named = write_then_name(files, LEFTOVER, parts(), lambda: PATH.with_name(f"{len(b''.join(written))} bytes"))
    assert files.steps == STEPS
    assert named == PATH.with_name("7 bytes")
    assert files.after_power_cut(survival) == {named: b"the new"}


# The real one.


def test_durable_write_on_disk_replaces_the_file_and_lets_only_its_owner_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)
    (tmp_path / "a.bin.partial").write_bytes(b"something much longer than what comes now")
    values = np.arange(3, dtype=np.int16)
    write_durably(RealFileSystem(), path, [b"", raw_bytes(values), raw_bytes(np.zeros(0)), b"end"])
    assert path.read_bytes() == bytes.fromhex("000001000200") + b"end"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", [name for name in STEPS if name != "remove"])
def test_durable_write_that_the_disk_refuses_leaves_it_the_space_and_says_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path, files = tmp_path / "a.bin", RealFileSystem()
    path.write_bytes(OLD)

    def refuse(*_given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, step, refuse)
    with pytest.raises(OSError, match="No space left") as refused:
        write_durably(files, path, NEW)
    assert refused.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == (b"the new" if step == "sync_folder" else OLD)


def test_write_into_a_folder_that_is_gone_says_which_and_may_pass_and_one_that_only_lacks_the_file_does_not(
    tmp_path: Path,
) -> None:
    with pytest.raises(FileNotFoundError) as gone:
        write_durably(RealFileSystem(), tmp_path / "state/models/a.bin", NEW)
    assert refusal_words(gone.value) == f"the folder {tmp_path / 'state'} is gone; put it back, or make it again"
    assert may_pass(gone.value)

    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "a.bin").read_bytes()
    assert refusal_words(missing.value) == str(missing.value)
    assert not may_pass(missing.value)


def test_durable_write_whose_parts_fail_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(OLD)
    with pytest.raises(ZeroDivisionError):
        write_durably(RealFileSystem(), path, (bytes([1 // part]) for part in (1, 0)))
    assert path.read_bytes() == OLD


def test_write_at_goes_on_where_the_system_wrote_less_than_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[:3], offset))
    files = RealFileSystem()
    descriptor = files.open(tmp_path / "a")
    files.write_at(descriptor, 1, b"0123456789")
    files.close(descriptor)
    assert (tmp_path / "a").read_bytes() == b"\x000123456789"


def test_opening_a_file_keeps_what_is_in_it_and_removing_is_safe_twice(tmp_path: Path) -> None:
    files, path = RealFileSystem(), tmp_path / "a"
    path.write_bytes(b"abc")
    descriptor = files.open(path)
    files.write_at(descriptor, 1, b"X")
    files.sync(descriptor)
    files.close(descriptor)
    assert path.read_bytes() == b"aXc"
    files.remove(path)
    files.remove(path)
    assert not path.exists()


def test_sync_asks_macos_for_the_medium_and_not_only_for_the_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda _descriptor, command: asked.append(f"fcntl {command}"))
    monkeypatch.setattr(os, "fsync", lambda _descriptor: asked.append("fsync"))
    write_durably(RealFileSystem(), tmp_path / "file", [b"data"])

    assert asked == ["fcntl 51", "fcntl 51"]  # of the file, and of its name


def test_sync_of_a_file_system_that_does_not_know_the_call_is_an_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _command: int) -> None:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    asked: list[str] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: asked.append("fsync"))
    write_durably(RealFileSystem(), tmp_path / "file", [b"data"])

    assert asked == ["fsync", "fsync"]


FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
AWAY = [errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT]


@pytest.mark.parametrize("number", [*FULL, *AWAY, errno.EROFS, errno.EIO])
def test_disk_that_refuses_is_waited_for(number: int) -> None:
    assert may_pass(OSError(number, os.strerror(number), "updates"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.EINVAL])
def test_what_nobody_mends_meanwhile_is_not_waited_for(number: int) -> None:
    assert not may_pass(OSError(number, os.strerror(number), "updates"))
