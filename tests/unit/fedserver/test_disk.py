"""What the disk refuses: named, waited for, and nothing lost, at every step that writes. 15 s."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fedserver.disk import DiskRefuses
from fedserver.disk_trouble import durably
from fedserver.federation import FederationState
from fedserver.phases import Stopped, run_round
from fedserver.store import StateReader, UpdateFacts, retention
from fedserver.store.disk import DiskTrouble, trouble_of
from fedserver.store.journal import Statement
from fedserver.store.rounds import unfinished
from fedserver.verification import verify
from fedstream.manifest import described, manifest_of
from fedstream.sizes import size as shown
from fedtask.task import Weights
from tests.support.bench import SCHEMA, Bench
from tests.support.full_disk import FullDisk
from tests.support.processes import soon, until
from tests.support.tasks import random_weights
from tests.support.this_process import open_files

pytestmark = pytest.mark.numpy_task

T = TypeVar("T")


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("made up")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (OSError(errno.ENOSPC, ""), DiskTrouble.FULL),
        (OSError(errno.EDQUOT, ""), DiskTrouble.FULL),
        (OSError(errno.EROFS, ""), DiskTrouble.READ_ONLY),
        (OSError(errno.EIO, ""), DiskTrouble.FAILING),
        (OSError(errno.ESTALE, ""), DiskTrouble.GONE),
        (OSError(errno.EHOSTDOWN, ""), DiskTrouble.GONE),
        (sqlite_error(sqlite3.SQLITE_FULL), DiskTrouble.FULL),
        (sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED), DiskTrouble.READ_ONLY),
        (sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), DiskTrouble.FAILING),
        (sqlite_error(sqlite3.SQLITE_BUSY), None),
        (OSError(errno.ECONNRESET, ""), None),
        (OSError("without a number"), None),
        (ValueError("no space left on device"), None),
    ],
)
def test_error_means_disk_trouble_only_if_it_is_about_the_disk(error: Exception, trouble: DiskTrouble | None) -> None:
    assert trouble_of(error) is trouble


async def patiently(step: Callable[[], Awaitable[T]]) -> T:
    """What a client does that is told to come back: it does the same again."""
    while True:
        try:
            return await step()
        except (OSError, sqlite3.Error) as error:
            if trouble_of(error) is None:
                raise
            await asyncio.sleep(0.002)


async def one_round(folder: Path, disk: FullDisk, fail_at: int | None, failures: int) -> tuple[str, int]:
    """A round of two clients, the disk refusing `failures` steps from `fail_at` on; its model and the steps it took."""
    async with Bench.running(folder, "ab", files=disk, min_clients=2, keep_rounds=3) as bench:
        disk.join(bench.state.database)
        disk.steps = 0
        if fail_at is not None:
            disk.fill(failures, start=fail_at)
        running = await bench.open_round()
        for name, seed in (("a", 1), ("b", 2)):
            weights = random_weights(SCHEMA, seed)
            upload_id = await patiently(lambda name=name, weights=weights: bench.begin(name, weights))  # type: ignore[misc]
            await patiently(lambda id_=upload_id, weights=weights: bench.write(id_, weights))  # type: ignore[misc]
            await patiently(lambda id_=upload_id: bench.desk.finish(id_))  # type: ignore[misc]
        work = await bench.end_round(running)
        steps = disk.steps
        disk.free()
        assert work.model is not None
        assert len(work.opened.completed) == 2
        assert retention.orphans(bench.state.database, folder) == []
    reader = StateReader(folder)
    verdict = verify(reader)
    reader.close()
    assert verdict.agrees, verdict
    return work.model.digest.hex, steps


async def test_disk_full_at_every_step_of_a_round_costs_nothing_but_time(tmp_path: Path) -> None:
    expected, steps = await one_round(tmp_path / "undisturbed", FullDisk(), None, 0)
    assert steps > 20
    for step in range(1, steps + 1):
        model, taken = await one_round(tmp_path / str(step), FullDisk(), step, failures=1 + step % 3)
        assert model == expected, f"refused at step {step}"
        assert taken > steps, f"step {step} was not refused"


async def find_the_disk_full(bench: Bench, disk: FullDisk, name: str, weights: Weights) -> str:
    """Begin an update, and fill the disk before its bytes come; returns its upload's id."""
    upload_id = await bench.begin(name, weights)
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        await bench.write(upload_id, weights)
    bench.federation.disk.note(OSError(errno.ENOSPC, ""))  # as the servicer does
    bench.federation.touch()
    return upload_id


