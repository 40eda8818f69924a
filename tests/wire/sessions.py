"""Whole sessions, message by message, written out by hand; `tests/wire/replay.py` plays them to a real server.

One client, `site-1`, and a federation whose model is `kernel` F32 (1, 2), 1.0 and -2.0, and `step` I64 (), 3. The clock
stands at 2020-09-13T12:26:40Z when a session begins, and goes on only where a step says so.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import google_crc32c

from fedstream.v1 import transfer_pb2
from tests.wire import text
from tests.wire.steps import (
    CLOSES_SIDE,
    CUT,
    ENDS_OK,
    FEDERATION_ENDS,
    OPENS,
    STOPPED,
    Json,
    Step,
    client,
    described,
    happens,
    refused,
    said,
    server,
)

# The models.

KERNEL, STEP, TRAINED = (
    bytes.fromhex("0000803f000000c0"),
    bytes.fromhex("0300000000000000"),
    b"\0\0\xc0\x3f\0\0\x20\xc0",
)


def base64_of(data: bytes) -> str:
    """Bytes as protobuf's JSON has them."""
    return base64.b64encode(data).decode()


def sha256(data: bytes) -> str:
    """SHA-256 as protobuf's JSON has it."""
    return base64_of(hashlib.sha256(data).digest())


def digest(data: bytes) -> Json:
    """A Digest."""
    return {"sha256": sha256(data), "size_bytes": str(len(data))}


def model_digest(kernel: bytes) -> Json:
    """That of the model whose kernel this is."""
    lines = f"kernel\tF32\t1,2\t{hashlib.sha256(kernel).hexdigest()}\nstep\tI64\t\t{hashlib.sha256(STEP).hexdigest()}\n"
    return digest(f"fedstream model v1\n{lines}".encode())


def part(kernel: bytes) -> Json:
    """A ManifestPart of that model."""
    tensors = [("kernel", "DATA_TYPE_FLOAT32", ["1", "2"], kernel), ("step", "DATA_TYPE_INT64", [], STEP)]
    return {
        "entries": [
            {
                "spec": {"name": name, "dtype": dtype, "shape": shape},
                "digest": digest(values),
                "encoding": "ENCODING_RAW",
                "encoded_size_bytes": str(len(values)),
            }
            for name, dtype, shape, values in tensors
        ]
    }


SCHEMA_TEXT = b"fedstream schema v1\nkernel\tF32\t1,2\ttrainable\tweight\nstep\tI64\t\tfrozen\tweight\n"
BASE = {"model_digest": model_digest(KERNEL)}
NEXT = {"version": 1, "model_digest": model_digest(TRAINED)}


# What is said more than once.

OFFER_ID, UPLOAD_ID = "1-0-0b0b0b0b", "0d" * 16
WINDOW = 4_194_304
MEANING = {"class_names": ["no", "yes"], "positive_class": "yes", "preprocessing": "2 numbers as they are"}
HELLO = {
    "protocol": {"min": 1, "max": 1},
    "client_name": "site-1",
    "schema_sha256": sha256(SCHEMA_TEXT),
    "meaning": MEANING,
    "capabilities": {"encodings": ["ENCODING_RAW"], "max_chunk_bytes": 65536},
    "num_examples": "200",
    "software": "vectors 1",
}
WELCOME = {
    "protocol": 1,
    "max_chunk_bytes": 65536,
    "encodings": ["ENCODING_RAW"],
    "window_bytes": WINDOW,
    "rounds": 1,
    "client_name": "site-1",
}
PLAN = {"epochs": 3, "batch_size": 32, "learning_rate": 0.5, "seed": "1009"}
TERMS = {"plan": PLAN, "deadline": "2020-09-13T13:26:40Z", "time_remaining": "3600s", "lease": "60s"}
OFFER = {"offer_id": OFFER_ID, "upload_id": UPLOAD_ID, "round": 1, "base_model": BASE, **TERMS}
CONFIRM = {"offer_id": OFFER_ID, **TERMS}

MEMBER = [
    client(hello=HELLO),
    server(welcome=WELCOME),
    server(waiting={"reason": "for 1 more client", "since": "2020-09-13T12:26:40Z"}),
]
OFFERED = [*MEMBER, happens(OPENS), server(offer=OFFER)]
AGREED = [*OFFERED, client(accept={"offer_id": OFFER_ID}), server(confirm=CONFIRM)]


