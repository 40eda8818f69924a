"""A client is killed after it heard that the federation is over, and started again: it ends by itself. 60 s."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import dying, joining
from tests.support.processes import Running, RunningServer, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(240)]

KEPT = [
    "GLOBAL_MODEL.safetensors",
    "client_alpha_model.safetensors",
    "client_alpha_training_history.csv",
    "client_alpha_training_history.png",
]
ENDED = "the server has said before that the federation is over"


def server_of_one_round(scene: Stage) -> RunningServer:
    """A server that alpha has joined."""
    server = scene.server("--rounds", "1", "--min-clients", "1")
    listening = server.listening
    assert listening.enrolment_address is not None
    asyncio.run(joining.joined(listening.admin_address, listening.enrolment_address, "alpha"))
    return server


def start(scene: Stage, server: RunningServer, *command: str) -> Running:
    home = scene.folder / "alpha"
    identity = joining.identity_folder(server.listening.admin_address, "alpha")
    options = ["--identity", str(identity), "--server", server.listening.address, "--data", "phantom"]
    return scene.start("alpha", [*command, "run", *options, "--out", str(home), "--state-dir", str(home / "state")])


def start_again(scene: Stage, server: RunningServer) -> Running:
    return start(scene, server, "fedclient.cli")


def killed_at(scene: Stage, server: RunningServer, place: str) -> Running:
    client = start(scene, server, dying.__file__, place)
    assert client.wait() == -signal.SIGKILL
    return client


def written(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def weights_left(folder: Path) -> Sequence[Path]:
    return sorted((folder / "state").rglob("*.safetensors*"))


@pytest.mark.parametrize("place", ["models fetched", "server told", "models saved", "weights forgotten"])
def test_client_killed_at_the_end_and_started_when_the_server_has_left_ends_with_all_its_files(
    scene: Stage, place: str
) -> None:
    server = server_of_one_round(scene)
    killed_at(scene, server, place)
    if place == "models fetched":
        server.process.send_signal(signal.SIGTERM)  # it would wait, but not for ever
    assert server.wait() == 0
    folder = scene.folder / "alpha"
    if place in ("models fetched", "server told"):
        for path in written(folder):  # what had been written by then is a matter of luck
            path.unlink()

    again = start_again(scene, server)

    assert again.wait() == 0
    assert [path.name for path in written(folder)] == KEPT
    assert (folder / KEPT[0]).read_bytes() == (server.out / "models" / KEPT[0]).read_bytes()
    assert len(scene.history("alpha")) == 3
    assert weights_left(folder) == []
    assert (len(again.said("trained")), len(again.said(ENDED))) == (1, 1)  # both processes write to one log
    assert "federation finished: all 1 rounds done\n" in again.text


@pytest.mark.parametrize("place", ["end heard", "end noted"])
def test_client_killed_before_it_has_the_final_model_and_started_again_gets_it_from_the_server_that_waits(
    scene: Stage, place: str
) -> None:
    server = server_of_one_round(scene)
    killed_at(scene, server, place)

    again = start_again(scene, server)

    assert (again.wait(), server.wait()) == (0, 0)
    assert [path.name for path in written(scene.folder / "alpha")] == KEPT
    assert again.said(ENDED) == []


def test_client_that_noted_the_end_takes_part_in_rounds_that_are_added(scene: Stage) -> None:
    server = server_of_one_round(scene)
    killed_at(scene, server, "saving noted")
    assert server.wait() == 0
    more = scene.server("--rounds", "2", "--min-clients", "1", listen=server.listening.address)

    again = start_again(scene, more)

    assert (again.wait(), more.wait()) == (0, 0)
    assert len(again.said("trained")) == 2
    assert [row["round"] for row in scene.history("alpha")] == ["1"] * 3 + ["2"] * 3
    folder = scene.folder / "alpha"
    assert again.said(ENDED) == []
    assert again.text.count("federation finished: all 2 rounds done\n") == 1
    assert weights_left(folder) == []
