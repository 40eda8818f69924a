"""`fedclient predict` with a real model, in Keras; what it says without one is beside the other commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fedclient.exit_codes import ExitCode
from fedtask.brain_mri.task import BrainMri
from tests.support.brain_mri import SMALL


@pytest.mark.slow
def test_predict_prints_a_line_per_image_also_of_folders_and_names_those_it_cannot_use(tmp_path: Path) -> None:
    task = BrainMri(SMALL)
    (model,) = [path for path in task.export(task.initial_weights(0, "random"), tmp_path, "m") if path.suffix == ".h5"]
    scans = tmp_path / "scans"
    (scans / "patient7").mkdir(parents=True)
    Image.new("L", (80, 60), 90).save(tmp_path / "scan.png")
    Image.new("L", (80, 60), 40).save(scans / "patient7" / "scan.png")
    (scans / "notes.png").write_text("no image")
    (scans / ".DS_Store").write_text("litter")
    result = predict(str(model), f"{tmp_path}/scan.png", str(scans))
    first, second, third = result.stdout.splitlines()

    scored = r"(no|yes) (0\.[5-9]\d{3}|1\.0000)"
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/scan\.png: {scored}", first)
    assert second.startswith(f"{scans}/notes.png: unusable: ")
    assert re.fullmatch(rf"{re.escape(str(scans))}/patient7/scan\.png: {scored}", third)
    assert result.returncode == ExitCode.BAD_DATA
    assert result.stderr == "fedclient: 1 of 3 images could not be used\n"


def test_predict_of_a_folder_without_files_says_so_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"looked at later")
    (tmp_path / "empty").mkdir()
    result = predict(str(tmp_path / "m.h5"), str(tmp_path / "empty"))

    assert (result.returncode, result.stderr) == (
        ExitCode.BAD_DATA,
        f"fedclient: there is no file in {tmp_path / 'empty'}\n",
    )


def predict(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedclient.cli", "predict", *words]
    plain = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=plain)
