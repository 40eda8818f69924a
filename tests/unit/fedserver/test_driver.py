"""How rounds follow each other, and what a server that is started again goes on with."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from fedserver.coordinator.effects import MakeOffer
from fedserver.coordinator.participation import Stage
from fedserver.driver import _retry_delay, is_over, revive, run_rounds
from fedserver.federation import FederationState
from fedserver.preparation import prepare
from fedserver.services.admin import AdminServicer
from fedserver.upkeep import keep_end
from fedstream.v1 import admin_pb2
from tests.support.bench import SCHEMA, Bench, image_of
from tests.support.clocks import SetClock
from tests.support.processes import soon
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task


async def test_failed_round_is_followed_by_its_delay_whatever_changes_meanwhile(tmp_path: Path) -> None:
    settings = {"min_clients": 2, "rounds": 3, "retry_delay_seconds": 0.4}
    async with Bench.running(tmp_path, "ab", **settings) as bench:
        said: set[tuple[FederationState, str]] = set()
        rounds, begun = asyncio.create_task(run_rounds(bench.federation, bench.desk)), time.monotonic()
        while not rounds.done():
            for part in bench.federation.round.participations if bench.federation.round is not None else []:
                if part.stage is Stage.OFFERED:
                    bench.federation.apply(
                        bench.round.decline(part.client, part.offer_id, "busy", bench.federation.now)
                    )
            bench.federation.touch()
            said.add((bench.federation.standing.state, bench.federation.standing.reason))
            await asyncio.sleep(0.01)
        assert await rounds == "all 3 rounds done"
        assert [record.number for record in bench.federation.history] == [1, 2, 3]
        why = "failed (0 of at least 2 updates: every client has answered)"
        for words in (f"for 0 s before the next round: round 1 {why}", f"for 1 s before the next round: round 2 {why}"):
            assert (FederationState.WAITING, words) in said
        assert not any("round 3 failed" in words for _, words in said)
        assert time.monotonic() - begun >= 0.4 + 0.8  # doubled, and none after the last


def test_delay_after_failed_rounds_grows_to_five_minutes_and_a_longer_one_stays() -> None:
    assert [_retry_delay(5.0, failures) for failures in (1, 2, 3, 7, 1000)] == [5, 10, 20, 300, 300]
    assert [_retry_delay(600.0, failures) for failures in (1, 2)] == [600, 600]


async def test_federation_that_too_few_join_in_time_ends_with_the_reason(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a", min_clients=2, join_timeout_seconds=0.05) as bench:
        reason = await asyncio.wait_for(run_rounds(bench.federation, bench.desk), 10.0)
        assert reason == "2 clients did not join within 0 s"
        assert len(bench.federation.history) == 0


async def test_federation_is_over_after_its_last_round_and_not_before(tmp_path: Path) -> None:
    over: list[bool] = []
    for _ in range(3):
        async with Bench.running(tmp_path, "a", rounds=2) as bench:
            over.append(is_over(bench.federation))
            if not over[-1]:
                await bench.play(1)
    assert over == [False, False, True]


async def test_client_that_was_faster_than_the_round_it_comes_back_for_has_its_offer_when_that_is_there(
    tmp_path: Path,
) -> None:
    async with Bench.running(tmp_path, "ab") as bench:
        running = await bench.open_round()
        offers = {name: bench.round.offer_of(bench.part(name)) for name in "ab"}
        running.cancel()
    bench = Bench(tmp_path)
    await prepare(bench.federation)
    bench.join("b")
    revived = await revive(bench.federation, bench.desk)
    assert revived is not None
    (session,) = bench.federation.sessions._open.values()
    heard = [await session.next_to_say() for _ in range(session.num_unsaid)]
    assert [(type(one), one.participation.offer_id) for one in heard if isinstance(one, MakeOffer)] == [
        (MakeOffer, offers["b"].participation.offer_id)
    ]
    await bench.federation.register.settled()
    bench.desk.close()
    bench.state.close()


async def test_delay_after_a_failed_round_ends_with_a_stop(tmp_path: Path) -> None:
    async with Bench.running(tmp_path) as bench:
        resting = asyncio.create_task(bench.federation.rest(60.0))
        await asyncio.sleep(0)
        bench.federation.stop(finish_round=False)
        await asyncio.wait_for(resting, 5.0)


async def test_order_to_end_after_the_round_at_work_holds_for_one_start_after_a_kill(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "live", "a") as bench:
        running = await bench.open_round()
        await AdminServicer(bench.federation).Stop(admin_pb2.StopRequest(finish_round=True), None)
        image = image_of(tmp_path / "live", tmp_path / "image")
        running.cancel()
    async with Bench.running(image, "a") as bench:
        running_on = asyncio.create_task(run_rounds(bench.federation, bench.desk))
        await soon("the round to be taken up", lambda: bench.federation.has_caught_up)
        await bench.send("a", random_weights(SCHEMA, 1))
        assert await asyncio.wait_for(running_on, 20.0) == "stopped by the coordinator"
        assert [record.succeeded for record in bench.federation.history] == [True]
        await keep_end(bench.federation)
    async with Bench.running(image, "a") as bench:
        going_on = asyncio.create_task(run_rounds(bench.federation, bench.desk))
        await soon("the next round", lambda: bench.federation.round_at_work is not None)
        going_on.cancel()


async def test_federation_that_had_stopped_early_ends_when_it_is_started_again(tmp_path: Path) -> None:
    settings = {"early_stopping_rounds": 1, "rounds": 9}
    async with Bench.running(tmp_path, "a", accuracies=[0.8, 0.7], **settings) as bench:
        await bench.play(1)
        await bench.play(2)
    async with Bench.running(tmp_path, "a", accuracies=[0.9], **settings) as bench:
        assert is_over(bench.federation)
        reason = await asyncio.wait_for(run_rounds(bench.federation, bench.desk), 10.0)
        assert reason.startswith("early stopping: no better holdout score for 1 rounds")
        assert len(bench.federation.history) == 2


async def test_time_that_a_round_took_before_a_crash_is_not_given_again(tmp_path: Path) -> None:
    clock = SetClock(1000.0)
    settings = {"round_timeout_seconds": 3600.0, "lease_seconds": 3600.0}
    async with Bench.running(tmp_path, "ab", clock=clock, **settings) as bench:
        running = await bench.open_round()
        await bench.accept("a")
        clock.advance(400.0)
        bench.round.decline("b", bench.part("b").offer_id, "busy", clock.monotonic())
        await bench.federation.keep(bench.round, bench.part("b"))
        clock.advance(600.0)
        bench.federation.touch()
        stored = "SELECT json_extract(row, '$.seconds_left') FROM participations"
        while bench.state.database.query(stored)[0][0] > 2600.0:  # noqa: ASYNC110 - the driver tells nobody
            await asyncio.sleep(0.01)
        running.cancel()
    later = SetClock(5.0)
    async with Bench.running(tmp_path, clock=later, **settings) as bench:
        assert bench.part("a").deadline - later.monotonic() == 2600.0
        assert later.monotonic() - bench.round.opened == 1000.0
        assert later.monotonic() - bench.part("a").offered_at == 1000.0
        assert (bench.part("b").ended_at or 0.0) - bench.part("b").offered_at == 400.0
