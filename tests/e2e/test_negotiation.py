"""Rounds are negotiated: counter-offers, leases, cancellation, coming back, taking over and leaving."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from fedclient.exit_codes import ExitCode
from fedserver.server import Server
from fedstream.body import Chunk
from fedstream.errors import ProtocolError
from fedstream.manifest import manifest_of
from fedstream.schema import ModelSchema
from fedstream.status import from_rpc_error
from fedstream.v1 import negotiation_pb2, transfer_pb2
from tests.support.negotiating import everybody, in_training, members, parts_of
from tests.support.processes import Stage, soon
from tests.support.serving import BareSite, body_of, cut, serving
from tests.support.tasks import random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task, pytest.mark.timeout(240)]


def schema_of(server: Server) -> ModelSchema:
    return server.federation.schema


async def bring_in(site: BareSite, server: Server, upload_id: str) -> None:
    """Send an honest update for an agreed offer."""
    schema = schema_of(server)
    finished = await site.upload(upload_id, schema, random_weights(schema, 1))
    assert finished.state == transfer_pb2.UPLOAD_STATE_ADMITTED


async def round_outcome(site: BareSite) -> negotiation_pb2.RoundOutcome:
    message = await site.hear()
    assert message.WhichOneof("kind") == "round_outcome", message
    return message.round_outcome


def seconds(count: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(count * 1e9))
    return duration


async def refusal(awaitable: Any) -> ProtocolError:
    """The protocol's error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    error = from_rpc_error(caught.value)
    assert isinstance(error, ProtocolError), error
    return error


# At the level of messages.


async def test_client_that_says_much_while_it_fetches_the_final_models_is_heard_to_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path, rounds=1, min_clients=1) as (server, listening), BareSite.dial(listening) as site:
        await site.join("alpha", server)
        await bring_in(site, server, (await site.agree()).upload_id)
        assert (await site.hear("round_outcome")).WhichOneof("kind") == "federation_outcome"
        for _ in range(150):  # more than may wait to be said, if there were an answer to each
            await site.say(progress=negotiation_pb2.Progress(offer_id="final models"))
        await site.stream.done_writing()
        async with asyncio.timeout(15.0):  # a client that says nothing is waited for four times as long
            assert await site.stream.read() is grpc.aio.EOF
        await soon("the end to be noted", lambda: "alpha" in server.federation.heard_the_end)


async def test_offer_of_a_round_that_ended_in_an_earlier_life_of_the_server_is_answered(tmp_path: Path) -> None:
    settings = {"min_clients": 2, "rounds": 5, "retry_delay_seconds": 0.0}
    async with members(tmp_path, ("alpha", "beta"), **settings) as (_, _, site, other):
        offer = await site.agree()
        await other.agree()
    async with serving(tmp_path, **settings) as (server, listening), BareSite.dial(listening) as site:
        await site.join("alpha", server)
        assert server.federation.round is None
        await site.say(accept=negotiation_pb2.Acceptance(offer_id=offer.offer_id))
        await site.say(counter_offer=negotiation_pb2.CounterOffer(offer_id=offer.offer_id, epochs=1))
        await site.say(progress=negotiation_pb2.Progress(offer_id=offer.offer_id))
        heard = [await site.hear() for _ in range(3)]
    assert [message.WhichOneof("kind") for message in heard] == ["withdraw", "withdraw", "cancel"]
    assert {getattr(message, message.WhichOneof("kind")).offer_id for message in heard} == {offer.offer_id}


