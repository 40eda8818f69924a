"""The sessions of negotiation.txt against server and client: both say and read what the vectors say. 10 s."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
from google.protobuf import json_format, symbol_database

from fedclient import codec
from fedstream.v1 import negotiation_pb2
from tests.wire import text
from tests.wire.replay import parsed, replay
from tests.wire.sessions import SESSIONS
from tests.wire.steps import Step

pytestmark = pytest.mark.numpy_task


def read_sessions() -> dict[str, list[Step]]:
    """The sessions as the file has them, which is how anybody else reads them."""
    cases = text.read("negotiation.txt")
    return {name: [_step(case) for case in group] for name, group in groupby(cases, lambda case: case["session"])}


def _step(case: text.Case) -> Step:
    seconds = case.get("seconds_later", 0)
    if "happens" in case:
        return Step("", happens=case["happens"], seconds=seconds)
    kind = symbol_database.Default().GetSymbol(case["type"])
    message = kind.FromString(bytes.fromhex(case["message"]))
    assert parsed(json_format.ParseDict(case["json"], kind())) == parsed(message)
    return Step(case["from"], case["call"], message, seconds=seconds)


RECORDED = read_sessions()


def test_file_has_the_sessions_that_are_written_out_by_hand() -> None:
    assert {name: list(steps) for name, steps in SESSIONS.items()} == RECORDED


@pytest.mark.parametrize("session", RECORDED)
async def test_server_says_in_a_session_what_the_vector_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: str
) -> None:
    await replay(tmp_path, RECORDED[session], monkeypatch)


def test_client_reads_every_message_of_the_server() -> None:
    steps = [step.message for steps in RECORDED.values() for step in steps]
    said_by_servers = [message for message in steps if isinstance(message, negotiation_pb2.NegotiateResponse)]
    assert None not in [codec.read_event(message) for message in said_by_servers]
    kinds = {message.WhichOneof("kind") for message in said_by_servers}
    assert kinds == {field.name for field in negotiation_pb2.NegotiateResponse.DESCRIPTOR.fields}


def test_sessions_hold_every_kind_of_message_of_a_client() -> None:
    steps = [step.message for steps in RECORDED.values() for step in steps]
    said_by_clients = [message for message in steps if isinstance(message, negotiation_pb2.NegotiateRequest)]
    kinds = {message.WhichOneof("kind") for message in said_by_clients} - {None}
    assert kinds == {field.name for field in negotiation_pb2.NegotiateRequest.DESCRIPTOR.fields}
