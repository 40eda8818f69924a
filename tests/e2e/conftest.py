"""What end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Stage, stage


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    """Processes of this test; whatever still runs at its end is ended."""
    with stage(tmp_path) as made:
        yield made
