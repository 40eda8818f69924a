"""Federations whose updates travel encoded, over TLS, and one of whose servers is killed. 30 s."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from fedstream.v1 import negotiation_pb2
from tests.support.processes import Look, RunningServer, Stage, stage

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(240)]

ROUNDS = 3
MODEL_BYTES = 4 * 512 * 1024
TASK = {"tensors": 4, "tensor_kib": 512, "seconds": "0.3"}


def server_of(scene: Stage, encoding: str, **contact: str) -> RunningServer:
    options = ["--rounds", str(ROUNDS), "--min-clients", "2", "--holdout", "phantom", "--update-encoding", encoding]
    return scene.server(*options, **contact, **TASK)


def outcome(scene: Stage, server: RunningServer) -> Any:
    """What `fedserver rounds --json` says, once all have ended well; the rounds are verified."""
    assert [running.wait() for running in scene.running if running.process.returncode != -signal.SIGKILL] == [0, 0, 0]
    verified = scene.command("fedserver", "verify", "--state", str(server.state))
    assert verified.status == 0, verified
    return scene.command("fedserver", "rounds", "--json", "--state", str(server.state)).json


@pytest.mark.parametrize(("encoding", "times_fewer"), [("bfloat16", 1.99), ("int8+zstd", 3.9)])
def test_updates_take_so_many_fewer_bytes_and_the_model_learns(
    tmp_path: Path, encoding: str, times_fewer: float
) -> None:
    with stage(tmp_path) as scene:
        server = server_of(scene, encoding)
        for number in range(2):
            scene.client(f"site-{number}", server.listening, shard=f"{number}/2")
        rounds = outcome(scene, server)["rounds"]
    assert [one["succeeded"] for one in rounds] == [True] * ROUNDS
    assert all(2 * MODEL_BYTES / int(one["bytes_received"]) > times_fewer for one in rounds)
    accuracies = [metric["value"] for metric in rounds[-1]["metrics"] if metric["name"] == "accuracy"]
    assert accuracies[0] > 0.9


def uploads_are_under_way(look: Look) -> bool:
    uploading = negotiation_pb2.PHASE_UPLOADING
    return look.rounds_over == 1 and any(part.phase == uploading for part in look.parts.values())


def test_server_killed_in_mid_upload_goes_on_and_nothing_is_trained_or_packed_twice(tmp_path: Path) -> None:
    with stage(tmp_path) as scene:
        server = server_of(scene, "int8")
        clients = [scene.client(f"site-{number}", server.listening, shard=f"{number}/2") for number in range(2)]
        server.until("the second round's uploads", lambda look: uploads_are_under_way(look) or look.rounds_over > 1)
        server.process.kill()
        server.process.wait()
        again = server_of(scene, "int8", listen=server.listening.address)
        rounds = outcome(scene, again)["rounds"]
        for client in clients:
            assert len(client.said("trained")) == len(client.said("packed the update")) == ROUNDS
    assert [one["succeeded"] for one in rounds] == [True] * ROUNDS
