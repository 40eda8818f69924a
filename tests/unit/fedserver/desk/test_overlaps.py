"""What happens to an upload while something else is on its way to the disk. A moment."""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedserver.coordinator.participation import Stage
from fedserver.desk.inspection import Inspection
from fedserver.store import UpdateFacts, rounds
from fedserver.store.journal import Journal, Statement
from fedserver.store.uploads import beginning
from fedstream.errors import DigestMismatch, RoundClosed, UnknownUpload
from fedstream.files import RealFileSystem
from fedstream.manifest import manifest_of
from fedstream.outcomes import Outcome
from tests.support.bench import SCHEMA, Bench, image_of
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task

WEIGHTS = random_weights(SCHEMA, 1)
FACTS, MANIFEST = UpdateFacts(10), manifest_of(SCHEMA, WEIGHTS)


class HeldCommit:
    """The next commit with a statement that begins with `words` is held until `go`."""

    def __init__(self, journal: Journal, words: str) -> None:
        self._real, self._words = journal._commit, words
        self.reached, self._go = asyncio.Event(), threading.Event()
        self._loop = asyncio.get_running_loop()
        journal._commit = self._commit  # type: ignore[method-assign]

    def _commit(self, statements: Sequence[Statement]) -> None:
        if not self._go.is_set() and any(one.sql.lstrip().startswith(self._words) for one in statements):
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self._go.wait(20.0)
        self._real(statements)

    def go(self) -> None:
        self._go.set()


@contextmanager
def held(bench: Bench, words: str) -> Iterator[HeldCommit]:
    commit = HeldCommit(bench.state.journal, words)
    try:
        yield commit
    finally:
        commit.go()


async def test_update_that_is_admitted_while_another_client_expires_is_in_after_a_crash(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "live", "ab", min_clients=1) as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        await bench.write(upload_id, WEIGHTS)
        with held(bench, "UPDATE uploads SET state") as settling:
            finished = asyncio.create_task(bench.desk.finish(upload_id))
            await settling.reached.wait()
            assert bench.part("a").stage is Stage.FINISHING
            everything = bench.state.journal.write(*rounds.keeping(bench.round, bench.federation.now))
            of_a = bench.federation.keep(bench.round, bench.part("a"))
            others = asyncio.gather(everything, of_a)
        await asyncio.gather(finished, others)
        assert bench.part("a").outcome is Outcome.COMPLETED
        crashed = image_of(tmp_path / "live", tmp_path / "crashed")
        running.cancel()
    async with Bench.running(crashed) as bench:
        assert [part.client for part in bench.round.completed] == ["a"]


async def test_manifest_whose_round_ends_while_it_is_made_durable_leaves_no_row_and_no_file(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "ab") as bench:
        running = await bench.open_round()
        upload_id = await bench.accept("a")
        with held(bench, "INSERT OR REPLACE INTO uploads") as begun:
            several = [asyncio.create_task(bench.desk.begin(upload_id, MANIFEST, FACTS)) for _ in range(3)]
            await begun.reached.wait()
            bench.round.fail("a", bench.part("a").offer_id, "out of memory", bench.federation.now)
        ends = await asyncio.gather(*several, return_exceptions=True)
        assert [type(end) for end in ends] == [RoundClosed] * 3
        assert bench.state.database.query("SELECT upload_id FROM uploads") == []
        assert list((tmp_path / "updates").iterdir()) == []
        running.cancel()


async def test_upload_of_an_earlier_round_among_those_of_this_one_is_forgotten_at_a_start(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        upload = bench.state.uploads.begin("stray", MANIFEST, [0], FACTS)
        await bench.state.journal.write(beginning("stray", bench.round.number, upload))
        running.cancel()
    async with Bench.running(tmp_path) as bench:
        assert bench.revived is not None
        assert bench.state.database.query("SELECT upload_id FROM uploads") == []
        assert list((tmp_path / "updates").iterdir()) == []
        with pytest.raises(UnknownUpload):
            bench.desk.status("stray")


async def test_upload_that_cannot_be_finished_before_its_round_is_over_is_thrown_away(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "ab", min_clients=1) as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        await bench.write(upload_id, WEIGHTS)
        async with (await bench.desk.at_work(upload_id)).writer:  # as an open stream of chunks has it
            finished = asyncio.create_task(bench.desk.finish(upload_id))
            await asyncio.sleep(0)
            bench.round.fail("a", bench.part("a").offer_id, "out of memory", bench.federation.now)
            await bench.send("b", WEIGHTS)
            await bench.end_round(running)
        with pytest.raises(RoundClosed):
            await finished
        assert [path.name for path in (tmp_path / "updates").iterdir() if upload_id in path.name] == []


@pytest.mark.parametrize(
    ("error", "told"),
    [(RoundClosed("round 1 is over", round=1), []), (ValueError("a defect"), ["ValueError: a defect"])],
)
async def test_caller_that_hangs_up_before_its_upload_fails_leaves_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: list[str]
) -> None:
    never_retrieved: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: never_retrieved.append(context["message"]))
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        await bench.write(upload_id, WEIGHTS)
        opened = await bench.desk.at_work(upload_id)

        async def fails(_inspection: Inspection) -> None:
            raise error

        monkeypatch.setattr(Inspection, "finish", fails)
        with capture_logs() as logs:
            async with opened.writer:  # as an open stream of chunks has it
                finished = asyncio.create_task(bench.desk.finish(upload_id))
                await asyncio.sleep(0.01)
                ending = opened.finishing
                assert ending is not None
                finished.cancel()
                await asyncio.wait({finished})
            await asyncio.wait({ending})
            del ending
            await asyncio.sleep(0)
            gc.collect()
        running.cancel()
    assert never_retrieved == []
    assert [line["error"] for line in logs if line["event"] == "failed after its client had gone"] == told


class UnremovableFiles(RealFileSystem):
    """On a medium that was mounted read-only meanwhile."""

    removes = True

    def remove(self, path: Path) -> None:
        if not self.removes:
            raise OSError(errno.EROFS, "Read-only file system")
        super().remove(path)


async def test_damaged_upload_that_cannot_be_removed_goes_back_to_its_client_all_the_same(tmp_path: Path) -> None:
    files = UnremovableFiles()
    async with Bench.running(tmp_path, "a", files=files) as bench:
        running = await bench.open_round()
        upload_id = await bench.accept("a")
        await bench.desk.begin(upload_id, MANIFEST, FACTS)
        await bench.write(upload_id, random_weights(SCHEMA, 2))
        files.removes = False
        with pytest.raises(DigestMismatch):
            await bench.desk.finish(upload_id)
        files.removes = True
        assert (bench.part("a").stage, bench.round.is_verifying) == (Stage.WORKING, False)
        running.cancel()
