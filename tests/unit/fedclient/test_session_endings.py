"""Whole clients against a server that follows a script: how they are turned away, and how a session ends."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fedclient import session
from fedclient.calls import Patience, send
from fedclient.client import Client
from fedclient.config import ClientConfig
from fedclient.display import LogDisplay
from fedclient.exit_codes import ExitCode
from fedstream import wire
from fedstream.errors import InvalidRequest, LimitExceeded, PermissionDenied, ProtocolError, Superseded, Unauthenticated
from fedstream.v1 import common_pb2, negotiation_pb2
from tests.support.scripted import Scripted, Talk, refuse, scripted, seconds
from tests.support.sessions import count, deliver, run, stopped, until

pytestmark = pytest.mark.numpy_task


async def test_session_declined_for_meaning_shows_both_lists_and_the_option_that_mends_it(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        hello = await talk.hear("hello")
        ours = common_pb2.TaskMeaning(class_names=["healthy", "tumour"], positive_class="tumour", preprocessing="none")
        declined = negotiation_pb2.Declined(
            reason=negotiation_pb2.DECLINE_REASON_MEANING,
            message="class names differ",
            server_meaning=ours,
            client_meaning=hello.meaning,
        )
        await talk.say(declined=declined)

    async with scripted(script) as server:
        stop = await stopped(server.client(tmp_path))

    assert stop.code is ExitCode.DECLINED
    assert stop.message.splitlines() == [
        "the server declined this client: class names differ",
        "",
        "                     this client             the federation",
        "  classes, in order  no, yes                 healthy, tumour",
        "  positive class     yes                     tumour",
        "  preprocessing      10 numbers as they are  none",
        "",
        "If only the folders here have other names, add:  --classes healthy=no,tumour=yes",
    ]


async def test_session_asked_for_its_schema_sends_all_of_it_in_order(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        await talk.hear("hello")
        await talk.say(schema_query=negotiation_pb2.SchemaQuery())
        part = await talk.hear("schema_part")
        assert part.last
        assert tuple(wire.read_spec(spec) for spec in part.tensors) == here[0].schema.tensors
        spec = part.tensors[1]
        theirs = common_pb2.TensorSpec(name="bias", dtype=common_pb2.DATA_TYPE_FLOAT32, shape=[4], trainable=True)
        difference = negotiation_pb2.TensorDifference(server=theirs, client=spec)
        declined = negotiation_pb2.Declined(
            reason=negotiation_pb2.DECLINE_REASON_SCHEMA,
            message="2 differ",
            differences=[difference],
            more_differences=1,
        )
        await talk.say(declined=declined)

    async with scripted(script) as server:
        here.append(server)
        stop = await stopped(server.client(tmp_path))

    assert stop.message == (
        "the server declined this client: 2 differ\n\n"
        "  tensor  this client           the federation\n"
        "  bias    float32 () trainable  float32 (4,) trainable\n"
        "... and 1 more"
    )


async def test_welcome_in_a_version_of_the_protocol_that_was_not_offered_ends_the_client(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.welcome(protocol=2)

    async with scripted(script) as server:
        stop = await stopped(server.client(tmp_path))

    words = "the server welcomes this client in version 2 of the protocol, and it speaks 1"
    assert (stop.code, stop.message) == (ExitCode.DEFECT, words)


async def test_session_superseded_twice_ends_because_another_process_has_the_name(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.refuse(Superseded("a newer stream took over"))

    async with scripted(script, script) as server:
        stop = await stopped(server.client(tmp_path))

    assert stop.code is ExitCode.REPLACED


@pytest.mark.parametrize(
    ("error", "code"),
    [(PermissionDenied("revoked"), ExitCode.UNTRUSTED), (InvalidRequest("bad name", field="x"), ExitCode.DEFECT)],
)
async def test_session_refused_by_a_rule_is_not_tried_again(tmp_path: Path, error: Any, code: ExitCode) -> None:
    async def script(talk: Talk) -> None:
        await talk.hear("hello")
        await talk.refuse(error)

    async with scripted(script) as server:
        stop = await stopped(server.client(tmp_path))

        assert server.negotiation.scripts == []
    assert stop.code is code
    assert error.message in stop.message


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("GetManifest", Unauthenticated("expired")),
        ("ReadChunks", PermissionDenied("revoked")),
        ("PutManifest", Unauthenticated("expired")),
        ("WriteChunks", PermissionDenied("revoked")),
        ("FinishUpload", PermissionDenied("revoked")),
    ],
)
async def test_session_of_a_client_that_is_refused_in_a_transfer_says_failure_and_leave_and_ends(
    tmp_path: Path, call: str, error: ProtocolError
) -> None:
    heard: list[str] = []
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.agree(here[0].base)
        heard.append((await talk.hear("failure")).reason)
        heard.append((await talk.hear("leave")).reason)

    async with scripted(script) as server:
        here.append(server)
        # As a server does, it refuses what follows too: a client that is writing may hear of gRPC's own failure to send
        # in place of the reason, and then comes back and asks how far things are.
        server.transfer.refusals |= {call: [error] * 9, "GetUploadStatus": [error] * 9}
        stop = await stopped(server.client(tmp_path))

        assert call in server.transfer.calls[-2:]
    assert stop.code is ExitCode.UNTRUSTED
    assert error.message in stop.message
    assert heard == [f"the server refused a call: {error.reason}", stop.message]


async def test_session_with_server_s_own_class_needs_the_operator_s_word(tmp_path: Path) -> None:
    async with scripted() as server:
        server.negotiation.task = "tests.support.tasks:Shapes"
        stop = await stopped(server.client(tmp_path))

    assert stop.code is ExitCode.DECLINED
    assert "--task tests.support.tasks:Shapes" in stop.message


async def test_session_that_leaves_says_so_and_the_server_hears_why(tmp_path: Path) -> None:
    heard: list[str] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        heard.append((await talk.hear("leave")).reason)

    async with scripted(script) as server:
        client = server.client(tmp_path)
        with capture_logs() as logs:
            work = asyncio.create_task(client.run())
            await until(lambda: count(logs, "welcome"))
            await client.leave("stopped by its operator")
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    assert heard == ["stopped by its operator"]


async def test_session_whose_training_fails_tells_no_file_name_and_ends_after_three(tmp_path: Path) -> None:
    reasons: list[str] = []
    farewells: list[str] = []
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        for number in (1, 2, 3):
            await talk.agree(here[0].base, number)
            reasons.append((await talk.hear("failure")).reason)
        farewells.append((await talk.hear("leave")).reason)  # which nothing overtakes

    async with scripted(script) as server:
        here.append(server)
        # A limit of time that no fine-tune can keep.
        stop = await stopped(server.client(tmp_path, max_hours=1e-9))

    assert reasons == ["the site's limit on training time was reached"] * 3
    assert farewells == [stop.message]
    assert stop.code is ExitCode.TRAINING_FAILED


async def test_failures_in_a_row_are_counted_over_the_waits_between_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[Scripted] = []
    monkeypatch.setattr(session, "_PERIOD_SECONDS", 0.05)

    async def script(talk: Talk) -> None:
        await talk.welcome()
        for number in (1, 2, 3):
            await talk.agree(here[0].base, number)
            await talk.hear("failure")
            if number < 3:
                await asyncio.sleep(0.5)  # the others are still at work
        await talk.hear("leave")

    async with scripted(script) as server:
        here.append(server)
        stop = await stopped(server.client(tmp_path, max_hours=1e-9))

    assert stop.code is ExitCode.TRAINING_FAILED


async def test_session_whose_training_fails_while_progress_is_told_tells_that_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    here: list[Scripted] = []

    async def send_slowly(call: Any, message: Any) -> None:
        if message.HasField("progress"):
            await asyncio.sleep(0.5)  # the training has failed when this is told
        await send(call, message)

    monkeypatch.setattr(session, "send", send_slowly)

    async def script(talk: Talk) -> None:
        await talk.welcome()
        for number in (1, 2, 3):
            await talk.agree(here[0].base, number)
            heard.append((await talk.hear("failure")).reason)
        await talk.hear("leave")

    async with scripted(script) as server:
        here.append(server)
        stop = await stopped(server.client(tmp_path, max_hours=1e-9))

    assert len(heard) == 3
    assert stop.code is ExitCode.TRAINING_FAILED


async def test_session_told_things_it_does_not_know_goes_on(tmp_path: Path) -> None:
    here: list[Scripted] = []

    async def script(talk: Talk) -> None:
        await talk.welcome()
        await talk.say()
        outcome = negotiation_pb2.RoundOutcome(round=1, reason="?")
        outcome.ParseFromString(outcome.SerializeToString() + b"\x20\x63")  # outcome = 99
        await talk.say(round_outcome=outcome)
        await talk.say(lease_renewal=negotiation_pb2.LeaseRenewal(offer_id="none", lease=seconds(1)))
        await talk.say(cancel=negotiation_pb2.Cancellation(offer_id="none"))
        await talk.say(withdraw=negotiation_pb2.Withdrawal(offer_id="none"))
        await deliver(talk, here[0])
        await talk.end(here[0].base)

    async with scripted(script) as server:
        here.append(server)
        _, logs = await run(server.client(tmp_path))

    assert count(logs, "update delivered") == 1


async def test_session_of_second_client_in_same_state_folder_is_refused(tmp_path: Path) -> None:
    async def script(talk: Talk) -> None:
        await talk.welcome()
        await asyncio.sleep(30)

    async with scripted(script) as server:
        with capture_logs() as logs:
            first = asyncio.create_task(server.client(tmp_path).run())
            await until(lambda: count(logs, "welcome"))
            stop = await stopped(server.client(tmp_path, name="other"))
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    assert stop.code is ExitCode.BAD_CONFIGURATION


async def test_session_that_is_put_off_again_and_again_gives_up_when_it_was_told_to(tmp_path: Path) -> None:
    async def put_off(talk: Talk) -> None:
        await refuse(talk._context, LimitExceeded("the disk is full", timedelta(seconds=0.1)))

    async with scripted(*[put_off] * 20) as server:
        config = server.config(tmp_path, give_up_after=0.5)
        stop = await stopped(Client(config, LogDisplay(), Patience(0.05, 0.1, give_up_after_seconds=0.5)))

    assert stop.code is ExitCode.UNREACHABLE
    assert stop.message == f"{server.address} took no client for 0.5 s: the disk is full"


async def test_session_with_no_server_gives_up_when_it_was_told_to(tmp_path: Path) -> None:
    config = ClientConfig(
        server="127.0.0.1:1", plaintext=True, data=None, state_dir=tmp_path, out=tmp_path, give_up_after=0.3
    )
    stop = await stopped(Client(config, LogDisplay(), Patience(0.05, 0.1, give_up_after_seconds=0.3)))

    assert stop.code is ExitCode.UNREACHABLE
    assert "127.0.0.1:1" in stop.message


async def test_state_folder_that_cannot_be_made_is_named_with_the_option_for_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "state"
    config = ClientConfig(server="127.0.0.1:1", plaintext=True, data=None, state_dir=folder, out=tmp_path)
    stop = await stopped(Client(config, LogDisplay(), Patience(0.05, 0.1)))

    assert stop.code is ExitCode.BAD_CONFIGURATION
    assert stop.message == (
        f"the state folder {folder} cannot be used ({folder}: Not a directory); "
        "name one with --state-dir that this user may write to"
    )
