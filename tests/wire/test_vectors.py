"""The code against the vectors, both ways: what it writes is what they say, and it reads what they hold. 1 s."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from functools import partial
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2

from fedserver.handshake import Decline
from fedserver.services import messages
from fedserver.services.negotiation import NegotiationServicer
from fedserver.services.transfer import TransferServicer
from fedstream import wire
from fedstream.body import Chunk, admit_chunk, make_chunk
from fedstream.chunk_messages import decode_read_chunks, decode_write_chunks, encode_read_chunks, encode_write_chunks
from fedstream.dtypes import DataType
from fedstream.encodings import DecodingError, Encoded, Encoding, check_encoded, decode, encode
from fedstream.errors import PROTOCOL_ERRORS, LimitExceeded, ProtocolError
from fedstream.join_token import JoinToken
from fedstream.manifest import (
    Digest,
    Manifest,
    TensorEntry,
    check_manifest,
    manifest_of,
    parse_canonical,
    raw_bytes,
)
from fedstream.schema import ModelSchema, TaskMeaning, TensorRole, TensorSpec
from fedstream.status import STATUS_DETAILS_KEY, from_rpc_error, to_status
from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2
from tests.wire import make_vectors, text

pytestmark = pytest.mark.numpy_task


def cases(name: str) -> list[Any]:
    """A file's cases as parameters, named as they are there."""
    found = text.read(name)
    return [pytest.param(case, id=case.get("case") or case.get("reason") or "-") for case in found]


@pytest.mark.parametrize("name", make_vectors.FILES)
def test_vector_file_is_what_make_vectors_writes(name: str) -> None:
    committed = (text.FOLDER / name).read_text(encoding="utf-8")
    assert committed == make_vectors.FILES[name](), "run `python -m tests.wire.make_vectors` if the contract changed"


def test_vector_files_hold_what_they_should() -> None:
    counts = {name: len(text.read(name)) for name in make_vectors.FILES}
    assert counts.pop("malformed.txt") > 100
    assert counts.pop("negotiation.txt") > 150
    assert counts == {
        "schemas.txt": 9,
        "models.txt": 3,
        "manifests.txt": 3,
        "chunks.txt": 5,
        "errors.txt": 27,
        "tokens.txt": 5,
        "encodings.txt": 44,
    }
    assert {path.name for path in text.FOLDER.glob("*.txt")} == set(make_vectors.FILES)


