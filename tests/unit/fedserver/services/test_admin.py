"""What an operator is told of rounds, and what is made of an operator's requests. 2 s."""

from __future__ import annotations

import inspect
import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from fedserver.addresses import Advertised
from fedserver.federation import FederationState, ref_of
from fedserver.services.admin import AdminServicer
from fedserver.services.messages import read_progress
from fedserver.store import UpdateFacts
from fedserver.store.rounds import unfinished
from fedserver.store.row_checks import register
from fedstream import wire
from fedstream.errors import InvalidRequest
from fedstream.manifest import ModelRef, manifest_of
from fedstream.progress import Phase, Progress
from fedstream.v1 import admin_pb2, common_pb2, negotiation_pb2
from tests.support.bench import SCHEMA, Bench
from tests.support.clocks import SetClock
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task

NO_CONTEXT: Any = None
NO_FEDERATION: Any = None
Names = tuple[ModelRef | None, ModelRef | None]


def read(message: common_pb2.ModelRef) -> ModelRef:
    return ModelRef(message.version, wire.read_digest(message.model_digest))


def models(one: admin_pb2.Round) -> Names:
    base = read(one.base_model) if one.HasField("base_model") else None
    return base, read(one.global_model) if one.HasField("global_model") else None


async def listed(bench: Bench, **request: Any) -> admin_pb2.ListRoundsResponse:
    asked = admin_pb2.ListRoundsRequest(**request)
    found: admin_pb2.ListRoundsResponse = await AdminServicer(bench.federation).ListRounds(asked, NO_CONTEXT)
    return found


async def three_rounds(bench: Bench) -> list[Names]:
    """The first and the last make a model, the second none; returns what each started from and made."""
    versions = bench.state.models.of_version
    await bench.play(1)
    running = await bench.open_round()
    bench.federation.apply(bench.round.decline("a", bench.part("a").offer_id, "not today", bench.federation.now))
    await bench.end_round(running)
    await bench.play(3)
    initial, first, third = (ref_of(versions(number)) for number in (0, 1, 3))
    return [(initial, first), (first, None), (first, third)]


