"""A worker process that is killed, cancelled or short of disk while it is spoken to. 10 s."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fedstream.plan import Plan
from fedstream.weights_file import WeightsFile
from fedtask.task import EpochReport, ReportWords, SiteOptions
from fedtask.worker import TaskWorker, WorkerCrashed

pytestmark = pytest.mark.numpy_task

PLAN = Plan(epochs=1, batch_size=16, learning_rate=0.1, early_stopping_patience=0, seed=1)
LONG = replace(PLAN, epochs=10_000)


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[TaskWorker]:
    """With generated data open, and the weights of round 0 in `base`."""
    made = TaskWorker("linear", {})
    try:
        await made.open_site(SiteOptions(None))
        await made.initial_weights(0, None, tmp_path / "base")
        yield made
    finally:
        await made.close()


def ignore(_report: EpochReport) -> None:
    return


def pid(worker: TaskWorker) -> int:
    assert worker._process is not None
    return worker._process.pid


async def begun(worker: TaskWorker, folder: Path) -> asyncio.Task[Any]:
    """A fine-tune that has told of an epoch and will not end by itself."""
    told = asyncio.Event()
    task = asyncio.create_task(worker.fine_tune(folder / "base", LONG, folder / "long", lambda _: told.set()))
    await asyncio.wait_for(told.wait(), 20.0)
    return task


async def test_worker_that_is_called_off_while_it_is_started_again_has_its_data_the_next_time(
    worker: TaskWorker, tmp_path: Path
) -> None:
    os.kill(pid(worker), signal.SIGKILL)
    with pytest.raises(WorkerCrashed):
        await worker.fine_tune(tmp_path / "base", PLAN, tmp_path / "first", ignore)
    again = asyncio.create_task(worker.fine_tune(tmp_path / "base", PLAN, tmp_path / "second", ignore))
    await asyncio.sleep(0.1)  # its process has begun, and has read no data yet
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    update = await worker.fine_tune(tmp_path / "base", PLAN, tmp_path / "third", ignore)
    assert update.num_examples > 0


async def test_worker_whose_caller_is_cancelled_twice_serves_the_next_one(worker: TaskWorker, tmp_path: Path) -> None:
    task = await begun(worker, tmp_path)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    update = await worker.fine_tune(tmp_path / "base", PLAN, tmp_path / "next", ignore)
    assert update.epochs == 1


async def test_worker_killed_in_the_middle_of_its_answer_has_crashed(worker: TaskWorker, tmp_path: Path) -> None:
    task = await begun(worker, tmp_path)
    assert worker._process is not None
    assert worker._process.stdout is not None
    os.kill(pid(worker), signal.SIGSTOP)
    await asyncio.sleep(0.2)  # what it had said before is read by now, and does not end up behind this
    worker._process.stdout.feed_data(b'{"id": 3, "rep')
    os.kill(pid(worker), signal.SIGKILL)
    with pytest.raises(WorkerCrashed, match="status -9"):
        await task


async def test_update_that_the_disk_does_not_take_is_written_when_it_does_and_trained_once(
    worker: TaskWorker, tmp_path: Path
) -> None:
    reports: list[EpochReport] = []
    out = tmp_path / "update"
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(pid(worker), resource.RLIMIT_FSIZE, (0, hard))  # as a full disk, for this process alone
    with capture_logs() as logs:
        task = asyncio.create_task(worker.fine_tune(tmp_path / "base", PLAN, out, reports.append))
        while not logs:  # noqa: ASYNC110 - the log tells nobody
            await asyncio.sleep(0.01)
        resource.prlimit(pid(worker), resource.RLIMIT_FSIZE, (hard, hard))
        update = await asyncio.wait_for(task, 20.0)
    assert logs[0]["event"] == "the worker process waits"
    assert logs[0]["because"].endswith(f" File too large: '{tmp_path}'")
    assert WeightsFile(out).names == [record.name for record in update.changed]
    assert len({report.epoch for report in reports}) == 1


async def test_update_whose_folder_was_cleared_away_is_written_to_one_made_again(
    worker: TaskWorker, tmp_path: Path
) -> None:
    with capture_logs() as logs:
        out = tmp_path / "updates" / "update"
        await asyncio.wait_for(worker.fine_tune(tmp_path / "base", PLAN, out, ignore), 20.0)
    assert (out.exists(), logs) == (True, [])


async def test_update_whose_state_folder_is_gone_waits_and_says_what_to_do(worker: TaskWorker, tmp_path: Path) -> None:
    state = tmp_path / "state"
    out = state / "updates" / "update"
    with capture_logs() as logs:
        task = asyncio.create_task(worker.fine_tune(tmp_path / "base", PLAN, out, ignore))
        while not logs:  # noqa: ASYNC110 - the log tells nobody
            await asyncio.sleep(0.01)
        state.mkdir()
        await asyncio.wait_for(task, 20.0)
    words = f"the folder {state} is gone; put it back, or make it again"
    assert [entry["because"] for entry in logs] == [f"what was trained cannot be written yet: {words}"]
    assert out.exists()


async def test_worker_that_an_error_ends_tells_that_error_first_and_briefly(worker: TaskWorker, tmp_path: Path) -> None:
    with pytest.raises(WorkerCrashed) as raised:
        await worker.export(tmp_path / "no model", tmp_path / "models", "stem")
    first, *places = str(raised.value).splitlines()
    assert first.startswith("FileNotFoundError: [Errno 2] No such file or directory: ")
    assert first.endswith(" (the worker process ended with status 1)")
    assert " in export" in places[-1] or " in export" in places[-2]
    assert (len(places), max(map(len, places)) <= 200) == (3, True)


async def test_worker_that_an_error_of_many_numbers_ends_leaves_them_out(tmp_path: Path) -> None:
    worker = TaskWorker("tests.support.tasks:Talkative", {})
    try:
        with pytest.raises(WorkerCrashed) as raised:
            await worker.initial_weights(0, None, tmp_path / "weights")
    finally:
        await worker.close()
    first, *places = str(raised.value).splitlines()
    assert first == f"RuntimeError: {'x' * 186} (the worker process ended with status 1)"
    assert [place.rsplit(" in ")[1] for place in places] == ["initial_weights", "initial_weights", "answer"]


async def test_worker_that_ends_without_an_error_gives_few_and_short_last_words(tmp_path: Path) -> None:
    worker = TaskWorker("tests.support.tasks:Quitting", {})
    try:
        with pytest.raises(WorkerCrashed) as raised:
            await worker.initial_weights(0, None, tmp_path / "weights")
    finally:
        await worker.close()
    first, *words = str(raised.value).splitlines()
    assert first == "the worker process ended with status 9; its last words:"
    assert words == [f"{number} {'y' * 198}" for number in range(5, 10)]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("linear", ReportWords("example", "cross-entropy")),
        ("brain_mri_head", ReportWords("image", "cross-entropy")),
        ("tests.support.tasks:Shapes", ReportWords("example", "")),
    ],
)
async def test_worker_tells_how_a_report_speaks_of_its_task(task: str, words: ReportWords) -> None:
    worker = TaskWorker(task, {})
    try:
        assert (await worker.describe()).report_words == words
    finally:
        await worker.close()


async def test_worker_that_is_called_off_while_it_reads_data_ends_at_once_and_serves_the_next_call() -> None:
    worker = TaskWorker("tests.support.tasks:Slow", {})
    try:
        expected = await worker.describe()
        first = pid(worker)
        reading = asyncio.create_task(worker.open_site(SiteOptions(None)))
        while not worker._last_words:  # noqa: ASYNC110 - it says on standard error that it has begun
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(reading, 5.0)
        assert not is_running(first)
        assert await worker.describe() == expected
    finally:
        await worker.close()


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_worker_that_trains_on_when_it_is_called_off_is_ended_and_serves_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    monkeypatch.setattr("fedtask.worker._STOP_SECONDS", 0.2)
    worker = TaskWorker("tests.support.tasks:Deaf", {})
    try:
        await worker.open_site(SiteOptions(None))
        await worker.initial_weights(0, None, tmp_path / "base")
        first = pid(worker)
        training = asyncio.create_task(worker.fine_tune(tmp_path / "base", PLAN, tmp_path / "out", ignore))
        while not worker._last_words:  # noqa: ASYNC110 - it says on standard error that it has begun
            await asyncio.sleep(0.01)
        training.cancel()
        if again:  # as by the site's limit on time, and by the round's deadline
            await asyncio.sleep(0)
            training.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(training, 30.0)
        expected = await asyncio.wait_for(worker.describe(), 30.0)
        assert not is_running(first)
        assert expected.meaning.class_names == ("no", "yes")
    finally:
        await worker.close()


async def test_worker_that_is_closed_while_it_works_is_not_said_to_want_memory(
    worker: TaskWorker, tmp_path: Path
) -> None:
    task = await begun(worker, tmp_path)
    await worker.close()
    with pytest.raises(WorkerCrashed, match=r"^the worker process ended with status -9; its last words"):
        await task


@contextlib.contextmanager
def ended_afterwards(process: int) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def is_running(process: int) -> bool:
    """One that was killed may not be awaited by anybody."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def check_helper(process: int, *, stays: bool) -> None:
    """One that was killed has closed its pipes before it is gone."""
    async with asyncio.timeout(5.0):
        while not stays and is_running(process):  # noqa: ASYNC110 - nobody awaits it who could tell
            await asyncio.sleep(0.01)
    assert is_running(process) == stays


