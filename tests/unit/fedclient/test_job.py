"""What a job tells, and what stays at the site."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedclient import full_disk
from fedclient.events import Offer
from fedclient.job import Job, JobState
from fedclient.reply import Experience
from fedclient.reporting import Reporting
from fedclient.tools import Tools
from fedclient.updates import UpdateStore
from fedclient.upload import Terms
from fedstream.encodings import Encoding
from fedstream.files import RealFileSystem
from fedstream.manifest import Digest, ModelRef
from fedstream.plan import Plan
from fedstream.progress import Phase, Progress
from fedstream.v1 import transfer_pb2
from fedtask.messages import LocalUpdate
from fedtask.task import EpochReport
from tests.support.scripted import QUICK, Arrived, scripted


def test_progress_shows_all_metrics_at_the_site_and_tells_those_that_it_allows() -> None:
    shown: list[Progress] = []
    display = SimpleNamespace(show=lambda _round, progress, _note: shown.append(progress))
    tools = SimpleNamespace(display=display, reporting=Reporting(frozenset({"loss"})), on_news=lambda: None)
    offer = Offer("o", "u", 1, ModelRef(0, Digest(bytes(32), 1)), Plan(2, 32, 0.1, 0, seed=0), 60.0, 60.0)
    job = Job(offer, tools)  # type: ignore[arg-type]
    progress = Progress(Phase.TRAINING, 1, 2, 0.5, {"loss": 0.25, "accuracy": 0.75})
    job._show(progress)

    assert shown == [progress]
    assert job.progress == Progress(Phase.TRAINING, 1, 2, 0.5, {"loss": 0.25})


async def test_job_learns_of_an_earlier_update_that_the_server_has_after_all(tmp_path: Path) -> None:
    settled: list[str] = []
    packer = SimpleNamespace(
        unsettled=lambda: [("had", "upload-had"), ("lost", "upload-lost"), ("offer-2", "upload-2")],
        delivered=settled.append,
    )
    async with scripted() as server:
        manifest = server.model.manifest
        for upload_id in ("upload-had", "upload-2"):
            server.transfer.uploads[upload_id] = Arrived(transfer_pb2.UpdateHeader(), manifest, [], finished=True)
        server.transfer.cuts = [0, 0]  # so the first two questions are not answered
        connection = await server.connection(tmp_path)
        offer = Offer(
            "offer-2", "upload-2", 2, ModelRef(1, Digest(bytes(32), 1)), Plan(2, 32, 0.1, 0, seed=0), 60.0, 60.0
        )
        tools = SimpleNamespace(packer=packer, connection=connection, patience=QUICK)
        job = Job(offer, tools)  # type: ignore[arg-type]
        await job._settle_earlier_updates()
        await connection.close()
    assert settled == ["had"]


def test_job_that_cannot_save_what_it_learned_has_ended_all_the_same() -> None:
    def save() -> None:
        raise OSError("No space left on device")

    memory = SimpleNamespace(experience=Experience(), learn=lambda _: None, save=save)
    keepsakes = SimpleNamespace(work_ends=lambda: None)
    offer = Offer("o", "u", 1, ModelRef(0, Digest(bytes(32), 1)), Plan(2, 32, 0.1, 0, seed=0), 60.0, 60.0)
    tools = SimpleNamespace(memory=memory, keepsakes=keepsakes, on_news=lambda: None)
    job = Job(offer, tools, state=JobState.WORKING)  # type: ignore[arg-type]
    for now, epoch in ((0.0, 1), (5.0, 2)):
        job._pace.note(EpochReport("training", epoch, 3, 1.0, {}), now)
    job.drop("another offer came")
    assert (job.state, job.reason) == (JobState.DROPPED, "another offer came")


async def test_job_leaves_alone_what_a_dropped_one_is_still_writing(tmp_path: Path) -> None:
    updates = UpdateStore(tmp_path, RealFileSystem())
    writing, may_end = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def fine_tune(_base: Path, _plan: Plan, out: Path, _on_report: object) -> LocalUpdate:
        partial = out.with_name(f"{out.name}.partial")
        partial.write_bytes(b"half of it")
        writing.set()
        try:
            await asyncio.Event().wait()  # in training
            raise AssertionError("it is dropped before")
        except asyncio.CancelledError:
            await may_end.wait()  # as a worker that is writing, and heeds a cancel after that
            partial.rename(out)
            ended.append(out.name)
            raise

    async def nothing(*_: object) -> None:
        return None

    tools = Tools(
        trainer=SimpleNamespace(fine_tune=fine_tune),
        downloader=SimpleNamespace(fetch=lambda *_: asyncio.sleep(0, SimpleNamespace(path=tmp_path))),
        site=SimpleNamespace(description=SimpleNamespace(schema=None)),
        global_models=SimpleNamespace(keep_only=nothing),
        packer=SimpleNamespace(unsettled=list),
        keepsakes=SimpleNamespace(offers=set(), bases=set(), work_ends=lambda: None),
        updates=updates,
        display=SimpleNamespace(show=lambda *_: None),
        reporting=Reporting(None),
        on_news=lambda: None,
        **dict.fromkeys(("connection", "models", "memory", "patience"), None),
    )  # type: ignore[arg-type]
    plan = Plan(1, 32, 0.1, 0, seed=0)

    def begun(name: str) -> Job:
        job = Job(Offer(name, name, 1, ModelRef(0, Digest(bytes(32), 1)), plan, 60.0, 60.0), tools)
        job.start(plan, Terms(1 << 20, 1 << 22, Encoding.RAW))
        return job

    first = begun("first")
    await asyncio.wait_for(writing.wait(), 10.0)
    first.drop("another offer came")
    for name in ("second", "third"):  # which the server cancels as quickly
        job = begun(name)
        await asyncio.sleep(0.05)
        job.drop("cancelled")
        await asyncio.wait_for(job.stopped(), 10.0)
    writing.clear()
    last = begun("last")
    await asyncio.sleep(0.05)
    assert not ended
    assert not writing.is_set()
    may_end.set()
    await asyncio.wait_for(writing.wait(), 10.0)
    assert ended == [updates.weights_path("first").name]
    last.drop("the client stops")
    await asyncio.wait_for(last.stopped(), 10.0)


async def test_job_that_is_dropped_while_its_update_is_packed_has_ended_when_that_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packing, may_end = threading.Event(), threading.Event()

    def pack(*_: object) -> None:
        packing.set()
        assert may_end.wait(30.0)

    tools = SimpleNamespace(
        packer=SimpleNamespace(unsettled=list, pack=pack),
        updates=SimpleNamespace(keep_only=lambda _: None, load=lambda _: None),
        keepsakes=SimpleNamespace(offers=set(), work_ends=lambda: None),
        turn=asyncio.Lock(),
        on_news=lambda: None,
    )
    monkeypatch.setattr(Job, "_fetch_base", lambda *_: asyncio.sleep(0))
    monkeypatch.setattr(Job, "_train", lambda *_: asyncio.sleep(0, SimpleNamespace(update=None)))
    plan = Plan(1, 32, 0.1, 0, seed=0)
    job = Job(Offer("o", "u", 1, ModelRef(0, Digest(bytes(32), 1)), plan, 60.0, 60.0), tools)  # type: ignore[arg-type]
    job.start(plan, Terms(1 << 20, 1 << 22, Encoding.INT8))
    assert await asyncio.to_thread(packing.wait, 10.0)
    job.drop("another offer came")
    with pytest.raises(TimeoutError):  # it may come again, and would be packed into the same files meanwhile
        await asyncio.wait_for(job.stopped(), 0.1)
    may_end.set()
    await asyncio.wait_for(job.stopped(), 10.0)
    assert (job.state, tools.turn.locked()) == (JobState.DROPPED, False)


async def test_job_waits_for_what_was_trained_where_its_disk_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "RETRY_SECONDS", 0.01)
    stale = OSError(errno.ESTALE, "Stale file handle", "updates")
    finished = SimpleNamespace(base=Digest(bytes(32), 1))
    answers = iter([stale, stale, stale, finished])

    def load(_: str) -> object:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    offer = Offer("o", "u", 1, ModelRef(0, Digest(bytes(32), 1)), Plan(1, 32, 0.1, 0, seed=0), 60.0, 60.0)
    job = Job(offer, SimpleNamespace(updates=SimpleNamespace(load=load)))  # type: ignore[arg-type]
    assert await job.trained() is None  # an answer to the offer does not wait
    assert await job._kept() is finished


@pytest.mark.parametrize("reported", [True, False])
async def test_job_learns_what_an_epoch_took_and_not_what_came_before(tmp_path: Path, reported: bool) -> None:
    update = LocalUpdate((), 10, {}, [{"loss": 0.5}] * 3, epochs=3, training_seconds=900.0)

    async def fine_tune(_base: Path, _plan: Plan, _out: Path, on_report: Callable[[EpochReport], None]) -> LocalUpdate:
        for epoch in (1, 2, 3) if reported else ():
            on_report(EpochReport("training", epoch, 3, epoch / 3, {}))
            await asyncio.sleep(0.1)
        return update

    learnt: list[Experience] = []
    tools = SimpleNamespace(
        trainer=SimpleNamespace(fine_tune=fine_tune),
        memory=SimpleNamespace(experience=Experience(7.0, 2.0, misfits=1), learn=learnt.append),
        display=SimpleNamespace(show=lambda *_: None),
        reporting=Reporting(None),
        on_news=lambda: None,
    )
    offer = Offer("o", "u", 1, ModelRef(0, Digest(bytes(32), 1)), Plan(3, 32, 0.1, 0, seed=0), 60.0, 60.0)
    job = Job(offer, tools)  # type: ignore[arg-type]
    base = SimpleNamespace(path=tmp_path)
    assert await job._fine_tune(base, offer.plan, tmp_path / "out") is update  # type: ignore[arg-type]
    [learned] = learnt
    assert replace(learned, epoch_seconds=None) == Experience(None, 2.0, misfits=1)
    assert learned.epoch_seconds is not None
    # The time between reports, on a busy machine too; the whole of 900 s is all there is where there are none.
    assert 0.09 < learned.epoch_seconds < 30.0 if reported else learned.epoch_seconds == 300.0
    job._learn(transfer_seconds=1.0)
    assert learnt[-1] == Experience(7.0, 1.0)  # a delivery: the time was long enough after all
