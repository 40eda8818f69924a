"""How local commands reach the server of a state directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from fedserver.admin_socket import answers, path_in
from fedserver.exit_codes import ExitCode, fail
from fedserver.store import DamagedFile, StateError, StateReader
from fedserver.store.folder import is_in_use, read_contact, unreadable
from fedstream.errors import InvalidRequest, ProtocolError, UnknownRound, UnknownSite
from fedstream.status import from_rpc_error
from fedstream.v1 import admin_pb2_grpc

CALL_SECONDS = 10.0

MOMENT_SECONDS = 10.0
"""How long another command that writes is waited for: to write an invitation takes it a second or so."""

T = TypeVar("T")


@contextmanager
def administration(state: Path) -> Iterator[admin_pb2_grpc.AdminServiceStub]:
    """A stub of the server's administration; failing calls end the command with a plain sentence."""
    contact = _looked_at(read_contact, state)
    if "admin" not in contact:
        if _looked_at(is_in_use, state):
            raise fail(_busy(state), ExitCode.NO_SERVER)
        raise fail(f"no server has run in {state}; give its --state", ExitCode.NO_SERVER)
    with grpc.insecure_channel(contact["admin"]) as channel:  # a unix socket that only its owner can open
        try:
            yield admin_pb2_grpc.AdminServiceStub(channel)
        except grpc.RpcError as error:
            meaning = from_rpc_error(error)
            if isinstance(meaning, ProtocolError):
                raise refusal(meaning) from error
            # Read again: whoever watches has come before the end, of which the server leaves word there.
            raise fail(_no_answer(state, _looked_at(read_contact, state)), ExitCode.NO_SERVER) from error


def refusal(error: ProtocolError) -> typer.Exit:
    """Say why a command was refused, and whether what it was given is to blame: `raise refusal(...)`."""
    is_wrong_argument = isinstance(error, InvalidRequest | UnknownRound | UnknownSite)
    return fail(error.message, ExitCode.BAD_CONFIGURATION if is_wrong_argument else ExitCode.FAILED)


def _busy(state: Path) -> str:
    return f"{state} is in use by another command, or by a server that is starting or ending: try again in a moment"


def _no_answer(state: Path, contact: Mapping[str, Any]) -> str:
    if "over" in contact:
        rounds = f"{contact.get('rounds')} rounds were run; `fedserver rounds` shows them"
        return f"no server runs on {state}, and its federation is over ({contact['over']}): {rounds}"
    if _looked_at(is_in_use, state) and not answers(path_in(contact)):
        return _busy(state)
    return f"no server answers for {state} (its pid was {contact.get('pid')}); start it with `fedserver run`"


def is_running(state: Path) -> bool:
    """Whether a server is at a state directory. Another command that writes there is waited for: it soon is through."""
    give_up = time.monotonic() + MOMENT_SECONDS
    while _looked_at(is_in_use, state):
        if answers(path_in(_looked_at(read_contact, state))) or time.monotonic() >= give_up:
            return True
        time.sleep(0.1)
    return False


def _looked_at(look: Callable[[Path], T], state: Path) -> T:
    try:
        return look(state)
    except StateError as error:
        raise fail(str(error), ExitCode.BAD_STATE) from error


@contextmanager
def reading(state: Path) -> Iterator[StateReader]:
    """A state directory to look at; one that cannot be read ends the command with a plain sentence."""
    try:
        reader = StateReader(state)
        try:
            yield reader
        finally:
            reader.close()
    except PermissionError as error:  # of a file, where the folder could be looked at
        raise fail(str(unreadable(state, error)), ExitCode.BAD_STATE) from error
    except (StateError, DamagedFile) as error:
        raise fail(str(error), ExitCode.BAD_STATE) from error


def console() -> Console:
    """Where tables go; wide where there is no terminal to say how wide."""
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=200)


def show_json(*messages: Message) -> None:
    """Messages as one JSON object, in the contract's own names."""
    merged: dict[str, Any] = {}
    for message in messages:
        merged |= json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    typer.echo(json.dumps(merged, indent=2))


def seconds_since(instant: Timestamp, now: float) -> str:
    """How long ago, for people."""
    return span(max(0.0, now - instant.ToNanoseconds() / 1e9))


def span(seconds: float) -> str:
    """A span of time, for people: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