def outcome(ending: str, reason: str, why: str = "every client has answered") -> Step:
    """The end of a round that made no model."""
    text_of = {"outcome": f"OUTCOME_{ending}", "outcome_reason": reason, "global_model": BASE}
    return server(round_outcome={"round": 1, "reason": f"0 of at least 1 updates: {why}", **text_of})


def transfer(who: str, call: str, kind: str, **json: Any) -> Step:
    """A message of the TransferService."""
    return said(who, call, getattr(transfer_pb2, kind), json)


def chunk(offset: int, data: bytes) -> Json:
    """A Chunk."""
    return {"write_offset": str(offset), "crc32c": google_crc32c.value(data), "data": base64_of(data)}


HEADER = {
    "upload_id": UPLOAD_ID,
    "num_tensors": 2,
    "model_digest": model_digest(TRAINED),
    "num_examples": "200",
    "metrics": [{"name": "loss", "value": 0.25}, {"name": "auc", "undefined_reason": "only one class"}],
    "epochs": 3,
    "training_seconds": 1.5,
}
PUT = [
    transfer("client", "PutManifest", "PutManifestRequest", header=HEADER),
    transfer("client", "PutManifest", "PutManifestRequest", part=part(TRAINED)),
    transfer(
        "server", "PutManifest", "PutManifestResponse", missing_tensors=[0], body_size_bytes="8", window_bytes=WINDOW
    ),
]


def written(offset: int, data: bytes) -> list[Step]:
    """A WriteChunks of one chunk."""
    committed = str(offset + len(data))
    return [
        transfer("client", "WriteChunks", "WriteChunksRequest", upload_id=UPLOAD_ID, chunk=chunk(offset, data)),
        transfer("server", "WriteChunks", "WriteChunksResponse", committed_size=committed),
    ]


def status(**json: Any) -> list[Step]:
    """A GetUploadStatus."""
    return [
        transfer("client", "GetUploadStatus", "GetUploadStatusRequest", upload_id=UPLOAD_ID),
        transfer("server", "GetUploadStatus", "GetUploadStatusResponse", window_bytes=WINDOW, **json),
    ]


FINISHED = [
    transfer("client", "FinishUpload", "FinishUploadRequest", upload_id=UPLOAD_ID),
    transfer("server", "FinishUpload", "FinishUploadResponse", state="UPLOAD_STATE_ADMITTED"),
]
SUCCESS = {"round": 1, "succeeded": True, "reason": "reporting goal of 1 reached", "outcome": "OUTCOME_COMPLETED"}
PROGRESS = {"offer_id": OFFER_ID, "phase": "PHASE_TRAINING", "epoch": 2, "epochs": 3, "fraction": 0.5}

A_ROUND = [
    *AGREED,
    transfer("client", "GetManifest", "GetManifestRequest", model_sha256=model_digest(KERNEL)["sha256"]),
    transfer("server", "GetManifest", "GetManifestResponse", num_tensors=2, part=part(KERNEL)),
    transfer("client", "ReadChunks", "ReadChunksRequest", model_sha256=model_digest(KERNEL)["sha256"]),
    transfer("server", "ReadChunks", "ReadChunksResponse", chunk=chunk(0, KERNEL + STEP)),
    client(progress={**PROGRESS, "metrics": [{"name": "loss", "value": 0.5}]}),
    server(lease_renewal={"offer_id": OFFER_ID, "lease": "60s"}),
    *PUT,
    *written(0, TRAINED),
    *FINISHED,
    server(round_outcome={**SUCCESS, "global_model": NEXT}),
    happens(FEDERATION_ENDS),
    server(federation_outcome={"reason": "all 1 rounds done", "last_model": NEXT, "best_model": NEXT}),
    happens(CLOSES_SIDE),
    happens(ENDS_OK),
]


# Offers that go another way.

