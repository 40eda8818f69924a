"""The connection breaks in mid-training and in mid-upload: the client comes back by itself, and trains once."""

from __future__ import annotations

import asyncio
import math
import signal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedclient import calls
from fedclient.client import Client
from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.display import LogDisplay
from fedclient.download import Downloader
from fedclient.exit_codes import ExitCode
from fedclient.models import ModelStore
from fedserver.federation import Federation
from fedstream import limits
from fedstream.files import RealFileSystem
from fedstream.progress import Phase
from tests.support.negotiating import parts_of
from tests.support.processes import Stage, soon
from tests.support.proxy import proxied
from tests.support.scripted import QUICK
from tests.support.serving import serving

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(240)]

MIB = 1 << 20
BODY_MIB = 12


def is_at(federation: Federation, phase: Phase) -> bool:
    """Whether the only client of the round at work is in a phase."""
    round_ = federation.round
    return round_ is not None and round_.participations[0].progress.phase is phase


async def test_client_cut_off_in_training_and_in_its_upload_comes_back_and_trains_once(scene: Stage) -> None:
    task = {"tensors": str(BODY_MIB), "tensor_kib": "1024", "seconds": "1"}
    async with (
        serving(scene.folder, min_clients=1, rounds=1, task_settings=task) as (server, listening),
        proxied(listening) as (proxy, near),
    ):
        federation = server.federation
        client = scene.client("alpha", near)
        await soon("training", lambda: is_at(federation, Phase.TRAINING))
        proxy.cut()
        await soon("the client to be missed", lambda: not federation.idle)
        await soon("the client to come back", lambda: federation.idle)
        assert is_at(federation, Phase.TRAINING)
        before = proxy.bytes_up
        proxy.cut_after(5 * MIB)
        assert await client.ended() == 0

        (record,) = federation.history
        (part,) = record.contributions
        assert (proxy.cuts, part.outcome, part.reason, record.reason) == (
            2,
            "completed",
            "",
            "reporting goal of 1 reached",
        )
        assert part.upload_bytes == BODY_MIB * MIB + 44
        # What is sent again after one cut is at most the window; what else goes up is framing and a few small calls.
        assert BODY_MIB * MIB < proxy.bytes_up - before < BODY_MIB * MIB + limits.WINDOW_BYTES + MIB
        assert len(client.said("trained")) == 1
        (resumed,) = client.said("resuming the upload")
        assert 0 < resumed["committed"] <= 5 * MIB
        rows = [(row["round"], row["epoch"]) for row in scene.history("alpha")]
        assert rows == [("1", "1"), ("1", "2"), ("1", "3")]
        assert federation.population["alpha"].rounds_completed == 1


async def test_client_whose_line_takes_longer_for_a_chunk_than_anybody_waits_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "STALL_SECONDS", 3.0)  # gRPC still sends up to 1 MiB of a call that was given up
    task = {"tensors": "2", "tensor_kib": "1024"}  # 3.5 s each way in one chunk
    bounds = {"message_timeout_seconds": 1.5, "plaintext": True}
    async with (
        serving(tmp_path / "server", min_clients=1, rounds=1, task_settings=task, **bounds) as (server, listening),
        proxied(listening, bytes_per_second=600_000) as (_, near),
    ):
        facts = {"server": near.address, "plaintext": True, "name": "alpha", "data": "phantom", "pictures": False}
        config = ClientConfig.model_validate({**facts, "out": tmp_path / "out", "state_dir": tmp_path / "site"})
        with capture_logs() as logs:
            text = await Client(config, LogDisplay(), QUICK).run()
        assert parts_of(server, 1) == {"alpha": ("completed", "")}
    assert text.endswith(f"saved {tmp_path / 'out' / 'GLOBAL_MODEL.safetensors'}")
    assert [entry["event"] for entry in logs].count("trained") == 1
    again = [entry["doing"] for entry in logs if entry["event"] == "trying again"]
    assert again.count("downloading a model") == 1  # then its chunks are small enough


