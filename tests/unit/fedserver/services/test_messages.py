"""What is read of a client's messages, at the edges of what a message can say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from fedserver.services.messages import read_counter_seconds, read_introduction, write_duration
from fedstream.errors import InvalidRequest
from fedstream.v1 import negotiation_pb2

pytestmark = pytest.mark.numpy_task


def hello(seconds: int, nanos: int = 0) -> negotiation_pb2.Hello:
    duration = Duration(seconds=seconds, nanos=nanos)
    return negotiation_pb2.Hello(client_name="a", num_examples=1, epoch_duration=duration)


@pytest.mark.parametrize("seconds", [315_576_000_001, 2**62, -(2**62)])
def test_span_that_protobuf_does_not_allow_is_refused(seconds: int) -> None:
    with pytest.raises(InvalidRequest, match="epoch_duration is longer than a span can be"):
        read_introduction(hello(seconds))


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(-10, 0), (0, -1), (-1, -1), (10, -5), (-1, 5), (0, 1_000_000_000), (0, 2_147_483_647)]
)
def test_span_below_0_or_with_nanos_that_are_no_part_of_a_second_is_refused_by_its_name(
    seconds: int, nanos: int
) -> None:
    span = Duration(seconds=seconds, nanos=nanos)
    limits = negotiation_pb2.Hello(limits=negotiation_pb2.SiteLimits(max_training_time=span))
    counter = negotiation_pb2.CounterOffer(time_needed=span)
    reads: list[tuple[str, Callable[[], object]]] = [
        ("epoch_duration", lambda: read_introduction(hello(seconds, nanos))),
        ("max_training_time", lambda: read_introduction(limits)),
        ("time_needed", lambda: read_counter_seconds(counter)),
    ]
    for field, read in reads:
        with pytest.raises(InvalidRequest, match=f"{field} is no span of 0 or more") as caught:
            read()
        assert caught.value.metadata == {"field": field}


def test_span_of_part_of_a_second_is_taken() -> None:
    assert read_introduction(hello(0, 999_999_999)).epoch_seconds == pytest.approx(0.999_999_999)
    assert read_introduction(hello(0)).epoch_seconds == 0.0


def test_span_that_is_told_is_never_below_0() -> None:
    assert [write_duration(seconds) for seconds in (-3600.0, -0.001, -0.0)] == [Duration()] * 3
    assert write_duration(1.5) == Duration(seconds=1, nanos=500_000_000)


def test_longest_span_is_taken() -> None:
    assert read_introduction(hello(315_576_000_000)).epoch_seconds == 315_576_000_000