TOO_MUCH = "needs 10000 s, but this round is over in 7200 s at the latest (one core)"
LATER = {**TERMS, "time_remaining": "3590s"}
RECONNECT = [
    *AGREED,
    *PUT,
    *written(0, TRAINED[:4]),
    happens(CUT),
    Step("client", "Negotiate", client(hello=HELLO).message, seconds=10),
    server(welcome=WELCOME),
    server(offer={**OFFER, **LATER}),
    client(accept={"offer_id": OFFER_ID}),
    server(confirm={**CONFIRM, **LATER}),
    *status(committed_size="4", body_size_bytes="8", state="UPLOAD_STATE_OPEN"),
    *written(4, TRAINED[4:]),
    *FINISHED,
    *status(committed_size="8", body_size_bytes="8", state="UPLOAD_STATE_ADMITTED"),
    server(round_outcome={**SUCCESS, "global_model": NEXT}),
]
GRANTED = {**CONFIRM, "plan": {**PLAN, "epochs": 2}, "deadline": "2020-09-13T13:50:00Z", "time_remaining": "5000s"}
SILENCE, STOP_REASON = "no sign of life for 61 s", "round 1 closed: stopped by the coordinator"


def countered(reason: str, seconds: int, **terms: Any) -> Step:
    """A counter-offer."""
    return client(counter_offer={"offer_id": OFFER_ID, "time_needed": f"{seconds}s", "reason": reason, **terms})


# Calls in another order than the usual one, and the answers of each state.

NOT_YET = "put the manifest of this upload first"
GAP = "the chunk starts at 5 but 4 bytes are committed; resume there"
NOT_ALL = "4 of 8 bytes are committed; resume there, then finish"
WRONG = "tensor kernel does not match its digest; put the manifest again and start at 0"
STRANGE = "no upload of that id is expected; wait for the next offer"
NO_MODEL = "no model of that digest is published now; use the base model of the current offer"
NO_INDEX = "tensor indexes must ascend and stay below 2; 2 does not"
OTHER_PUT = [
    transfer(
        "client", "PutManifest", "PutManifestRequest", header={**HEADER, "model_digest": model_digest(TRAINED[::-1])}
    ),
    transfer("client", "PutManifest", "PutManifestRequest", part=part(TRAINED[::-1])),
]
BASE_SHA256 = {"model_sha256": model_digest(KERNEL)["sha256"]}


def reading(**json: Any) -> Step:
    """A ReadChunks of the base model."""
    return transfer("client", "ReadChunks", "ReadChunksRequest", **BASE_SHA256, **json)


EACH_STATE = [
    *AGREED,
    *status(state="UPLOAD_STATE_AWAITING_MANIFEST"),
    written(0, TRAINED)[0],
    refused("WriteChunks", 9, "MANIFEST_REQUIRED", NOT_YET),
    FINISHED[0],
    refused("FinishUpload", 9, "MANIFEST_REQUIRED", NOT_YET),
    *PUT,
    *status(body_size_bytes="8", state="UPLOAD_STATE_OPEN"),
    *written(0, TRAINED[:4]),
    FINISHED[0],
    refused("FinishUpload", 9, "BODY_INCOMPLETE", NOT_ALL, committed_size="4", body_size="8"),
    *PUT[:2],
    transfer(
        "server",
        "PutManifest",
        "PutManifestResponse",
        missing_tensors=[0],
        body_size_bytes="8",
        window_bytes=WINDOW,
        committed_size="4",
    ),
    *OTHER_PUT,
    refused("PutManifest", 6, "MANIFEST_CONFLICT", "another manifest was given for this upload; send that one"),
    written(5, TRAINED[5:])[0],
    refused("WriteChunks", 11, "WRONG_OFFSET", GAP, committed_size="4"),
    *written(2, TRAINED[2:]),
    *FINISHED,
    *status(committed_size="8", body_size_bytes="8", state="UPLOAD_STATE_ADMITTED"),
    *FINISHED,
    *PUT[:2],
    refused("PutManifest", 9, "ROUND_CLOSED", "round 1 does not wait for this update: it is in already", round="1"),
]
BEGUN_ANEW = [
    *AGREED,
    *PUT,
    *written(0, TRAINED[::-1]),
    FINISHED[0],
    refused("FinishUpload", 15, "DIGEST_MISMATCH", WRONG, tensor="kernel"),
    *status(state="UPLOAD_STATE_AWAITING_MANIFEST"),
    *PUT,
    *written(0, TRAINED),
    *FINISHED,
]
NOBODY_KNOWS = [
    *OFFERED,
    transfer("client", "GetUploadStatus", "GetUploadStatusRequest", upload_id="u"),
    refused("GetUploadStatus", 5, "UNKNOWN_UPLOAD", STRANGE),
    transfer("client", "WriteChunks", "WriteChunksRequest", chunk=chunk(0, b"x")),
    refused("WriteChunks", 5, "UNKNOWN_UPLOAD", STRANGE),
    transfer("client", "GetManifest", "GetManifestRequest", model_sha256=sha256(b"")),
    refused("GetManifest", 5, "UNKNOWN_MODEL", NO_MODEL),
    reading(tensors=[1, 2]),
    refused("ReadChunks", 3, "INVALID_REQUEST", NO_INDEX, field="tensors"),
    reading(read_offset="17"),
    refused("ReadChunks", 11, "WRONG_OFFSET", "the body has 16 bytes; reading cannot start at 17", committed_size="16"),
    reading(read_offset="16"),
    happens("the call ends with OK and no chunk"),
    reading(tensors=[1], read_offset="3", max_chunk_bytes=2),
    transfer("server", "ReadChunks", "ReadChunksResponse", chunk=chunk(3, STEP[3:5])),
    transfer("server", "ReadChunks", "ReadChunksResponse", chunk=chunk(5, STEP[5:7])),
    transfer("server", "ReadChunks", "ReadChunksResponse", chunk=chunk(7, STEP[7:])),
]


