"""What a session is made of: things that are said in calls, and things that happen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from fedstream.v1 import negotiation_pb2
from tests.wire import text
from tests.wire.messages import serialised

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is said in a call, or, without a call, that happens. `seconds` pass before it."""

    who: str
    call: str = ""
    message: Message | None = None
    happens: str = ""
    seconds: int = 0


def said(who: str, call: str, kind: type[Message], json: Json) -> Step:
    """A message of a call."""
    return Step(who, call, json_format.ParseDict(json, kind()))


def client(**json: Any) -> Step:
    """The client says something on its stream."""
    return said("client", "Negotiate", negotiation_pb2.NegotiateRequest, json)


def server(**json: Any) -> Step:
    """The server says something on the client's stream."""
    return said("server", "Negotiate", negotiation_pb2.NegotiateResponse, json)


def happens(what: str, seconds: int = 0) -> Step:
    """Something that is no message."""
    return Step("", happens=what, seconds=seconds)


def refused(call: str, code: int, reason: str, message: str, **metadata: str) -> Step:
    """The server ends a call with an error."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="fedstream.v1", metadata=metadata)
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(info, deterministic=True)
    return Step("server", call, status)


OPENS = "a round opens"
CLOSES_SIDE = "the client closes its side"
CUT = "the connection breaks"
ENDS_OK = "the server ends the stream with OK"
FEDERATION_ENDS = "the federation ends"
STOPPED = "the coordinator stops the federation"


def described(step: Step) -> text.Case:
    """A step as it stands in the file."""
    later = {"seconds_later": step.seconds} if step.seconds else {}
    if step.message is None:
        return {**later, "happens": step.happens}
    json = json_format.MessageToDict(step.message, preserving_proto_field_name=True)
    for detail in json.get("details", ()):
        detail["metadata"] = dict(sorted(detail.get("metadata", {}).items()))  # a map has no order of its own
    kind = step.message.DESCRIPTOR.full_name
    described = {"from": step.who, "call": step.call, "type": kind, "json": json}
    return {**later, **described, "message": serialised(step.message)}
