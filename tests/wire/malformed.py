"""One message per way to be wrong, and some that are just not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2
from tests.wire import text
from tests.wire.messages import chunk, entry, serialised

MANIFEST = "INVALID_MANIFEST"
MISMATCH = "SCHEMA_MISMATCH"
REQUEST = "INVALID_REQUEST"

NEGOTIATED = [name for name in common_pb2.Encoding.keys() if name not in ("ENCODING_UNSPECIFIED", "ENCODING_ZSTD")]  # noqa: SIM118 - an enum wrapper is no dict
"""What the welcome listed, in cases that say so: everything but plain zstd."""


def malformed_cases() -> Iterator[text.Case]:
    """All of them, as they stand in the file."""
    for case, message, reason in [*_entries(), *_manifests(), *_chunks(), *_requests(), *_negotiation()]:
        yield _case(case, message, reason)
    for case, message, reason in _encoded_entries():
        yield _case(case, message, reason, negotiated=NEGOTIATED)


RULES: Sequence[tuple[str, str]] = [
    (r"(entry|spec): .*\bname|entry: nothing|schema: a tensor|manifest: one entry", "R-SCH-3"),
    (r"(entry|spec): .*\baxes|entry: (larger|a huge)|header: 65,537", "R-SCH-4"),
    (r"(entry|spec): (element type|sound)|spec: |progress: .*phase", "R-EVO-3"),
    (r"entry: encoded|encoded: (sound|raw|bfloat16 of one|int8 with|an empty|a frame)", "R-MOD-4"),
    (r"entry: encoding|encoded: not", "R-ENC-1"),
    (r"encoded: .* of float64", "R-ENC-2"),
    (r"entry: ", "R-MOD-3"),
    (r"manifest: ", "R-MOD-5"),
    (r"chunk: sound, (overlaps|all of it)", "R-CH-5"),
    (r"chunk: .*(bytes$|ends the body)", "R-CH-1"),
    (r"chunk: .*checksum", "R-CH-2"),
    (r"chunk: .*past the end", "R-CH-4"),
    (r"chunk: ", "R-CH-3"),
    (r"indexes: ", "R-DL-2"),
    (r"digest: |header: ", "R-UP-1"),
    (r"meaning: ", "R-SCH-5"),
    (r"plan: ", "R-RND-13"),
    (r"metrics: |progress: a metric", "R-MOD-6"),
    (r"progress: .*fraction", "R-RND-12"),
    (r"hello: (sound|software)", "R-HEL-5"),
    (r"hello: |counter-offer: ", "R-TIM-7"),
    (r"schema: ", "R-HEL-6"),
]
"""The rule of docs/protocol.md that a case is about: that of the first pattern with which its name begins."""


def _case(name: str, message: Message, reason: str | None, **given: object) -> text.Case:
    rule = next(rule for pattern, rule in RULES if re.match(pattern, name))
    about = {"case": name, "rule": rule, "type": type(message).__name__, **given}
    return {**about, "message": serialised(message), "reason": reason}


Cases = Iterable[tuple[str, Any, str | None]]


def _entries() -> Cases:
    digest = common_pb2.Digest(sha256=b"\x11" * 32, size_bytes=8)
    no_digest = entry()
    no_digest.ClearField("digest")
    return [
        ("entry: sound", entry(), None),
        ("entry: sound, of 32 axes", entry(shape=[2] + [1] * 31), None),
        ("entry: sound, with a name of 256 bytes", entry("n" * 256), None),
        ("entry: sound, with a name that looks like a path", entry("../../etc/passwd"), None),
        ("entry: nothing in it", transfer_pb2.TensorEntry(), MANIFEST),
        ("entry: no spec", transfer_pb2.TensorEntry(digest=digest, encoding=common_pb2.ENCODING_RAW), MANIFEST),
        ("entry: no digest", no_digest, MANIFEST),
        ("entry: name empty", entry(""), MANIFEST),
        ("entry: name of 257 bytes", entry("n" * 257), MANIFEST),
        ("entry: name with NUL", entry("a\0b"), MANIFEST),
        ("entry: name with a tab", entry("a\tb"), MANIFEST),
        ("entry: name with a newline", entry("a\nb"), MANIFEST),
        ("entry: name with an escape", entry("\x1b[2J"), MANIFEST),
        ("entry: name with a control character of Latin-1", entry("a\x85b"), MANIFEST),
        ("entry: name that safetensors keeps for itself", entry("__metadata__"), MANIFEST),
        ("entry: 33 axes", entry(shape=[2] + [1] * 32), MANIFEST),
        ("entry: element type unspecified", entry(dtype=0), MANIFEST),
        ("entry: element type unknown", entry(dtype=99), MANIFEST),
        ("entry: encoding unspecified", entry(encoding=0), MANIFEST),
        ("entry: encoding unknown", entry(encoding=99), MANIFEST),
        ("entry: one byte less than its shape makes", entry(size_bytes=7), MANIFEST),
        ("entry: one byte more than its shape makes", entry(size_bytes=9), MANIFEST),
        ("entry: size overflows 64 bits to 0", entry(shape=[2**63, 2], size_bytes=0), MANIFEST),
        ("entry: size overflows 64 bits to 8", entry(shape=[2**62 + 1, 2], size_bytes=8), MANIFEST),
        ("entry: a huge axis beside an empty one", entry(shape=[2**63, 0], size_bytes=0), MANIFEST),
        ("entry: larger than any model", entry(shape=[2**35], size_bytes=2**37), MANIFEST),
        ("entry: sha256 of 31 bytes", entry(sha256=b"\x11" * 31), MANIFEST),
        ("entry: sha256 of 33 bytes", entry(sha256=b"\x11" * 33), MANIFEST),
        ("entry: sha256 empty", entry(sha256=b""), MANIFEST),
        ("entry: encoded size is not the size", entry(encoded_size_bytes=7), MANIFEST),
    ]


def _encoded(encoding: str, size_bytes: int, dtype: str = "FLOAT32") -> transfer_pb2.TensorEntry:
    """A tensor of 1,000 elements in an encoding."""
    return entry(
        dtype=common_pb2.DataType.Value(f"DATA_TYPE_{dtype}"),
        shape=[1000],
        size_bytes={"FLOAT32": 4000, "FLOAT64": 8000}[dtype],
        encoding=common_pb2.Encoding.Value(f"ENCODING_{encoding}"),
        encoded_size_bytes=size_bytes,
    )


def _encoded_entries() -> Cases:
    longest = 2000 + 2000 // 128 + 512
    return [
        ("encoded: sound, raw", _encoded("RAW", 4000), None),
        ("encoded: sound, bfloat16", _encoded("BFLOAT16", 2000), None),
        ("encoded: sound, int8 in four blocks", _encoded("INT8", 1016), None),
        ("encoded: sound, the shortest frame", _encoded("BFLOAT16_ZSTD", 1), None),
        ("encoded: sound, the longest frame", _encoded("BFLOAT16_ZSTD", longest), None),
        ("encoded: not negotiated", _encoded("ZSTD", 4000), MANIFEST),
        ("encoded: raw of another size", _encoded("RAW", 3999), MANIFEST),
        ("encoded: bfloat16 of one byte more", _encoded("BFLOAT16", 2001), MANIFEST),
        ("encoded: int8 without scales", _encoded("INT8", 1000), MANIFEST),
        ("encoded: int8 with a scale too many", _encoded("INT8", 1020), MANIFEST),
        ("encoded: an empty frame", _encoded("INT8_ZSTD", 0), MANIFEST),
        ("encoded: a frame longer than any", _encoded("BFLOAT16_ZSTD", longest + 1), MANIFEST),
        ("encoded: bfloat16 of float64", _encoded("BFLOAT16", 2000, "FLOAT64"), MANIFEST),
        ("encoded: int8 in zstd of float64", _encoded("INT8_ZSTD", 1000, "FLOAT64"), MANIFEST),
    ]


def _negotiation() -> Cases:
    hello = {"client_name": "site-1", "num_examples": 1}
    spec = common_pb2.TensorSpec(name="t", dtype=common_pb2.DATA_TYPE_BOOL)
    endless = Duration(seconds=2**62)
    odd = {
        "below 0": Duration(seconds=-10),
        "of mixed signs": Duration(seconds=10, nanos=-5),
        "with two seconds of nanos": Duration(nanos=2_000_000_000),
    }
    header = transfer_pb2.UpdateHeader(upload_id="u", num_tensors=65_536)
    too_many = transfer_pb2.UpdateHeader(upload_id="u", num_tensors=65_537)
    return [
        ("hello: sound", negotiation_pb2.Hello(**hello, software="s" * 128), None),
        ("hello: software of 129 bytes", negotiation_pb2.Hello(**hello, software="s" * 129), REQUEST),
        ("hello: software with a newline", negotiation_pb2.Hello(**hello, software="a\nb"), REQUEST),
        ("hello: an epoch longer than any span", negotiation_pb2.Hello(**hello, epoch_duration=endless), REQUEST),
        (
            "hello: a training longer than any span",
            negotiation_pb2.Hello(**hello, limits=negotiation_pb2.SiteLimits(max_training_time=endless)),
            REQUEST,
        ),
        ("counter-offer: sound", negotiation_pb2.CounterOffer(time_needed=Duration(seconds=3600)), None),
        ("counter-offer: longer than any span", negotiation_pb2.CounterOffer(time_needed=endless), REQUEST),
        ("counter-offer: sound, of no time", negotiation_pb2.CounterOffer(time_needed=Duration()), None),
        *(
            (f"counter-offer: a span {how}", negotiation_pb2.CounterOffer(time_needed=it), REQUEST)
            for how, it in odd.items()
        ),
        *(
            (f"hello: an epoch {how}", negotiation_pb2.Hello(**hello, epoch_duration=it), REQUEST)
            for how, it in odd.items()
        ),
        ("progress: sound, of a phase that is not known", negotiation_pb2.Progress(phase=99), None),  # type: ignore[arg-type]
        ("progress: sound, with a fraction out of range", negotiation_pb2.Progress(fraction=7.0), None),
        (
            "progress: a metric without a name",
            negotiation_pb2.Progress(metrics=[common_pb2.Metric(value=1.0)]),
            REQUEST,
        ),
        ("schema: sound", negotiation_pb2.SchemaPart(tensors=[spec], last=True), None),
        ("schema: a tensor twice", negotiation_pb2.SchemaPart(tensors=[spec, spec], last=True), REQUEST),
        ("schema: a tensor without a name", negotiation_pb2.SchemaPart(tensors=[{}], last=True), MANIFEST),
        ("header: sound", transfer_pb2.PutManifestRequest(header=header), None),
        ("header: 65,537 tensors", transfer_pb2.PutManifestRequest(header=too_many), MANIFEST),
        ("header: a part comes first", transfer_pb2.PutManifestRequest(part={}), REQUEST),
        ("header: nothing comes first", transfer_pb2.PutManifestRequest(), REQUEST),
    ]


def _manifests() -> Cases:
    kernel, step = entry(), entry("step", common_pb2.DATA_TYPE_INT64, [])
    return [
        ("manifest: sound", _part(kernel, step), None),
        ("manifest: empty", _part(), MISMATCH),
        ("manifest: a tensor is missing", _part(kernel), MISMATCH),
        ("manifest: a tensor is unknown", _part(kernel, step, entry("more")), MISMATCH),
        ("manifest: a tensor in the place of another", _part(kernel, kernel), MISMATCH),
        ("manifest: another order", _part(step, kernel), MISMATCH),
        ("manifest: another shape", _part(entry(shape=[2, 1]), step), MISMATCH),
        ("manifest: another element type", _part(entry(dtype=common_pb2.DATA_TYPE_INT32), step), MISMATCH),
        ("manifest: a tensor twice", _part(kernel, step, step), MANIFEST),
        ("manifest: one entry is malformed", _part(kernel, entry("a\0")), MANIFEST),
    ]


def _part(*entries: transfer_pb2.TensorEntry) -> transfer_pb2.ManifestPart:
    return transfer_pb2.ManifestPart(entries=entries)


def _chunks() -> Cases:
    return [
        ("chunk: sound, ends the body", chunk(8, b"89abcdef"), None),
        ("chunk: sound, overlaps what is committed", chunk(6, b"6789abcdef"), None),
        ("chunk: sound, all of it is committed", chunk(0, b"01234567"), None),
        ("chunk: sound, a keep-alive", chunk(8, b""), None),
        ("chunk: 11 bytes", chunk(0, b"0123456789a"), "CHUNK_TOO_LARGE"),
        ("chunk: checksum off by one bit", chunk(0, b"123456789", 0xE3069282), "CHECKSUM_MISMATCH"),
        ("chunk: checksum of CRC-32 instead of CRC-32C", chunk(0, b"123456789", 0xCBF43926), "CHECKSUM_MISMATCH"),
        ("chunk: keep-alive with a checksum", chunk(8, b"", 1), "CHECKSUM_MISMATCH"),
        ("chunk: leaves one byte out", chunk(9, b"x"), "WRONG_OFFSET"),
        ("chunk: at the largest offset", chunk(2**64 - 1, b"x"), "WRONG_OFFSET"),
        ("chunk: keep-alive after what is committed", chunk(9, b""), "WRONG_OFFSET"),
        ("chunk: one byte past the end", chunk(8, b"89abcdefg"), "BODY_TOO_LONG"),
        ("chunk: past the end, from what is committed on", chunk(7, b"789abcdefg"), "BODY_TOO_LONG"),
    ]


def _requests() -> Cases:
    plan = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1}
    return [
        ("indexes: sound", _read(0, 2, 4), None),
        ("indexes: sound, none", _read(), None),
        ("indexes: out of range", _read(0, 5), REQUEST),
        ("indexes: the largest there is", _read(2**32 - 1), REQUEST),
        ("indexes: twice", _read(1, 1), REQUEST),
        ("indexes: descending", _read(2, 1), REQUEST),
        ("digest: sound", common_pb2.Digest(sha256=b"\x11" * 32), None),
        ("digest: nothing in it", common_pb2.Digest(), REQUEST),
        ("digest: sha256 in hexadecimal", common_pb2.Digest(sha256=b"11" * 32), REQUEST),
        ("meaning: sound", common_pb2.TaskMeaning(class_names=["no", "ü" * 64], positive_class="no"), None),
        ("meaning: sound, without classes", common_pb2.TaskMeaning(preprocessing="p" * 1_024), None),
        ("meaning: class name empty", common_pb2.TaskMeaning(class_names=["no", ""]), REQUEST),
        ("meaning: class name of 129 bytes", common_pb2.TaskMeaning(class_names=["n" * 129]), REQUEST),
        ("meaning: class name with a tab", common_pb2.TaskMeaning(class_names=["a\tb"]), REQUEST),
        ("meaning: positive class with a newline", common_pb2.TaskMeaning(positive_class="a\nb"), REQUEST),
        ("meaning: preprocessing of 1,025 bytes", common_pb2.TaskMeaning(preprocessing="p" * 1_025), REQUEST),
        ("meaning: preprocessing with a newline", common_pb2.TaskMeaning(preprocessing="a\nb"), REQUEST),
        ("plan: sound", common_pb2.Plan(**plan, settings={"k" * 256: "v" * 256}), None),
        ("plan: no epochs", common_pb2.Plan(**{**plan, "epochs": 0}), REQUEST),
        ("plan: no batch size", common_pb2.Plan(**{**plan, "batch_size": 0}), REQUEST),
        ("plan: learning rate is NaN", common_pb2.Plan(**{**plan, "learning_rate": math.nan}), REQUEST),
        ("plan: learning rate is infinite", common_pb2.Plan(**{**plan, "learning_rate": math.inf}), REQUEST),
        ("plan: setting's key of 257 bytes", common_pb2.Plan(**plan, settings={"k" * 257: ""}), REQUEST),
        ("plan: setting's value of 257 bytes", common_pb2.Plan(**plan, settings={"k": "v" * 257}), REQUEST),
        ("plan: 65 settings", common_pb2.Plan(**plan, settings={str(n): "" for n in range(65)}), REQUEST),
        ("metrics: sound", _metrics("m" * 64, *(str(n) for n in range(63))), None),
        ("metrics: name empty", _metrics(""), REQUEST),
        ("metrics: name of 65 bytes", _metrics("m" * 65), REQUEST),
        ("metrics: name with a newline", _metrics("a\nb"), REQUEST),
        ("metrics: 65 of them", _metrics(*(str(n) for n in range(65))), REQUEST),
        ("spec: sound", common_pb2.TensorSpec(name="t", dtype=common_pb2.DATA_TYPE_BOOL), None),
        ("spec: name empty", common_pb2.TensorSpec(dtype=common_pb2.DATA_TYPE_BOOL), MANIFEST),
        ("spec: element type unspecified", common_pb2.TensorSpec(name="t"), MANIFEST),
        ("spec: 33 axes", common_pb2.TensorSpec(name="t", dtype=common_pb2.DATA_TYPE_BOOL, shape=[1] * 33), MANIFEST),
    ]


def _read(*tensors: int) -> transfer_pb2.ReadChunksRequest:
    return transfer_pb2.ReadChunksRequest(tensors=tensors)


def _metrics(*names: str) -> transfer_pb2.UpdateHeader:
    return transfer_pb2.UpdateHeader(metrics=[common_pb2.Metric(name=name, value=1.0) for name in names])
