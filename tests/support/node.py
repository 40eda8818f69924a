"""The client in JavaScript, for tests that skip where Node or its packages are not there."""

from __future__ import annotations

import shutil
import subprocess

from tests.support.foreign import CLIENTS, ForeignClient

FOLDER = CLIENTS / "node"

_LEAST_VERSION = 20
_MAIN = ["node", str(FOLDER / "src" / "main.js")]


def missing() -> str:
    """Why the client cannot run here; empty if it can."""
    node = shutil.which("node")
    if node is None:
        return "node is not on the PATH"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    if not version.startswith("v") or int(version[1:].partition(".")[0]) < _LEAST_VERSION:
        return f"node is {version or 'broken'}, and the client needs {_LEAST_VERSION} or later"
    if not (FOLDER / "node_modules" / "@grpc" / "grpc-js").is_dir():
        return "the client's packages are not installed: npm ci --ignore-scripts in clients/node"
    return ""


NODE = ForeignClient(
    language="node",
    folder=FOLDER,
    missing=missing,
    build=lambda: None,
    run=[*_MAIN, "run"],
    slow=[*_MAIN, "run", "--task", str(FOLDER / "test" / "slow_head.js")],
    join=[*_MAIN, "join"],
    own_tests=[["npm", "test", "--silent"]],
    training_error=1e-6,  # TensorFlow.js computes in float32
    knows_nohup=False,
)
