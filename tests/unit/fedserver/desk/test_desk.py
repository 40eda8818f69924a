"""The upload desk: manifests that come again, and a server that was started again."""

from __future__ import annotations

import asyncio
import gc
import string
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedserver.desk.window import BUDGET_BYTES, MIN_WINDOW_BYTES
from fedserver.driver import revive
from fedserver.preparation import prepare
from fedserver.store import UpdateFacts, UploadState
from fedserver.store.rounds import late_updates
from fedstream.encodings import Encoded, Encoding
from fedstream.errors import ManifestConflict, RoundClosed, UnknownUpload
from fedstream.files import RealFileSystem
from fedstream.manifest import manifest_of
from tests.support.bench import SCHEMA, Bench
from tests.support.clocks import SetClock
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task

WEIGHTS = random_weights(SCHEMA, 1)


async def leave_half_an_upload(folder: Path) -> str:
    """A server that was killed after 100 bytes of an upload were committed."""
    async with Bench.running(folder, "a") as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        await bench.write(upload_id, WEIGHTS, stop=100)
        running.cancel()
    return upload_id


async def test_manifest_renews_the_lease_also_when_it_is_put_again(tmp_path: Path) -> None:
    clock = SetClock(1000.0)
    async with Bench.running(tmp_path, "a", clock=clock, lease_seconds=30.0) as bench:
        running = await bench.open_round()
        upload_id = await bench.accept("a")
        other = manifest_of(SCHEMA, random_weights(SCHEMA, 2))
        for _ in range(2):
            clock.advance(20.0)
            await bench.desk.begin(upload_id, manifest_of(SCHEMA, WEIGHTS), UpdateFacts(10))
            assert (bench.part("a").last_seen, bench.part("a").lease_until) == (clock.steady, clock.steady + 30.0)
        clock.advance(20.0)
        with pytest.raises(ManifestConflict):
            await bench.desk.begin(upload_id, other, UpdateFacts(10))
        assert bench.part("a").lease_until == clock.steady + 10.0  # it was not taken
        running.cancel()


async def test_calls_about_an_upload_that_come_while_it_is_restored_wait_for_it(tmp_path: Path) -> None:
    upload_id = await leave_half_an_upload(tmp_path)
    bench = Bench(tmp_path)
    try:
        await prepare(bench.federation)
        asked = asyncio.create_task(bench.desk.opened())
        facts, manifest = UpdateFacts(10), manifest_of(SCHEMA, WEIGHTS)
        begun = asyncio.create_task(bench.desk.begin(upload_id, manifest, facts))
        finished = asyncio.create_task(bench.desk.finish("unknown"))
        await asyncio.sleep(0.05)
        assert [task.done() for task in (asked, begun, finished)] == [False, False, False]

        await revive(bench.federation, bench.desk)

        assert (await begun).upload.committed_size == 100
        assert bench.desk.status(upload_id).committed_size == 100
        with pytest.raises(UnknownUpload):
            await finished
    finally:
        bench.state.close()


