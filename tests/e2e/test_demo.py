"""The main job, as `make demo` runs it: Keras, images in folders, a server and two sites as processes. 60 s.

A network of a few pixels and one epoch, so that it is about the way and not about the score.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedserver.exit_codes import ExitCode
from fedserver.store.folder import read_contact
from fedtask.brain_mri.phantom import write_phantom

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = {"alpha": "0.35", "image_size": "32", "fine_tune": "upper", "variants": "1"}

PREDICTS_IN_PLAIN_KERAS = """
import sys, keras, numpy as np
plain = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
outputs = [keras.models.load_model(path).predict(plain, verbose=0) for path in sys.argv[1:]]
assert not any(name.startswith("fed") for name in sys.modules), "it must open without this project"
print([output.shape for output in outputs], np.array_equal(*outputs))
"""


def command_of(folder: Path, weights: str) -> tuple[Path, list[str]]:
    """Where its results will be, and the command."""
    write_phantom(folder / "data", num_train=48, num_val=16, size=32)
    data, out = folder / "data", folder / "out"
    command = [sys.executable, "-m", "fedserver.cli", "demo", "--data", str(data), "--out", str(out)]
    command += ["--backbone-weights", weights, "--clients", "2", "--division", "even"]
    command += ["--rounds", "2", "--epochs", "1"]
    for name, value in SMALL.items():
        command += ["--task-set", f"{name}={value}"]
    return out, command


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where its results are, and what it said."""
    out, command = command_of(tmp_path_factory.mktemp("demo"), "random")
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_demo_whose_server_fails_says_why_and_does_not_wait_for_its_sites(tmp_path: Path) -> None:
    (tmp_path / "other.h5").write_text("no weights")
    out, command = command_of(tmp_path, str(tmp_path / "other.h5"))
    # It would wait 60 s for each site.
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == ExitCode.FAILED
    assert "the federation did not finish: " in done.stderr
    assert "other.h5 does not hold weights of MobileNetV2" in done.stderr
    assert str(out / "logs" / "server.log") in done.stderr


def test_demo_whose_site_fails_says_why_and_does_not_wait_for_it(tmp_path: Path) -> None:
    out, command = command_of(tmp_path, "random")
    for picture in (tmp_path / "data" / "train").rglob("*.*"):
        picture.write_text("no picture")
    # The server would wait a day for a site.
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == ExitCode.FAILED
    assert re.search(r"fedserver: site_[01] ended with status 3: .*train", done.stderr), done.stderr
    assert f"see {out / 'logs' / 'site_'}" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(read_contact(out / "server")["pid"], 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_demo_that_is_told_to_end_ends_its_server_and_sites(tmp_path: Path, number: signal.Signals) -> None:
    out, command = command_of(tmp_path, "random")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any("2 sites started" in line for line in demo.stdout)
        server = read_contact(out / "server")["pid"]
        os.kill(server, 0)
        demo.send_signal(number)
        assert demo.wait(60) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def test_demo_says_how_it_goes_and_where_everything_is(demo: tuple[Path, str]) -> None:
    out, said = demo
    for words in ("2 sites started", "round 1 over: ", "round 2 over: ", "Best global model: round ", "2 rounds in "):
        assert words in said
    assert f"Report: {out / 'report' / 'report.html'}" in said


def test_demo_reports_every_site_and_that_the_images_are_a_phantom(demo: tuple[Path, str]) -> None:
    summary: dict[str, Any] = json.loads((demo[0] / "report" / "summary.json").read_text())
    completed = {number: counts["completed"] for number, counts in summary["counts"].items()}
    assert completed == {"1": 2, "2": 2}
    assert (summary["rounds"], summary["synthetic"]) == (2, True)
    assert 0 <= summary["accuracy"] <= 1
    frozen_backbone_stays_at_home = summary["bytes_received"] < summary["bytes_sent"]
    assert frozen_backbone_stays_at_home


def test_demo_leaves_each_site_its_model_and_its_history(demo: tuple[Path, str]) -> None:
    for name in ("site_0", "site_1"):
        folder = demo[0] / "clients" / name
        written = {path.name for path in folder.iterdir() if path.is_file() and path.stat().st_size}
        assert written >= {f"client_{name}_model.h5", f"client_{name}_training_history.png"}


def test_what_comes_out_stands_in_the_document(demo: tuple[Path, str]) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "operating.md").read_text("utf-8")
    told = set(re.findall(r"[\w/]+", text.split("## What comes out\n")[1].split("\n## ")[0]))
    out, _ = demo
    site = out / "clients" / "site_0"
    left = [*(out / "models").iterdir(), *site.glob("*.*")]
    assert {path.stem.replace("site_0", "NAME").removesuffix("_MOB") for path in left} <= {
        name.removeprefix("models/").removesuffix("_MOB") for name in told
    }
    assert {path.name.split(".")[0] for path in (out / "report").iterdir() if path.suffix != ".png"} <= {
        name.removeprefix("report/").rstrip("/") for name in told
    }


def test_models_of_the_demo_take_plain_images_in_plain_keras(demo: tuple[Path, str]) -> None:
    models = [str(demo[0] / "models" / name) for name in ("GLOBAL_MODEL_MOB.keras", "GLOBAL_MODEL_MOB.h5")]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", PREDICTS_IN_PLAIN_KERAS, *models]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=quiet, cwd="/")
    assert done.stdout.strip() == "[(2, 1), (2, 1)] True", done.stdout + done.stderr