async def test_round_waits_while_the_disk_is_full_and_the_time_is_given_back(tmp_path: Path) -> None:
    disk = FullDisk()
    async with Bench.running(tmp_path, "a", files=disk) as bench:
        disk.join(bench.state.database)
        running = await bench.open_round()
        deadline = bench.part("a").deadline
        weights = random_weights(SCHEMA, 1)
        upload_id = await find_the_disk_full(bench, disk, "a", weights)
        await asyncio.sleep(0.2)
        assert bench.federation.standing.state is FederationState.WAITING
        assert bench.federation.standing.reason == (
            f"for the disk: the disk of {tmp_path} is full; make space, and the server goes on by itself"
        )
        disk.free()
        await asyncio.sleep(0.2)
        assert bench.federation.disk.trouble is None
        assert bench.part("a").deadline >= deadline + 0.15
        assert bench.federation.standing.reason.startswith("round 1: 0 of 1 updates in")
        await bench.write(upload_id, weights)
        await bench.desk.finish(upload_id)
        assert (await bench.end_round(running)).model is not None


async def test_stop_while_the_disk_is_full_ends_with_what_to_do(tmp_path: Path) -> None:
    disk = FullDisk()
    async with Bench.running(tmp_path, "a", files=disk) as bench:
        disk.join(bench.state.database)
        running = await bench.open_round()
        disk.fill()
        bench.federation.stop(finish_round=False)
        with pytest.raises(DiskRefuses, match="is full: make space, then start again; what was committed is kept"):
            await asyncio.wait_for(running, 20)


async def test_round_that_a_stop_waits_for_waits_for_the_disk_too(tmp_path: Path) -> None:
    disk = FullDisk()
    async with Bench.running(tmp_path, "ab", files=disk, min_clients=2) as bench:
        disk.join(bench.state.database)
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        bench.federation.stop(finish_round=True)
        weights = random_weights(SCHEMA, 2)
        upload_id = await find_the_disk_full(bench, disk, "b", weights)
        standing = bench.federation.standing
        await soon("the wait", lambda: bench.federation.standing is not standing)
        assert bench.federation.standing.reason.startswith("for the disk: ")
        disk.free()
        await soon("the disk", lambda: bench.federation.disk.trouble is None)
        await bench.write(upload_id, weights)
        await bench.desk.finish(upload_id)
        disk.fill(steps=5)  # for what the round's end has to write
        assert (await bench.end_round(running)).model is not None


class Space:
    def __init__(self, free: int) -> None:
        self.free = free

    def __call__(self, _folder: Path) -> int:
        return self.free


async def test_round_is_not_offered_before_there_is_space_for_it(tmp_path: Path) -> None:
    size = SCHEMA.size_bytes
    space = Space(3 * size + 999)
    async with Bench.running(tmp_path, "ab", free=space, min_clients=2, min_free_bytes=1000) as bench:
        running = asyncio.create_task(bench.play(1, 2))
        await asyncio.sleep(0.1)
        assert bench.federation.round is None
        standing = bench.federation.standing
        assert standing.state is FederationState.WAITING
        assert standing.reason.startswith(f"for disk space: {shown(space.free)} are free where ")
        assert f"a round with 2 sites may need {shown(3 * size + 1000)}" in standing.reason
        space.free += 1
        assert (await asyncio.wait_for(running, 20)).model is not None


