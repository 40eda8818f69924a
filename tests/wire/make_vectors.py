"""Writes the vector files: `python -m tests.wire.make_vectors`. A change there is a change of the contract.

Expected digests and checksums are made here by hashlib and google-crc32c from bytes that are spelled out, not by the
code that the vectors check.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import google_crc32c
import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from fedstream.errors import PROTOCOL_ERRORS
from fedstream.v1 import transfer_pb2
from tests.wire import text
from tests.wire.encoded import encoded_cases
from tests.wire.malformed import malformed_cases
from tests.wire.messages import chunk, data_type, entry, serialised
from tests.wire.sessions import session_cases

Tensor = tuple[str, str, list[int], bool, str]

EVERY_TYPE = ["BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "F16", "BF16", "F32", "F64"]
SCHEMAS: Mapping[str, list[Tensor]] = {
    "no tensors": [],
    "a dense layer": [
        ("dense/kernel", "F32", [3, 4], True, "weight"),
        ("dense/bias", "F32", [4], True, "weight"),
    ],
    "the same in another order": [
        ("dense/bias", "F32", [4], True, "weight"),
        ("dense/kernel", "F32", [3, 4], True, "weight"),
    ],
    "a scalar, an empty axis, a frozen statistic, a name beyond ASCII": [
        ("step", "I64", [], False, "weight"),
        ("empty", "F64", [4, 0, 2], True, "weight"),
        ("norm/moving_mean", "F32", [4], False, "statistic"),
        ("größe/重み:0", "BF16", [5], True, "weight"),
    ],
    "every element type": [(name.lower(), name, [1], True, "weight") for name in EVERY_TYPE],
}

MEANINGS: list[tuple[list[str], str, str]] = [
    (["no", "yes"], "yes", "rgb 224x224 bilinear; x / 127.5 - 1"),
    (["yes", "no"], "yes", "rgb 224x224 bilinear; x / 127.5 - 1"),
    ([], "", ""),
    (["größe"], "", "×"),
]

MODELS: Mapping[str, list[tuple[str, str, list[int], str]]] = {
    "no tensors": [],
    "1.0 and -2.0, the integer 3, and nothing": [
        ("kernel", "F32", [1, 2], "0000803f000000c0"),
        ("step", "I64", [], "0300000000000000"),
        ("empty", "BF16", [2, 0], ""),
    ],
    "true, false, true; 1.5 as each floating type": [
        ("flags", "BOOL", [3], "010001"),
        ("half", "F16", [], "003e"),
        ("brain", "BF16", [], "c03f"),
        ("single", "F32", [], "0000c03f"),
        ("double", "F64", [], "000000000000f83f"),
    ],
}


def schema_file() -> str:
    """Schemas and meanings."""
    return text.write(
        "Canonical descriptions of schemas and of meanings, and their digests.",
        """
A case with `tensors` is a schema: name, element type, shape, trainable, role of each tensor, in order. A case with
`class_names` is a task's meaning. `canonical` is the text whose UTF-8 bytes are hashed; `sha256` is their SHA-256.
""",
        [*(_schema_case(name, tensors) for name, tensors in SCHEMAS.items()), *(map(_meaning_case, MEANINGS))],
    )


def _schema_case(name: str, tensors: list[Tensor]) -> text.Case:
    canonical = "fedstream schema v1\n" + "".join(
        f"{tensor}\t{dtype}\t{','.join(map(str, shape))}\t{'trainable' if trainable else 'frozen'}\t{role}\n"
        for tensor, dtype, shape, trainable, role in tensors
    )
    return {"case": name, "tensors": tensors, "canonical": canonical, "sha256": _sha256(canonical.encode())}


def _meaning_case(meaning: tuple[list[str], str, str]) -> text.Case:
    names, positive, preprocessing = meaning
    canonical = "\n".join(["fedstream meaning v1", "\t".join(names), positive, preprocessing, ""])
    return {
        "class_names": names,
        "positive_class": positive,
        "preprocessing": preprocessing,
        "canonical": canonical,
        "sha256": _sha256(canonical.encode()),
    }


def model_file() -> str:
    """Models."""
    return text.write(
        "Canonical descriptions of models, and the digests that name them.",
        """
