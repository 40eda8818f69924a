"""The client in JavaScript as a process, for tests that skip where Node or its packages are not there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from fedserver.server import Listening
from tests.support.processes import Running, Stage

FOLDER = Path(__file__).resolve().parents[2] / "clients" / "node"
SLOW_TASK = FOLDER / "test" / "slow_head.js"
"""A training module that waits a second before it trains."""

_LEAST_VERSION = 20


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


def node_client(scene: Stage, name: str, listening: Listening, data: Path, *options: str) -> Running:
    """Start one; what it makes is in the folder of its name."""
    folder = scene.folder / name
    trust = [] if "--fingerprint" in options else ["--fingerprint", listening.fingerprint]
    words = ["node", str(FOLDER / "src" / "main.js"), "--server", listening.address, *trust]
    words += ["--name", name, "--data", str(data), "--out", str(folder), "--state-dir", str(folder / "state")]
    return scene.launch(name, [*words, *options])