async def test_state_folder_that_is_away_between_rounds_is_told_and_waited_for(tmp_path: Path) -> None:
    folder, away = tmp_path / "state", tmp_path / "away"
    async with Bench.running(folder, "ab", min_clients=2) as bench:
        folder.rename(away)
        running = asyncio.create_task(bench.play(1, 2))
        await asyncio.sleep(0.2)
        standing = bench.federation.standing
        assert (running.done(), standing.state) == (False, FederationState.WAITING)
        assert standing.reason == (
            f"for the disk: the disk of {folder} is not there: the folder was moved or removed, or its disk was "
            "unmounted or cannot be reached; put it back, and the server goes on by itself"
        )
        away.rename(folder)
        assert (await asyncio.wait_for(running, 20)).model is not None
        assert bench.federation.disk.trouble is None


async def test_disk_that_cannot_be_asked_for_its_space_is_gone_whatever_else_it_said(tmp_path: Path) -> None:
    folder, away = tmp_path / "state", tmp_path / "away"
    async with Bench.running(folder) as bench:
        watch = bench.federation.disk
        folder.rename(away)
        assert watch.note(OSError(errno.EIO, "")) is DiskTrouble.GONE
        watch.trouble = DiskTrouble.FULL
        assert not await watch.is_well_again()
        assert watch.trouble is DiskTrouble.GONE
        away.rename(folder)
        assert await watch.is_well_again()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
async def test_failed_sync_takes_back_what_was_not_committed(tmp_path: Path, error: int) -> None:
    disk = FullDisk(error)
    async with Bench.running(tmp_path, "a", files=disk, keep_rounds=3) as bench:
        running = await bench.open_round()
        weights = random_weights(SCHEMA, 1)
        upload_id = await bench.begin("a", weights)
        await bench.write(upload_id, weights, stop=100)
        upload = (await bench.desk.at_work(upload_id)).upload
        disk.fill(1, start=disk.steps + 2)  # the write is taken, its fsync is not
        with pytest.raises(OSError, match=os.strerror(error)):
            await bench.write(upload_id, weights, stop=300)
        assert (upload.received_size, upload.committed_size) == (100, 100)
        assert bench.desk.status(upload_id).committed_size == 100
        await bench.write(upload_id, weights)
        await bench.desk.finish(upload_id)
        await bench.end_round(running)


async def test_commit_that_cannot_be_recorded_is_told_to_nobody(tmp_path: Path) -> None:
    disk = FullDisk()
    async with Bench.running(tmp_path, "a", files=disk) as bench:
        disk.join(bench.state.database)
        running = await bench.open_round()
        weights = random_weights(SCHEMA, 1)
        upload_id = await bench.begin("a", weights)
        disk.fill(1, start=disk.steps + 4)  # write and both fsyncs are taken, the row is not
        with pytest.raises(sqlite3.OperationalError):
            await bench.write(upload_id, weights, stop=200)
        assert bench.desk.status(upload_id).committed_size == 0
        await bench.write(upload_id, weights, stop=200)  # nothing new, but the row is still owed
        assert bench.desk.status(upload_id).committed_size == 200
        rows: Any = bench.state.database.query("SELECT committed_size FROM uploads")
        assert rows == [(200,)]
        running.cancel()


async def test_disk_that_stays_full_is_not_filled_further_and_no_file_stays_open(tmp_path: Path) -> None:
    disk = FullDisk()
    async with Bench.running(tmp_path, "a", files=disk) as bench:
        running = await bench.open_round()
        weights = random_weights(SCHEMA, 1)
        upload_id = await bench.accept("a")
        manifest = manifest_of(SCHEMA, weights)
        before = open_files(tmp_path)
        for _ in range(20):
            disk.fill(1, start=disk.steps + 2)  # the file can be made, its header not be written
            with pytest.raises(OSError, match="No space left"):
                await bench.desk.begin(upload_id, manifest, UpdateFacts(10))
        assert open_files(tmp_path) == before
        model = bench.federation.model
        disk.fill(1, start=disk.steps + 3)  # one tensor fits
        with pytest.raises(OSError, match="No space left"):
            bench.state.models.add(7, SCHEMA, described(SCHEMA, weights))
        assert [path.name for path in (tmp_path / "models").iterdir()] == [model.path.name]
        running.cancel()