@pytest.mark.parametrize("settings", [{}, {"apart": "1"}])
async def test_worker_that_is_killed_beside_its_helper_has_crashed_at_once(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    worker = TaskWorker("tests.support.tasks:Helped", settings)
    await worker.initial_weights(0, None, tmp_path / "base")
    helper = (await worker.open_site(SiteOptions(None))).num_examples
    with ended_afterwards(helper):
        with pytest.raises(WorkerCrashed, match="status -9"):
            await asyncio.wait_for(worker.fine_tune(tmp_path / "base", PLAN, tmp_path / "out", ignore), 5.0)
        await check_helper(helper, stays="apart" in settings)
        await asyncio.wait_for(worker.close(), 5.0)


@pytest.mark.parametrize("settings", [{}, {"apart": "1"}])
async def test_worker_that_is_closed_beside_its_helper_ends_at_once(settings: dict[str, str]) -> None:
    worker = TaskWorker("tests.support.tasks:Helped", settings)
    helper = (await worker.open_site(SiteOptions(None))).num_examples
    with ended_afterwards(helper):
        await asyncio.wait_for(worker.close(), 5.0)
        await check_helper(helper, stays="apart" in settings)


WAITS_BESIDE_ITS_WORKER = """
import asyncio
from fedtask.task import SiteOptions
from fedtask.worker import TaskWorker

async def main():
    worker = TaskWorker("tests.support.tasks:Helped", {})
    print((await worker.open_site(SiteOptions(None))).num_examples, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_helper_of_a_worker_whose_parent_is_killed_ends_with_both() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WAITS_BESIDE_ITS_WORKER, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    helper = int(await asyncio.wait_for(parent.stdout.readline(), 60.0))  # two processes start
    with ended_afterwards(helper):
        parent.kill()
        await parent.wait()
        await check_helper(helper, stays=False)


async def test_worker_whose_task_starts_programs_and_forks_answers() -> None:
    worker = TaskWorker("tests.support.tasks:Piped", {})
    try:
        for _ in range(2):  # the second request is not lost to what the first has started
            summary = await asyncio.wait_for(worker.open_site(SiteOptions(None)), 30.0)
            assert summary.num_examples == 3
    finally:
        await worker.close()


async def test_worker_whose_task_shows_a_bar_without_end_answers_and_tells_its_last_words(tmp_path: Path) -> None:
    worker = TaskWorker("tests.support.tasks:Advancing", {})
    try:
        await worker.initial_weights(0, None, tmp_path / "base")
        await asyncio.wait_for(worker.open_site(SiteOptions(None)), 30.0)
        with pytest.raises(WorkerCrashed, match=r"\n 10%\n 20%\nout of film$"):
            await asyncio.wait_for(worker.fine_tune(tmp_path / "base", PLAN, tmp_path / "out", ignore), 20.0)
    finally:
        await worker.close()
