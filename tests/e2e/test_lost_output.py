"""A whole federation whose processes can say nothing: their output is a full disk, or a pipe without a reader. 15 s."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.processes import Running, Stage, read_contact, until

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def broken_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_server_without_any_standard_stream_serves_and_stops(scene: Stage) -> None:
    run = f'exec "{sys.executable}" -m fedserver.cli run --task linear --listen 127.0.0.1:0 <&- >&- 2>&-'
    process = subprocess.Popen(["sh", "-c", run], cwd=scene.folder)
    (scene.folder / "nothing.log").touch()
    scene.running.append(Running(process, scene.folder / "nothing.log"))
    state = scene.folder / "runs" / "server" / "state"
    until("the server to serve", lambda: process.poll() is not None or read_contact(state).get("address"))
    assert process.poll() is None
    process.terminate()
    assert scene.running[-1].wait() == 0


@pytest.mark.parametrize("nowhere", [full_disk, broken_pipe])
def test_federation_whose_output_is_lost_does_all_its_work(scene: Stage, nowhere: Callable[[], int]) -> None:
    output = nowhere()

    def start(module: str, *words: str) -> Running:
        command = [sys.executable, "-m", module, "run", "--plaintext", "--no-pictures", *words]
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=scene.folder)
        scene.running.append(Running(process, scene.folder / "nothing.log"))
        return scene.running[-1]

    (scene.folder / "nothing.log").touch()
    try:
        places = ["--state", "state", "--out", "server"]
        rounds = ["--rounds", "1", "--min-clients", "1", "--task", "linear"]
        server = start("fedserver.cli", "--listen", "127.0.0.1:0", *rounds, *places)
        address = until("the server to serve", lambda: read_contact(scene.folder / "state").get("address"))
        site = ["--server", str(address), "--name", "alpha", "--data", "phantom", "--out", "alpha"]
        client = start("fedclient.cli", *site, "--state-dir", "alpha/state")
        assert (client.wait(), server.wait()) == (0, 0)
    finally:
        os.close(output)
    assert (scene.folder / "alpha" / "GLOBAL_MODEL.safetensors").is_file()
