"""`fedclient features` with a real backbone; what it refuses is beside the other commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

OWN_KERAS = {"floatx": "float16", "epsilon": 1e-3, "backend": "torch", "image_data_format": "channels_first"}


@pytest.mark.slow
def test_features_says_what_it_wrote_and_nothing_of_tensorflow_whatever_the_users_keras_is_set_to(
    tmp_path: Path,
) -> None:
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text(json.dumps(OWN_KERAS))
    for name in ("no", "yes"):
        (tmp_path / "scans" / "train" / name).mkdir(parents=True)
        for number in range(3):
            scan = Image.linear_gradient("L").rotate(17 * number + 5 * len(name))
            scan.save(tmp_path / "scans" / "train" / name / f"{number}.png")
    command = [sys.executable, "-m", "fedclient.cli", "features", "--data", "scans", "--out", "scans"]
    command += ["--backbone-weights", "random", "--task-set", "alpha=0.35", "--task-set", "image_size=64"]
    plain = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    own = plain | {"HOME": str(tmp_path), "KERAS_BACKEND": "jax"}
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=own)

    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        "wrote scans.safetensors",
        "wrote scans.features",
        "the coordinator's settings",
    ]
