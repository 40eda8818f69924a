"""`fedclient predict` with a real model, in Keras; what it says without one is beside the other commands."""

from __future__ import annotations

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
def test_predict_prints_a_line_per_image_and_names_those_it_cannot_use(tmp_path: Path) -> None:
    task = BrainMri(SMALL)
    (model,) = [path for path in task.export(task.initial_weights(0, "random"), tmp_path, "m") if path.suffix == ".h5"]
    Image.new("L", (80, 60), 90).save(tmp_path / "scan.png")
    (tmp_path / "notes.png").write_text("no image")
    command = [sys.executable, "-m", "fedclient.cli", "predict", str(model)]
    command += [f"{tmp_path}/scan.png", f"{tmp_path}/notes.png"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    first, second = result.stdout.splitlines()

    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/scan\.png: (no|yes) (0\.[5-9]\d{{3}}|1\.0000)", first)
    assert second.startswith(f"{tmp_path}/notes.png: unusable: ")
    assert result.returncode == ExitCode.BAD_DATA
    assert result.stderr.splitlines()[-1] == "fedclient: 1 of 2 images could not be used"
