"""How a federation says good-bye: who hears how it ended, who is waited for, and for how long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedserver.coordinator.effects import TellFederationOutcome
from fedserver.coordinator.population import ClientState, Introduction
from fedserver.farewell import say_farewell
from tests.support.bench import Bench

pytestmark = pytest.mark.numpy_task


async def one_round(folder: Path) -> None:
    async with Bench.running(folder, "ab", min_clients=2) as bench:
        await bench.play(1, 2)


async def test_farewell_of_a_server_started_again_waits_for_those_of_the_last_round(tmp_path: Path) -> None:
    await one_round(tmp_path)
    async with Bench.running(tmp_path, "a") as bench:
        farewell = asyncio.create_task(say_farewell(bench.federation, "all rounds done"))
        await asyncio.sleep(0.05)
        assert not farewell.done()
        assert bench.federation.standing.reason == "b may not have heard how it ended"

        bench.join("b")
        for name in ("a", "b"):
            bench.federation.sessions.close(bench.federation.sessions.open(name))
        await asyncio.wait_for(farewell, 5.0)


async def test_client_that_comes_back_after_the_end_hears_the_outcome_at_once(tmp_path: Path) -> None:
    await one_round(tmp_path)
    async with Bench.running(tmp_path) as bench:
        farewell = asyncio.create_task(say_farewell(bench.federation, "all rounds done"))
        await asyncio.sleep(0.05)
        heard = bench.federation.welcome(Introduction("a", 10, "bench"))
        farewell.cancel()
    assert [type(effect) for effect in heard] == [TellFederationOutcome]


async def test_farewell_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedserver.farewell.COMING_BACK_SECONDS", 0.05)
    await one_round(tmp_path)
    async with Bench.running(tmp_path) as bench:
        await asyncio.wait_for(say_farewell(bench.federation, "all rounds done"), 5.0)


@pytest.mark.parametrize("is_stopped", [False, True], ids=["by itself", "told to end after its round"])
async def test_farewell_of_a_server_that_ran_the_rounds_waits_for_whoever_was_cut_off_after_its_update(
    tmp_path: Path, is_stopped: bool
) -> None:
    async with Bench.running(tmp_path, "ab", min_clients=2) as bench:
        await bench.play(1, 2)
        if is_stopped:
            bench.federation.stop(finish_round=True)
        for name in "ab":
            bench.federation.sessions.close(bench.federation.sessions.open(name))
        bench.federation.gone("b", ClientState.DISCONNECTED, "the connection was lost")
        farewell = asyncio.create_task(say_farewell(bench.federation, "all rounds done"))
        await asyncio.sleep(0.05)
        assert not farewell.done()
        assert bench.federation.standing.reason == "b may not have heard how it ended"
        bench.join("b")
        bench.federation.sessions.close(bench.federation.sessions.open("b"))
        await asyncio.wait_for(farewell, 5.0)


@pytest.mark.parametrize("started_again", [False, True], ids=["ran the rounds", "was started again"])
async def test_farewell_waits_for_whoever_is_killed_between_the_outcome_and_the_final_model(
    tmp_path: Path, started_again: bool
) -> None:
    if started_again:
        await one_round(tmp_path)
    async with Bench.running(tmp_path, "ab", min_clients=2) as bench:
        if not started_again:
            await bench.play(1, 2)
        federation, sessions = bench.federation, bench.federation.sessions
        first, second = (sessions.open(name) for name in "ab")
        farewell = asyncio.create_task(say_farewell(federation, "all rounds done"))
        await asyncio.sleep(0.05)
        federation.heard_the_end.add("a")
        for session, name in ((first, "a"), (second, "b")):
            sessions.close(session)
            federation.gone(name, ClientState.DISCONNECTED, "closed its side, or was killed")
        await asyncio.sleep(0.05)
        assert not farewell.done()
        assert federation.standing.reason == "b may not have heard how it ended"

        bench.join("b")
        again = sessions.open("b")
        await asyncio.sleep(0.05)
        assert not farewell.done()
        federation.heard_the_end.add("b")
        sessions.close(again)
        federation.gone("b", ClientState.DISCONNECTED, "closed its side")
        await asyncio.wait_for(farewell, 5.0)


async def test_farewell_ends_with_a_stop_that_comes_in_it_and_names_who_is_still_fetching(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await bench.play(1)
        with capture_logs() as logs:
            farewell = asyncio.create_task(say_farewell(bench.federation, "all rounds done"))
            await asyncio.sleep(0.05)
            assert not farewell.done()
            bench.federation.stop(finish_round=False)
            await asyncio.wait_for(farewell, 5.0)
        assert [line["sites"] for line in logs if "sites" in line] == ["a"]


async def test_farewell_names_those_that_are_still_fetching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedserver.farewell._LISTING_SECONDS", 0.02)
    async with Bench.running(tmp_path, "ab") as bench:
        await bench.play(1, 2)
        farewell = asyncio.create_task(say_farewell(bench.federation, "all rounds done"))
        sessions = bench.federation.sessions
        said: list[str] = []
        for name in "ab":
            await asyncio.sleep(0.2)
            said.append(bench.federation.standing.reason)
            sessions.close(sessions._open[name])
        await asyncio.wait_for(farewell, 10.0)
    assert said == ["the final models are fetched by a, b", "the final models are fetched by b"]


async def test_farewell_of_a_federation_that_was_stopped_lets_its_sites_fetch(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await bench.play(1)
        bench.federation.stop(finish_round=False)
        session = bench.federation.sessions.open("a")
        farewell = asyncio.create_task(say_farewell(bench.federation, "stopped"))
        await asyncio.sleep(0.1)
        assert not farewell.done()
        bench.federation.sessions.close(session)
        await asyncio.wait_for(farewell, 5.0)


async def test_farewell_of_a_server_started_again_waits_for_nobody_who_left(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await bench.play(1)
        bench.federation.gone("a", ClientState.LEFT, "that was all")
    async with Bench.running(tmp_path) as bench:
        await asyncio.wait_for(say_farewell(bench.federation, "all rounds done"), 5.0)


async def test_farewell_waits_for_nobody_who_left_or_gave_nothing(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await bench.play(1)
        bench.join("b")  # after the last round
        for name, state in (("a", ClientState.LEFT), ("b", ClientState.DISCONNECTED)):
            bench.federation.sessions.close(bench.federation.sessions.open(name))
            bench.federation.gone(name, state, "gone")
        await asyncio.wait_for(say_farewell(bench.federation, "all rounds done"), 5.0)