`tensors` are name, element type, shape and values of each tensor, in order; values are little-endian and row-major.
`canonical` is the text whose UTF-8 bytes are hashed; `sha256` and `size_bytes` of these bytes are the model digest.
""",
        [_model_case(name, tensors) for name, tensors in MODELS.items()],
    )


def _model_case(name: str, tensors: list[tuple[str, str, list[int], str]]) -> text.Case:
    canonical = "fedstream model v1\n" + "".join(
        f"{tensor}\t{dtype}\t{','.join(map(str, shape))}\t{_sha256(bytes.fromhex(values))}\n"
        for tensor, dtype, shape, values in tensors
    )
    digest = {"sha256": _sha256(canonical.encode()), "size_bytes": len(canonical.encode())}
    return {"case": name, "tensors": tensors, "canonical": canonical, **digest}


def manifest_file() -> str:
    """Manifest parts."""
    return text.write(
        "Manifest parts as they travel.",
        """
`entries` are name, element type, shape, sha256 and size of each tensor; every encoding is ENCODING_RAW. `message` is a
serialised fedstream.v1.ManifestPart that says just this. Other serialisers may order its fields otherwise: compare what
was read, not the bytes.
""",
        [_manifest_case(name, tensors) for name, tensors in MODELS.items()],
    )


def _manifest_case(name: str, tensors: list[tuple[str, str, list[int], str]]) -> text.Case:
    entries = [
        (tensor, dtype, shape, _sha256(bytes.fromhex(values)), len(values) // 2)
        for tensor, dtype, shape, values in tensors
    ]
    part = transfer_pb2.ManifestPart(
        entries=[
            entry(tensor, data_type(dtype), shape, bytes.fromhex(sha256), size)
            for tensor, dtype, shape, sha256, size in entries
        ]
    )
    return {"case": name, "entries": entries, "message": serialised(part)}


CHUNKS: Mapping[str, tuple[int, bytes]] = {
    "the check value of CRC-32C": (0, b"123456789"),
    "32 bytes of zero (RFC 3720, B.4)": (4_128_768, bytes(32)),
    "32 bytes of ones (RFC 3720, B.4)": (0, b"\xff" * 32),
    "a keep-alive": (77, b""),
    "an offset beyond 32 bits": (2**40 + 1, b"\x00"),
}


def chunk_file() -> str:
    """Chunks."""
    return text.write(
        "Chunks with their CRC-32C (Castagnoli).",
        "`message` is a serialised fedstream.v1.Chunk of the rest. As with manifests, compare what was read.",
        [
            {
                "case": name,
                "write_offset": offset,
                "data": data.hex(),
                "crc32c": google_crc32c.value(data),
                "message": serialised(chunk(offset, data)),
            }
            for name, (offset, data) in CHUNKS.items()
        ],
    )


def error_file() -> str:
    """Errors."""
    return text.write(
        "Errors as they travel: what stands in the trailing metadata `grpc-status-details-bin`.",
        """
`status` is a serialised google.rpc.Status whose first detail is a google.rpc.ErrorInfo with `reason`, the domain
`fedstream.v1` and `metadata`; LIMIT_EXCEEDED also has a google.rpc.RetryInfo of `retry_seconds`. `code` is gRPC's.
""",
        [_error_case(reason, kind.code) for reason, kind in PROTOCOL_ERRORS.items()],
    )


def _error_case(reason: str, code: str) -> text.Case:
    message, metadata = f"größer {reason}", {"tensor": "größe/重み:0"}
    info = error_details_pb2.ErrorInfo(reason=reason, domain="fedstream.v1", metadata=metadata)
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=7, nanos=500_000_000))
    details = [info, retry] if reason == "LIMIT_EXCEEDED" else [info]
    number: int = grpc.StatusCode[code].value[0]
    status = status_pb2.Status(code=number, message=message, details=[_any(detail) for detail in details])
    case: dict[str, Any] = {"reason": reason, "code": code, "message": message, "metadata": metadata}
    if len(details) > 1:
        case["retry_seconds"] = 7.5
    return {**case, "status": serialised(status)}


def _any(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def encoding_file() -> str:
    """Encodings."""
    return text.write(
        "Tensors in every encoding of an update, and what they decode to.",
        """
`encoding` is a value of fedstream.v1.Encoding. `encoded` are the tensor's bytes in the body, `values` the float32
values they decode to, `sha256` the digest of these. A lossy encoding starts from `base` and carries what the tensor was
`moved` by; both are float32. Where `moved` is given, an encoder that follows the spec writes exactly `encoded`. What is
in a zstd frame is compared decoded only, since compressors may differ. A case whose `values` are null is declared, in a
manifest, to be a float32 tensor of `size_bytes`, and must be refused with `reason` when the upload is finished.
Numbers are worked out in exact fractions, and frames put together by hand, in tests/wire/encoded.py.
""",
        encoded_cases(),
    )


def negotiation_file() -> str:
    """Sessions."""
    return text.write(
        "Whole sessions of one client, message by message, with the calls of the TransferService between them.",
        """