@pytest.mark.parametrize("way", [Phase.DOWNLOADING, Phase.UPLOADING])
async def test_client_whose_line_is_cut_more_often_than_a_chunk_takes_takes_part(tmp_path: Path, way: Phase) -> None:
    # A chunk is 2 MiB, and each connection carries a fifth of it.
    task = {"tensors": "3", "tensor_kib": "1024", "seconds": "3", "epochs": "1"}
    settings = {"min_clients": 1, "rounds": 1, "task_settings": task, "plaintext": True}
    async with serving(tmp_path / "server", **settings) as (server, listening), proxied(listening) as (proxy, near):
        facts = {"server": near.address, "plaintext": True, "name": "alpha", "data": "phantom", "pictures": False}
        config = ClientConfig.model_validate({**facts, "out": tmp_path / "out", "state_dir": tmp_path / "site"})
        with capture_logs() as logs:
            if way is Phase.DOWNLOADING:
                proxy.bytes_per_connection = 400_000
            client = asyncio.create_task(Client(config, LogDisplay(), QUICK).run())
            await soon("training", lambda: is_at(server.federation, Phase.TRAINING), 30)
            proxy.bytes_per_connection = 400_000 if way is Phase.UPLOADING else math.inf
            text = await asyncio.wait_for(client, 120)
        assert parts_of(server, 1) == {"alpha": ("completed", "")}
    assert text.endswith(f"saved {tmp_path / 'out' / 'GLOBAL_MODEL.safetensors'}")
    assert [entry["event"] for entry in logs].count("trained") == 1
    assert 8 <= proxy.cuts <= 100  # mostly a quarter of a megabyte each, and a few that taught to send no more at once
    resumed = [entry["committed"] for entry in logs if entry["event"] == "resuming the upload"]
    assert resumed == sorted(resumed)
    assert resumed.count(0) <= 8


async def test_server_that_is_away_does_not_make_chunks_smaller(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "server", min_clients=1, plaintext=True) as (server, listening),
        proxied(listening) as (proxy, near),
    ):
        config = ClientConfig.model_validate({"server": near.address, "plaintext": True, "data": "phantom"})
        connection, files, tries = Connection(config), RealFileSystem(), 0

        def go_away(done: int, _total: int) -> None:
            nonlocal tries
            tries += done == 0
            proxy.refusing = tries < 8
            if tries == 1:
                proxy.cut()

        await connection.open()
        model, schema = server.federation.model, server.federation.schema
        downloader = Downloader(connection, ModelStore(tmp_path / "models", files), files, QUICK)
        await asyncio.wait_for(downloader.fetch(model.digest, schema, limits.MAX_CHUNK_BYTES, go_away), 30)
        await connection.close()
    assert tries >= 8
    assert connection.chunk_size.most_bytes >= limits.MAX_CHUNK_BYTES // 2  # the first try may have been cut at work


async def test_client_waits_for_a_server_that_is_not_there_yet(scene: Stage) -> None:
    async with (
        serving(scene.folder, min_clients=1, rounds=1) as (server, listening),
        proxied(listening) as (proxy, near),
    ):
        proxy.refusing = True
        client = scene.client("alpha", near)
        await soon("two tries", lambda: len(client.said("trying again")) >= 2)
        assert client.said("trying again")[0]["doing"] == "talking to the server"
        proxy.refusing = False
        assert await client.ended() == 0
        assert [record.succeeded for record in server.federation.history] == [True]


async def test_client_that_may_give_up_says_whom_it_could_not_reach(scene: Stage) -> None:
    async with serving(scene.folder, min_clients=1) as (_, listening), proxied(listening) as (proxy, near):
        proxy.refusing = True
        client = scene.client("alpha", near, "--give-up-after", "1")
        assert await client.ended() == ExitCode.UNREACHABLE
        assert f"fedclient: no contact to {near.address} for 1.0 s: " in client.text


async def test_client_refuses_a_server_with_another_fingerprint(scene: Stage) -> None:
    async with serving(scene.folder, min_clients=1, open_enrolment=True) as (server, listening):
        wrong = "sha256:" + "0" * 64
        client = scene.client("alpha", listening, "--fingerprint", wrong)
        assert await client.ended() == ExitCode.UNTRUSTED
        assert (
            f"the server at {listening.address} has the certificate {listening.fingerprint}, not {wrong}" in client.text
        )
        assert list(server.federation.population) == []


async def test_client_killed_in_its_upload_does_not_train_again_when_it_is_started_anew(scene: Stage) -> None:
    task = {"tensors": str(BODY_MIB), "tensor_kib": "1024"}
    async with (
        serving(scene.folder, min_clients=1, rounds=1, task_settings=task) as (server, listening),
        proxied(listening) as (proxy, near),
    ):
        federation = server.federation
        proxy.cut_after(6 * MIB)
        first = scene.client("alpha", near)
        await soon("the cut", lambda: proxy.cuts == 1)
        proxy.refusing = True
        await soon("the client to be missed", lambda: not federation.idle)
        first.process.kill()
        assert await first.ended() == -signal.SIGKILL
        proxy.refusing = False
        second = scene.client("alpha", near)
        assert await second.ended() == 0
        kept = "this round is trained already; sending what was kept"
        # Both processes write to one log.
        assert (len(second.said("trained")), len(second.said(kept))) == (1, 1)
        assert parts_of(server, 1) == {"alpha": ("completed", "")}
        assert len(scene.history("alpha")) == 3
