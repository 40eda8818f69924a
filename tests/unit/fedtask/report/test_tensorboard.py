from __future__ import annotations

from collections.abc import Callable

from fedtask.report import FederationRecord
from fedtask.report.tensorboard import ScalarEvent, event_file, scalar_events

# Written by tensorflow 2.21's own TFRecordWriter from its own Event messages, for the events of the test below.
WRITTEN_BY_TENSORFLOW = bytes.fromhex(
    "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c3c00000000000000c8b7a352090000"
    "00000000024010ac022a2e0a170a10686f6c646f75742f6163637572616379150000403f0a130a0c686f6c646f75742f6c6f7373150000"
    "003fc0fb1174"
)


def test_event_file_has_the_bytes_that_tensorflow_writes() -> None:
    event = ScalarEvent(2.25, 300, {"holdout/accuracy": 0.75, "holdout/loss": 0.5})

    assert event_file([event], wall_time=1.5) == WRITTEN_BY_TENSORFLOW


def test_event_file_of_a_value_beyond_float32_keeps_the_largest() -> None:
    largest = 3.4028234663852886e38

    assert event_file([ScalarEvent(0, 1, {"a": 1e300})], 0) == event_file([ScalarEvent(0, 1, {"a": largest})], 0)


def test_scalar_events_have_one_step_per_round(make_record: Callable[..., FederationRecord]) -> None:
    record = make_record()

    got = list(scalar_events(record))

    assert [(one.step, one.wall_time - record.started.timestamp()) for one in got] == [(1, 60), (2, 120), (3, 180)]
    assert got[1].values["holdout/accuracy"] == 39 / 40
    assert {name: value for name, value in got[2].values.items() if name.startswith("round/")} == {
        "round/bytes_received": 1400,
        "round/bytes_sent": 5000,
        "round/duration_seconds": 30.0,
        "round/updates_completed": 1,
    }
