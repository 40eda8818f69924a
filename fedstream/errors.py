"""What can go wrong between two ends, as one tree, each with its reason on the wire.

    FedstreamError
    ├── ProtocolError            the server decided; carries an ErrorInfo
    │   ├── InvalidRequest, InvalidManifest, SchemaMismatch, UnexpectedMessage
    │   ├── UnknownUpload, UnknownModel, UnknownRound, RoundClosed, WrongState
    │   ├── ManifestRequired, ManifestConflict
    │   ├── WrongOffset, BodyTooLong, ChunkTooLarge, ChecksumMismatch, BodyIncomplete, DigestMismatch
    │   ├── Superseded, LimitExceeded
    │   ├── Unauthenticated, PermissionDenied, NameMismatch, UnknownSite
    │   └── UnknownToken, TokenExpired, TokenUsed, TokenRevoked
    └── TransportError           the network, a proxy or a crash; reconnect, ask for the status, resume

`errors.proto` says for each reason what a client is to do; `fedstream.status` puts them on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar


class FedstreamError(Exception):
    """Base of all errors of this project. The message says what happened, where, and what to do next."""


class TransportError(FedstreamError):
    """The call did not reach the server's rules, or its answer did not come back."""


class ProtocolError(FedstreamError):
    """The server refused a call by one of the protocol's rules. `metadata` names the facts; its keys are documented."""

    reason: ClassVar[str] = "UNSPECIFIED"
    code: ClassVar[str] = "UNKNOWN"
    """Name of the gRPC status code that goes with the reason."""

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
    code = "INVALID_ARGUMENT"


class InvalidManifest(ProtocolError):
    """The manifest breaks a rule of the spec."""

    reason = "INVALID_MANIFEST"
    code = "INVALID_ARGUMENT"


class SchemaMismatch(ProtocolError):
    """A tensor is unknown, missing, or has another dtype or shape than the federation's schema."""

    reason = "SCHEMA_MISMATCH"
    code = "FAILED_PRECONDITION"


class UnexpectedMessage(ProtocolError):
    """A message came out of the order that the negotiation allows."""

    reason = "UNEXPECTED_MESSAGE"
    code = "INVALID_ARGUMENT"


class UnknownUpload(ProtocolError):
    """No upload of that id, or not of this client."""

    reason = "UNKNOWN_UPLOAD"
    code = "NOT_FOUND"


class UnknownModel(ProtocolError):
    """No published model of that digest."""

    reason = "UNKNOWN_MODEL"
    code = "NOT_FOUND"


class RoundClosed(ProtocolError):
    """The upload's round is closed."""

    reason = "ROUND_CLOSED"
    code = "FAILED_PRECONDITION"


class ManifestRequired(ProtocolError):
    """Chunks or a finish came before the manifest."""

    reason = "MANIFEST_REQUIRED"
    code = "FAILED_PRECONDITION"


class ManifestConflict(ProtocolError):
    """A different manifest was already given for this upload."""

    reason = "MANIFEST_CONFLICT"
    code = "ALREADY_EXISTS"


class WrongOffset(ProtocolError):
    """A chunk starts after the committed size, or a read after the end."""

    reason = "WRONG_OFFSET"
    code = "OUT_OF_RANGE"


class BodyTooLong(ProtocolError):
    """A chunk reaches past the end of the body."""

    reason = "BODY_TOO_LONG"
    code = "OUT_OF_RANGE"


class ChunkTooLarge(ProtocolError):
    """A chunk is larger than was negotiated."""

    reason = "CHUNK_TOO_LARGE"
    code = "INVALID_ARGUMENT"


class ChecksumMismatch(ProtocolError):
    """A chunk's bytes do not match its crc32c."""

    reason = "CHECKSUM_MISMATCH"
    code = "DATA_LOSS"


class BodyIncomplete(ProtocolError):
    """Finish came before every byte of the body was committed."""

    reason = "BODY_INCOMPLETE"
    code = "FAILED_PRECONDITION"


class DigestMismatch(ProtocolError):
    """A tensor's bytes do not match its digest in the manifest."""

    reason = "DIGEST_MISMATCH"
    code = "DATA_LOSS"


class Superseded(ProtocolError):
    """A newer stream of the same client or upload took over."""

    reason = "SUPERSEDED"
    code = "ABORTED"


class LimitExceeded(ProtocolError):
    """A stated bound was reached. `retry_after` says when it is worth coming back."""

    reason = "LIMIT_EXCEEDED"
    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after: timedelta = timedelta(seconds=30), **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.retry_after = retry_after


class Unauthenticated(ProtocolError):
    """The caller's identity could not be established."""

    reason = "UNAUTHENTICATED"
    code = "UNAUTHENTICATED"


class PermissionDenied(ProtocolError):
    """The caller may not do this."""

    reason = "PERMISSION_DENIED"
    code = "PERMISSION_DENIED"


class WrongState(ProtocolError):
    """The federation's state does not allow what was asked."""

    reason = "WRONG_STATE"
    code = "FAILED_PRECONDITION"


class UnknownRound(ProtocolError):
    """No round of that number."""

    reason = "UNKNOWN_ROUND"
    code = "NOT_FOUND"


class UnknownToken(ProtocolError):
    """No invitation has this token: it was mistyped, or guessed."""

    reason = "UNKNOWN_TOKEN"
    code = "UNAUTHENTICATED"


class TokenExpired(ProtocolError):
    """The invitation's time is over."""

    reason = "TOKEN_EXPIRED"
    code = "PERMISSION_DENIED"


class TokenUsed(ProtocolError):
    """Another key has joined with this token."""

    reason = "TOKEN_USED"
    code = "PERMISSION_DENIED"


class TokenRevoked(ProtocolError):
    """The coordinator has taken the invitation back, or it was tried too often."""

    reason = "TOKEN_REVOKED"
    code = "PERMISSION_DENIED"


class NameMismatch(ProtocolError):
    """The name that was said is not the one that the token or the certificate is for."""

    reason = "NAME_MISMATCH"
    code = "PERMISSION_DENIED"


class UnknownSite(ProtocolError):
    """Nobody of that name was invited."""

    reason = "UNKNOWN_SITE"
    code = "NOT_FOUND"


PROTOCOL_ERRORS: Mapping[str, type[ProtocolError]] = {kind.reason: kind for kind in ProtocolError.__subclasses__()}
"""Every reason that `errors.proto` documents, with its class."""
