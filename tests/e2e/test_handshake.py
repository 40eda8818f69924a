"""Who is let in: sites whose classes, protocol, name or data do not fit are declined, and the round goes on."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedclient.exit_codes import ExitCode
from fedserver.config import ServerConfig
from fedserver.federation import FederationFailed
from fedserver.server import Listening, Server
from fedstream import limits, wire
from fedstream.schema import TaskMeaning
from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2
from fedtask.linear import Linear
from tests.support.processes import Stage
from tests.support.serving import BareSite, serving
from tests.support.sites import OWN_TASK, write_task
from tests.support.tasks import random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]


@asynccontextmanager
async def a_round_at_work(folder: Path, **settings: Any) -> AsyncIterator[tuple[Server, Listening]]:
    """A server with an open round, which succeeds at the end of the block whoever was declined meanwhile."""
    settings = {"min_clients": 1, "rounds": 1, **settings}
    async with serving(folder, **settings) as (server, listening), BareSite.dial(listening) as site:
        await site.join("alpha", server)
        offer = await site.agree()
        yield server, listening
        schema = server.federation.schema
        finished = await site.upload(offer.upload_id, schema, random_weights(schema, 1))
        assert finished.state == transfer_pb2.UPLOAD_STATE_ADMITTED
        outcome = (await site.hear()).round_outcome
        assert (outcome.succeeded, outcome.reason) == (True, "reporting goal of 1 reached")


TABLE_OF_OTHER_NAMES = """\
                     this client             the federation
  classes, in order  healthy, tumour         no, yes
  positive class     tumour                  yes
  preprocessing      10 numbers as they are  10 numbers as they are

If only the folders here have other names, add:  --classes no=healthy,yes=tumour
"""
OTHER_NAMES = (
    "this federation's classes are no, yes, in that order; the client's are healthy, tumour. If its folders only have "
    "other names, start it with --classes no=healthy,yes=tumour (each class of the federation = the client's folder "
    "for it)"
)
TABLE_OF_OTHER_ORDER = """\
                     this client             the federation
  classes, in order  yes, no                 no, yes
  positive class     no                      yes
  preprocessing      10 numbers as they are  10 numbers as they are
