"""The parts of `make bench` that no other test runs, at the smallest size: they end, and find what must be so."""

from __future__ import annotations

from pathlib import Path

from benchmarks import publish
from benchmarks.options import Options


def test_publish_ends_with_the_right_model(tmp_path: Path) -> None:
    table = publish.run(Options(1, None, ["2x1"], tmp_path))
    assert [line.name for line in table.lines] == ["2 x 1 MiB"]
