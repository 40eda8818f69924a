"""Federations whose updates travel encoded, over TLS, and one of whose servers is killed. 30 s."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from fedstream import wire
from fedstream.encodings import Encoding
from fedstream.v1 import common_pb2, negotiation_pb2
from tests.support.processes import Look, RunningServer, Stage, stage
from tests.support.serving import BareSite, serving

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(240)]

ROUNDS = 3
MODEL_BYTES = 4 * 512 * 1024
TASK = {"tensors": 4, "tensor_kib": 512, "seconds": "0.3"}


def server_of(scene: Stage, encoding: str, **contact: Any) -> RunningServer:
    options = ["--rounds", str(ROUNDS), "--min-clients", "2", "--holdout", "phantom", "--update-encoding", encoding]
    return scene.server(*options, **{**TASK, **contact})


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


def all_train(look: Look) -> bool:
    return len(look.parts) == 2 and all(part.phase == negotiation_pb2.PHASE_TRAINING for part in look.parts.values())


def test_update_of_a_round_that_was_opened_with_another_encoding_is_taken(tmp_path: Path) -> None:
    with stage(tmp_path) as scene:
        first = server_of(scene, "int8", seconds=2)
        for number in range(2):
            scene.client(f"site-{number}", first.listening, shard=f"{number}/2")
        first.until("the sites to train", all_train)
        first.process.kill()
        first.process.wait()
        second = server_of(scene, "raw", listen=first.listening.address, seconds=2)
        rounds = outcome(scene, second)["rounds"]
        ends = [[part["outcome"] for part in one["contributions"]] for one in second.summary["details"]["rounds"]]
    assert ends == [["completed", "completed"]] * ROUNDS
    encoded, *raw = (2 * MODEL_BYTES / int(one["bytes_received"]) for one in rounds)
    assert encoded > 3.9  # as was agreed on
    assert max(raw) <= 1


@pytest.mark.parametrize(
    ("client_takes", "welcome"),
    [
        (list(Encoding), [Encoding.INT8_ZSTD, Encoding.RAW]),
        ([Encoding.INT8, Encoding.RAW], [Encoding.RAW]),
        ([], [Encoding.RAW]),
    ],
)
async def test_client_is_welcomed_with_the_encodings_that_both_ends_take(
    tmp_path: Path, client_takes: list[Encoding], welcome: list[Encoding]
) -> None:
    task = "tests.support.tasks:Shapes"
    async with (
        serving(tmp_path, task=task, update_encoding="int8+zstd") as (server, listening),
        BareSite.dial(listening) as site,
    ):
        described = await site.negotiation.DescribeTask(negotiation_pb2.DescribeTaskRequest())
        assert wire.read_encodings(described.capabilities.encodings) == [Encoding.INT8_ZSTD, Encoding.RAW]
        capabilities = common_pb2.Capabilities(encodings=[*wire.write_encodings(client_takes), 99])
        answer = await site.hello("a", server.federation.schema, server.federation.meaning, capabilities=capabilities)
        assert wire.read_encodings(answer.welcome.encodings) == welcome


def uploads_are_under_way(look: Look) -> bool:
    uploading = negotiation_pb2.PHASE_UPLOADING
    return look.rounds_over == 1 and any(part.phase == uploading for part in look.parts.values())


@pytest.mark.parametrize("then", ["int8", "raw"])
def test_server_killed_in_mid_upload_goes_on_and_nothing_is_trained_or_packed_twice(tmp_path: Path, then: str) -> None:
    with stage(tmp_path) as scene:
        server = server_of(scene, "int8")
        clients = [scene.client(f"site-{number}", server.listening, shard=f"{number}/2") for number in range(2)]
        server.until("the second round's uploads", lambda look: uploads_are_under_way(look) or look.rounds_over > 1)
        server.process.kill()
        server.process.wait()
        again = server_of(scene, then, listen=server.listening.address)
        rounds = outcome(scene, again)["rounds"]
        for client in clients:
            assert len(client.said("trained")) == ROUNDS
            assert len(client.said("packed the update")) == (ROUNDS if then == "int8" else 2)
    assert [one["succeeded"] for one in rounds] == [True] * ROUNDS
