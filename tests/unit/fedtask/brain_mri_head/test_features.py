"""The two forms of features files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fedtask.brain_mri_head.features import PLAIN, SAFETENSORS, Features, Labelled, read_features, write_features
from fedtask.task import TaskError
from tests.support.features import site_features

pytestmark = pytest.mark.numpy_task

MEANING = "fedstream meaning v1\nno\tyes\nyes\n2 numbers\n"
SMALL = Features(
    Labelled(np.array([[1, -2]], np.float32), np.array([1])),
    Labelled(np.array([[0.5, 0]], np.float32), np.array([0])),
    MEANING.encode(),
    generated=True,
)
PLAIN_BYTES = (
    b"FSFEAT01"
    + bytes.fromhex("01000000 01000000 02000000 01000000 2a000000")
    + b"fedstream meaning v1\nno\tyes\nyes\n2 numbers\n"
    + bytes.fromhex("01 00 0000803f 000000c0 0000003f 00000000")
)


def same(one: Features, other: Features) -> bool:
    pairs = [(one.train, other.train), (one.val, other.val)]
    arrays = all(np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y) for a, b in pairs)
    return arrays and (one.meaning, one.generated) == (other.meaning, other.generated)


@pytest.mark.parametrize("ending", [PLAIN, SAFETENSORS])
@pytest.mark.parametrize("features", [SMALL, site_features(0), site_features(1, num_val=0)])
def test_file_that_was_written_reads_as_the_same(tmp_path: Path, ending: str, features: Features) -> None:
    path = tmp_path / f"site{ending}"
    write_features(features, path)
    assert same(read_features(path), features)


def test_plain_form_is_to_the_byte_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "site.features"
    write_features(SMALL, path)
    assert path.read_bytes() == PLAIN_BYTES


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no sound features file"),
        (PLAIN_BYTES[:-1], "its length"),
        (PLAIN_BYTES + b"\0", "its length"),
        (b"X" + PLAIN_BYTES[1:], "its beginning"),
        (PLAIN_BYTES[:24] + b"\xff\xff\xff\xff" + PLAIN_BYTES[28:], "its length"),
        (PLAIN_BYTES.replace(bytes.fromhex("01 00 0000803f"), bytes.fromhex("02 00 0000803f")), "labels other than"),
        (PLAIN_BYTES.replace(bytes.fromhex("0000803f"), bytes.fromhex("0000807f")), "no finite numbers"),
    ],
)
def test_malformed_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "site.features"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=re.escape(says)):
        read_features(path)


def test_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="`fedclient features` makes it"):
        read_features(tmp_path / "site.features")


def test_other_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"ends in \.safetensors or \.features"):
        write_features(SMALL, tmp_path / "site.npz")
