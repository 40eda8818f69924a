"""The life of a federation: what it may begin with, how rounds follow each other, and what is made at its end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fedserver import lifecycle, phases
from fedserver.coordinator.participation import Stage
from fedserver.evaluation import Evaluator
from fedserver.lifecycle import FederationFailed, Made
from fedserver.store import State
from fedserver.store.state import KEEP_ROUNDS_FACT
from fedstream.schema import TaskMeaning
from fedtask.messages import TaskDescription
from fedtask.report import FederationRecord
from fedtask.task import TaskError
from fedtask.worker import WorkerCrashed
from tests.support.bench import SCHEMA, Bench, Worker
from tests.support.clocks import SetClock
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task


async def test_failed_round_is_followed_by_its_delay_whatever_changes_meanwhile(tmp_path: Path) -> None:
    settings = {"min_clients": 2, "rounds": 3, "retry_delay_seconds": 0.4}
    async with Bench.running(tmp_path, "ab", **settings) as bench:
        rounds, begun = asyncio.create_task(lifecycle.run_rounds(bench.federation, bench.desk)), time.monotonic()
        while not rounds.done():
            for part in bench.federation.round.participations if bench.federation.round is not None else []:
                if part.stage is Stage.OFFERED:
                    bench.federation.apply(
                        bench.round.decline(part.client, part.offer_id, "busy", bench.federation.now)
                    )
            bench.federation.touch()
            await asyncio.sleep(0.01)
        assert await rounds == "all 3 rounds done"
        assert time.monotonic() - begun >= 0.4 + 0.8  # doubled, and none after the last


def test_delay_after_failed_rounds_grows_to_five_minutes_and_a_longer_one_stays() -> None:
    assert [lifecycle._retry_delay(5.0, failures) for failures in (1, 2, 3, 7, 1000)] == [5, 10, 20, 300, 300]
    assert [lifecycle._retry_delay(600.0, failures) for failures in (1, 2)] == [600, 600]


async def test_start_with_fewer_rounds_than_there_were_is_refused(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await bench.play(1)
        await bench.play(2)
    with pytest.raises(FederationFailed, match=r"2 rounds are over in .* and --rounds is 1 in all"):
        await prepared(tmp_path, rounds=1)
    await prepared(tmp_path, rounds=2)


@pytest.mark.parametrize(("examples", "warned"), [((10, 10, 21), ["c"]), ((10, 10, 20), [])])
async def test_site_that_outweighs_all_others_together_is_told_of(
    tmp_path: Path, examples: tuple[int, ...], warned: list[str]
) -> None:
    async with Bench.running(tmp_path, min_clients=3) as bench:
        for name, count in zip("abc", examples, strict=True):
            bench.join(name, count)
        running = await bench.open_round()
        with capture_logs() as logs:
            for name, count in zip("abc", examples, strict=True):
                await bench.send(name, random_weights(SCHEMA, 1), count)
            await bench.end_round(running)
    assert [event["client"] for event in logs if event["event"].startswith("one site outweighs")] == warned


async def test_start_with_fewer_rounds_than_have_begun_is_refused(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await bench.play(1)
        running = await bench.open_round()
        running.cancel()
    with pytest.raises(FederationFailed, match=r"round 2 has begun in .* and --rounds is 1 in all"):
        await prepared(tmp_path, rounds=1)
    await prepared(tmp_path, rounds=2)


async def prepared(folder: Path, meaning: TaskMeaning | None = None, **settings: Any) -> None:
    bench = Bench(folder, **settings)
    try:
        if meaning is not None:
            description = replace(await bench.federation.evaluator.describe(), meaning=meaning)

            async def describe() -> TaskDescription:
                return description

            bench.federation.evaluator.describe = describe  # type: ignore[method-assign]
        await lifecycle.prepare(bench.federation)
    finally:
        await bench.federation.register.settled()
        bench.desk.close()
        bench.state.close()


async def prepared_by_a_worker_that_dies(folder: Path, times: int, holdout: str | None) -> None:
    (folder / "deaths").write_text("x" * times)
    bench = Bench(folder / "state")
    task, settings = "tests.support.tasks:Killed", {"deaths": str(folder / "deaths")}
    bench.federation.evaluator = Evaluator(task, settings, holdout, {})
    try:
        await lifecycle.prepare(bench.federation)
    finally:
        await bench.federation.evaluator.close()
        bench.desk.close()
        bench.state.close()


@pytest.mark.parametrize("holdout", [None, "phantom"])
async def test_start_whose_worker_is_killed_once_goes_on(tmp_path: Path, holdout: str | None) -> None:
    with capture_logs() as logs:
        await prepared_by_a_worker_that_dies(tmp_path, 1, holdout)
    told = [line["because"] for line in logs if line["log_level"] == "error"]
    assert len(told) == 1
    assert told[0].startswith("the worker process ended with status -9, killed: perhaps this machine has too little")


@pytest.mark.parametrize("holdout", [None, "phantom"])
async def test_start_whose_worker_is_killed_twice_says_what_may_be_the_reason(
    tmp_path: Path, holdout: str | None
) -> None:
    with pytest.raises(FederationFailed, match="status -9, killed: perhaps this machine has too little memory"):
        await prepared_by_a_worker_that_dies(tmp_path, 2, holdout)


async def test_start_with_classes_in_another_order_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    await prepared(tmp_path, keep_rounds=3)
    meaning = Worker([])._task.meaning()
    swapped = replace(meaning, class_names=tuple(reversed(meaning.class_names)))
    with pytest.raises(FederationFailed, match=r"was begun with classes .* it would be classes .*Give the task"):
        await prepared(tmp_path, swapped, keep_rounds=4)
    state = State(tmp_path)
    assert state.fact(KEEP_ROUNDS_FACT) == "3"
    state.close()
    await prepared(tmp_path, meaning)


async def test_delay_after_a_failed_round_ends_with_a_stop(tmp_path: Path) -> None:
    async with Bench.running(tmp_path) as bench:
        resting = asyncio.create_task(bench.federation.rest(60.0))
        await asyncio.sleep(0)
        bench.federation.stop(finish_round=False)
        await asyncio.wait_for(resting, 5.0)


async def test_federation_that_had_stopped_early_ends_when_it_is_started_again(tmp_path: Path) -> None:
    settings = {"early_stopping_rounds": 1, "rounds": 9}
    async with Bench.running(tmp_path, "a", accuracies=[0.8, 0.7], **settings) as bench:
        await bench.play(1)
        await bench.play(2)
    async with Bench.running(tmp_path, "a", accuracies=[0.9], **settings) as bench:
        reason = await asyncio.wait_for(lifecycle.run_rounds(bench.federation, bench.desk), 10.0)
        assert reason.startswith("early stopping: no better holdout score for 1 rounds")
        assert len(bench.federation.history) == 2


async def test_time_that_a_round_took_before_a_crash_is_not_given_again(tmp_path: Path) -> None:
    clock = SetClock(1000.0)
    settings = {"round_timeout_seconds": 3600.0, "lease_seconds": 3600.0}
    async with Bench.running(tmp_path, "a", clock=clock, **settings) as bench:
        running = await bench.open_round()
        await bench.accept("a")
        clock.advance(1000.0)
        bench.federation.touch()
        stored = "SELECT json_extract(row, '$.seconds_left') FROM participations"
        while bench.state.database.query(stored)[0][0] > 2600.0:  # noqa: ASYNC110 - the driver tells nobody
            await asyncio.sleep(0.01)
        running.cancel()
    later = SetClock(5.0)
    async with Bench.running(tmp_path, clock=later, **settings) as bench:
        assert bench.part("a").deadline - later.monotonic() == 2600.0
        assert later.monotonic() - bench.round.opened == 1000.0


async def test_federation_whose_holdout_is_not_there_has_made_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def missing(_worker: Worker) -> None:
        raise TaskError("there is no folder data/val")

    monkeypatch.setattr(Worker, "open", missing)
    with pytest.raises(lifecycle.FederationFailed, match="no folder data/val"):
        async with Bench.running(tmp_path):
            pass
    assert list((tmp_path / "models").iterdir()) == []


async def test_model_of_the_same_tensors_in_other_shapes_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench.running(tmp_path):
        pass
    first, *others = SCHEMA
    wider = (replace(first, shape=(*first.shape, 2)), *others)
    real = Worker.describe

    async def describe(worker: Worker) -> TaskDescription:
        return replace(await real(worker), tensors=wider)

    monkeypatch.setattr(Worker, "describe", describe)
    with pytest.raises(lifecycle.FederationFailed, match="holds another model than this task's"):
        async with Bench.running(tmp_path):
            pass


async def test_first_model_is_not_taken_for_one_of_other_weights(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a", backbone_weights="random"):
        pass
    with pytest.raises(lifecycle.FederationFailed, match="was not made with this --backbone-weights; give another"):
        async with Bench.running(tmp_path, backbone_weights="imagenet.h5"):
            pass
    async with Bench.running(tmp_path, "a") as bench:  # without the option, it goes on
        await bench.play(1)
    with capture_logs() as logs:
        async with Bench.running(tmp_path, backbone_weights="imagenet.h5"):
            pass
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == [
        "going on from the last model all the same"
    ]


async def test_evaluation_that_hangs_does_not_keep_a_federation_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def hangs(_worker: Worker, _weights: Path) -> None:
        await ended.wait()
        raise WorkerCrashed("the worker process ended with status -9")

    async def close(_worker: Worker) -> None:
        ended.set()

    monkeypatch.setattr(Worker, "evaluate", hangs)
    monkeypatch.setattr(Worker, "close", close, raising=False)
    monkeypatch.setattr(phases, "_LAST_SCORE_SECONDS", 0.1)
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 1))
        await asyncio.sleep(0.1)
        bench.federation.stop(finish_round=False)
        work = await bench.end_round(running)
        assert work.evaluation_reason.startswith("evaluation failed: the worker process ended")


class Maker:
    """Stands in for the worker that exports and reports. What is in `fails` fails; `rendered` is what it was asked."""

    test_summary = None
    summary = None

    def __init__(self, *fails: object) -> None:
        self._fails = fails
        self.rendered: list[bool] = []
        self.models: list[str] = []
        self.descriptions: list[str] = []

    async def export(self, _weights: Path, folder: Path, stem: str) -> list[Path]:
        if stem in self._fails:
            raise WorkerCrashed("OSError: no space left")
        return [folder / "vanished"] if "files that vanish" in self._fails else [_written(folder / f"{stem}.bin")]

    async def render_report(self, record: FederationRecord, _folder: Path, *, pictures: bool) -> None:
        self.rendered.append(pictures)
        self.models = [file.name for file in record.model_files]
        self.descriptions = [file.description for file in record.model_files]
        if pictures in self._fails:
            raise WorkerCrashed("OverflowError: cannot convert float infinity to integer")


def _written(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"model")
    return path


async def finished(folder: Path, maker: Any, rounds_done: int = 1, **settings: Any) -> Made:
    async with Bench.running(folder / "state", "a", out=folder / "out", **settings) as bench:
        for number in range(1, rounds_done + 1):
            await bench.play(number)
        bench.federation.evaluator = maker
        return await lifecycle.finish(bench.federation, "all rounds done")


async def test_federation_of_which_all_is_made_misses_nothing(tmp_path: Path) -> None:
    maker = Maker()
    made = await finished(tmp_path, maker)
    assert (made, made.missing) == (
        Made(tmp_path / "out" / "report", tmp_path / "out" / "models", test=True, rounds=True),
        [],
    )
    assert (maker.rendered, maker.models) == ([True], ["GLOBAL_MODEL.bin", "GLOBAL_MODEL_last.bin"])


async def test_report_that_fails_with_pictures_is_made_without(tmp_path: Path) -> None:
    maker = Maker(True)
    with capture_logs() as logs:
        made = await finished(tmp_path, maker)
    assert (made.report, maker.rendered) == (tmp_path / "out" / "report", [True, False])
    assert "OverflowError" in next(line["error"] for line in logs if line["log_level"] == "error")


@pytest.mark.parametrize(("pictures", "tries"), [(True, [True, False]), (False, [False])])
async def test_report_that_cannot_be_made_is_missing(tmp_path: Path, pictures: bool, tries: list[bool]) -> None:
    maker = Maker(True, False)
    made = await finished(tmp_path, maker, pictures=pictures)
    assert (made.report, made.missing, maker.rendered) == (None, ["report"], tries)


@pytest.mark.parametrize(
    ("fails", "there"), [("GLOBAL_MODEL_last", ["GLOBAL_MODEL.bin"]), ("GLOBAL_MODEL", []), ("files that vanish", [])]
)
async def test_models_that_cannot_all_be_written_are_missing_and_the_rest_is_reported(
    tmp_path: Path, fails: str, there: list[str]
) -> None:
    maker = Maker(fails)
    made = await finished(tmp_path, maker)
    assert (made.models, made.missing, maker.models) == (None, ["models"], there)
    assert made.report == tmp_path / "out" / "report"


@pytest.mark.parametrize(
    ("rounds_done", "said"),
    [
        (0, ["initial model", "initial model"]),
        (1, ["best global model, of round 1", "last global model, of round 1"]),
    ],
)
async def test_model_files_are_said_to_be_what_they_are(tmp_path: Path, rounds_done: int, said: list[str]) -> None:
    maker = Maker()
    await finished(tmp_path, maker, rounds_done)
    assert maker.descriptions == said


async def test_evaluation_that_hangs_is_ended_by_a_second_word_that_does_not_wait_for_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "_LAST_SCORE_SECONDS", 0.1)
    async with Bench.running(tmp_path) as bench:
        scoring: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ended = asyncio.Event()

        async def close() -> None:
            ended.set()
            scoring.set_result(None)

        bench.federation.evaluator.close = close  # type: ignore[method-assign]

        async def score() -> Any:
            return await scoring

        waiting = asyncio.create_task(phases._unless_stopped(bench.federation, score()))
        bench.federation.stop(finish_round=True)
        await asyncio.sleep(0.3)
        assert not ended.is_set()
        bench.federation.stop(finish_round=False)
        await asyncio.wait_for(waiting, 10.0)
        assert ended.is_set()
