"""What `fedserver demo` looks at before it begins. A moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedserver.cli import app
from fedserver.commands import demo
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


def refused(data: Path | None, out: Path, *more: str) -> str:
    """The message with which the demo refuses; it leaves everything as it is."""
    before = sorted(out.rglob("*"))
    result = CliRunner().invoke(app, ["demo", *(["--data", str(data)] if data else []), "--out", str(out), *more])
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


def test_demo_whose_images_cannot_be_drawn_says_where_the_reason_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made_room = demo._make_room

    def in_the_way(out: Path) -> None:
        made_room(out)
        (out / "phantom").mkdir()
        (out / "phantom" / "scan.png").touch()

    monkeypatch.setattr(demo, "_make_room", in_the_way)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out")])
    log = tmp_path / "out" / "logs" / "phantom.log"
    said = result.output + "".join(capfd.readouterr())  # what a child says goes by the runner
    assert (result.exit_code, "Traceback" in said) == (ExitCode.FAILED, False)
    assert f"fedserver: the phantom images could not be made; see {log}\n" in said
    assert "is not empty and holds no phantom" in log.read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--division", "odd"), "unknown division 'odd'; use even, quantity, "),
        (("--strategy", "mean"), "strategy: unknown strategy 'mean'; choose one of fedavg, uniform, rank_decay"),
        (("--update-encoding", "zip"), "update_encoding: Input should be 'raw', 'zstd', "),
        (("--rounds", "0"), "rounds: Input should be greater than or equal to 1"),
        (("--epochs", "0"), "plan.epochs: Input should be greater than or equal to 1"),
        (("--task-set", "aplha=1"), "unknown setting 'aplha'; known are classes, positive_class, alpha, "),
        (("--backbone-weights", "none.h5"), "--backbone-weights: there is no file none.h5"),
    ],
)
def test_demo_with_an_option_that_cannot_be_leaves_the_earlier_one(
    earlier: Path, more: tuple[str, ...], says: str
) -> None:
    assert says in refused(None, earlier, *more)


@pytest.mark.parametrize("part", ["train", "val"])
def test_demo_whose_class_folders_have_other_names_leaves_the_earlier_one(
    earlier: Path, tmp_path: Path, part: str
) -> None:
    for name in ("train/no", "train/yes", "val/no", "val/yes"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in ("no", "yes"):
        (tmp_path / "data" / part / name).rename(tmp_path / "data" / part / f"{name} tumour")
    said = refused(tmp_path / "data", earlier)
    assert f"looked in {tmp_path / 'data' / part} for no/, yes/, one folder of images per class, and found" in said


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """A process that goes on."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def site_that_ended(ending: str, log: Path) -> demo._Site:
    log.write_text("fedclient: there is no folder data\n")
    process = subprocess.Popen([sys.executable, "-c", f"import os, signal, sys; {ending}"])
    process.wait()
    return demo._Site("site_0", log, process)


def test_demo_ends_where_a_site_has_failed(
    server: subprocess.Popen[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        demo._require_no_failure(server, [site_that_ended("sys.exit(3)", tmp_path / "log")])
    assert "site_0 ended with status 3: there is no folder data; see" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["sys.exit(0)", "sys.exit(143)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_demo_goes_on_where_a_site_is_done_or_was_stopped_to_try_it_out(
    ending: str, server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    demo._require_no_failure(server, [site_that_ended(ending, tmp_path / "log")])
