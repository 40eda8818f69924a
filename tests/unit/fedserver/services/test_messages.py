"""What is read of a client's messages, at the edges of what a message can say."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from fedserver.services.messages import read_introduction
from fedstream.errors import InvalidRequest
from fedstream.v1 import negotiation_pb2

pytestmark = pytest.mark.numpy_task


def hello(seconds: int) -> negotiation_pb2.Hello:
    return negotiation_pb2.Hello(client_name="a", num_examples=1, epoch_duration=Duration(seconds=seconds))


@pytest.mark.parametrize("seconds", [315_576_000_001, 2**62, -(2**62)])
def test_span_that_protobuf_does_not_allow_is_refused(seconds: int) -> None:
    with pytest.raises(InvalidRequest, match="epoch_duration is longer than a span can be"):
        read_introduction(hello(seconds))


def test_longest_span_is_taken() -> None:
    assert read_introduction(hello(315_576_000_000)).epoch_seconds == 315_576_000_000