"""
OTHER_ORDER = (
    "this federation's classes are no, yes, in that order; the client's are yes, no. A class would be taken for "
    "another one: use the same task, version and settings on both sides"
)


@pytest.mark.parametrize(
    ("classes", "message", "table"),
    [("healthy,tumour", OTHER_NAMES, TABLE_OF_OTHER_NAMES), ("yes,no", OTHER_ORDER, TABLE_OF_OTHER_ORDER)],
)
async def test_client_with_other_classes_is_declined_with_both_lists_and_the_round_goes_on(
    scene: Stage, monkeypatch: pytest.MonkeyPatch, classes: str, message: str, table: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(write_task(scene.folder / "here")), prepend=os.pathsep)
    there = write_task(scene.folder / "there", classes=classes)
    async with a_round_at_work(scene.folder, task=OWN_TASK) as (server, listening):
        client = scene.client("beta", listening, "--task", OWN_TASK, python_path=there)
        assert await client.ended() == ExitCode.DECLINED
        shown = client.text[client.text.index("fedclient: ") :]
        assert shown == f"fedclient: the server declined this client: {message}\n\n{table}"
        assert server.federation.population["beta"].reason == message


async def test_client_whose_federation_learns_a_class_is_told_to_name_it(scene: Stage) -> None:
    async with serving(scene.folder, task="tests.support.tasks:Shapes") as (_, listening):
        client = scene.client("beta", listening)
        assert await client.ended() == ExitCode.DECLINED
        assert client.text.endswith(
            "fedclient: this federation learns the class tests.support.tasks:Shapes. Code that a server names is never "
            "loaded by itself: if you have that class and trust it, add --task tests.support.tasks:Shapes\n"
        )


NAME_RULE = "a name has 1 to 64 characters of a-z A-Z 0-9 . _ - and starts with a letter or digit: give another --name"


@pytest.mark.parametrize(
    ("name", "fields", "num_examples", "reason", "message"),
    [
        (
            "newer",
            {"protocol": common_pb2.ProtocolRange(min=2, max=3)},
            10,
            "PROTOCOL",
            "this server speaks protocol version 1, the client 2 to 3: upgrade the server",
        ),
        ("bad name", {}, 10, "NAME", NAME_RULE),
        ("../../etc", {}, 10, "NAME", NAME_RULE),
        ("n" * 65, {}, 10, "NAME", NAME_RULE),
        ("", {}, 10, "NAME", NAME_RULE),
        ("empty", {}, 0, "EXAMPLES", "the client has no training examples: check its data folder"),
    ],
)
async def test_hello_that_does_not_fit_is_declined_and_the_stream_ends_well(
    tmp_path: Path, name: str, fields: dict[str, Any], num_examples: int, reason: str, message: str
) -> None:
    async with a_round_at_work(tmp_path) as (server, listening), BareSite.dial(listening) as site:
        answer = await site.hello(name, server.federation.schema, server.federation.meaning, num_examples, **fields)
        expected = negotiation_pb2.Declined(
            reason=negotiation_pb2.DeclineReason.Value(f"DECLINE_REASON_{reason}"), message=message
        )
        assert answer == negotiation_pb2.NegotiateResponse(declined=expected)
        assert await site.stream.read() is grpc.aio.EOF
        assert await site.stream.code() is grpc.StatusCode.OK


async def test_client_declined_before_the_model_is_ready_hears_why_at_once(tmp_path: Path) -> None:
    config = ServerConfig(
        task="linear", listen="127.0.0.1:0", state=tmp_path / "state", out=tmp_path / "out", open_enrolment=True
    )
    server, task = Server(config), Linear({})
    listening = await server.start()
    try:
        async with BareSite.dial(listening) as site:
            answer = await site.hello("bad name", task.schema(), task.meaning())
            assert (answer.declined.message, await site.stream.read()) == (NAME_RULE, grpc.aio.EOF)
    finally:
        await server.close()


async def test_client_that_waits_for_a_model_that_cannot_be_made_keeps_no_server_from_ending(tmp_path: Path) -> None:
    config = ServerConfig(
        task="linear", listen="127.0.0.1:0", state=tmp_path, open_enrolment=True, test=str(tmp_path / "none")
    )
    server, task = Server(config), Linear({})
    listening = await server.start()
    async with BareSite.dial(listening) as site:
        try:
            await site.say_hello("beta", task.schema(), task.meaning())
            assert (await site.stream.read()).WhichOneof("kind") == "waiting"
            with pytest.raises(FederationFailed, match="is no folder"):
                await server.run()
        finally:
            began = time.monotonic()
            await server.close()
        assert time.monotonic() - began < 30  # to those who fetch final models it would give a minute


async def declined_meaning(tmp_path: Path, meaning: TaskMeaning) -> negotiation_pb2.Declined:
    async with serving(tmp_path) as (server, listening), BareSite.dial(listening) as site:
        return (await site.hello("beta", server.federation.schema, meaning)).declined


async def test_client_with_other_preprocessing_is_shown_both(tmp_path: Path) -> None:
    meaning = TaskMeaning(("no", "yes"), "yes", "10 numbers, halved")
    declined = await declined_meaning(tmp_path, meaning)
    assert declined == negotiation_pb2.Declined(
        reason=negotiation_pb2.DECLINE_REASON_MEANING,
        message="preprocessing differs: here `10 numbers as they are`, at the client `10 numbers, halved`; use the "
        "same task version and settings",
        server_meaning=wire.write_meaning(Linear({}).meaning()),
        client_meaning=wire.write_meaning(meaning),
    )


async def test_client_with_another_positive_class_is_told_which_it_is(tmp_path: Path) -> None:
    declined = await declined_meaning(tmp_path, TaskMeaning(("no", "yes"), "no", "10 numbers as they are"))
    assert declined.message == "the positive class is yes here and no at the client: set the client's task to yes"


async def test_differences_beyond_twenty_are_counted(tmp_path: Path) -> None:
    mine = Linear({"tensors": "23", "tensor_kib": "1"}).schema()
    async with serving(tmp_path) as (server, listening), BareSite.dial(listening) as site:
        assert (await site.hello("beta", mine, server.federation.meaning)).HasField("schema_query")
        *parts, last = wire.schema_parts(mine)
        for part in parts:
            await site.say(schema_part=negotiation_pb2.SchemaPart(tensors=part))
        await site.say(schema_part=negotiation_pb2.SchemaPart(tensors=last, last=True))
        declined = (await site.hear()).declined
        assert (declined.reason, len(declined.differences), declined.more_differences) == (
            negotiation_pb2.DECLINE_REASON_SCHEMA,
            20,
            3,
        )
        first = negotiation_pb2.TensorDifference(client=wire.write_spec(mine["further_00000"]))
        assert declined.differences[0] == first
        assert server.federation.population["beta"].reason == declined.message


async def test_schema_of_which_a_part_is_missing_is_no_schema_that_differs(tmp_path: Path) -> None:
    mine = Linear({"tensors": "23", "tensor_kib": "1"}).schema()
    async with serving(tmp_path) as (server, listening), BareSite.dial(listening) as site:
        assert (await site.hello("beta", mine, server.federation.meaning)).HasField("schema_query")
        await site.say(schema_part=negotiation_pb2.SchemaPart(tensors=next(iter(wire.schema_parts(mine)))))
        await site.stream.done_writing()
        with pytest.raises(grpc.aio.AioRpcError, match="before the last part of its schema") as caught:
            await site.hear()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # a line that broke looks the same: it comes back
        assert "beta" not in server.federation.population


async def test_part_of_a_schema_has_no_more_tensors_than_a_part_may_have(tmp_path: Path) -> None:
    mine = Linear({"tensors": "23", "tensor_kib": "1"}).schema()
    async with serving(tmp_path) as (server, listening), BareSite.dial(listening) as site:
        assert (await site.hello("beta", mine, server.federation.meaning)).HasField("schema_query")
        tensors = [wire.write_spec(next(iter(mine)))] * (limits.MAX_TENSORS_PER_PART + 1)
        await site.say(schema_part=negotiation_pb2.SchemaPart(tensors=tensors, last=True))
        with pytest.raises(grpc.aio.AioRpcError, match="at most 1000 tensors, this one 1001"):
            await site.hear()


async def test_schema_that_was_not_asked_for_is_a_defect_of_the_client(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, listening), BareSite.dial(listening) as site:
        await site.join("alpha", server)
        await site.say(schema_part=negotiation_pb2.SchemaPart(last=True))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.hear()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "schema_part belongs to the handshake, which is over"
