"""A server whose disk is full, read-only or damaged: what its sites, its operator and its exit status say. 8 s."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from fedserver.config import ServerConfig
from fedserver.exit_codes import ExitCode
from fedserver.server import Listening, Server
from fedserver.store import State, StateError, StateReader
from fedserver.verification import verify
from fedstream.errors import LimitExceeded, TransportError
from fedstream.manifest import manifest_of
from fedstream.status import from_rpc_error
from fedstream.v1 import admin_pb2, negotiation_pb2, transfer_pb2
from tests.support.full_disk import FullDisk, fill
from tests.support.processes import Stage, until
from tests.support.serving import BareSite, administration, body_of, cut
from tests.support.tasks import Shapes, random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]

ROOT = Path(__file__).resolve().parents[2]
SHAPES = "tests.support.tasks:Shapes"
WAITING = "waiting for the disk"


@asynccontextmanager
async def serving(
    state: Path, files: FullDisk | None = None, **settings: Any
) -> AsyncIterator[tuple[Server, Listening]]:
    """As `tests.support.serving.serving`, on a disk that can be filled, for rounds of one site."""
    defaults = {"listen": "127.0.0.1:0", "plaintext": True, "task": SHAPES, "min_clients": 1, "rounds": 3}
    settings = {**defaults, "retry_delay_seconds": 0.05, "state": state, "out": state.parent / "out", **settings}
    server = Server(ServerConfig.model_validate(settings), files)
    listening = await server.start()
    life = asyncio.create_task(server.run())
    try:
        await asyncio.wait_for(server.federation.ready.wait(), 30)
        yield server, listening
    finally:
        server.federation.stop(finish_round=False)
        await asyncio.wait_for(asyncio.wait([life]), 30)
        await server.close()


async def refusal(awaitable: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value


async def status_of(listening: Listening) -> tuple[str, str]:
    await asyncio.sleep(0.1)  # the driver hears of trouble after the site does
    channel, admin = administration(listening)
    async with channel:
        state = await admin.GetState(admin_pb2.GetStateRequest())
    return admin_pb2.FederationState.Name(state.state), state.reason


async def assert_told_to_come_back(awaitable: Any) -> None:
    error = await refusal(awaitable)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    decided = from_rpc_error(error)
    assert isinstance(decided, LimitExceeded)
    assert decided.metadata == {"limit": "disk"}
    assert decided.retry_after == timedelta(seconds=0.05)
    assert decided.message == "the server's disk is full; nothing that was committed is lost, come back later"


async def test_site_is_told_to_come_back_at_every_call_while_the_disk_is_full_and_goes_on_after(tmp_path: Path) -> None:
    disk = FullDisk()
    async with serving(tmp_path / "state", disk) as (server, listening), BareSite.dial(listening) as site:
        disk.join(server.federation.state.database)
        await site.join("alpha", server)
        upload_id = (await site.agree()).upload_id
        schema, weights = Shapes({}).schema(), random_weights(Shapes({}).schema(), 1)
        manifest = manifest_of(schema, weights)
        disk.fill()
        await assert_told_to_come_back(site.put_manifest(upload_id, manifest))
        assert await status_of(listening) == (
            "FEDERATION_STATE_WAITING",
            f"for the disk: the disk of {tmp_path / 'state'} is full; make space, and the server goes on by itself",
        )
        disk.free()
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        body = body_of(manifest, weights, missing)
        assert await site.write(upload_id, cut(body[:500], 100)) == 500
        disk.fill()
        await assert_told_to_come_back(site.write(upload_id, cut(body, 100, start=500)))
        assert (await site.status(upload_id)).committed_size == 500
        disk.free()
        assert await site.write(upload_id, cut(body, 100, start=500)) == len(body)
        disk.fill()
        await assert_told_to_come_back(site.finish(upload_id))
        await asyncio.sleep(0.2)
        disk.free()
        assert (await site.finish(upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED
        assert (await site.hear()).round_outcome.succeeded
        offer = await site.agree()  # and the next round opens
        assert offer.round == 2
        assert (await status_of(listening))[0] == "FEDERATION_STATE_RUNNING"


async def test_first_model_waits_for_space_on_a_disk_that_fills_up_before_it_is_stored(tmp_path: Path) -> None:
    files = FullDisk()
    places = {"listen": "127.0.0.1:0", "state": tmp_path / "state", "out": tmp_path / "out", "task": SHAPES}
    server = Server(ServerConfig.model_validate({**places, "plaintext": True, "retry_delay_seconds": 0.05}), files)
    await server.start()
    files.fill()
    life, standing = asyncio.create_task(server.run()), lambda: server.federation.standing
    async with asyncio.timeout(30):
        while "for the disk" not in standing().reason:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)
        assert not server.federation.ready.is_set()
        files.free()
        await server.federation.ready.wait()
    server.federation.stop(finish_round=False)
    assert await asyncio.wait_for(life, 30) == "stopped by the coordinator"
    await server.close()


async def test_state_folder_that_is_moved_away_is_told_and_waited_for(tmp_path: Path) -> None:
    state, away = tmp_path / "state", tmp_path / "away"
    async with serving(state) as (server, listening), BareSite.dial(listening) as site:
        await site.join("alpha", server)
        upload_id = (await site.agree()).upload_id
        schema, weights = Shapes({}).schema(), random_weights(Shapes({}).schema(), 1)
        state.rename(away)
        error = from_rpc_error(await refusal(site.put_manifest(upload_id, manifest_of(schema, weights))))
        gone = "is not there: the folder was moved or removed, or its disk was unmounted or cannot be reached"
        assert isinstance(error, LimitExceeded)
        assert error.message == f"the server's disk {gone}; nothing that was committed is lost, come back later"
        assert server.federation.disk.words() == f"the disk of {state} {gone}"
        away.rename(state)
        assert (await site.upload(upload_id, schema, weights)).state == transfer_pb2.UPLOAD_STATE_ADMITTED


async def test_site_that_agrees_while_the_disk_is_full_is_told_to_come_back_and_offered_again(tmp_path: Path) -> None:
    disk = FullDisk()
    async with serving(tmp_path / "state", disk) as (server, listening), BareSite.dial(listening) as site:
        disk.join(server.federation.state.database)
        await site.join("alpha", server)
        offer = (await site.hear()).offer
        disk.fill()
        await site.say(accept=negotiation_pb2.Acceptance(offer_id=offer.offer_id))
        await assert_told_to_come_back(site.hear())
        disk.free()
        await site.join("alpha", server)
        again = await site.agree()
        assert (again.offer_id, again.upload_id) == (offer.offer_id, offer.upload_id)


async def test_failure_that_nobody_foresaw_is_logged_in_full_and_is_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "state") as (server, listening), BareSite.dial(listening) as site:

        def explode(_upload_id: str) -> None:
            raise ZeroDivisionError("a defect")

        monkeypatch.setattr(server._desk, "status", explode)
        with structlog.testing.capture_logs() as logs:
            error = await refusal(site.status("some upload"))
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "the server failed; its log says how")
        assert isinstance(from_rpc_error(error), TransportError)  # so a client comes back, and resumes
        (entry,) = [log for log in logs if log["event"] == "call failed"]
        assert (entry["log_level"], entry["call"], entry["error"]) == ("error", "GetUploadStatus", "a defect")
        assert isinstance(entry["exc_info"], ZeroDivisionError)


async def test_damaged_model_that_is_asked_for_is_named_in_the_log(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as (server, listening), BareSite.dial(listening) as site:
        model = server.federation.model
        model.path.write_bytes(b"no weights")
        with structlog.testing.capture_logs() as logs:
            error = await refusal(site.download(model.digest.sha256))
        assert error.code() is grpc.StatusCode.INTERNAL
        (entry,) = [log for log in logs if log["event"] == "call failed"]
        assert entry["error"].startswith(f"{model.path} cannot be used (")
        assert entry["error"].endswith(
            "restore a backup (`fedserver restore`); `fedserver verify` says what else is damaged"
        )


async def test_run_on_a_damaged_model_ends_with_the_status_for_a_bad_state(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as (server, _):
        model = server.federation.model
    data = bytearray(model.path.read_bytes())
    data[-1] ^= 1
    model.path.write_bytes(data)
    command = [sys.executable, "-m", "fedserver.cli", "run", "--listen", "127.0.0.1:0", "--plaintext"]
    command += ["--task", SHAPES, "--state", str(tmp_path / "state"), "--out", str(tmp_path / "out")]
    run = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == ExitCode.BAD_STATE
    assert f"{model.path} is damaged: tensor large does not match its digest; restore a backup" in run.stderr


def test_read_only_disk_is_refused_at_start_by_its_name(tmp_path: Path) -> None:
    disk = FullDisk(errno.EROFS)
    disk.fill()
    with pytest.raises(
        StateError, match=f"the disk of {tmp_path} cannot be written: it is mounted read-only"
    ) as caught:
        State(tmp_path, disk)
    assert str(caught.value).endswith("; make it writable again")


def test_training_of_a_site_whose_state_folder_is_moved_away_waits_for_it(scene: Stage) -> None:
    server = scene.server("--rounds", "1", "--min-clients", "1", seconds=4)
    client = scene.client("alpha", server.listening)
    until("it to train, and so to have read its base", lambda: any("epoch" in line for line in client.said("training")))
    state, away = scene.folder / "alpha" / "state", scene.folder / "away"
    state.rename(away)
    until("what was trained to wait", lambda: client.said("the worker process waits"))
    away.rename(state)
    assert (client.wait(), server.wait()) == (0, 0)
    assert len(client.said("trained")) == 1


def test_what_a_site_has_trained_within_its_limit_on_time_may_wait_for_the_disk_for_longer(scene: Stage) -> None:
    server = scene.server("--rounds", "1", "--min-clients", "1", seconds=2, epochs=1)
    client = scene.client("alpha", server.listening, "--max-hours", str(10 / 3600))
    until("it to train, and so to have read its base", lambda: any("epoch" in line for line in client.said("training")))
    state, away = scene.folder / "alpha" / "state", scene.folder / "away"
    state.rename(away)
    until("what was trained to wait", lambda: client.said("the worker process waits"))
    time.sleep(10.0)
    away.rename(state)
    assert (client.wait(), server.wait()) == (0, 0)
    assert len(client.said("trained")) == 1


# On a real file system of a few megabytes, where the machine lets a test have one.


async def test_small_disk_that_fills_up_delays_a_federation_and_loses_nothing(small_disk: Path) -> None:
    settings = {"task_settings": {"large_mib": "0.5"}, "min_free_bytes": 500_000, "keep_rounds": 1, "rounds": 2}
    schema = Shapes({"large_mib": "0.5"}).schema()
    async with serving(small_disk / "state", **settings) as (server, listening), BareSite.dial(listening) as site:
        ballast = fill(small_disk, 1_000_000)
        await site.join("alpha", server)
        state, reason = await status_of(listening)
        assert (state, " are free where " in reason) == ("FEDERATION_STATE_WAITING", True)
        ballast.unlink()
        upload_id = (await site.agree()).upload_id
        weights = random_weights(schema, 1)
        manifest = manifest_of(schema, weights)
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        body = body_of(manifest, weights, missing)
        ballast = fill(small_disk, 150_000)
        error = from_rpc_error(await refusal(site.write(upload_id, cut(body, 50_000))))
        assert (error.reason, error.metadata) == ("LIMIT_EXCEEDED", {"limit": "disk"})  # type: ignore[attr-defined]
        assert (await status_of(listening))[1].endswith(" is full; make space, and the server goes on by itself")
        committed = (await site.status(upload_id)).committed_size
        ballast.unlink()
        assert await site.write(upload_id, cut(body, 50_000, start=committed)) == len(body)
        ballast = fill(small_disk, 0)  # no room for the model that is made of the update; for the row, the log has some
        assert (await site.finish(upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED
        assert (await status_of(listening))[1].endswith(" is full; make space, and the server goes on by itself")
        ballast.unlink()
        outcome = (await site.hear()).round_outcome
        assert outcome.succeeded
        upload_id = (await site.agree()).upload_id
        await site.upload(upload_id, schema, random_weights(schema, 2))
        assert (await site.hear()).round_outcome.succeeded
    reader = StateReader(small_disk / "state")
    verdict = verify(reader)
    reader.close()
    assert verdict.agrees
    assert verdict.rounds[-1].recomputed


def test_start_on_a_full_disk_is_told_and_waits_for_room(small_disk: Path, scene: Stage) -> None:
    for name in ("server", "alpha"):
        (small_disk / name).mkdir()
        (scene.folder / name).symlink_to(small_disk / name)
    ballast = fill(small_disk, 0)
    with ThreadPoolExecutor() as pool:
        options = ("--plaintext", "--rounds", "1", "--min-clients", "1", "--min-free-bytes", "1000000")
        starting = pool.submit(scene.server, *options, "--retry-delay-seconds", "0.1")
        [told] = until("the server to wait", lambda: [line for one in scene.running for line in one.said(WAITING)])
        ballast.unlink()
        server = starting.result()
    assert told["because"] == f"0 bytes are free where {server.state} is, and 1.0 MB are the least to start with"
    until("the server to have made its model", lambda: server.said("waiting"))
    ballast = fill(small_disk, 0)
    client = scene.client("alpha", server.listening)
    until("the site to wait", lambda: client.said(WAITING))
    ballast.unlink()
    assert (client.wait(), server.wait()) == (0, 0)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_wait_for_room_at_a_start_outlives_a_hang_up_and_ends_in_good_order_when_it_is_stopped(
    ending: signal.Signals, small_disk: Path, scene: Stage
) -> None:
    fill(small_disk, 0)
    folders = ("--state", str(small_disk / "state"), "--out", str(small_disk / "out"))
    options = ("--plaintext", "--task", "linear", "--listen", "127.0.0.1:0", "--retry-delay-seconds", "0.1")
    server = scene.start("waiting", ["fedserver.cli", "run", *folders, *options])
    until("the server to wait", lambda: server.said(WAITING))
    server.process.send_signal(signal.SIGHUP)
    until("the hang-up to be seen", lambda: server.said("a hang-up (SIGHUP) is ignored"))
    assert server.process.poll() is None
    server.process.send_signal(ending)
    assert server.wait() == ExitCode.FINISHED
    [told] = server.said("stopped")
    assert told["because"] == "stopped by the coordinator while there was no room on the disk"
    assert not (small_disk / "state").exists()


def test_wait_for_room_at_a_start_takes_no_processor_where_tries_follow_at_once(small_disk: Path, scene: Stage) -> None:
    fill(small_disk, 0)
    folders = ("--state", str(small_disk / "state"), "--out", str(small_disk / "out"))
    options = ("--plaintext", "--task", "linear", "--listen", "127.0.0.1:0", "--retry-delay-seconds", "0")
    server = scene.start("waiting", ["fedserver.cli", "run", *folders, *options])
    until("the server to wait", lambda: server.said(WAITING))
    before = processor_seconds(server.process.pid)
    time.sleep(2.0)
    assert processor_seconds(server.process.pid) - before < 0.5


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_disk_without_room_for_a_new_database_is_full_whatever_sqlite_calls_it(small_disk: Path) -> None:
    state, whys = small_disk / "state", set()
    for pages in range(1, 24):
        state.mkdir()
        ballast = fill(small_disk, pages * 4096)
        try:
            State(state).close()
        except StateError as error:
            whys.add(str(error))
        ballast.unlink()
        shutil.rmtree(state)
    full = re.compile(rf"the disk of {state} is full \((?P<why>.*)\); make space")
    assert [why for why in whys if not full.fullmatch(why)] == []
    assert any("disk I/O error" in why for why in whys)


async def test_state_on_a_read_only_file_system_can_be_looked_at_and_not_served(small_disk: Path) -> None:
    async with serving(small_disk / "state"):
        pass
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StateError, match="cannot be written: it is mounted read-only"):
        State(small_disk / "state")
    reader = StateReader(small_disk / "state")
    assert verify(reader).agrees
    reader.close()


@pytest.mark.parametrize(
    ("limit", "last"), [((), "GLOBAL"), (("--max-rounds", "1"), "client")], ids=["federation over", "enough rounds"]
)
def test_site_whose_state_folder_is_away_when_all_is_saved_ends_well(
    scene: Stage, limit: Sequence[str], last: str
) -> None:
    task = "tests.support.tasks:Unplugged"
    server = scene.server("--rounds", "2" if limit else "1", "--min-clients", "1", "--plaintext", task=task, last=last)
    client = scene.client("alpha", server.listening, "--task", task, *limit)
    assert client.wait() == 0
    assert (scene.folder / "alpha" / "away").exists()
    assert client.said("weights that are of no use any more could not be removed")
