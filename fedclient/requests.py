"""Every request that a client makes beside the negotiation's stream, in one place.

`fedclient preview` shows what leaves a site by making these, and those of `fedclient.codec`, as they are really made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedclient.reporting import Reporting
from fedstream import wire
from fedstream.body import Chunk
from fedstream.certificates import make_request
from fedstream.chunk_messages import encode_write_chunks
from fedstream.encodings import Encoded
from fedstream.join_token import JoinToken
from fedstream.manifest import Digest, Manifest
from fedstream.v1 import enrolment_pb2, negotiation_pb2, transfer_pb2
from fedstream.weights_file import FileSpan
from fedtask.messages import LocalUpdate

CHUNK_BYTES = 2 << 20
"""What this client asks for: half of the largest window, beyond which one end would wait for the other. Each chunk
costs both ends calls, messages and threads that wake: of 8 x 100 MiB, in chunks of half the size, a tenth of the
clients' time."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is to be sent: the update's manifest, where its tensors stand, and the facts of the fine-tune.

    `encoded` has the tensors that travel in another encoding than raw.
    """

    upload_id: str
    manifest: Manifest
    spans: Mapping[str, FileSpan]
    num_examples: int
    metrics: Mapping[str, float | None]
    epochs: int
    training_seconds: float
    encoded: Mapping[str, Encoded] = field(default_factory=dict)


def parcel_of(
    upload_id: str,
    update: LocalUpdate,
    manifest: Manifest,
    spans: Mapping[str, FileSpan],
    encoded: Mapping[str, Encoded],
    reporting: Reporting,
) -> Parcel:
    """A finished fine-tune with those of its metrics that may leave."""
    return Parcel(
        upload_id=upload_id,
        manifest=manifest,
        spans=spans,
        encoded=encoded,
        num_examples=update.num_examples,
        metrics=reporting.filtered(update.metrics),
        epochs=update.epochs,
        training_seconds=update.training_seconds,
    )


def enrol(token: JoinToken, key: bytes) -> enrolment_pb2.EnrolRequest:
    """Asks for this site's first certificate, over the public half of its key (PEM). Made by `fedclient join`."""
    return enrolment_pb2.EnrolRequest(
        client_name=token.name,
        token_id=token.token_id,
        token_secret=token.secret,
        certificate_request=make_request(key, token.name),
    )


def renew_certificate() -> enrolment_pb2.RenewCertificateRequest:
    """Asks for the next certificate; the connection says of whom."""
    return enrolment_pb2.RenewCertificateRequest()


def describe_task() -> negotiation_pb2.DescribeTaskRequest:
    """Asks what is learned."""
    return negotiation_pb2.DescribeTaskRequest()


def put_manifest(parcel: Parcel) -> Iterator[transfer_pb2.PutManifestRequest]:
    """Says what an update is: its facts, then its tensors' names, shapes and digests.

    Raises:
        ValueError: no message can say these facts. At once, and not in gRPC's hands, which would take it for a cut.
    """
    header = transfer_pb2.UpdateHeader(
        upload_id=parcel.upload_id,
        num_tensors=len(parcel.manifest),
        model_digest=wire.write_digest(parcel.manifest.model_digest()),
        num_examples=parcel.num_examples,
        metrics=wire.write_metrics(parcel.metrics),
        epochs=parcel.epochs,
        training_seconds=parcel.training_seconds,
    )
    parts = wire.manifest_parts(parcel.manifest, parcel.encoded)
    messages = (transfer_pb2.PutManifestRequest(part=part) for part in parts)
    return itertools.chain([transfer_pb2.PutManifestRequest(header=header)], messages)


def write_chunk(upload_id: str, chunk: Chunk) -> bytes:
    """Sends a slice of the values. A `WriteChunksRequest`, serialised."""
    return encode_write_chunks(upload_id, chunk)


def get_upload_status(upload_id: str) -> transfer_pb2.GetUploadStatusRequest:
    """Asks how much is there."""
    return transfer_pb2.GetUploadStatusRequest(upload_id=upload_id)


def finish_upload(upload_id: str) -> transfer_pb2.FinishUploadRequest:
    """Says that all is sent."""
    return transfer_pb2.FinishUploadRequest(upload_id=upload_id)


def get_manifest(model: Digest) -> transfer_pb2.GetManifestRequest:
    """Asks for the tensors' names of a global model."""
    return transfer_pb2.GetManifestRequest(model_sha256=model.sha256)


def read_chunks(
    model: Digest, tensors: Sequence[int], offset: int, max_chunk_bytes: int
) -> transfer_pb2.ReadChunksRequest:
    """Asks for the values of a global model that are not here yet."""
    return transfer_pb2.ReadChunksRequest(
        model_sha256=model.sha256, tensors=tensors, read_offset=offset, max_chunk_bytes=max_chunk_bytes
    )
