"""Phases of a round: what is said of its updates, and how long its score is waited for."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fedserver import phases
from fedserver.coordinator.effects import Effect, TellRoundOutcome
from fedserver.coordinator.round import Round
from fedserver.federation import ref_of
from fedserver.sessions import Session
from fedserver.store.journal import Statement
from fedstream.outcomes import Outcome
from fedtask.worker import WorkerCrashed
from tests.support.bench import SCHEMA, Bench, Worker
from tests.support.processes import soon
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task


async def test_site_that_is_revoked_while_its_offer_becomes_durable_has_failed(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "ab", min_clients=1) as bench:
        federation = bench.federation
        write = federation.state.journal.write

        async def meanwhile(*statements: Statement) -> None:
            if bench.federation.round is None:
                federation.expel("b", "this site has been revoked")
            await write(*statements)

        federation.state.journal.write = meanwhile  # type: ignore[method-assign]
        running = await bench.open_round()
        part = bench.part("b")
        assert (part.outcome, part.reason) == (Outcome.FAILED, "left: this site has been revoked")
        assert bench.part("a").is_outstanding
        await bench.send("a", random_weights(SCHEMA, 1))
        work = await bench.end_round(running)
        assert work.opened.succeeded


async def test_every_client_hears_how_the_round_ended_and_what_became_of_its_own_part(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "ab", accuracies=[0.75]) as bench:
        running = await bench.open_round()
        bench.join("c")
        bench.federation.apply(bench.round.decline("b", bench.part("b").offer_id, "busy", bench.federation.now))
        await bench.send("a", random_weights(SCHEMA, 1))
        work = await bench.end_round(running)
        assert work.model is not None
        heard = [await last_said(session) for session in bench.federation.sessions._open.values()]
    common = {
        "round_number": 1,
        "succeeded": True,
        "reason": work.opened.reason,
        "global_model": ref_of(work.model),
        "metrics": {"accuracy": 0.75, "loss": 0.5},
    }
    assert heard == [
        TellRoundOutcome("a", outcome=Outcome.COMPLETED, outcome_reason="", **common),
        TellRoundOutcome("b", outcome=Outcome.DECLINED, outcome_reason="busy", **common),
        TellRoundOutcome("c", outcome=None, outcome_reason="", **common),
    ]


async def last_said(session: Session) -> Effect:
    while session.num_unsaid > 1:
        await session.next_to_say()
    return await session.next_to_say()


async def test_time_in_which_the_whole_server_stood_still_is_given_back_and_a_quiet_round_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(phases, "_STANDSTILL_SECONDS", 0.5)
    looks: list[float] = []
    monkeypatch.setattr(Round, "tick", lambda _round, now: looks.append(now) or [])
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        await soon("the driver to look again and again", lambda: len(looks) >= 3)
        assert (looks[-1] - looks[0]) / (len(looks) - 1) > 0.03
        deadline = bench.part("a").deadline
        time.sleep(0.8)  # noqa: ASYNC251 - this is how a server stands still
        await soon("the driver's next look", lambda: bench.part("a").deadline > deadline)
        assert bench.part("a").deadline - deadline > 0.7
        running.cancel()


@pytest.mark.parametrize(("examples", "warned"), [((10, 10, 21), ["c"]), ((10, 10, 20), []), ((10, 20), [])])
async def test_site_that_outweighs_all_others_together_is_told_of(
    tmp_path: Path, examples: tuple[int, ...], warned: list[str]
) -> None:
    async with Bench.running(tmp_path, min_clients=2) as bench:
        for name, count in zip("abc", examples, strict=False):
            bench.join(name, count)
        running = await bench.open_round()
        with capture_logs() as logs:
            for name, count in zip("abc", examples, strict=False):
                await bench.send(name, random_weights(SCHEMA, 1), count)
            await bench.end_round(running)
    assert [event["client"] for event in logs if event["event"].startswith("one site outweighs")] == warned


async def test_update_that_does_not_fit_the_others_is_not_one_of_those_that_a_round_needs(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "abcde", min_clients=3, reporting_goal=3) as bench:
        running = await bench.open_round()
        diverged = random_weights(SCHEMA, 9)
        diverged["large"] = diverged["large"] * 4000
        await bench.send("a", diverged)
        for name, seed in (("b", 1), ("c", 2)):
            await bench.send(name, random_weights(SCHEMA, seed))
        said = "round 1: 3 of 5 updates in (1 of them too far from the others to count), waiting for d, e"
        await soon("the three to be in", lambda: bench.federation.standing.reason == said)
        await bench.send("d", random_weights(SCHEMA, 4))
        work = await bench.end_round(running)
        assert work.model is not None
        outcomes = [part.outcome for part in work.opened.participations]
        assert outcomes == [Outcome.QUARANTINED, *[Outcome.COMPLETED] * 3, Outcome.CANCELLED]


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
