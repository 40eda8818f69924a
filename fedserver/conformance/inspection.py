"""What the document demands of the messages themselves, looked at one by one as they come."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedserver.conformance.findings import Findings
from fedserver.conformance.material import Material
from fedstream import limits, wire
from fedstream.encodings import DecodingError, Encoded, Encoding, decode
from fedstream.errors import InvalidManifest, InvalidRequest, ProtocolError
from fedstream.manifest import Digest, Manifest, TensorEntry
from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2

_MAX_SOFTWARE_BYTES = 128
_MAX_METRIC_NAME_BYTES = 64
_SHOWN_CHARACTERS = 200


def inspect_hello(hello: negotiation_pb2.Hello, material: Material, findings: Findings) -> bool:
    """Whether the federation can have this client; says which rules it keeps."""
    name, software = hello.client_name, hello.software
    versions = f"it speaks {hello.protocol.min} to {hello.protocol.max}, and this is version {limits.PROTOCOL_VERSION}"
    findings.check("R-VER-1", hello.protocol.min <= limits.PROTOCOL_VERSION <= hello.protocol.max, versions)
    findings.check("R-HEL-3", limits.is_client_name(name), f"client_name is {name!r}")
    findings.check("R-HEL-4", hello.num_examples >= 1, "num_examples is 0")
    short = limits.is_plain_text(software, _MAX_SOFTWARE_BYTES)
    findings.check("R-HEL-5", short, f"software is {software[:60]!r}")
    expected = material.schema.digest().hex()
    schema = (
        f"schema_sha256 is {hello.schema_sha256.hex()[:12]}, and that of {material.task} {expected[:12]}, of the text "
        f"{material.schema.canonical_bytes().decode()[:_SHOWN_CHARACTERS]!r}"
    )
    fits = findings.check("R-SCH-2", hello.schema_sha256.hex() == expected, schema)
    return _inspect_meaning(hello.meaning, material, findings) and fits


def _inspect_meaning(message: common_pb2.TaskMeaning, material: Material, findings: Findings) -> bool:
    try:
        meaning = wire.read_meaning(message)
    except InvalidRequest as error:
        return findings.check("R-SCH-5", False, error.message)
    return findings.check("R-SCH-5", meaning == material.meaning, f"it means {meaning}, not {material.meaning}")


def inspect_progress(progress: negotiation_pb2.Progress, findings: Findings) -> None:
    """Progress has a fraction and metrics within their bounds."""
    fraction = progress.fraction
    findings.check("R-RND-12", 0 <= fraction <= 1, f"a fraction of {fraction}")
    inspect_metrics(progress.metrics, findings)


def inspect_metrics(metrics: Sequence[common_pb2.Metric], findings: Findings) -> None:
    """Metrics are few, have names, and values that are finite or absent for a reason."""
    findings.check("R-MOD-6", len(metrics) <= limits.MAX_METRICS, f"{len(metrics)} metrics in a message")
    for metric in metrics:
        named = metric.name != "" and limits.is_plain_text(metric.name, _MAX_METRIC_NAME_BYTES)
        finite = not metric.HasField("value") or math.isfinite(metric.value)
        findings.check("R-MOD-6", named and finite, f"a metric {metric.name[:40]!r} of {metric.value}")
        explained = metric.HasField("value") or metric.undefined_reason != ""
        findings.check("R-MOD-6", explained, f"a metric {metric.name[:40]!r} of no value, and no reason why")


@dataclass(frozen=True, slots=True)
class Announced:
    """An update's manifest, as it came and was found to be right."""

    header: transfer_pb2.UpdateHeader
    manifest: Manifest
    encoded: tuple[Encoded, ...]

    @property
    def identity(self) -> tuple[str, tuple[tuple[Encoding, int], ...]]:
        """What must be the same each time it is put."""
        return self.manifest.model_digest().hex, tuple((one.encoding, one.size_bytes) for one in self.encoded)


