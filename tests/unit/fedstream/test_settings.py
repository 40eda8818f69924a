"""Files of settings, as people and their editors write them. A moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedstream.settings import read_settings
from tests.support.users import leave_without_home

pytestmark = pytest.mark.numpy_task


def test_path_below_the_home_folder_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "site.toml"
    file.write_text('data = "~/scans"\nout = "~"\nname = "a~/b"\nrounds = 3\n')
    assert read_settings(file) == {"data": str(tmp_path / "scans"), "out": str(tmp_path), "name": "a~/b", "rounds": 3}


def test_path_that_an_earlier_version_has_made_as_it_is_written_stays_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~" / "state").mkdir(parents=True)
    file = tmp_path / "server.toml"
    file.write_text('state = "~/state"\nout = "~/out"\n')
    assert read_settings(file) == {"state": "~/state", "out": str(tmp_path / "home" / "out")}


def test_path_in_the_home_folder_of_a_user_without_one_is_refused_with_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_without_home(monkeypatch)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "server.toml"
    file.write_text('state = "~/state"\n')
    with pytest.raises(OSError, match=r"^\[Errno 2\] ~/state is in the home folder, and this user has none: write"):
        read_settings(file)


def test_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_bytes(b'\xef\xbb\xbfdata = "scans"\r\n')
    assert read_settings(file) == {"data": "scans"}
