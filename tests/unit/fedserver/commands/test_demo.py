"""What `fedserver demo` looks at before it begins. A moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedserver.cli import app
from fedserver.exit_codes import ExitCode

pytestmark = pytest.mark.numpy_task


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """What an earlier demo left: its report, and images in the way of `--data`."""
    for name in ("report/report.html", "phantom/train/yes/1.png", "phantom/val/yes/2.png", "demo.json"):
        path = tmp_path / "earlier" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kept")
    return tmp_path / "earlier"


def refused(data: Path, out: Path) -> str:
    """The message with which the demo refuses; it leaves everything as it is."""
    before = sorted(out.rglob("*"))
    result = CliRunner().invoke(app, ["demo", "--data", str(data), "--out", str(out)])
    assert result.exit_code == ExitCode.BAD_CONFIGURATION, result.exception
    assert sorted(out.rglob("*")) == before
    return result.output


def test_demo_whose_data_is_not_there_leaves_the_earlier_one(earlier: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'typo'} has no folder train/" in refused(tmp_path / "typo", earlier)


def test_demo_whose_data_is_of_the_earlier_one_leaves_both(earlier: Path, tmp_path: Path) -> None:
    words = f"lies inside {earlier}, which every demo makes anew; give another --out"
    assert words in refused(earlier / "phantom", earlier)
    (tmp_path / "link").symlink_to(earlier / "phantom")
    assert words in refused(tmp_path / "link", earlier)