async def test_counter_offers_are_granted_within_the_longest_round_and_withdrawn_beyond_it(tmp_path: Path) -> None:
    spans = {"round_timeout_seconds": 500.0, "longest_round_seconds": 1000.0}
    names = ("asks_too_much", "fewer_epochs", "more_time", "says_no")
    async with members(tmp_path, names, **spans) as (server, _, too_much, fewer, more, says_no):
        offers = [(await site.hear()).offer for site in (too_much, fewer, more, says_no)]
        assert [(offer.round, offer.plan.epochs, offer.base_model.version) for offer in offers] == [(1, 3, 0)] * 4
        assert all(495 < offer.time_remaining.ToTimedelta().total_seconds() <= 500 for offer in offers)
        counter = negotiation_pb2.CounterOffer
        await too_much.say(
            counter_offer=counter(offer_id=offers[0].offer_id, time_needed=seconds(2000), reason="one core")
        )
        await fewer.say(counter_offer=counter(offer_id=offers[1].offer_id, epochs=2))
        await more.say(counter_offer=counter(offer_id=offers[2].offer_id, time_needed=seconds(800)))
        await says_no.say(decline=negotiation_pb2.Refusal(offer_id=offers[3].offer_id, reason="scanner is down"))
        withdrawal = (await too_much.hear()).withdraw
        assert withdrawal.offer_id == offers[0].offer_id
        needs = re.fullmatch(
            r"needs 2000 s, but this round is over in (\d+) s at the latest \(one core\)", withdrawal.reason
        )
        assert needs is not None
        assert 990 <= int(needs[1]) <= 1000
        agreed, granted = (await fewer.hear()).confirm, (await more.hear()).confirm
        assert (agreed.plan.epochs, granted.plan.epochs) == (2, 3)
        assert 495 - 10 < agreed.time_remaining.ToTimedelta().total_seconds() <= 500
        assert 795 < granted.time_remaining.ToTimedelta().total_seconds() <= 800
        await bring_in(fewer, server, offers[1].upload_id)
        await bring_in(more, server, offers[2].upload_id)
        for site, outcome in (
            (too_much, negotiation_pb2.OUTCOME_WITHDRAWN),
            (fewer, negotiation_pb2.OUTCOME_COMPLETED),
            (more, negotiation_pb2.OUTCOME_COMPLETED),
            (says_no, negotiation_pb2.OUTCOME_DECLINED),
        ):
            ended = await round_outcome(site)
            assert (ended.succeeded, ended.reason, ended.outcome) == (True, "every client has answered", outcome)
        assert parts_of(server, 1) == {
            "asks_too_much": ("withdrawn", withdrawal.reason),
            "fewer_epochs": ("completed", ""),
            "more_time": ("completed", ""),
            "says_no": ("declined", "scanner is down"),
        }
        epochs = {one.client_name: one.epochs for one in server.federation.history[0].contributions}
        assert epochs == {"asks_too_much": 3, "fewer_epochs": 2, "more_time": 3, "says_no": 3}


async def test_site_that_goes_silent_expires_and_the_round_succeeds_with_the_others(tmp_path: Path) -> None:
    async with members(tmp_path, ("silent", "steady"), lease_seconds=1.0) as (server, _, silent, steady):
        lost = await silent.agree()
        await bring_in(steady, server, (await steady.agree()).upload_id)
        cancel = (await silent.hear()).cancel
        assert cancel.offer_id == lost.offer_id
        assert re.fullmatch(r"no sign of life for \d+ s", cancel.reason)
        ended = await round_outcome(silent)
        assert (ended.succeeded, ended.outcome) == (True, negotiation_pb2.OUTCOME_EXPIRED)
        assert parts_of(server, 1) == {"silent": ("expired", cancel.reason), "steady": ("completed", "")}
        assert (await silent.hear()).offer.round == 2  # it is still in the population


async def test_site_that_fails_or_leaves_counts_as_failed_with_its_reason(tmp_path: Path) -> None:
    async with members(tmp_path, ("broken", "leaving", "steady")) as (server, _, broken, leaving, steady):
        failed = await broken.agree()
        await broken.say(failure=negotiation_pb2.Failure(offer_id=failed.offer_id, reason="out of memory"))
        await leaving.agree()
        await leaving.say(leave=negotiation_pb2.Leave(reason="going home"))
        assert await leaving.stream.read() is grpc.aio.EOF
        await bring_in(steady, server, (await steady.agree()).upload_id)
        assert (await round_outcome(steady)).succeeded
        assert (await steady.hear()).offer.round == 2
        assert parts_of(server, 1) == {
            "broken": ("failed", "out of memory"),
            "leaving": ("failed", "left: going home"),
            "steady": ("completed", ""),
        }
        client = server.federation.population["leaving"]
        assert (client.state.value, client.reason) == ("left", "going home")
        second = server.federation.round
        assert second is not None
        assert [part.client for part in second.participations] == ["broken", "steady"]


