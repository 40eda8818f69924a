"""gRPC ignores an option whose name it does not know, in silence; so every name that is used must be one it knows."""

from __future__ import annotations

from pathlib import Path

import grpc._cython.cygrpc
import pytest

from fedclient.connection import CHANNEL_OPTIONS
from fedserver.server import ENROLMENT_OPTIONS, OPTIONS
from fedstream import tls

pytestmark = pytest.mark.numpy_task


@pytest.mark.parametrize(
    "name", [name for name, _ in (*OPTIONS, *ENROLMENT_OPTIONS, *CHANNEL_OPTIONS, *tls.CHANNEL_OPTIONS)]
)
def test_grpc_option_that_is_set_is_known_to_the_library(name: str) -> None:
    library = Path(grpc._cython.cygrpc.__file__).read_bytes()
    assert name.encode() + b"\0" in library
