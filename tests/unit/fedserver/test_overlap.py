"""What a holdout and a test set have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedserver.config import ServerConfig
from fedserver.doctor import data
from fedserver.overlap import overlap, shared_files
from fedstream.checkup.runner import Verdict


def write(folder: Path, **files: bytes) -> Path:
    for name, contents in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    return folder


def test_files_with_the_same_bytes_are_shared_whatever_they_are_called(tmp_path: Path) -> None:
    holdout = write(tmp_path / "holdout", no__a=b"scan", no__b=b"other", yes__c=b"")
    unseen = write(tmp_path / "unseen", yes__x=b"scan", no__y=b"scan", no__z=b"fresh", yes__empty=b"")
    (unseen / ".DS_Store").write_bytes(b"scan")
    assert shared_files(unseen, holdout) == (2, 3)


def test_files_of_a_class_folder_that_is_a_link_are_compared(tmp_path: Path) -> None:
    holdout, elsewhere = write(tmp_path / "holdout", no__a=b"scan"), write(tmp_path / "elsewhere", b=b"scan")
    unseen = write(tmp_path / "unseen", yes__c=b"fresh")
    (unseen / "no").symlink_to(elsewhere)
    assert shared_files(unseen, holdout) == (1, 2)


def test_overlap_is_told_in_words_and_none_is_silent(tmp_path: Path) -> None:
    holdout, unseen = write(tmp_path / "holdout", no__a=b"scan"), write(tmp_path / "unseen", no__b=b"fresh")
    config = ServerConfig(holdout=str(holdout), test=str(unseen))
    assert overlap(config) == ""
    write(unseen, no__copy=b"scan")
    assert overlap(config) == "1 of the test set's 2 files is in the holdout too, so not unseen"
    assert overlap(ServerConfig(holdout="phantom", test=str(unseen))) == ""


def test_doctor_warns_of_a_test_set_that_is_in_the_holdout(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("holdout", "unseen"):
        (tmp_path / name).mkdir()
    np.savez(tmp_path / "holdout" / "holdout.npz", x=rng.standard_normal((4, 10)), y=np.array([0, 1, 0, 1]))
    (tmp_path / "unseen" / "holdout.npz").write_bytes((tmp_path / "holdout" / "holdout.npz").read_bytes())
    found = data.test(ServerConfig(task="linear", holdout=str(tmp_path / "holdout"), test=str(tmp_path / "unseen")))
    assert found.verdict is Verdict.WARNING
    assert found.notes == ("1 of the test set's 1 files is in the holdout too, so not unseen",)