def test_readme_beside_the_vectors_names_every_file() -> None:
    named = re.findall(
        r"^\| `(\w+\.txt)` \|", (text.FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(named) == sorted(make_vectors.FILES)


# Schemas and meanings.


def schema_of(tensors: list[tuple[str, str, list[int], bool, str]]) -> ModelSchema:
    return ModelSchema(
        tuple(
            TensorSpec(name, DataType(dtype), tuple(shape), trainable, TensorRole(role))
            for name, dtype, shape, trainable, role in tensors
        )
    )


@pytest.mark.parametrize("case", [case for case in cases("schemas.txt") if "tensors" in case.values[0]])
def test_schema_is_described_and_named_as_the_vector_says(case: text.Case) -> None:
    schema = schema_of(case["tensors"])
    assert schema.canonical_bytes() == case["canonical"].encode()
    assert schema.digest().hex() == case["sha256"]
    received = [wire.read_spec(spec) for part in wire.schema_parts(schema) for spec in part]
    assert ModelSchema(tuple(received)) == schema


@pytest.mark.parametrize("case", [case for case in cases("schemas.txt") if "class_names" in case.values[0]])
def test_meaning_is_described_and_named_as_the_vector_says(case: text.Case) -> None:
    meaning = TaskMeaning(tuple(case["class_names"]), case["positive_class"], case["preprocessing"])
    assert (meaning.canonical_bytes(), meaning.digest().hex()) == (case["canonical"].encode(), case["sha256"])
    assert wire.read_meaning(wire.write_meaning(meaning)) == meaning


# Join tokens.


@pytest.mark.parametrize("case", cases("tokens.txt"))
def test_join_token_is_read_and_written_as_the_vector_says(case: text.Case) -> None:
    if case.get("malformed"):
        with pytest.raises(ValueError, match="token"):
            JoinToken.decode(case["token"])
        return
    token = JoinToken(
        token_id=bytes.fromhex(case["token_id"]),
        secret=bytes.fromhex(case["token_secret"]),
        fingerprint=case["fingerprint"],
        name=case["name"],
        server=case["server"],
        enrolment=case["enrolment"],
    )
    assert token.encode() == case["token"]
    assert JoinToken.decode(case["token"]) == token


# Models and manifests.


@pytest.mark.parametrize("case", cases("models.txt"))
def test_model_is_described_and_named_as_the_vector_says(case: text.Case) -> None:
    schema = schema_of([(name, dtype, shape, True, "weight") for name, dtype, shape, _ in case["tensors"]])
    weights = {
        name: np.frombuffer(bytes.fromhex(values), DataType(dtype).numpy).reshape(shape)
        for name, dtype, shape, values in case["tensors"]
    }
    manifest = manifest_of(schema, weights)
    assert manifest.canonical_bytes() == case["canonical"].encode()
    assert manifest.model_digest() == Digest(bytes.fromhex(case["sha256"]), case["size_bytes"])
    assert parse_canonical(case["canonical"].encode()) == manifest


def test_values_in_the_model_vectors_are_the_numbers_their_names_say() -> None:
    values = {row[0]: row for case in text.read("models.txt") for row in case["tensors"]}
    expected: Mapping[str, object] = {
        "kernel": [[1.0, -2.0]],
        "step": 3,
        "empty": [[], []],
        "flags": [True, False, True],
        "half": 1.5,
        "brain": 1.5,
        "single": 1.5,
        "double": 1.5,
    }
    read = {
        name: np.frombuffer(bytes.fromhex(data), DataType(dtype).numpy).reshape(shape).tolist()
        for name, dtype, shape, data in values.values()
    }
    assert read == expected


@pytest.mark.parametrize("case", cases("manifests.txt"))
def test_manifest_is_read_and_written_as_the_vector_says(case: text.Case) -> None:
    entries = [
        TensorEntry(name, DataType(dtype), tuple(shape), Digest(bytes.fromhex(sha256), size_bytes))
        for name, dtype, shape, sha256, size_bytes in case["entries"]
    ]
    message = transfer_pb2.ManifestPart.FromString(bytes.fromhex(case["message"]))
    assert wire.read_part(message) == entries
    assert list(wire.manifest_parts(Manifest(tuple(entries)))) == [message]


def test_manifest_of_many_tensors_travels_in_parts_within_the_bounds() -> None:
    entries = tuple(
        TensorEntry(f"{number}/" + "n" * 240, DataType.INT8, (), Digest(bytes(32), 1)) for number in range(2_500)
    )
    parts = list(wire.manifest_parts(Manifest(entries)))
    assert [len(part.entries) for part in parts] == [1_000, 1_000, 500]
    assert all(part.ByteSize() < 1 << 20 for part in parts)
    assert tuple(entry for part in parts for entry in wire.read_part(part)) == entries
    parts[0].entries.append(parts[1].entries[0])
    with pytest.raises(ProtocolError, match="a part has at most 1000 tensors, this one 1001"):
        wire.read_part(parts[0])


# Encodings.


def decoded(case: text.Case, size_bytes: int) -> bytes:
    """What a tensor of float32 of that size has, decoded from a case in front of other bytes of a body."""
    data, base = bytes.fromhex(case["encoded"]), np.frombuffer(bytes.fromhex(case.get("base", "")), "<f4")
    entry = TensorEntry("t", DataType.FLOAT32, (size_bytes // 4,), Digest(bytes(32), size_bytes))
    encoded = Encoded(Encoding[case["encoding"].removeprefix("ENCODING_")], len(data))
    check_encoded(encoded, entry)
    pieces = decode(encoded, BytesIO(data + b"the next tensor"), entry, lambda begin, end: base[begin:end])
    return b"".join(bytes(raw_bytes(piece)) for piece in pieces)


@pytest.mark.parametrize("case", [case for case in cases("encodings.txt") if case.values[0]["values"] is not None])
def test_encoding_is_written_and_read_as_the_vector_says(case: text.Case) -> None:
    values = bytes.fromhex(case["values"])
    assert decoded(case, len(values)).hex() == case["values"]
    assert hashlib.sha256(values).hexdigest() == case["sha256"]
    if "moved" in case:
        moved = np.frombuffer(bytes.fromhex(case["moved"]), "<f4")
        assert encode(Encoding[case["encoding"].removeprefix("ENCODING_")], moved).hex() == case["encoded"]


@pytest.mark.parametrize("case", [case for case in cases("encodings.txt") if case.values[0]["values"] is None])
def test_encoded_bytes_that_are_not_what_they_should_be_are_refused_as_the_vector_says(case: text.Case) -> None:
    with pytest.raises(DecodingError):
        decoded(case, case["size_bytes"])
    assert case["reason"] == "DIGEST_MISMATCH"  # what the server makes of a DecodingError


# Chunks.


@pytest.mark.parametrize("case", cases("chunks.txt"))
def test_chunk_is_read_and_written_as_the_vector_says(case: text.Case) -> None:
    chunk = Chunk(case["write_offset"], case["crc32c"], bytes.fromhex(case["data"]))
    assert make_chunk(chunk.write_offset, chunk.data) == chunk
    message = transfer_pb2.Chunk.FromString(bytes.fromhex(case["message"]))
    assert (wire.read_chunk(message), wire.write_chunk(chunk)) == (chunk, message)


@pytest.mark.parametrize("case", cases("chunks.txt"))
def test_message_with_a_chunk_is_read_and_written_on_the_fast_path_as_the_vector_says(case: text.Case) -> None:
    chunk = Chunk(case["write_offset"], case["crc32c"], bytes.fromhex(case["data"]))
    inner = bytes.fromhex(case["message"])
    read = encode_read_chunks(chunk)
    assert read == transfer_pb2.ReadChunksResponse(chunk=transfer_pb2.Chunk.FromString(inner)).SerializeToString()
    assert read.endswith(inner)
    assert encode_write_chunks("u", chunk) == b"\x0a\x01u\x12" + read[1:]
    assert decode_read_chunks(read) == chunk
    assert decode_write_chunks(encode_write_chunks("u", chunk)) == ("u", chunk)


def test_checksums_in_the_chunk_vectors_are_the_published_ones() -> None:
    published = {case["case"]: case["crc32c"] for case in text.read("chunks.txt")}
    assert published["the check value of CRC-32C"] == 0xE3069283
    assert published["32 bytes of zero (RFC 3720, B.4)"] == 0x8A9136AA
    assert published["32 bytes of ones (RFC 3720, B.4)"] == 0x62A8AB43


# Errors.


class Failed(grpc.RpcError):
    """A call that ended with the trailing metadata of a vector."""

    def __init__(self, case: text.Case) -> None:
        self._case = case

    def trailing_metadata(self) -> list[tuple[str, bytes]]:
        return [("content-type", b""), (STATUS_DETAILS_KEY, bytes.fromhex(self._case["status"]))]

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode[self._case["code"]]

    def details(self) -> str:
        return str(self._case["message"])


@pytest.mark.parametrize("case", cases("errors.txt"))
def test_error_is_read_and_written_as_the_vector_says(case: text.Case) -> None:
    kind = PROTOCOL_ERRORS[case["reason"]]
    error = kind(case["message"], **case["metadata"])
    if isinstance(error, LimitExceeded):
        error.retry_after = timedelta(seconds=case["retry_seconds"])
    status = status_pb2.Status.FromString(bytes.fromhex(case["status"]))
    assert to_status(error) == status
    assert (kind.code, status.code) == (case["code"], grpc.StatusCode[case["code"]].value[0])
    received = from_rpc_error(Failed(case))
    assert isinstance(received, ProtocolError)
    assert (type(received), received.message, received.metadata) == (kind, case["message"], case["metadata"])
    if isinstance(received, LimitExceeded):
        assert received.retry_after == timedelta(seconds=case["retry_seconds"])


# What must be refused.

SCHEMA = ModelSchema((TensorSpec("kernel", DataType.FLOAT32, (1, 2)), TensorSpec("step", DataType.INT64, ())))


def read_schema(part: negotiation_pb2.SchemaPart) -> Decline:
    """What the service makes of a schema that came whole."""
    federation: Any = SimpleNamespace(config=SimpleNamespace(message_timeout_seconds=5.0))
    uncalled: Any = None

    async def requests() -> AsyncIterator[negotiation_pb2.NegotiateRequest]:
        yield negotiation_pb2.NegotiateRequest(schema_part=part)

    return asyncio.run(NegotiationServicer(federation)._compare_schema(SCHEMA, requests(), uncalled))


def read_header(request: transfer_pb2.PutManifestRequest) -> transfer_pb2.UpdateHeader:
    """What the service makes of the first message of a PutManifest."""

    async def require(_upload_id: str) -> None:
        return None

    desk: Any = SimpleNamespace(require=require)
    federation: Any = None
    return asyncio.run(TransferServicer(federation, desk)._check_header(request))


READERS: Mapping[str, tuple[Any, Callable[[Any], object]]] = {
    "TensorEntry": (transfer_pb2.TensorEntry, wire.read_entry),
    "ManifestPart": (transfer_pb2.ManifestPart, lambda part: check_manifest(wire.read_part(part), SCHEMA)),
    "Chunk": (transfer_pb2.Chunk, lambda chunk: admit_chunk(wire.read_chunk(chunk), 8, 16, 10)),
    "ReadChunksRequest": (transfer_pb2.ReadChunksRequest, lambda request: wire.read_indexes(request.tensors, 5)),
    "Digest": (common_pb2.Digest, wire.read_digest),
    "TaskMeaning": (common_pb2.TaskMeaning, wire.read_meaning),
    "Plan": (common_pb2.Plan, wire.read_plan),
    "UpdateHeader": (transfer_pb2.UpdateHeader, lambda header: wire.read_metrics(header.metrics)),
    "TensorSpec": (common_pb2.TensorSpec, wire.read_spec),
    "Hello": (negotiation_pb2.Hello, messages.read_introduction),
    "CounterOffer": (negotiation_pb2.CounterOffer, messages.read_counter_seconds),
    "Progress": (negotiation_pb2.Progress, messages.read_progress),
    "SchemaPart": (negotiation_pb2.SchemaPart, read_schema),
    "PutManifestRequest": (transfer_pb2.PutManifestRequest, read_header),
}


@pytest.mark.parametrize("case", cases("malformed.txt"))
def test_malformed_message_is_refused_with_the_reason_the_vector_says(case: text.Case) -> None:
    kind, read = READERS[case["type"]]
    if "negotiated" in case:
        allowed = wire.read_encodings(map(common_pb2.Encoding.Value, case["negotiated"]))
        read = partial(wire.read_encoded_entry, allowed=allowed)
    message = kind.FromString(bytes.fromhex(case["message"]))
    if case["reason"] is None:
        read(message)
        return
    with pytest.raises(ProtocolError) as caught:
        read(message)
    assert caught.value.reason == case["reason"], caught.value.message


def test_every_reason_that_reading_can_give_has_a_malformed_message() -> None:
    given = {case["reason"] for case in text.read("malformed.txt")}
    assert given == {
        None,
        "INVALID_REQUEST",
        "INVALID_MANIFEST",
        "SCHEMA_MISMATCH",
        "CHUNK_TOO_LARGE",
        "CHECKSUM_MISMATCH",
        "WRONG_OFFSET",
        "BODY_TOO_LONG",
    }