async def test_step_that_fails_on_a_disk_that_takes_other_writes_is_not_repeated_without_a_rest(tmp_path: Path) -> None:
    tries: list[float] = []
    again = asyncio.Event()

    async def step() -> None:
        tries.append(asyncio.get_running_loop().time())
        if len(tries) == 3:
            again.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with Bench.running(tmp_path, retry_delay_seconds=0.2) as bench:
        trying = asyncio.create_task(durably(bench.federation, step))
        await asyncio.wait_for(again.wait(), 20.0)
        assert tries[2] - tries[1] >= 0.2
        assert "reports errors of the medium" in bench.federation.standing.reason
        bench.federation.stop(finish_round=False)
        with pytest.raises(DiskRefuses):
            await asyncio.wait_for(trying, 5.0)


@asynccontextmanager
async def disk_trouble(folder: Path, bench: Bench, step: str) -> AsyncIterator[asyncio.Task[Any]]:
    """A round is to open, but the disk is gone until the end of the block: before a cohort is picked, or just after."""
    away, journal = folder.with_name("away"), bench.federation.state.journal
    sound = journal.write

    def unplug() -> None:
        folder.rename(away)

    async def refuse(*_: Statement) -> None:
        journal.write = sound  # type: ignore[method-assign]
        unplug()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if step == "before":
        unplug()
    else:
        journal.write = refuse  # type: ignore[method-assign]
    opening = asyncio.create_task(run_round(bench.federation, 1))
    await asyncio.to_thread(until, "the wait", lambda: "for the disk" in bench.federation.standing.reason)
    yield opening
    away.rename(folder)


@pytest.mark.parametrize("step", ["before", "after"])
@pytest.mark.parametrize("gone", ["b", "ab"])
async def test_round_opens_for_those_who_are_there_when_the_disk_is_well_again(
    tmp_path: Path, step: str, gone: str
) -> None:
    folder = tmp_path / "state"
    async with Bench.running(folder, "ab", min_clients=2) as bench:
        async with disk_trouble(folder, bench, step) as opening:
            for name in gone:
                bench.leave(name)
        missing = "for 1 more client" if gone == "b" else "for 2 more clients"
        await asyncio.to_thread(until, "the next wait", lambda: bench.federation.standing.reason == missing)
        assert bench.federation.round is None
        assert unfinished(bench.state.database) is None
        for name in gone:
            bench.join(name)
        await asyncio.to_thread(until, "the round", lambda: bench.federation.round is not None)
        assert [part.client for part in bench.round.participations] == ["a", "b"]
        opening.cancel()


@pytest.mark.parametrize("step", ["before", "after"])
async def test_stop_while_the_disk_is_gone_opens_no_round(tmp_path: Path, step: str) -> None:
    folder = tmp_path / "state"
    async with Bench.running(folder, "ab", min_clients=2) as bench:
        async with disk_trouble(folder, bench, step) as opening:
            bench.federation.stop(finish_round=False)
            with pytest.raises((Stopped, DiskRefuses)):
                await asyncio.wait_for(opening, 10)
        assert bench.federation.round is None


@pytest.mark.parametrize("step", ["before", "after"])
async def test_federation_that_is_paused_while_the_disk_is_gone_opens_no_round(tmp_path: Path, step: str) -> None:
    folder = tmp_path / "state"
    async with Bench.running(folder, "ab", min_clients=2) as bench:
        federation = bench.federation
        async with disk_trouble(folder, bench, step) as opening:
            federation.pause()
        await asyncio.to_thread(until, "the pause", lambda: federation.standing.state is FederationState.PAUSED)
        assert federation.round is None
        federation.resume()
        await asyncio.to_thread(until, "the round", lambda: federation.round is not None)
        opening.cancel()
