"""Every line of `make faults` with a small count, and the parts of the harness, which must be able to fail."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults import crash_points
from tests.faults.endurance import sizes_of
from tests.faults.forgetful import ForgetfulFileSystem, Power, PowerCut, Survival
from tests.faults.phases import ClientPhase, ClientTracker, Phase, PhaseTracker
from tests.faults.proxy import FaultProxy, Weather
from tests.faults.results import Order

CHECKOUT = Path(__file__).parents[2]


def run_line(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], cwd=CHECKOUT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "=> held" in done.stdout


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("line", "count"),
    [("kill_server", 4), ("kill_clients", 2), ("cut_uploads", 3), ("hostile", 10)],
)
def test_line_with_a_small_count_holds(line: str, count: int) -> None:
    run_line("-m", "tests.faults", line, "--count", str(count), "--seed", "1")


def test_crash_points_with_a_small_count_hold() -> None:
    run_line("-m", "tests.faults", "crash_points", "--count", "24", "--seed", "1")


_FILES_ONLY = """
import asyncio, pathlib, sys
from tests.faults import flipped_bits, results
order = results.Order(8, 1, pathlib.Path(sys.argv[1]))
results.show(asyncio.run(flipped_bits.run(order, leave_out=["server, database"])))
"""


def test_flipped_bits_in_files_are_found(tmp_path: Path) -> None:
    run_line("-c", _FILES_ONLY, str(tmp_path))


_GENTLE = """
import asyncio, pathlib, sys
from tests.faults import results, slow_network
conditions = slow_network.Conditions(1, 1, 0.2, 10e6, 1.0, 1 << 20, partition_seconds=0.0)
order = results.Order(1, 1, pathlib.Path(sys.argv[1]))
results.show(asyncio.run(slow_network.run(order, conditions)))
"""


@pytest.mark.slow
@pytest.mark.e2e
def test_slow_and_stalling_network_costs_time_only(tmp_path: Path) -> None:
    run_line("-c", _GENTLE, str(tmp_path))


# The harness itself.


async def test_crash_points_on_a_disk_that_lies_about_syncing_find_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_sync(files: ForgetfulFileSystem, _descriptor: int) -> None:
        with files.power.step("sync of nothing"):
            pass

    monkeypatch.setattr(ForgetfulFileSystem, "sync", no_sync)
    found = await crash_points.run(Order(count=12, seed=1, folder=tmp_path))
    assert any("lost or torn" in problem or "torn model" in problem for problem in found.problems)


def test_meter_leaves_out_files_that_are_removed_while_it_lists_them(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"four")
    assert sizes_of(tmp_path / name for name in ("removed", "kept")) == [4]


def write_and_crash(folder: Path, *, sync: bool, sync_folder: bool, survival: Survival) -> dict[str, bytes]:
    files, path = ForgetfulFileSystem(Power()), folder / "file"
    descriptor = files.open(path)
    files.write_at(descriptor, 0, b"data")
    if sync:
        files.sync(descriptor)
    if sync_folder:
        files.sync_folder(folder)
    files.lose_power(survival, random.Random(1))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("sync", "sync_folder", "survival", "left"),
    [
        (True, True, Survival.SYNCED_ONLY, {"file": b"data"}),
        (True, False, Survival.SYNCED_ONLY, {}),
        (False, True, Survival.SYNCED_ONLY, {"file": b""}),
        (False, False, Survival.NAMES_ONLY, {"file": b""}),
        (False, False, Survival.EVERYTHING, {"file": b"data"}),
    ],
)
def test_forgetful_files_keep_what_was_synced_and_no_more(
    tmp_path: Path, sync: bool, sync_folder: bool, survival: Survival, left: dict[str, bytes]
) -> None:
    assert write_and_crash(tmp_path, sync=sync, sync_folder=sync_folder, survival=survival) == left


def test_rename_that_was_not_synced_is_undone(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"data")
    files = ForgetfulFileSystem(Power())
    files.rename(tmp_path / "old", tmp_path / "new")
    files.lose_power(Survival.SYNCED_ONLY, random.Random(1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"data"}


@pytest.mark.parametrize("after", [False, True])
def test_power_that_went_stays_away(tmp_path: Path, after: bool) -> None:
    power = Power(fails_at=0, after=after)
    files = ForgetfulFileSystem(power)
    for _ in range(2):
        with pytest.raises(PowerCut):
            files.remove(tmp_path / "file")
    assert power.steps == ["remove file"]


def test_server_phases_are_read_from_its_log() -> None:
    tracker, seen = PhaseTracker(), []
    for line in (
        b"A site joins with its own name and data folder:",
        b'{"event": "phase", "name": "select", "round": 1}',
        b'{"event": "phase", "name": "offer", "round": 1}',
        b'{"event": "phase", "name": "collect", "round": 1}',
        b'{"event": "running", "reason": "round 1: 0 of 1 updates in, waiting for a"}',
        b'{"event": "heard", "client": "a", "kind": "accept"}',
        b'{"event": "download begins"}',
        b'{"event": "download ends"}',
        b'{"event": "upload begins", "client": "a"}',
        b'{"event": "upload is checked", "client": "a"}',
        b'{"event": "upload is settled", "client": "a"}',
        b'{"event": "phase", "name": "aggregate", "round": 1}',
        b'{"event": "finishing", "reason": "models and report are being made"}',
        b'{"event": "phase", "name": "farewell"}',
    ):
        tracker.feed(line)
        seen.append(tracker.phase)
    assert seen == [
        Phase.RECOVER,
        Phase.SELECT,
        Phase.OFFER,
        Phase.NEGOTIATE,
        Phase.NEGOTIATE,
        Phase.TRAIN,
        Phase.DOWNLOAD,
        Phase.TRAIN,
        Phase.UPLOAD,
        Phase.FINISH,
        Phase.FINISH,
        Phase.AGGREGATE,
        Phase.REPORT,
        Phase.FAREWELL,
    ]
    assert tracker.round == 1


def test_client_phases_are_read_from_its_log() -> None:
    tracker, seen = ClientTracker(), []
    for event in ("settings", "welcome", "offer accepted", "downloading", "training", "trained", "sending the update"):
        tracker.feed(f'{{"event": "{event}", "round": 2}}'.encode())
        seen.append(tracker.phase)
    wanted = ["joining", "waiting", "negotiating", "downloading", "training", "keeping what was trained", "uploading"]
    assert seen == [ClientPhase(name) for name in wanted]


# The proxy.


@asynccontextmanager
async def echo_behind(weather: Weather) -> AsyncIterator[FaultProxy]:
    """A server that sends everything back, with the proxy before it."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with FaultProxy.before((host, port), weather) as proxy:
        yield proxy
    server.close()


