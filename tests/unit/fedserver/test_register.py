"""Clients that an earlier process met are known to the next one, and a refused disk keeps nobody out. 2 s."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fedserver.coordinator.population import STOPPED_REASON, Client, ClientState, Introduction
from fedserver.driver import run_rounds
from fedserver.handshake import Decline, DeclineReason
from fedserver.preparation import prepare
from fedserver.store import StateError
from fedserver.store.row_checks import register
from tests.support.bench import SCHEMA, Bench, image_of
from tests.support.full_disk import FullDisk
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task

LOST = "the connection was lost"


def introduction(name: str, **fields: Any) -> Introduction:
    return Introduction(name, 10, "bench", **fields)


def told(client: Client) -> tuple[str, str, str, int]:
    return client.name, client.state.value, client.reason, client.rounds_completed


def leave(bench: Bench, name: str, state: ClientState, reason: str) -> None:
    bench.federation.sessions.close(bench.federation.sessions.open(name))
    bench.federation.gone(name, state, reason)


async def test_server_started_again_knows_every_client_the_last_one_met(tmp_path: Path) -> None:
    odd = introduction("odd", epoch_seconds=1.5, max_epochs=3, max_training_seconds=60.0, synthetic_data=True)
    async with Bench.running(tmp_path / "live", "abc") as bench:
        await bench.play(1, 2, 3)
        leave(bench, "a", ClientState.LEFT, "done for today")
        leave(bench, "b", ClientState.DISCONNECTED, LOST)
        bench.federation.turn_away(odd, Decline(DeclineReason.MEANING, "other classes"))
        await bench.federation.register.settled()
        before = {client.name: client for client in bench.federation.population}
        image_of(tmp_path / "live", tmp_path / "killed")
    async with Bench.running(tmp_path / "killed") as bench:
        population = bench.federation.population
        assert [told(client) for client in population] == [
            ("a", "left", "done for today", 1),
            ("b", "disconnected", LOST, 1),
            ("c", "disconnected", STOPPED_REASON, 1),
            ("odd", "declined", "other classes", 0),
        ]
        for client in population:
            was = before[client.name]
            assert (client.introduction, client.first_seen) == (was.introduction, was.first_seen)
            assert client.last_seen == was.last_seen
        assert (bench.federation.idle, population.connected) == ([], [])


async def test_client_that_only_gave_signs_of_life_was_last_seen_when_the_last_round_ended(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "live", "a") as bench:
        bench.federation.population.seen("a", 4e9)
        await bench.play(1)
        image_of(tmp_path / "live", tmp_path / "killed")
    async with Bench.running(tmp_path / "killed") as bench:
        assert bench.federation.population["a"].last_seen == 4e9


async def test_client_that_is_only_remembered_is_given_no_offer_and_is_waited_for(tmp_path: Path) -> None:
    async with Bench.running(tmp_path / "live", "ab", min_clients=2) as bench:
        image_of(tmp_path / "live", tmp_path / "killed")
    async with Bench.running(tmp_path / "killed", "a", min_clients=2) as bench:
        running = asyncio.create_task(run_rounds(bench.federation, bench.desk))
        await asyncio.sleep(0.05)
        assert (bench.federation.round, bench.federation.standing.reason) == (None, "for 1 more client")
        running.cancel()


async def test_client_that_was_declined_before_the_server_was_ready_keeps_its_first_day(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        first_seen = bench.federation.population["a"].first_seen
    again = Bench(tmp_path)
    again.federation.turn_away(introduction("a"), Decline(DeclineReason.PROTOCOL, "upgrade the client"))
    await prepare(again.federation)
    await again.federation.register.settled()
    again.state.close()
    async with Bench.running(tmp_path) as bench:
        (client,) = bench.federation.population
        assert told(client) == ("a", "declined", "upgrade the client", 0)
        assert client.first_seen == first_seen < client.last_seen


async def test_names_that_are_forgotten_are_gone_from_the_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedserver.coordinator.population.MAX_STRANGERS", 3)
    async with Bench.running(tmp_path) as bench:
        for number in range(10):
            bench.federation.turn_away(introduction(f"n{number}"), Decline(DeclineReason.SCHEMA, "other model"))
            await asyncio.sleep(0)
    with sqlite3.connect(tmp_path / "state.db") as connection:
        names = connection.execute("SELECT name FROM clients ORDER BY rowid").fetchall()
    connection.close()
    assert names == [("n7",), ("n8",), ("n9",)]


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not condition():  # noqa: ASYNC110 - the disk tells nobody
            await asyncio.sleep(0.005)


async def test_client_is_welcome_while_the_disk_refuses_and_is_kept_when_it_is_well_again(tmp_path: Path) -> None:
    disk = FullDisk()
    async with Bench.running(tmp_path / "live", files=disk, min_clients=2) as bench:
        disk.join(bench.state.database)
        running = asyncio.create_task(run_rounds(bench.federation, bench.desk))
        disk.fill()
        bench.join("a")
        bench.join("b")
        assert [client.name for client in bench.federation.idle] == ["a", "b"]
        await soon(lambda: bench.federation.disk.trouble is not None)
        await soon(lambda: "is full" in bench.federation.standing.reason)
        disk.free()
        await soon(lambda: bench.federation.round is not None)
        await soon(lambda: bench.state.database.query("SELECT count(*) FROM clients") == [(2,)])
        image_of(tmp_path / "live", tmp_path / "killed")
        running.cancel()
    async with Bench.running(tmp_path / "killed") as bench:
        assert [client.name for client in bench.federation.population] == ["a", "b"]


async def test_refused_row_that_the_disk_is_not_to_blame_for_is_said_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench.running(tmp_path) as bench:
        refusing = refusals(sqlite3.IntegrityError("made up"))
        with monkeypatch.context() as patched:
            patched.setattr(bench.state.journal, "write", refusing)
            bench.join("a")
            await bench.federation.register.settled()
        assert (bench.federation.disk.trouble, len(bench.federation.idle)) == (None, 1)
        await bench.play(1)
    async with Bench.running(tmp_path) as bench:
        assert "a" in bench.federation.population


def refusals(error: Exception) -> Callable[..., Awaitable[None]]:
    async def write(*_statements: object) -> None:
        raise error

    return write


async def test_row_of_a_client_that_is_damaged_is_named(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a"):
        pass
    with sqlite3.connect(tmp_path / "state.db") as connection:
        register(connection)
        connection.execute("UPDATE clients SET row = '{}'")
    connection.close()
    bench = Bench(tmp_path)
    with pytest.raises(StateError, match="a row of table clients in the state database is damaged"):
        await prepare(bench.federation)
    bench.state.close()


async def test_restart_counts_no_round_that_made_no_model(tmp_path: Path) -> None:
    counted = []
    async with Bench.running(tmp_path, "ab", min_clients=2) as bench:
        await bench.play(1, 2)
        running = await bench.open_round()
        await bench.send("a", random_weights(SCHEMA, 3))
        bench.federation.apply(bench.round.decline("b", bench.part("b").offer_id, "busy", bench.federation.now))
        assert (await bench.end_round(running)).model is None
        counted.append([client.rounds_completed for client in bench.federation.population])
    async with Bench.running(tmp_path) as bench:
        counted.append([client.rounds_completed for client in bench.federation.population])
    assert counted == [[1, 1], [1, 1]]
