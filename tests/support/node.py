"""The client in JavaScript as a process, for tests that skip where Node or its packages are not there."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedclient.identity import AUTHORITY, CERTIFICATE, KEY
from fedserver.server import Listening
from tests.support.joining import joined
from tests.support.processes import Running, Stage

FOLDER = Path(__file__).resolve().parents[2] / "clients" / "node"
SLOW_TASK = FOLDER / "test" / "slow_head.js"
"""A training module that waits three seconds before it trains."""

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


def _certificates(listening: Listening, name: str) -> list[str]:
    """Options of a site that was invited and has joined, now or before."""
    assert listening.enrolment_address is not None, "sites enrol where there are certificates"
    joining = joined(listening.admin_address, listening.enrolment_address, name)
    with ThreadPoolExecutor(1) as thread:  # the test may have a loop of its own in this one
        folder = thread.submit(asyncio.run, joining).result().folder
    files = {"--certificate": CERTIFICATE, "--key": KEY, "--server-ca": AUTHORITY}
    return [word for option, file in files.items() for word in (option, str(folder / file))]


def node_client(scene: Stage, name: str, listening: Listening, data: Path, *options: str) -> Running:
    """Start one; what it makes is in the folder of its name."""
    folder = scene.folder / name
    trust = [] if "--fingerprint" in options else _certificates(listening, name)
    words = ["node", str(FOLDER / "src" / "main.js"), "run", "--server", listening.address, *trust]
    words += ["--name", name, "--data", str(data), "--out", str(folder), "--state-dir", str(folder / "state")]
    return scene.launch(name, [*words, *options])
