"""Changes to messages that keep them messages: libFuzzer's own, of single bytes, seldom get past the parser."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

_EDGES = (0, 1, 2, 31, 32, 33, 255, 256, 257, 1000, 1001, 65_535, 65_536, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_TEXTS = ("", "a", "a" * 65, "a" * 257, "../../etc/passwd", "a\0b", "a\nb", "\x1b[2J", "ü" * 128, "__metadata__")
_REALS = (0.0, -0.0, 1.0, -1.0, 1e308, 5e-324, float("inf"), float("-inf"), float("nan"))
_LONGEST_LIST = 40

_INTEGER_BITS = {
    FieldDescriptor.CPPTYPE_UINT32: (0, 32),
    FieldDescriptor.CPPTYPE_UINT64: (0, 64),
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 31),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 63),
    FieldDescriptor.CPPTYPE_ENUM: (0, 31),
}


def mutated(kind: type[Message], data: bytes, seed: int) -> bytes:
    """Another message of that kind, made of the one that `data` is, or of an empty one, by one to four changes."""
    rng = random.Random(seed)
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        message = kind()
    for _ in range(rng.randint(1, 4)):
        _change(message, rng)
    return message.SerializeToString()


def _change(message: Any, rng: random.Random) -> None:
    if not message.DESCRIPTOR.fields:
        return
    field = rng.choice(message.DESCRIPTOR.fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_list(message, field, rng)
    elif field.message_type is not None:
        part = getattr(message, field.name)
        part.SetInParent()
        _change(part, rng)
    else:
        setattr(message, field.name, _value(field, rng))


def _change_list(message: Any, field: FieldDescriptor, rng: random.Random) -> None:
    items = getattr(message, field.name)
    if field.message_type is None:
        items.extend(_value(field, rng) for _ in range(rng.choice((1, 1, 2, _LONGEST_LIST))))
    elif field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        if value.message_type is None:
            items[_value(key, rng)] = _value(value, rng)
    elif items and rng.random() < 0.7:
        _change(rng.choice(items), rng)
    else:
        copied = rng.choice(items) if items else None
        added = items.add()
        if copied is not None:
            added.CopyFrom(copied)
    if len(items) > 2 * _LONGEST_LIST:
        message.ClearField(field.name)


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.cpp_type in _INTEGER_BITS:
        lowest, bits = _INTEGER_BITS[field.cpp_type]
        number = rng.choice((rng.choice(_EDGES), rng.getrandbits(bits), -rng.choice(_EDGES)))
        return min(max(number, lowest), 2**bits - 1)
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return rng.choice(_TEXTS)
        case FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 31, 32, 33, 256)))
        case FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
    return rng.choice((*_REALS, rng.random()))
