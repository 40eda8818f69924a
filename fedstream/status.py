"""The form that protocol errors have on the wire: a gRPC status with an `ErrorInfo` beside it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from fedstream import limits
from fedstream.errors import PROTOCOL_ERRORS, FedstreamError, LimitExceeded, ProtocolError, TransportError

ERROR_DOMAIN = "fedstream.v1"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

_MAX_METADATA_VALUE_BYTES = 512
"""With it and a message of `limits.MAX_REASON_BYTES`, an error stays below the 8 KiB of trailing metadata beyond which
gRPC may drop it, whatever names a tensor has: the message travels twice, once with every byte as `%XX`."""

_LONGEST_DELAY_SECONDS = 86_400


def to_status(error: ProtocolError) -> status_pb2.Status:
    """The error as the rich status that travels in the trailing metadata."""
    metadata = {key: limits.clip_reason(value, _MAX_METADATA_VALUE_BYTES) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata)
    details = [_packed(info)]
    if isinstance(error, LimitExceeded):
        delay = duration_pb2.Duration()
        delay.FromTimedelta(error.retry_after)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = grpc.StatusCode[error.code].value[0]
    return status_pb2.Status(code=code, message=limits.clip_reason(error.message), details=details)


def from_rpc_error(error: grpc.RpcError) -> FedstreamError:
    """What a failed call means: the server's decision if the status carries our ErrorInfo, else the network's doing."""
    status = _rich_status(error)
    info = _find(status, error_details_pb2.ErrorInfo)
    code, details = _code_and_details(error)
    if status is None or info is None or info.domain != ERROR_DOMAIN:
        return TransportError(limits.clip_reason(f"{code}: {details}") if details else code)
    kind = PROTOCOL_ERRORS.get(info.reason, ProtocolError)
    decided = kind(limits.clip_reason(status.message))  # it is shown to people, and the other end may be anybody
    # Not as keywords: the other end chose the keys.
    decided.metadata = {key: limits.clip_reason(value) for key, value in info.metadata.items()}
    retry = _find(status, error_details_pb2.RetryInfo)
    if isinstance(decided, LimitExceeded) and retry is not None:
        decided.retry_after = _read_delay(retry.retry_delay)
    return decided


def _read_delay(delay: duration_pb2.Duration) -> timedelta:
    # Clamped before it is converted: a Duration may hold more than a timedelta.
    seconds = min(max(delay.seconds, 0), _LONGEST_DELAY_SECONDS)
    return timedelta(seconds=seconds, microseconds=max(delay.nanos, 0) // 1_000)


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _rich_status(error: grpc.RpcError) -> status_pb2.Status | None:
    trailing = getattr(error, "trailing_metadata", lambda: None)()
    for key, value in trailing or ():
        if key == STATUS_DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:  # a proxy may have mangled it: then it is not the server's word
                return None
    return None


def _find(status: status_pb2.Status | None, kind: type[Any]) -> Any:
    for detail in status.details if status is not None else ():
        if detail.Is(kind.DESCRIPTOR):
            try:
                return kind.FromString(detail.value)
            except DecodeError:
                return None
    return None


def _code_and_details(error: grpc.RpcError) -> tuple[str, str]:
    code = getattr(error, "code", lambda: None)()
    details = getattr(error, "details", lambda: None)()
    return (code.name if code is not None else type(error).__name__), (details or "")