async def test_rounds_that_are_over_name_the_models_they_started_from_and_made(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        expected = await three_rounds(bench)
        assert [models(one) for one in (await listed(bench)).rounds] == expected
        servicer = AdminServicer(bench.federation)
        for number, names in enumerate(expected, start=1):
            asked = admin_pb2.GetRoundRequest(number=number)
            assert models((await servicer.GetRound(asked, NO_CONTEXT)).round) == names
        state = await servicer.GetState(admin_pb2.GetStateRequest(), NO_CONTEXT)
        assert models(state.round) == expected[-1]


async def test_end_is_expected_at_the_pace_of_the_latest_rounds_while_more_of_them_come(tmp_path: Path) -> None:
    clock = SetClock(100.0)
    async with Bench.running(tmp_path, "a", clock=clock) as bench:
        federation = bench.federation

        async def expected() -> float | None:
            state = await AdminServicer(federation).GetState(admin_pb2.GetStateRequest(), NO_CONTEXT)
            remaining = state.expected_remaining if state.HasField("expected_remaining") else None
            return None if remaining is None else remaining.ToTimedelta().total_seconds()

        assert await expected() is None  # nobody knows how long a round takes
        await bench.play(1)
        assert await expected() is None  # and none is at work
        federation.pace.note(replace(federation.history[-1], duration_seconds=90.0))
        federation.pace.note(replace(federation.history[-1], duration_seconds=60.0))
        running = await bench.open_round()
        clock.advance(20.0)
        assert await expected() == 40.0 + 60.0 * (federation.config.rounds - 2)
        for says_so in (federation.pause, federation.stop_requested.set):
            says_so()
            assert await expected() is None
            federation.resume()
        federation.apply(bench.round.decline("a", bench.part("a").offer_id, "not today", federation.now))
        await bench.end_round(running)


async def test_page_of_rounds_is_read_beside_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await three_rounds(bench)
        threads: set[int] = set()
        query = bench.state.database.query

        def watched(sql: str, *values: object) -> list[tuple[Any, ...]]:
            threads.add(threading.get_ident())
            return query(sql, *values)

        monkeypatch.setattr(bench.state.database, "query", watched)
        assert len((await listed(bench)).rounds) == 3
        assert threading.get_ident() not in threads
        assert threads


async def test_page_of_rounds_reads_the_ledger_entries_of_its_rounds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        expected = await three_rounds(bench)
        entries: list[int] = []
        query = bench.state.database.query

        def watched(sql: str, *values: object) -> list[tuple[Any, ...]]:
            rows = query(sql, *values)
            entries.extend(row[0] for row in rows if "FROM ledger" in sql)
            return rows

        monkeypatch.setattr(bench.state.database, "query", watched)
        first = await listed(bench, page_size=2)
        assert ([models(one) for one in first.rounds], entries) == (expected[:2], [1, 2])
        entries.clear()
        second = await listed(bench, page_size=2, page_token=first.next_page_token)
        assert ([models(one) for one in second.rounds], entries) == (expected[2:], [3])
        assert second.next_page_token == ""


async def test_round_whose_entry_is_damaged_is_listed_without_models(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        expected = await three_rounds(bench)
        with sqlite3.connect(tmp_path / "state.db") as connection:
            register(connection)
            connection.execute("UPDATE ledger SET entry = substr(entry, 2) WHERE number = 1")
        connection.close()
        assert [models(one) for one in (await listed(bench)).rounds] == [(None, None), *expected[1:]]


async def test_pause_during_a_round_is_seen_at_once(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        servicer = AdminServicer(bench.federation)

        async def reason() -> str:
            return str((await servicer.GetState(admin_pb2.GetStateRequest(), NO_CONTEXT)).reason)

        running = await bench.open_round()
        at_work = await reason()
        bench.federation.pause()
        assert await reason() == f"{at_work}; paused: no further round opens until `fedserver resume`"
        bench.federation.resume()
        assert await reason() == at_work
        bench.federation.pause()
        bench.federation.stand(FederationState.PAUSED, "paused by the coordinator")
        assert await reason() == "paused by the coordinator"
        running.cancel()


async def test_stop_after_the_round_at_work_is_seen_at_once(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        servicer = AdminServicer(bench.federation)
        running = await bench.open_round()
        await servicer.Stop(admin_pb2.StopRequest(finish_round=True), NO_CONTEXT)
        said = [(await servicer.GetState(admin_pb2.GetStateRequest(), NO_CONTEXT)).reason]
        await bench.send("a", random_weights(SCHEMA, 1))
        await bench.end_round(running)
        said.append((await servicer.GetState(admin_pb2.GetStateRequest(), NO_CONTEXT)).reason)
    assert [one.endswith("; after this round the federation ends") for one in said] == [True, False]


async def test_round_at_work_names_the_model_it_started_from_and_its_bytes(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        weights = random_weights(SCHEMA, 1)
        await bench.write(await bench.begin("a", weights), weights, stop=500)
        (one,) = (await listed(bench)).rounds
        assert models(one) == (ref_of(bench.state.models.of_version(0)), None)
        assert one.bytes_received == 500
        running.cancel()


async def test_round_that_is_over_has_none_of_the_fields_that_are_for_one_at_work(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:

        async def told() -> tuple[admin_pb2.Round, admin_pb2.Participation]:
            found = await AdminServicer(bench.federation).GetRound(admin_pb2.GetRoundRequest(), NO_CONTEXT)
            return found.round, found.participations[0]

        running = await bench.open_round()
        weights = random_weights(SCHEMA, 1)
        assert not (await told())[1].HasField("last_seen")  # the offer was made, and nothing came of its site yet
        await bench.write(await bench.begin("a", weights), weights, stop=500)
        said = Progress(Phase.UPLOADING, epoch=2, fraction=0.5)
        bench.federation.apply(bench.round.progress("a", bench.part("a").offer_id, said, bench.federation.now))
        live, part = await told()
        at_work = (part.phase, part.epoch, part.fraction, part.HasField("last_seen"), live.HasField("deadline"))
        assert at_work == (negotiation_pb2.PHASE_UPLOADING, 2, 0.5, True, True)
        assert part.committed_size == 500 < part.body_size_bytes
        bench.federation.apply(bench.round.fail("a", bench.part("a").offer_id, "no more", bench.federation.now))
        await bench.end_round(running)
        over, part = await told()
        kept = (part.phase, part.epoch, part.fraction, part.HasField("last_seen"), over.HasField("deadline"))
        assert kept == (negotiation_pb2.PHASE_UNSPECIFIED, 0, 0.0, False, False)
        assert (part.committed_size, part.body_size_bytes) == (500, 500)


async def test_reason_why_a_metric_has_no_value_is_shown_as_the_site_gave_it(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:

        async def shown() -> list[tuple[str, str]]:
            found = await AdminServicer(bench.federation).GetRound(admin_pb2.GetRoundRequest(), NO_CONTEXT)
            return [(one.name, one.undefined_reason) for one in found.participations[0].metrics]

        running = await bench.open_round()
        upload_id, weights = await bench.accept("a"), random_weights(SCHEMA, 1)
        said = negotiation_pb2.Progress(metrics=wire.write_metrics({"auc": None}, {"auc": "only one class yet"}))
        report = read_progress(said)
        bench.federation.apply(bench.round.progress("a", bench.part("a").offer_id, report, bench.federation.now))
        assert await shown() == [("auc", "only one class yet")]
        facts = UpdateFacts(10, {"auc": None, "loss": 0.5}, undefined={"auc": "only one class"})
        await bench.desk.begin(upload_id, manifest_of(SCHEMA, weights), facts)
        await bench.write(upload_id, weights)
        await bench.desk.finish(upload_id)
        (row,) = unfinished(bench.state.database).participations  # type: ignore[union-attr]
        assert row.undefined == {"auc": "only one class"}
        assert await shown() == [("auc", "only one class"), ("loss", "")]
        await bench.end_round(running)
        assert await shown() == [("auc", "only one class"), ("loss", "")]


async def invited_for(*spans: Duration) -> list[timedelta | None]:
    """How long the invitations are asked to last whose messages say these spans."""
    asked: list[timedelta | None] = []

    async def invite(_name: str, valid_for: timedelta | None) -> tuple[str, datetime]:
        asked.append(valid_for)
        return "fsj1_", datetime(2026, 1, 1, tzinfo=UTC)

    office: Any = SimpleNamespace(invite=invite, advertised=Advertised("fl.example.org:8443", "fl.example.org:8444"))
    handler = inspect.unwrap(AdminServicer.Invite)
    for span in spans:
        await handler(AdminServicer(NO_FEDERATION, office), admin_pb2.InviteRequest(valid_for=span), NO_CONTEXT)
    return asked


async def test_invitation_lasts_as_long_as_was_asked_for_also_where_that_is_part_of_a_second() -> None:
    spans = Duration(seconds=90), Duration(seconds=1, nanos=500_000_000), Duration(nanos=500_000_000), Duration()
    assert await invited_for(*spans) == [timedelta(seconds=one) if one else None for one in (90, 1.5, 0.5, 0)]


@pytest.mark.parametrize("span", [Duration(seconds=-1), Duration(nanos=-1), Duration(nanos=2_000_000_000)])
async def test_invitation_for_a_span_that_is_none_is_refused(span: Duration) -> None:
    with pytest.raises(InvalidRequest, match="valid_for is no span of 0 or more"):
        await invited_for(span)


async def test_round_that_is_over_opened_when_it_was_said_to_have(tmp_path: Path) -> None:
    clock = SetClock(steady=100.0)
    async with Bench.running(tmp_path, "a", clock=clock) as bench:
        evaluate = bench.federation.evaluator.evaluate

        async def slowly(path: Path) -> Any:
            clock.advance(60.0)
            return await evaluate(path)

        bench.federation.evaluator.evaluate = slowly  # type: ignore[method-assign]
        running = await bench.open_round()
        (at_work,) = (await listed(bench)).rounds
        clock.advance(5.0)
        await bench.send("a", random_weights(SCHEMA, 1))
        await bench.end_round(running)
        (over,) = (await listed(bench)).rounds
    assert over.opened.ToDatetime() == at_work.opened.ToDatetime()
    assert (over.closed.ToDatetime() - over.opened.ToDatetime()).total_seconds() == 5.0
