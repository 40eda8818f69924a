"""What end-to-end tests share."""

from __future__ import annotations

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
