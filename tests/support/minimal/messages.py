"""What the minimal client says and understands: schema, digests, refusals."""

from __future__ import annotations

import hashlib

import grpc
from google.rpc import error_details_pb2, status_pb2

from fedstream.v1 import common_pb2

SCHEMA = (("weights", (10,)), ("bias", ()))
MEANING = common_pb2.TaskMeaning(
    class_names=["no", "yes"], positive_class="yes", preprocessing="10 numbers as they are"
)
RETRY_AT_STATUS = {"WRONG_OFFSET", "CHECKSUM_MISMATCH", "BODY_INCOMPLETE"}
UNWANTED = {"ROUND_CLOSED", "UNKNOWN_UPLOAD"}
RIVAL_SECONDS = 300


class StoppedError(Exception):
    """Nobody wants the work any more."""


class DeclinedError(Exception):
    """The server does not take this client."""


class Refusal(Exception):
    """What the server decided about a call."""

    def __init__(self, reason: str, delay: float) -> None:
        super().__init__(reason)
        self.reason, self.delay = reason, delay


def refusal_of(error: grpc.RpcError) -> Refusal | None:
    """The server's decision, or `None` for an error of the network."""
    reason, delay = "", 0.0
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                reason = info.reason if info.domain == "fedstream.v1" else ""
            if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
                delay = retry.seconds + retry.nanos / 1e9
    return Refusal(reason, delay) if reason else None


def schema_text() -> bytes:
    lines = [f"{name}\tF32\t{','.join(map(str, shape))}\ttrainable\tweight\n" for name, shape in SCHEMA]
    return ("fedstream schema v1\n" + "".join(lines)).encode()


def model_digest(tensors: list[bytes]) -> common_pb2.Digest:
    lines = [
        f"{name}\tF32\t{','.join(map(str, shape))}\t{hashlib.sha256(data).hexdigest()}\n"
        for (name, shape), data in zip(SCHEMA, tensors, strict=True)
    ]
    return digest_of(("fedstream model v1\n" + "".join(lines)).encode())


def digest_of(data: bytes) -> common_pb2.Digest:
    return common_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
