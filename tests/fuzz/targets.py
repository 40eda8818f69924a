"""What is fuzzed: each reader of bytes from the network, with sound inputs to begin from.

A reader may refuse by an error of `fedstream.errors`, whatever it is given. Anything else that it raises is a defect,
and so is taking seconds for one input, or much memory.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from fedclient import codec
from fedserver.services import messages
from fedstream import limits, wire
from fedstream.body import admit_chunk, make_chunk
from fedstream.certificates import make_key, make_request, read_request
from fedstream.chunk_messages import decode_write_chunks, encode_write_chunks
from fedstream.dtypes import DataType
from fedstream.encodings import DecodingError, Encoded, Encoding, check_encoded, decode, encode
from fedstream.errors import FedstreamError, LimitExceeded
from fedstream.join_token import JoinToken
from fedstream.manifest import Digest, TensorEntry, check_manifest, manifest_of, parse_canonical
from fedstream.schema import ModelSchema, TaskMeaning, TensorSpec
from fedstream.status import STATUS_DETAILS_KEY, from_rpc_error, to_status
from fedstream.tls import split_address
from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2

_SCHEMA = ModelSchema((TensorSpec("kernel", DataType.FLOAT32, (2, 300)), TensorSpec("step", DataType.INT64, ())))
_WEIGHTS = {"kernel": np.arange(600, dtype=np.float32).reshape(2, 300), "step": np.array(3)}
_MANIFEST = manifest_of(_SCHEMA, _WEIGHTS)
_MEANING = TaskMeaning(("no", "yes"), "yes", "rgb 224x224; x / 127.5 - 1")
_BODY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """A reader, inputs to begin from, what it may raise, and of what kind the message is, if it reads one."""

    read: Callable[[bytes], None]
    seeds: Sequence[bytes]
    may_raise: tuple[type[Exception], ...] = (FedstreamError, DecodeError)
    kind: type[Message] | None = None


def _message(kind: Any, reader: Callable[[Any], object], *seeds: Any) -> Target:
    def read(data: bytes) -> None:
        reader(kind.FromString(data))

    return Target(read, [seed.SerializeToString() for seed in seeds], kind=kind)


# What a server reads of a client.


def _read_request(request: negotiation_pb2.NegotiateRequest) -> None:
    match request.WhichOneof("kind"):
        case "hello":
            messages.read_introduction(request.hello)
            wire.read_meaning(request.hello.meaning)
            wire.read_encodings(request.hello.capabilities.encodings)
        case "schema_part":
            try:
                ModelSchema(tuple(wire.read_spec(spec) for spec in request.schema_part.tensors))
            except ValueError as error:  # which the servicer translates
                raise FedstreamError(str(error)) from error
        case "counter_offer":
            messages.read_counter_seconds(request.counter_offer)
            messages.read_reason(request.counter_offer.reason)
        case "progress":
            messages.read_progress(request.progress)
        case "leave":
            messages.read_reason(request.leave.reason)


def _requests() -> list[negotiation_pb2.NegotiateRequest]:
    request = negotiation_pb2.NegotiateRequest
    hello = negotiation_pb2.Hello(
        protocol=common_pb2.ProtocolRange(min=1, max=1),
        client_name="site-0",
        schema_sha256=_SCHEMA.digest(),
        meaning=wire.write_meaning(_MEANING),
        num_examples=10,
    )
    part = negotiation_pb2.SchemaPart(tensors=[wire.write_spec(spec) for spec in _SCHEMA], last=True)
    counter = negotiation_pb2.CounterOffer(offer_id="a" * 32, epochs=3, reason="a slow machine")
    counter.time_needed.FromSeconds(90)
    progress = negotiation_pb2.Progress(offer_id="a" * 32, epoch=1, epochs=3, fraction=0.5)
    progress.metrics.append(common_pb2.Metric(name="loss", value=0.5))
    return [
        request(hello=hello),
        request(schema_part=part),
        request(counter_offer=counter),
        request(progress=progress),
        request(leave=negotiation_pb2.Leave(reason="lunch")),
    ]


def _read_manifest_request(request: transfer_pb2.PutManifestRequest) -> None:
    if request.WhichOneof("kind") == "header":
        wire.read_metrics(request.header.metrics)
        wire.read_undefined(request.header.metrics)
        wire.read_digest(request.header.model_digest)
        return
    entries = wire.read_encoded_part(request.part, frozenset(Encoding))
    check_manifest([entry for entry, _ in entries], _SCHEMA)


def _manifest_requests() -> list[transfer_pb2.PutManifestRequest]:
    encoded = {"kernel": Encoded(Encoding.INT8, 4 * 3 + 600)}
    header = transfer_pb2.UpdateHeader(
        upload_id="a" * 32,
        num_tensors=2,
        model_digest=wire.write_digest(_MANIFEST.model_digest()),
        num_examples=10,
        metrics=wire.write_metrics({"loss": 0.5, "auc": None}),
    )
    parts = [*wire.manifest_parts(_MANIFEST), *wire.manifest_parts(_MANIFEST, encoded)]
    request = transfer_pb2.PutManifestRequest
    return [request(header=header), *(request(part=part) for part in parts)]


def _read_chunk_request(message: bytes) -> None:
    received = _BODY_BYTES // 2
    new = admit_chunk(decode_write_chunks(message).chunk, received, _BODY_BYTES, limits.MAX_CHUNK_BYTES)
    assert len(new) <= _BODY_BYTES - received, "more was admitted than there is room for"


def _chunk_request(offset: int, data: bytes) -> bytes:
    return encode_write_chunks("a" * 32, make_chunk(offset, data))


def _read_chunks_wanted(request: transfer_pb2.ReadChunksRequest) -> None:
    assert all(index < len(_MANIFEST) for index in wire.read_indexes(request.tensors, len(_MANIFEST)))


# What a client reads of a server.


def _read_response(response: negotiation_pb2.NegotiateResponse) -> None:
    codec.read_event(response)


def _responses() -> list[negotiation_pb2.NegotiateResponse]:
    response = negotiation_pb2.NegotiateResponse
    model = common_pb2.ModelRef(version=1, model_digest=wire.write_digest(_MANIFEST.model_digest()))
    plan = common_pb2.Plan(epochs=3, batch_size=32, learning_rate=1e-4, seed=7, settings={"a": "b"})
    offer = negotiation_pb2.Offer(offer_id="a" * 32, upload_id="b" * 32, round=2, base_model=model, plan=plan)
    offer.time_remaining.FromSeconds(60)
    offer.lease.FromSeconds(30)
    welcome = negotiation_pb2.Welcome(protocol=1, max_chunk_bytes=1 << 20, window_bytes=4 << 20, rounds=3)
    declined = negotiation_pb2.Declined(message="no", server_meaning=wire.write_meaning(_MEANING))
    declined.differences.add(server=wire.write_spec(next(iter(_SCHEMA))))
    outcome = negotiation_pb2.RoundOutcome(round=2, succeeded=True, reason="goal reached", global_model=model)
    return [
        response(welcome=welcome),
        response(declined=declined),
        response(offer=offer),
        response(confirm=negotiation_pb2.Confirmation(offer_id="a" * 32, plan=plan)),
        response(round_outcome=outcome),
        response(federation_outcome=negotiation_pb2.FederationOutcome(reason="done", best_model=model)),
    ]


class _Failed(grpc.RpcError):  # type: ignore[misc]
    def __init__(self, details: bytes) -> None:
        self._details = details

    def trailing_metadata(self) -> Sequence[tuple[str, bytes]]:
        return ((STATUS_DETAILS_KEY, self._details),)


def _read_status(data: bytes) -> None:
    error = from_rpc_error(_Failed(data))
    assert isinstance(error, FedstreamError)


# Bytes of bodies.


def _decoder(encoding: Encoding) -> Target:
    spec = _MANIFEST.entries[0]
    base = _WEIGHTS["kernel"].reshape(-1)

    def read(data: bytes) -> None:
        encoded = Encoded(encoding, len(data))
        check_encoded(encoded, spec)
        pieces = list(decode(encoded, io.BytesIO(data), spec, lambda start, stop: base[start:stop]))
        assert sum(piece.nbytes for piece in pieces) == spec.size_bytes

    return Target(read, [encode(encoding, _WEIGHTS["kernel"])], (FedstreamError, DecodingError))


def _read_canonical(data: bytes) -> None:
    assert parse_canonical(data).canonical_bytes() == data


def _read_address(data: bytes) -> None:
    host, port = split_address(data.decode(errors="surrogateescape"))
    assert host, "an address has a host"
    assert 0 <= port <= 65_535


def _read_token(data: bytes) -> None:
    JoinToken.decode(data.decode(errors="surrogateescape"))


def _token() -> bytes:
    token = JoinToken(bytes(8), bytes(16), f"sha256:{bytes(32).hex()}", "site-a", "fl.example.org:8443", "[::1]:8444")
    return token.encode().encode()


def _read_certificate_request(data: bytes) -> None:
    request = read_request(data)
    assert request.public_key, "a request has a key"


def _large_entry() -> TensorEntry:
    return TensorEntry("large", DataType.FLOAT32, (1 << 20,), Digest(bytes(32), 4 << 20))


def _read_bomb(data: bytes) -> None:
    entry, read = _large_entry(), 0
    encoded = Encoded(Encoding.ZSTD, len(data))
    check_encoded(encoded, entry)
    for piece in decode(encoded, io.BytesIO(data), entry, lambda _start, _stop: np.zeros(0, np.float32)):
        read += piece.nbytes
        assert read <= entry.size_bytes, "more came out than was declared"


TARGETS: Mapping[str, Target] = {
    "negotiate_request": _message(negotiation_pb2.NegotiateRequest, _read_request, *_requests()),
    "put_manifest": _message(transfer_pb2.PutManifestRequest, _read_manifest_request, *_manifest_requests()),
    "write_chunks": Target(
        _read_chunk_request,
        [
            _chunk_request(_BODY_BYTES // 2, b"data" * 8),
            _chunk_request(0, b"data" * 8),
            _chunk_request(_BODY_BYTES, b""),
        ],
        kind=transfer_pb2.WriteChunksRequest,
    ),
    "read_chunks": _message(
        transfer_pb2.ReadChunksRequest,
        _read_chunks_wanted,
        transfer_pb2.ReadChunksRequest(model_sha256=bytes(32), tensors=[0, 1], read_offset=5, max_chunk_bytes=9),
    ),
    "negotiate_response": _message(negotiation_pb2.NegotiateResponse, _read_response, *_responses()),
    "describe_task": _message(
        negotiation_pb2.DescribeTaskResponse,
        codec.read_federation,
        negotiation_pb2.DescribeTaskResponse(federation_name="f", task_name="t", task_settings={"a": "b"}),
    ),
    "manifest_part": _message(transfer_pb2.ManifestPart, wire.read_part, *wire.manifest_parts(_MANIFEST)),
    "status": Target(
        _read_status, [to_status(LimitExceeded("full", limit="disk")).SerializeToString()], (FedstreamError,)
    ),
    "canonical": Target(_read_canonical, [_MANIFEST.canonical_bytes()], (FedstreamError, ValueError)),
    "address": Target(_read_address, [b"127.0.0.1:8443", b"[::1]:1", b"fl.example.org:8443"], (ValueError,)),
    "join_token": Target(_read_token, [_token()], (ValueError,)),
    "certificate_request": Target(_read_certificate_request, [make_request(make_key(), "site-a")], (ValueError,)),
    "zstd_bomb": Target(
        _read_bomb, [encode(Encoding.ZSTD, np.zeros(1 << 20, np.float32))], (DecodingError, FedstreamError)
    ),
    **{f"decode_{encoding.value}": _decoder(encoding) for encoding in Encoding},
}
"""By name."""


def run_one(target: Target, data: bytes) -> None:
    """Read one input.

    Raises:
        Exception: a defect: the reader raised what it must not.
    """
    with contextlib.suppress(target.may_raise):
        target.read(data)