The steps of a `session` are numbered. A step is a message that one side says in a `call`, or something that `happens`;
`seconds_later` is how long after the step before. `message` is a serialised message of the type `type`; `json` is the
same in protobuf's JSON form, with the fields' names in the proto: there bytes are base64, 64-bit numbers strings, spans
such as `60s`. A google.rpc.Status is what stands in the trailing metadata of a call that the server ends with an error.
Compare what was read, not the bytes, and of texts for people only whether there is one. Of a WriteChunks, just the last
answer stands here. The client is `site-1`; the federation's model is `kernel` F32 (1, 2), which is 1.0 and -2.0, and
`step` I64 (), which is 3. The update's kernel is 1.5 and -2.5.
""",
        session_cases(),
    )


def malformed_file() -> str:
    """What must be refused."""
    return text.write(
        "Messages that must be refused, one for each way to be wrong, and with what reason.",
        """
`message` is a serialised fedstream.v1 message of the type `type`; `reason` is that of the ErrorInfo it must be
refused with; `rule` is the rule of docs/protocol.md that it is about. Manifests (ManifestPart) are checked against
the schema of two tensors: kernel F32 (1, 2), then step I64 (). Chunks come where 8 of 16 bytes are committed and at
most 10 bytes a chunk were negotiated. ReadChunksRequests ask for a model of 5 tensors. PutManifestRequests are the
first of their stream, and SchemaParts the whole schema. A TensorEntry comes where `negotiated` are the encodings of
the welcome, or ENCODING_RAW alone. The cases with the reason null are sound neighbours of malformed ones and must be
taken.
""",
        malformed_cases(),
    )


TOKENS: Mapping[str, tuple[str, str, str]] = {
    "the same host": ("site-a", "fl.example.org:8443", ":8444"),
    "another host": ("Site_B.2", "fl.example.org:8443", "join.example.org:443"),
    "an address of version 6": ("c", "[2001:db8::1]:8443", ":1"),
}


def token_file() -> str:
    """Join tokens."""
    token_id, secret, pinned = bytes(range(8)), bytes(range(100, 116)), hashlib.sha256(b"a certificate").digest()
    cases: list[dict[str, Any]] = []
    for case, (name, server, enrolment) in TOKENS.items():
        host = server.rpartition(":")[0]
        facts = {"token_id": token_id.hex(), "token_secret": secret.hex(), "fingerprint": f"sha256:{pinned.hex()}"}
        facts |= {"name": name, "server": server, "enrolment": (host if enrolment[0] == ":" else "") + enrolment}
        sound = token_id + secret + pinned + f"{name}\n{server}\n{enrolment}".encode()
        cases.append({"case": case, **facts, "token": _token(sound, hashlib.sha256(sound).digest()[:4])})
    cases.append({"case": "wrong check digits", "malformed": True, "token": _token(sound, bytes(4))})
    short = token_id + secret + pinned
    cases.append({"case": "no names", "malformed": True, "token": _token(short, hashlib.sha256(short).digest()[:4])})
    return text.write(
        "Join tokens (see EnrolmentService in enrolment.proto).",
        """
`token` is the text of the rest; `enrolment` is shown with its host. A token with `malformed` must be refused.
""",
        cases,
    )


def _token(contents: bytes, check: bytes) -> str:
    return "fsj1_" + base64.urlsafe_b64encode(contents + check).decode().rstrip("=")


FILES = {
    "tokens.txt": token_file,
    "schemas.txt": schema_file,
    "models.txt": model_file,
    "manifests.txt": manifest_file,
    "chunks.txt": chunk_file,
    "errors.txt": error_file,
    "encodings.txt": encoding_file,
    "negotiation.txt": negotiation_file,
    "malformed.txt": malformed_file,
}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main(names: Iterable[str] = tuple(FILES)) -> None:
    """Write the files."""
    text.FOLDER.mkdir(exist_ok=True)
    for name in names:
        (text.FOLDER / name).write_text(FILES[name](), encoding="utf-8")


if __name__ == "__main__":
    main()
