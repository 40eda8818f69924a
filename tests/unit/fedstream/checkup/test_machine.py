"""Memory and folders, on made-up machines."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fedstream.checkup.machine import GB, MB, available_memory, existing_part, judge_folder, judge_memory
from fedstream.checkup.runner import Verdict

pytestmark = pytest.mark.numpy_task


def machine(folder: Path, free_kib: int, limit: str | None, used: int = 0) -> int | None:
    (folder / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {free_kib} kB\n")
    if limit is not None:
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    return available_memory(folder, folder)


def test_available_memory_is_the_systems_or_the_containers_whichever_is_less(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path) is None
    assert machine(tmp_path, 4000, None) == 4_096_000
    assert machine(tmp_path, 4000, "max") == 4_096_000
    assert machine(tmp_path, 4000, str(3 * MB), MB) == 2 * MB


def test_memory_that_is_short_is_a_warning_with_both_figures() -> None:
    result = judge_memory(2 * GB, "training", 512 * MB)

    assert (result.verdict, result.found) == (Verdict.WARNING, "512.0 MB available")
    assert result.advice.startswith("training takes about 2.0 GB: ")
    assert judge_memory(2 * GB, "training", 2 * GB).verdict is Verdict.OK
    assert judge_memory(2 * GB, "training", None).verdict is Verdict.OK


def test_folder_that_is_there_or_can_be_made_is_fine_and_stays_as_it_was(tmp_path: Path) -> None:
    there, absent = judge_folder(tmp_path, 1, 1), judge_folder(tmp_path / "a" / "b", 1, 1)

    assert [there.verdict, absent.verdict] == [Verdict.OK, Verdict.OK]
    assert "can be written" in there.found
    assert "can be made" in absent.found
    assert list(tmp_path.iterdir()) == []
    assert existing_part(tmp_path / "a" / "b") == tmp_path


def test_folder_without_space_fails_and_with_little_warns(tmp_path: Path) -> None:
    assert judge_folder(tmp_path, 2**60, 2**60).verdict is Verdict.FAILED
    assert judge_folder(tmp_path, 1, 2**60).verdict is Verdict.WARNING


def test_folder_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert judge_folder(tmp_path / "file" / "state", 1, 1).verdict is Verdict.FAILED


def test_folder_on_a_full_disk_fails_with_the_advice_to_make_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    result = judge_folder(tmp_path, 1, 1)

    assert (result.verdict, result.advice) == (Verdict.FAILED, "Make space there, or name another folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_rights_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    result = judge_folder(tmp_path / "state", 1, 1)

    assert (result.verdict, "Permission denied" in result.found) == (Verdict.FAILED, True)
