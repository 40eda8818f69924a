"""All that the contract lets a client send, read from the contract itself, so that nothing new can be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from fedstream.v1 import enrolment_pb2, negotiation_pb2, transfer_pb2

FILES: tuple[FileDescriptor, ...] = (enrolment_pb2.DESCRIPTOR, negotiation_pb2.DESCRIPTOR, transfer_pb2.DESCRIPTOR)
"""Those with services that sites call; the administration is for the server's own machine."""


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """One kind of message: a call, and, where its messages are one of several, which."""

    call: str
    kind: str = ""


def kinds() -> list[Kind]:
    """Every kind of message that a client may send, in the contract's order."""
    methods = [method for file in FILES for service in file.services_by_name.values() for method in service.methods]
    found: list[Kind] = []
    for method in methods:
        names = [field.name for oneof in method.input_type.oneofs for field in oneof.fields]
        found += [Kind(method.name, name) for name in names] or [Kind(method.name)]
    return found


def content(kind: Kind, message: Message) -> Message:
    """The part of a message that is of that kind."""
    part: Message = getattr(message, kind.kind) if kind.kind else message
    return part


@dataclass(frozen=True, slots=True)
class FieldValue:
    """One field of a message: its path, such as `limits.max_epochs`, and what is sent in it, `None` if nothing is."""

    path: str
    value: str | None


def fields_of(message: Message, prefix: str = "") -> Iterator[FieldValue]:
    """Every field that the message's type has, sent or not, those of messages within it after their own."""
    for field in message.DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        value = getattr(message, field.name)
        if field.message_type is None or field.is_repeated:
            yield FieldValue(path, _text(field, value))
        elif message.HasField(field.name):
            yield from fields_of(value, f"{path}.")
        else:
            yield FieldValue(path, None)


_SHOWN_ITEMS = 3
_SHOWN_BYTES = 16


# `Any`: a descriptor has another class for each of protobuf's implementations.


def _text(field: Any, value: Any) -> str | None:
    if not field.is_repeated:
        return _scalar(field, value)
    items = [" ".join(str(item).split()) if field.message_type else str(_scalar(field, item)) for item in value]
    if not items:
        return None
    rest = len(items) - _SHOWN_ITEMS
    if field.message_type is None or rest <= 0:
        return ", ".join(items)
    return "; ".join(items[:_SHOWN_ITEMS]) + f"; and {rest} more like these"


def _scalar(field: Any, value: Any) -> str | None:
    """The value as text; `None` for a default, which takes no byte on the wire."""
    if value == field.default_value and not field.is_repeated:
        return None
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    if isinstance(value, bytes):
        return f"{value[:_SHOWN_BYTES].hex()}{'...' if len(value) > _SHOWN_BYTES else ''} ({len(value)} bytes)"
    return str(value)