async def test_sites_that_are_late_are_cancelled_when_the_reporting_goal_is_met(tmp_path: Path) -> None:
    async with members(tmp_path, ("late", "quick"), reporting_goal=1) as (server, _, late, quick):
        offer = await late.agree()
        await bring_in(quick, server, (await quick.agree()).upload_id)
        cancel = (await late.hear()).cancel
        assert (cancel.offer_id, cancel.reason) == (offer.offer_id, "round 1 closed: reporting goal of 1 reached")
        ended = await round_outcome(late)
        assert (ended.succeeded, ended.outcome) == (True, negotiation_pb2.OUTCOME_CANCELLED)
        schema = schema_of(server)
        upload = await refusal(late.put_manifest(offer.upload_id, manifest_of(schema, random_weights(schema, 2))))
        assert upload.reason in ("ROUND_CLOSED", "UNKNOWN_UPLOAD")
        assert (await late.hear()).offer.round == 2


async def test_site_that_comes_back_gets_the_same_offer_and_goes_on_with_its_upload(tmp_path: Path) -> None:
    async with members(tmp_path, ("alpha",)) as (server, listening, first):
        offer = (await first.hear()).offer
        await first.channel.close()  # before it has answered
        schema = schema_of(server)
        weights = random_weights(schema, 1)
        manifest = manifest_of(schema, weights)
        async with BareSite.dial(listening) as second:
            await second.join("alpha", server)
            again = await second.agree()
            assert (again.offer_id, again.upload_id, again.plan) == (offer.offer_id, offer.upload_id, offer.plan)
            missing = (await second.put_manifest(offer.upload_id, manifest)).missing_tensors
            body = body_of(manifest, weights, missing)
            assert await second.write(offer.upload_id, cut(body[:20], 7)) == 20
        async with BareSite.dial(listening) as third:
            await third.join("alpha", server)
            again = await third.agree()
            assert (again.offer_id, again.upload_id, again.plan) == (offer.offer_id, offer.upload_id, offer.plan)
            resumed = await third.put_manifest(offer.upload_id, manifest)
            assert (resumed.missing_tensors, resumed.committed_size) == (missing, 20)
            chunks: list[Chunk] = list(cut(body, 7, start=20))
            assert await third.write(offer.upload_id, chunks) == len(body)
            assert (await third.finish(offer.upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED
            assert (await round_outcome(third)).outcome == negotiation_pb2.OUTCOME_COMPLETED


async def test_site_was_last_seen_when_it_last_said_something(tmp_path: Path) -> None:
    async with members(tmp_path, ("alpha",)) as (server, _, site):
        offer = await site.agree()
        for _ in range(2):
            before = server.federation.clock.wall()
            await site.say(progress=negotiation_pb2.Progress(offer_id=offer.offer_id))
            seen = server.federation.population["alpha"]
            await soon("the site to be seen again", lambda seen=seen, before=before: seen.last_seen > before)
        await bring_in(site, server, offer.upload_id)


async def test_newer_stream_of_a_client_takes_over_and_the_older_is_superseded(tmp_path: Path) -> None:
    async with members(tmp_path, ("alpha",)) as (server, listening, older):
        offer = await older.agree()
        async with BareSite.dial(listening) as newer:
            await newer.join("alpha", server)
            error = await refusal(older.stream.read())
            assert (error.code, error.reason) == ("ABORTED", "SUPERSEDED")
            assert error.message == "a newer stream of this client took over"
            assert (await newer.agree()).offer_id == offer.offer_id
            assert server.federation.sessions.clients == ["alpha"]
            await bring_in(newer, server, offer.upload_id)
            assert (await round_outcome(newer)).outcome == negotiation_pb2.OUTCOME_COMPLETED


# With real clients.


async def test_client_with_a_limit_takes_part_with_one_epoch_beside_one_that_runs_all(scene: Stage) -> None:
    async with serving(scene.folder, min_clients=2, rounds=2) as (server, listening):
        limited = scene.client("limited", listening, "--max-epochs", "1", shard="0/2")
        free = scene.client("free", listening, shard="1/2")
        assert (await limited.ended(), await free.ended()) == (0, 0)
        epochs = [
            [(one.client_name, one.epochs) for one in record.contributions] for record in server.federation.history
        ]
        assert epochs == [[("free", 3), ("limited", 1)]] * 2
        rows = {name: [(row["round"], row["epoch"]) for row in scene.history(name)] for name in ("limited", "free")}
        assert rows["limited"] == [("1", "1"), ("2", "1")]
        assert rows["free"] == [(r, e) for r in ("1", "2") for e in ("1", "2", "3")]
        countered = limited.said("counter-offer")
        assert [line["because"] for line in countered] == ["this site allows at most 1 epochs a round"] * 2


async def test_client_with_all_limits_leaves_after_its_rounds_and_the_federation_goes_on(scene: Stage) -> None:
    async with serving(scene.folder, min_clients=2, rounds=3, holdout="phantom") as (server, listening):
        options = ("--max-rounds", "1", "--max-examples", "40", "--report", "val_accuracy,acuracy", "--log-json")
        limited = scene.client("limited", listening, *options, shard="0/3")
        await soon("it to be there before the first round opens", lambda: "limited" in server.federation.sessions)
        others = [scene.client(f"free-{one}", listening, shard=f"{one}/3") for one in (1, 2)]
        assert await limited.ended() == 0
        assert [await other.ended() for other in others] == [0, 0]
        parts = [
            (record.number, one.outcome, one.num_examples, sorted(one.metrics))
            for record in server.federation.history
            for one in record.contributions
            if one.client_name == "limited"
        ]
        assert parts[0] == (1, "completed", 40, ["val_accuracy"])
        [slip] = limited.said("--report names metrics that this fine-tune did not give")
        assert (slip["names"], set(slip["gave"]) >= {"val_accuracy", "accuracy"}) == (["acuracy"], True)
        assert parts[1:] in ([], [(2, "declined", None, [])])  # an offer may be on its way when the site leaves
        assert len(server.federation.history) == 3
        assert "left: this site takes part in at most 1 rounds. The federation goes on" in limited.text


@asynccontextmanager
async def at_work(site: BareSite, offer_id: str) -> AsyncIterator[None]:
    """A site that shows signs of progress in the background of the block."""

    async def show() -> None:
        while True:
            await site.say(progress=negotiation_pb2.Progress(offer_id=offer_id))
            await asyncio.sleep(0.3)

    task = asyncio.create_task(show())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_client_in_training_is_cancelled_and_keeps_its_lease_in_the_next_round(scene: Stage) -> None:
    lease = 4.0
    settings = {"task_settings": {"seconds": "1.7"}, "reporting_goal": 1, "lease_seconds": lease}
    async with (
        serving(scene.folder, min_clients=1, rounds=2, **settings) as (server, listening),
        BareSite.dial(listening) as quick,
    ):
        server.federation.pause()
        await quick.join("quick", server)
        slow = scene.client("slow", listening)
        await everybody(server, "quick", "slow")
        offer = await quick.agree()
        async with at_work(quick, offer.offer_id):
            await in_training(server, "slow", 1)
        await bring_in(quick, server, offer.upload_id)
        assert (await round_outcome(quick)).outcome == negotiation_pb2.OUTCOME_COMPLETED
        second = (await quick.hear()).offer
        await quick.say(decline=negotiation_pb2.Refusal(offer_id=second.offer_id))
        ended = await round_outcome(quick)
        assert (ended.succeeded, ended.outcome) == (True, negotiation_pb2.OUTCOME_DECLINED)
        assert (await quick.hear()).federation_outcome.reason == "all 2 rounds done"
        assert await slow.ended() == 0
        cancelled = "round 1 closed: reporting goal of 1 reached"
        assert parts_of(server, 1) == {"quick": ("completed", ""), "slow": ("cancelled", cancelled)}
        assert parts_of(server, 2) == {"quick": ("declined", "no reason given"), "slow": ("completed", "")}
        taken = server.federation.history[1].contributions[1].seconds
        assert taken is not None
        assert taken > 3 * 1.7 > lease
        assert [line["round"] for line in slow.said("trained")] == [2]
        assert [(row["round"], row["epoch"]) for row in scene.history("slow")] == [("2", "1"), ("2", "2"), ("2", "3")]


async def test_client_that_was_too_slow_asks_for_more_time_and_gets_it(scene: Stage) -> None:
    settings = {"task_settings": {"seconds": "1.2"}, "plan": {"epochs": 4}, "retry_delay_seconds": 0.0}
    spans = {"round_timeout_seconds": 3.0, "longest_round_seconds": 60.0}
    async with serving(scene.folder, min_clients=1, rounds=2, **settings, **spans) as (server, listening):
        slow = scene.client("slow", listening)
        assert await slow.ended() == 0
        assert parts_of(server, 1) == {"slow": ("expired", "the deadline passed")}
        assert parts_of(server, 2) == {"slow": ("completed", "")}
        (counter,) = slow.said("counter-offer")
        assert (counter["round"], counter["our_epochs"]) == (2, 0)
        assert counter["our_seconds"] > 4 * 1.2
        assert re.fullmatch(r"4 epochs take about \d+ s here", counter["because"])
        assert [row["epoch"] for row in scene.history("slow")] == ["1", "2", "3", "4"]


async def test_client_that_is_refused_more_time_takes_part_with_the_epochs_that_fit(scene: Stage) -> None:
    settings = {"task_settings": {"seconds": "1.5"}, "plan": {"epochs": 4}, "retry_delay_seconds": 0.0}
    spans = {"round_timeout_seconds": 5.0, "longest_round_seconds": 5.0}
    async with serving(scene.folder, min_clients=1, rounds=3, **settings, **spans) as (server, listening):
        slow = scene.client("slow", listening)
        assert await slow.ended() == 0
        assert parts_of(server, 1) == {"slow": ("expired", "the deadline passed")}
        outcome, reason = parts_of(server, 2)["slow"]
        assert outcome == "withdrawn"
        assert re.fullmatch(
            r"needs \d+ s, but this round is over in 5 s at the latest \(4 epochs take about \d+ s here\)", reason
        )
        assert parts_of(server, 3) == {"slow": ("completed", "")}
        (part,) = server.federation.history[2].contributions
        assert part.epochs in (1, 2)
        assert slow.said("counter-offer")[-1]["because"] == f"{part.epochs} epochs fit the time that remains"
        assert len(scene.history("slow")) == part.epochs


async def test_second_client_of_a_name_takes_over_and_the_first_says_so(scene: Stage) -> None:
    async with serving(scene.folder, min_clients=2) as (server, listening):
        first = scene.client("twin", listening, home="first")
        await soon("the first to join", lambda: first.said("welcome"))
        second = scene.client("twin", listening, home="second")
        assert await first.ended() == ExitCode.REPLACED
        advice = "its identity is in use twice, here and elsewhere: stop one of the two"
        assert first.text.endswith(f"fedclient: another client called twin took over: {advice}\n")
        await soon("the second to stay", lambda: [client.name for client in server.federation.idle] == ["twin"])
        assert second.process.poll() is None
        second.process.terminate()
        assert await second.ended() == ExitCode.TERMINATED
        client = server.federation.population["twin"]
        assert (client.state.value, client.reason) == ("left", "stopped by its operator")
