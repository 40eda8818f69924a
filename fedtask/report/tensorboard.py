"""Scores per round as a TensorBoard event file, without TensorFlow.

An event file is a sequence of TFRecords (length, masked crc32c of the length, data, masked crc32c of the data), each
holding one `tensorflow.Event`. The few fields that a scalar needs are written here by hand, since the generated code
for them ships inside TensorFlow, which takes seconds to import.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import google_crc32c

from fedtask.report.record import FederationRecord

FILE_NAME = "events.out.tfevents.fedstream"
"""TensorBoard reads files with `tfevents` in their names. The name never changes: a new report replaces the old one."""

_MASK_DELTA = 0xA282EAD8
"""TFRecord's: crc32c of data that holds crc32c values is weak, so stored ones are rotated and shifted by this."""


@dataclass(frozen=True, slots=True)
class ScalarEvent:
    """Values at one step. `wall_time` is in seconds since 1970."""

    wall_time: float
    step: int
    values: Mapping[str, float]


def event_file(events: Iterable[ScalarEvent], wall_time: float) -> bytes:
    """The bytes of an event file that begins at `wall_time` and holds `events`."""
    version = _double(1, wall_time) + _bytes(3, b"brain.Event:2")
    return b"".join(_record(event) for event in [version, *(_event(one) for one in events)])


def scalar_events(record: FederationRecord) -> Iterator[ScalarEvent]:
    """Every score of every global model, and bytes, seconds and updates per round."""
    for one in record.rounds:
        scores = one.evaluation.metrics if one.evaluation else {}
        values = {f"holdout/{name}": value for name, value in scores.items() if value is not None}
        values |= {
            "round/bytes_received": one.bytes_received,
            "round/bytes_sent": one.bytes_sent,
            "round/duration_seconds": one.duration_seconds,
            "round/updates_completed": one.counts["completed"],
        }
        closed = one.closed or record.ended
        yield ScalarEvent(closed.timestamp(), one.number, values)


def _event(event: ScalarEvent) -> bytes:
    """`tensorflow.Event`: wall_time 1, step 2, summary 5 of values 1, each with tag 1 and simple_value 2."""
    summary = b"".join(
        _bytes(1, _bytes(1, tag.encode()) + b"\x15" + _float32(value)) for tag, value in event.values.items()
    )
    return _double(1, event.wall_time) + b"\x10" + _varint(event.step) + _bytes(5, summary)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + _MASK_DELTA) & 0xFFFFFFFF)


def _float32(value: float) -> bytes:
    """The nearest float32 in bytes; beyond its range, its largest value."""
    largest = 3.4028234663852886e38
    return struct.pack("<f", max(-largest, min(largest, value)))


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Base 128, least significant group first, as protobuf writes an unsigned integer."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