def epochs(number: int) -> list[Step]:
    """A counter-offer of so many epochs, and its confirmation."""
    return [
        client(counter_offer={"offer_id": OFFER_ID, "epochs": number}),
        server(confirm={**CONFIRM, "plan": {**PLAN, "epochs": number}}),
    ]


AGAIN_AND_AGAIN = [
    *OFFERED,
    client(progress={"offer_id": OFFER_ID}),
    server(lease_renewal={"offer_id": OFFER_ID, "lease": "60s"}),
    *epochs(2),
    *epochs(1),
    client(counter_offer={"offer_id": OFFER_ID, "epochs": 9}),
    server(confirm={**CONFIRM, "plan": {**PLAN, "epochs": 1}}),
    client(accept={"offer_id": OFFER_ID}),
    server(confirm={**CONFIRM, "plan": {**PLAN, "epochs": 1}}),
    client(accept={"offer_id": "another"}),
    server(withdraw={"offer_id": "another", "reason": "the offer no longer stands"}),
    client(progress={"offer_id": "another"}),
    server(cancel={"offer_id": "another", "reason": "the round is over"}),
]


# Clients that cannot take part.

OTHER_TEXT = SCHEMA_TEXT.replace(b"1,2", b"1,3")
OTHER_SPEC = {"name": "kernel", "dtype": "DATA_TYPE_FLOAT32", "trainable": True, "role": "TENSOR_ROLE_WEIGHT"}
STEP_SPEC = {"name": "step", "dtype": "DATA_TYPE_INT64", "role": "TENSOR_ROLE_WEIGHT"}
SCHEMA_MESSAGE = (
    "the client's model differs from the federation's in 1 tensors. The first: server has kernel float32 (1, 2) "
    "trainable, client has kernel float32 (1, 3) trainable. Use the same task, version and settings on both sides"
)
OTHER_MEANING = {**MEANING, "positive_class": "no"}


def declined(reason: str, message: str, **more: Any) -> list[Step]:
    """A polite no, and the end."""
    return [server(declined={"reason": f"DECLINE_REASON_{reason}", "message": message, **more}), happens(ENDS_OK)]


OTHER_SCHEMA = [
    client(hello={**HELLO, "schema_sha256": sha256(OTHER_TEXT)}),
    server(schema_query={}),
    client(schema_part={"tensors": [{**OTHER_SPEC, "shape": ["1", "3"]}, STEP_SPEC], "last": True}),
    *declined(
        "SCHEMA",
        SCHEMA_MESSAGE,
        differences=[{"server": {**OTHER_SPEC, "shape": ["1", "2"]}, "client": {**OTHER_SPEC, "shape": ["1", "3"]}}],
    ),
]
NAME_RULE = "a name has 1 to 64 characters of a-z A-Z 0-9 . _ - and starts with a letter or digit: give another --name"
MEANING_MESSAGE = "the positive class is yes here and no at the client: set the client's task to yes"

