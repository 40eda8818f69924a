"""What can go wrong between two ends, as one tree, and its form on the wire.

    FedstreamError
    ├── ProtocolError            the server decided; carries an ErrorInfo
    │   ├── InvalidRequest, InvalidManifest, SchemaMismatch, UnexpectedMessage
    │   ├── UnknownUpload, UnknownModel, UnknownRound, RoundClosed, WrongState
    │   ├── ManifestRequired, ManifestConflict
    │   ├── WrongOffset, BodyTooLong, ChunkTooLarge, ChecksumMismatch, BodyIncomplete, DigestMismatch
    │   ├── Superseded, LimitExceeded
    │   └── Unauthenticated, PermissionDenied
    └── TransportError           the network, a proxy or a crash; reconnect, ask for the status, resume

`errors.proto` says for each reason what a client is to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN = "fedstream.v1"
STATUS_DETAILS_KEY = "grpc-status-details-bin"


class FedstreamError(Exception):
    """Base of all errors of this project. The message says what happened, where, and what to do next."""


class TransportError(FedstreamError):
    """The call did not reach the server's rules, or its answer did not come back."""


class ProtocolError(FedstreamError):
    """The server refused a call by one of the protocol's rules. `metadata` names the facts; its keys are documented."""

    reason: ClassVar[str] = "UNSPECIFIED"
    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.metadata = {key: str(value) for key, value in metadata.items()}

    @property
    def message(self) -> str:
        """What happened and what to do, for people."""
        return str(self.args[0])


class InvalidRequest(ProtocolError):
    """A field is missing, malformed or out of its bounds."""

    reason = "INVALID_REQUEST"
    code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidManifest(ProtocolError):
    """The manifest breaks a rule of the spec."""

    reason = "INVALID_MANIFEST"
    code = grpc.StatusCode.INVALID_ARGUMENT


class SchemaMismatch(ProtocolError):
    """A tensor is unknown, missing, or has another dtype or shape than the federation's schema."""

    reason = "SCHEMA_MISMATCH"
    code = grpc.StatusCode.FAILED_PRECONDITION


class UnexpectedMessage(ProtocolError):
    """A message came out of the order that the negotiation allows."""

    reason = "UNEXPECTED_MESSAGE"
    code = grpc.StatusCode.INVALID_ARGUMENT


class UnknownUpload(ProtocolError):
    """No upload of that id, or not of this client."""

    reason = "UNKNOWN_UPLOAD"
    code = grpc.StatusCode.NOT_FOUND


class UnknownModel(ProtocolError):
    """No published model of that digest."""

    reason = "UNKNOWN_MODEL"
    code = grpc.StatusCode.NOT_FOUND


class RoundClosed(ProtocolError):
    """The upload's round is closed."""

    reason = "ROUND_CLOSED"
    code = grpc.StatusCode.FAILED_PRECONDITION


class ManifestRequired(ProtocolError):
    """Chunks or a finish came before the manifest."""

    reason = "MANIFEST_REQUIRED"
    code = grpc.StatusCode.FAILED_PRECONDITION


class ManifestConflict(ProtocolError):
    """A different manifest was already given for this upload."""

    reason = "MANIFEST_CONFLICT"
    code = grpc.StatusCode.ALREADY_EXISTS


class WrongOffset(ProtocolError):
    """A chunk starts after the committed size, or a read after the end."""

    reason = "WRONG_OFFSET"
    code = grpc.StatusCode.OUT_OF_RANGE


class BodyTooLong(ProtocolError):
    """A chunk reaches past the end of the body."""

    reason = "BODY_TOO_LONG"
    code = grpc.StatusCode.OUT_OF_RANGE


class ChunkTooLarge(ProtocolError):
    """A chunk is larger than was negotiated."""

    reason = "CHUNK_TOO_LARGE"
    code = grpc.StatusCode.INVALID_ARGUMENT


class ChecksumMismatch(ProtocolError):
    """A chunk's bytes do not match its crc32c."""

    reason = "CHECKSUM_MISMATCH"
    code = grpc.StatusCode.DATA_LOSS


class BodyIncomplete(ProtocolError):
    """Finish came before every byte of the body was committed."""

    reason = "BODY_INCOMPLETE"
    code = grpc.StatusCode.FAILED_PRECONDITION


class DigestMismatch(ProtocolError):
    """A tensor's bytes do not match its digest in the manifest."""

    reason = "DIGEST_MISMATCH"
    code = grpc.StatusCode.DATA_LOSS


class Superseded(ProtocolError):
    """A newer stream of the same client or upload took over."""

    reason = "SUPERSEDED"
    code = grpc.StatusCode.ABORTED


class LimitExceeded(ProtocolError):
    """A stated bound was reached. `retry_after` says when it is worth coming back."""

    reason = "LIMIT_EXCEEDED"
    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after: timedelta = timedelta(seconds=30), **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.retry_after = retry_after


class Unauthenticated(ProtocolError):
    """The caller's identity could not be established."""

    reason = "UNAUTHENTICATED"
    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ProtocolError):
    """The caller may not do this."""

    reason = "PERMISSION_DENIED"
    code = grpc.StatusCode.PERMISSION_DENIED


class WrongState(ProtocolError):
    """The federation's state does not allow what was asked."""

    reason = "WRONG_STATE"
    code = grpc.StatusCode.FAILED_PRECONDITION


class UnknownRound(ProtocolError):
    """No round of that number."""

    reason = "UNKNOWN_ROUND"
    code = grpc.StatusCode.NOT_FOUND


PROTOCOL_ERRORS: Mapping[str, type[ProtocolError]] = {kind.reason: kind for kind in ProtocolError.__subclasses__()}
"""Every reason that `errors.proto` documents, with its class."""


def to_status(error: ProtocolError) -> status_pb2.Status:
    """The error as the rich status that travels in the trailing metadata."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    details = [_packed(info)]
    if isinstance(error, LimitExceeded):
        delay = duration_pb2.Duration()
        delay.FromTimedelta(error.retry_after)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = error.code.value[0]
    return status_pb2.Status(code=code, message=error.message, details=details)


def from_rpc_error(error: grpc.RpcError) -> FedstreamError:
    """What a failed call means: the server's decision if the status carries our ErrorInfo, else the network's doing."""
    status = _rich_status(error)
    info = _find(status, error_details_pb2.ErrorInfo)
    code, details = _code_and_details(error)
    if status is None or info is None or info.domain != ERROR_DOMAIN:
        return TransportError(f"{code}: {details}" if details else code)
    kind = PROTOCOL_ERRORS.get(info.reason, ProtocolError)
    decided = kind(status.message, **dict(info.metadata))
    retry = _find(status, error_details_pb2.RetryInfo)
    if isinstance(decided, LimitExceeded) and retry is not None:
        decided.retry_after = retry.retry_delay.ToTimedelta()
    return decided


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
            except Exception:  # a proxy may have mangled it: then it is not the server's word
                return None
    return None


def _find(status: status_pb2.Status | None, kind: type[Any]) -> Any:
    for detail in status.details if status is not None else ():
        if detail.Is(kind.DESCRIPTOR):
            found = kind()
            detail.Unpack(found)
            return found
    return None


def _code_and_details(error: grpc.RpcError) -> tuple[str, str]:
    code = getattr(error, "code", lambda: None)()
    details = getattr(error, "details", lambda: None)()
    return (code.name if code is not None else type(error).__name__), (details or "")