def inspect_update(
    messages: Sequence[transfer_pb2.PutManifestRequest],
    material: Material,
    allowed: Collection[Encoding],
    most_examples: int,
    findings: Findings,
) -> Announced:
    """The update that these messages announce.

    Raises:
        ProtocolError: it is unfit, as the server would say it; the findings say by which rule.
    """
    header = _header_of(messages, findings)
    parts = [message.part for message in messages[1:]]
    sizes = [(len(part.entries), part.ByteSize()) for part in parts]
    small = all(n <= limits.MAX_TENSORS_PER_PART and size <= limits.MAX_PART_BYTES for n, size in sizes)
    findings.check("R-MOD-2", small, f"parts of {sizes} tensors and bytes")
    entries = [_entry(entry, allowed, findings) for part in parts for entry in part.entries]
    manifest = Manifest(tuple(entry for entry, _ in entries))
    _compare_schema(manifest, material, findings)
    digest, said = manifest.model_digest(), header.model_digest
    findings.check("R-UP-1", header.num_tensors == len(manifest), f"num_tensors is {header.num_tensors}")
    words = f"model_digest is {said.sha256.hex()[:12]}, that of the manifest is {digest.hex[:12]}"
    if not findings.check("R-MOD-1", said == wire.write_digest(digest), words):
        raise InvalidManifest(words)
    examples = header.num_examples
    words = f"num_examples is {examples}, at least 1 and at most {most_examples} are taken"
    findings.check("R-UP-3", 1 <= examples <= most_examples, words)
    inspect_metrics(header.metrics, findings)
    return Announced(header, manifest, tuple(encoded for _, encoded in entries))


def _header_of(messages: Sequence[transfer_pb2.PutManifestRequest], findings: Findings) -> transfer_pb2.UpdateHeader:
    kinds = [message.WhichOneof("kind") for message in messages]
    in_order = bool(kinds) and kinds[0] == "header" and "header" not in kinds[1:]
    if not findings.check("R-UP-1", in_order, f"messages of PutManifest were {kinds[:5]}"):
        raise InvalidRequest("the header comes first and once", field="header")
    return messages[0].header


def _entry(
    message: transfer_pb2.TensorEntry, allowed: Collection[Encoding], findings: Findings
) -> tuple[TensorEntry, Encoded]:
    name = message.spec.name
    known = set(wire.write_encodings(allowed))
    words = f"{name} travels in encoding {message.encoding}, which the welcome did not list"
    listed = findings.check("R-ENC-1", message.encoding in known, words)
    lossless = message.encoding in set(wire.write_encodings([Encoding.RAW, Encoding.ZSTD]))
    if listed and not lossless:
        is_float = message.spec.dtype == common_pb2.DATA_TYPE_FLOAT32
        findings.check("R-ENC-2", is_float, f"{name} is no float32 tensor and travels in a lossy encoding")
    try:
        entry, encoded = wire.read_encoded_entry(message, allowed)
    except InvalidManifest as error:
        rule = "R-MOD-4" if "encoded_size_bytes" in error.message else "R-MOD-3"
        if listed:
            findings.check(rule, False, error.message)
        raise
    findings.check("R-MOD-3", True, "")
    findings.check("R-MOD-4", True, "")
    return entry, encoded


def _compare_schema(manifest: Manifest, material: Material, findings: Findings) -> None:
    expected = [(spec.name, spec.dtype, spec.shape) for spec in material.schema]
    found = [(entry.name, entry.dtype, entry.shape) for entry in manifest]
    complete = findings.check(
        "R-UP-2", len(found) == len(expected), f"{len(found)} tensors are listed, the schema has {len(expected)}"
    )
    if complete:
        findings.check("R-MOD-5", found == expected, f"the manifest lists {found}, the schema {expected}")
    if found != expected:
        raise InvalidManifest("these are not the schema's tensors")


def wrong_tensor(announced: Announced, missing: Iterable[int], body: bytes, base: Sequence[bytes]) -> str | None:
    """Name of the first tensor whose bytes are not what the manifest says; `None` if all are."""
    start = 0
    for index in missing:
        entry, encoded = announced.manifest.entries[index], announced.encoded[index]
        data = body[start : start + encoded.size_bytes]
        start += encoded.size_bytes
        try:
            values = _decoded(entry, encoded, data, base[index])
        except (DecodingError, ProtocolError):
            return entry.name
        if Digest.of(values) != entry.digest:
            return entry.name
    return None


def _decoded(entry: TensorEntry, encoded: Encoded, data: bytes, base: bytes) -> bytes:
    if encoded.encoding is Encoding.RAW:
        return data
    from_base = np.frombuffer(base, entry.dtype.numpy)
    pieces = decode(encoded, io.BytesIO(data), entry, lambda start, stop: from_base[start:stop])
    return b"".join(piece.tobytes() for piece in pieces)
