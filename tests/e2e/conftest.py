"""What end-to-end tests share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Stage, stage

# Suites that several modules share are no test modules themselves, and their asserts are to say as much all the same.
for _suite in ("foreign", "foreign_encodings", "foreign_joining"):
    pytest.register_assert_rewrite(f"tests.e2e.{_suite}")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    """Processes of this test; whatever still runs at its end is ended."""
    with stage(tmp_path) as made:
        yield made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MB, where the machine lets a test have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"this machine lets no test mount a small file system: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