SESSIONS: Mapping[str, Sequence[Step]] = {
    "a round, to the federation's end": A_ROUND,
    "a counter-offer that is granted": [
        *OFFERED,
        countered("slow", 5000, epochs=2),
        server(confirm=GRANTED),
    ],
    "a counter-offer for too much time": [
        *OFFERED,
        countered("one core", 10_000),
        server(withdraw={"offer_id": OFFER_ID, "reason": TOO_MUCH}),
        outcome("WITHDRAWN", TOO_MUCH),
    ],
    "an offer that is declined": [
        *OFFERED,
        client(decline={"offer_id": OFFER_ID, "reason": "scanner is down"}),
        outcome("DECLINED", "scanner is down"),
    ],
    "a reconnect with an outstanding offer": RECONNECT,
    "a lease that runs out, and progress that comes too late": [
        *AGREED,
        happens("the client is silent", seconds=61),
        server(cancel={"offer_id": OFFER_ID, "reason": SILENCE}),
        outcome("EXPIRED", SILENCE),
        client(progress=PROGRESS),
        server(cancel={"offer_id": OFFER_ID, "reason": SILENCE}),
        client(accept={"offer_id": OFFER_ID}),
        server(withdraw={"offer_id": OFFER_ID, "reason": "the offer no longer stands"}),
    ],
    "an offer that is cancelled": [
        *AGREED,
        happens(STOPPED),
        server(cancel={"offer_id": OFFER_ID, "reason": STOP_REASON}),
        outcome("CANCELLED", STOP_REASON, "stopped by the coordinator"),
    ],
    "a client that fails": [
        *AGREED,
        client(failure={"offer_id": OFFER_ID, "reason": "out of memory"}),
        outcome("FAILED", "out of memory"),
    ],
    "a client that leaves": [*MEMBER, client(leave={"reason": "going home"}), happens(ENDS_OK)],
    "a manifest before the offer is agreed on": [
        *OFFERED,
        *PUT[:2],
        refused(
            "PutManifest",
            9,
            "ROUND_CLOSED",
            "round 1 does not wait for this update: the offer was not accepted",
            round="1",
        ),
    ],
    "an upload in each of its states": EACH_STATE,
    "an upload of wrong bytes, which begins anew": BEGUN_ANEW,
    "reads of parts, and of what nobody knows": NOBODY_KNOWS,
    "answers that come again, and about another offer": AGAIN_AND_AGAIN,
    "declined: another schema": OTHER_SCHEMA,
    "declined: another meaning": [
        client(hello={**HELLO, "meaning": OTHER_MEANING}),
        *declined("MEANING", MEANING_MESSAGE, server_meaning=MEANING, client_meaning=OTHER_MEANING),
    ],
    "declined: no version in common": [
        client(hello={**HELLO, "protocol": {"min": 2, "max": 3}}),
        *declined("PROTOCOL", "this server speaks protocol version 1, the client 2 to 3: upgrade the server"),
    ],
    "declined: a name that may not be": [client(hello={**HELLO, "client_name": "-x"}), *declined("NAME", NAME_RULE)],
    "declined: no examples": [
        client(hello={**HELLO, "num_examples": "0"}),
        *declined("EXAMPLES", "the client has no training examples: check its data folder"),
    ],
    "out of order: the first message is no hello": [
        client(accept={"offer_id": OFFER_ID}),
        refused("Negotiate", 3, "UNEXPECTED_MESSAGE", "the first message must be hello"),
    ],
    "out of order: a second hello": [
        *MEMBER,
        client(hello=HELLO),
        refused("Negotiate", 3, "UNEXPECTED_MESSAGE", "hello belongs to the handshake, which is over"),
    ],
    "out of order: a schema that was not asked for": [
        *MEMBER,
        client(schema_part={"last": True}),
        refused("Negotiate", 3, "UNEXPECTED_MESSAGE", "schema_part belongs to the handshake, which is over"),
    ],
    "out of order: something else than the schema that was asked for": [
        *OTHER_SCHEMA[:2],
        client(accept={"offer_id": OFFER_ID}),
        refused("Negotiate", 3, "UNEXPECTED_MESSAGE", "schema parts must follow a schema query"),
    ],
    "a message of a kind that is not known": [*MEMBER, client(), client(leave={}), happens(ENDS_OK)],
}


def session_cases() -> Iterator[text.Case]:
    """All of them, as they stand in the file."""
    for session, steps in SESSIONS.items():
        for number, step in enumerate(steps, start=1):
            yield {"session": session, "step": number, **described(step)}