async def dial(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_proxy_delays_and_narrows() -> None:
    data = bytes(100_000)
    async with echo_behind(Weather(delay_seconds=0.05, bytes_per_second=1_000_000)) as proxy:
        reader, writer = await dial(proxy)
        started = time.monotonic()
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        assert time.monotonic() - started > 0.2  # twice 50 ms of delay, and a tenth of a second at least one way
        writer.close()


async def test_proxy_cuts_after_the_byte_that_was_ordered() -> None:
    async with echo_behind(Weather()) as proxy:
        reader, writer = await dial(proxy)
        proxy.cut_after(1000)
        writer.write(bytes(5000))
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(5000)
        assert (proxy.traffic.up_bytes, proxy.traffic.cuts, proxy.armed) == (1000, 1, False)
        again, writer = await dial(proxy)
        writer.write(b"on we go")
        assert await again.readexactly(8) == b"on we go"
        writer.close()


async def test_proxy_flips_the_bit_that_was_ordered() -> None:
    async with echo_behind(Weather()) as proxy:
        reader, writer = await dial(proxy)
        proxy.corrupt_after(2)
        writer.write(b"aaaa")
        assert await reader.readexactly(4) == b"aa`a"
        writer.close()


async def test_proxy_parted_swallows_in_silence_and_heals_for_new_connections_only() -> None:
    async with echo_behind(Weather()) as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        proxy.part()
        new_reader, new_writer = await dial(proxy)  # the system answers for it, but nothing goes through
        for one in (writer, new_writer):
            one.write(b"hear me")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        proxy.heal()
        assert await asyncio.wait_for(new_reader.readexactly(7), 5.0) == b"hear me"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        for one in (writer, new_writer):
            one.close()


async def test_proxy_stalls_as_often_as_the_weather_says() -> None:
    async with echo_behind(Weather(stall_seconds=0.1, stall_every_bytes=1)) as proxy:
        reader, writer = await dial(proxy)
        started = time.monotonic()
        writer.write(b"data")
        assert await reader.readexactly(4) == b"data"
        assert time.monotonic() - started >= 0.2
        assert proxy.traffic.stalls == 2
        writer.close()