async def test_same_manifest_in_another_encoding_is_a_conflict_and_what_came_first_stays(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        upload_id, manifest = await bench.accept("a"), manifest_of(SCHEMA, WEIGHTS)
        name = manifest.entries[0].name

        def facts(num_examples: int, encoded: Mapping[str, Encoded]) -> UpdateFacts:
            return UpdateFacts(num_examples, encoded=encoded)

        first = {name: Encoded(Encoding.ZSTD, 50)}
        begun = await bench.desk.begin(upload_id, manifest, facts(10, first))
        for other in ({}, {name: Encoded(Encoding.ZSTD, 51)}, {name: Encoded(Encoding.INT8_ZSTD, 50)}):
            with pytest.raises(ManifestConflict):
                await bench.desk.begin(upload_id, manifest, facts(10, other))
        again = await bench.desk.begin(upload_id, manifest, facts(11, dict(first)))
        assert again is begun
        assert again.upload.facts == facts(10, first)  # of the header, what came first counts
        running.cancel()


async def test_how_an_upload_ended_can_be_asked_of_the_next_process_too(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        admitted = await bench.send("a", WEIGHTS)
        upload_id = bench.part("a").upload_id
        await bench.end_round(running)
    async with Bench.running(tmp_path, "a") as bench:
        assert bench.desk.status(upload_id) == admitted
        assert await bench.desk.finish(upload_id) == admitted
        await bench.play(2)
        assert bench.desk.status(upload_id) == admitted  # of a site that was away for longer than a round, too
        assert await bench.desk.finish(upload_id) == admitted


async def test_how_an_upload_ended_can_be_asked_for_one_more_round_where_no_updates_are_kept(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a", keep_rounds=0) as bench:
        running = await bench.open_round()
        admitted = await bench.send("a", WEIGHTS)
        upload_id = bench.part("a").upload_id
        await bench.end_round(running)
        assert bench.desk.status(upload_id) == admitted
        running = await bench.open_round()
        assert await bench.desk.finish(upload_id) == admitted
        await bench.send("a", WEIGHTS)
        await bench.end_round(running)
        with pytest.raises(UnknownUpload):
            await bench.desk.finish(upload_id)


async def test_how_far_an_upload_is_can_be_asked_of_a_server_that_had_no_round_yet(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        await bench.send("a", WEIGHTS)
        upload_id = bench.part("a").upload_id
        await bench.end_round(running)
    async with Bench.running(tmp_path, "a") as bench:
        assert bench.desk.status(upload_id).state is UploadState.ADMITTED
        assert bench.desk.window_bytes == 0


class Slow(RealFileSystem):
    """Its next fsync takes a while, once it `is_slow`."""

    def __init__(self) -> None:
        self.is_slow = False
        self.syncing = threading.Event()

    def sync(self, descriptor: int) -> None:
        if self.is_slow:
            self.is_slow = False
            self.syncing.set()
            time.sleep(0.7)
        super().sync(descriptor)


async def test_loop_goes_on_while_a_round_that_is_over_waits_for_an_fsync(tmp_path: Path) -> None:
    files = Slow()
    async with Bench.running(tmp_path, "ab", files=files, reporting_goal=1) as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("b", WEIGHTS)
        upload = (await bench.desk.at_work(upload_id)).upload
        await bench.desk.write(upload, 0, bytes(100))
        files.is_slow = True
        committing = asyncio.create_task(asyncio.to_thread(upload.sync))
        await asyncio.to_thread(files.syncing.wait)
        await bench.send("a", WEIGHTS)
        ending, steps = asyncio.create_task(bench.end_round(running)), 0
        while not committing.done():
            await asyncio.sleep(0.01)
            steps += 1
        await asyncio.gather(ending, committing, return_exceptions=True)
        assert steps > 20  # a loop that waits for the fsync takes one


async def test_late_update_that_was_kept_aside_is_not_said_to_be_gone_by_the_next_process(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "ab", reporting_goal=1) as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("b", WEIGHTS)
        await bench.write(upload_id, WEIGHTS)
        bench.federation.apply(bench.round.leave("b", "going home", bench.federation.now))
        answer = await bench.desk.finish(upload_id)
        await bench.send("a", WEIGHTS)
        await bench.end_round(running)
        kept = late_updates(bench.state.database, 1)
        assert kept[1].endswith("it was kept aside") or kept[0].endswith("it was kept aside")
    async with Bench.running(tmp_path, "ab", reporting_goal=1) as bench:
        await bench.play(2)
        await bench.play(3)
        assert await bench.desk.finish(upload_id) == answer
        with pytest.raises(RoundClosed):
            await bench.desk.require(upload_id)
        assert late_updates(bench.state.database, 1) == kept


async def test_window_is_an_upload_s_share_in_the_cohort_also_after_a_restart(tmp_path: Path) -> None:
    names = string.ascii_letters  # 52 of them
    async with Bench.running(tmp_path, names) as bench:
        running = await bench.open_round()
        granted = bench.desk.window_bytes
        assert MIN_WINDOW_BYTES < granted < BUDGET_BYTES / 51
        running.cancel()
    async with Bench.running(tmp_path) as bench:
        running = await bench.open_round()
        assert bench.desk.window_bytes == granted
        running.cancel()


async def test_desk_of_a_server_without_a_past_is_open_at_once(tmp_path: Path) -> None:
    async with Bench.running(tmp_path) as bench:
        await asyncio.wait_for(bench.desk.opened(), 1.0)


async def test_desk_closed_while_an_update_is_looked_at_leaves_nothing_to_complain_of(tmp_path: Path) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    await leave_half_an_upload(tmp_path)  # the first tensors are whole: they are to be looked at
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()  # whatever failed and was not asked about is told when it goes
    assert complaints == []
