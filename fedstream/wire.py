"""The codec between protobuf messages and the domain's own types; nothing but servicers and sessions uses both.

Every `read_*` function checks bounds and raises `InvalidRequest` or `InvalidManifest`; what it returns is safe to use.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from fedstream import limits
from fedstream.body import Chunk
from fedstream.dtypes import DataType
from fedstream.encodings import Encoded, Encoding, check_encoded
from fedstream.errors import InvalidManifest, InvalidRequest
from fedstream.manifest import Digest, Manifest, ModelRef, TensorEntry, check_entry
from fedstream.plan import Plan
from fedstream.progress import Phase
from fedstream.schema import ModelSchema, TaskMeaning, TensorRole, TensorSpec
from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2

_DTYPE_TO_WIRE: Mapping[DataType, common_pb2.DataType.ValueType] = {
    member: common_pb2.DataType.Value(f"DATA_TYPE_{member.name}") for member in DataType
}
_DTYPE_FROM_WIRE = {number: member for member, number in _DTYPE_TO_WIRE.items()}
_ENCODING_TO_WIRE: Mapping[Encoding, common_pb2.Encoding.ValueType] = {
    member: common_pb2.Encoding.Value(f"ENCODING_{member.name}") for member in Encoding
}
_ENCODING_FROM_WIRE: Mapping[int, Encoding] = {number: member for member, number in _ENCODING_TO_WIRE.items()}
_RAW_ALONE = (Encoding.RAW,)
_PHASE_TO_WIRE: Mapping[Phase, negotiation_pb2.Phase.ValueType] = {
    Phase.UNKNOWN: negotiation_pb2.PHASE_UNSPECIFIED,
    Phase.DOWNLOADING: negotiation_pb2.PHASE_DOWNLOADING,
    Phase.PREPARING: negotiation_pb2.PHASE_PREPARING,
    Phase.TRAINING: negotiation_pb2.PHASE_TRAINING,
    Phase.UPLOADING: negotiation_pb2.PHASE_UPLOADING,
}
_PHASE_FROM_WIRE: Mapping[int, Phase] = {number: member for member, number in _PHASE_TO_WIRE.items()}
_ROLE_TO_WIRE: Mapping[TensorRole, common_pb2.TensorRole.ValueType] = {
    TensorRole.WEIGHT: common_pb2.TENSOR_ROLE_WEIGHT,
    TensorRole.STATISTIC: common_pb2.TENSOR_ROLE_STATISTIC,
}


def write_digest(digest: Digest) -> common_pb2.Digest:
    """A digest as it travels."""
    return common_pb2.Digest(sha256=digest.sha256, size_bytes=digest.size_bytes)


def read_digest(message: common_pb2.Digest) -> Digest:
    """A digest from the network."""
    if len(message.sha256) != 32:
        raise InvalidRequest(f"a sha256 has 32 bytes, this one {len(message.sha256)}", field="sha256")
    return Digest(message.sha256, message.size_bytes)


def write_model_ref(model: ModelRef) -> common_pb2.ModelRef:
    """A published model's name as it travels."""
    return common_pb2.ModelRef(version=model.version, model_digest=write_digest(model.digest))


def read_model_ref(message: common_pb2.ModelRef) -> ModelRef:
    """A published model's name from the network."""
    return ModelRef(message.version, read_digest(message.model_digest))


def write_spec(spec: TensorSpec) -> common_pb2.TensorSpec:
    """A tensor of a schema as it travels."""
    return common_pb2.TensorSpec(
        name=spec.name,
        dtype=_DTYPE_TO_WIRE[spec.dtype],
        shape=spec.shape,
        trainable=spec.trainable,
        role=_ROLE_TO_WIRE[spec.role],
    )


def read_spec(message: common_pb2.TensorSpec) -> TensorSpec:
    """A tensor of a schema from the network."""
    dtype = _read_dtype(message)
    statistic = message.role == common_pb2.TENSOR_ROLE_STATISTIC
    role = TensorRole.STATISTIC if statistic else TensorRole.WEIGHT
    return TensorSpec(message.name, dtype, tuple(message.shape), message.trainable, role)


def _read_dtype(message: common_pb2.TensorSpec) -> DataType:
    if not limits.is_tensor_name(message.name):
        shown = message.name[:80]
        raise InvalidManifest(f"tensor name {shown!r} is empty, too long or has control characters", tensor=shown)
    if len(message.shape) > limits.MAX_AXES:
        raise InvalidManifest(f"tensor {message.name} has over {limits.MAX_AXES} axes", tensor=message.name)
    dtype = _DTYPE_FROM_WIRE.get(message.dtype)
    if dtype is None:
        raise InvalidManifest(f"tensor {message.name} has an unknown dtype {message.dtype}", tensor=message.name)
    return dtype


def schema_parts(schema: ModelSchema) -> Iterator[list[common_pb2.TensorSpec]]:
    """The schema in slices that fit a message."""
    specs = [write_spec(spec) for spec in schema]
    for start in range(0, len(specs), limits.MAX_TENSORS_PER_PART):
        yield specs[start : start + limits.MAX_TENSORS_PER_PART]


def write_meaning(meaning: TaskMeaning) -> common_pb2.TaskMeaning:
    """A task's meaning as it travels."""
    return common_pb2.TaskMeaning(
        class_names=meaning.class_names, positive_class=meaning.positive_class, preprocessing=meaning.preprocessing
    )


def read_meaning(message: common_pb2.TaskMeaning) -> TaskMeaning:
    """A task's meaning from the network."""
    names = list(message.class_names)
    if len(names) > limits.MAX_CLASS_NAMES:
        raise InvalidRequest(f"{len(names)} class names; at most {limits.MAX_CLASS_NAMES}", field="class_names")
    if "" in names:
        raise InvalidRequest("a class name is empty", field="class_names")
    for name in [*names, message.positive_class]:
        if not limits.is_plain_text(name, limits.MAX_CLASS_NAME_BYTES):
            raise InvalidRequest("a class name is too long or has control characters", field="class_names")
    if not limits.is_plain_text(message.preprocessing, limits.MAX_PREPROCESSING_BYTES):
        raise InvalidRequest("preprocessing is too long or has control characters", field="preprocessing")
    return TaskMeaning(tuple(names), message.positive_class, message.preprocessing)


def write_plan(plan: Plan) -> common_pb2.Plan:
    """A plan as it travels."""
    return common_pb2.Plan(
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        early_stopping_patience=plan.early_stopping_patience,
        seed=plan.seed,
        settings=plan.settings,
    )


def read_plan(message: common_pb2.Plan) -> Plan:
    """A plan from the network."""
    if message.epochs < 1 or message.batch_size < 1 or not math.isfinite(message.learning_rate):
        raise InvalidRequest("a plan needs at least one epoch, a batch size and a finite learning rate", field="plan")
    if len(message.settings) > limits.MAX_PLAN_SETTINGS:
        raise InvalidRequest(f"a plan has at most {limits.MAX_PLAN_SETTINGS} settings", field="settings")
    for text in (*message.settings.keys(), *message.settings.values()):
        if len(text.encode()) > limits.MAX_PLAN_SETTING_BYTES:
            raise InvalidRequest(f"a plan's setting has over {limits.MAX_PLAN_SETTING_BYTES} bytes", field="settings")
    return Plan(
        epochs=message.epochs,
        batch_size=message.batch_size,
        learning_rate=message.learning_rate,
        early_stopping_patience=message.early_stopping_patience,
        seed=message.seed,
        settings=dict(message.settings),
    )


def write_phase(phase: Phase) -> negotiation_pb2.Phase.ValueType:
    """What a client does as it travels."""
    return _PHASE_TO_WIRE[phase]


def read_phase(number: int) -> Phase:
    """What a client does from the network; unknown too where a later version has a word for it."""
    return _PHASE_FROM_WIRE.get(number, Phase.UNKNOWN)


def write_metrics(
    metrics: Mapping[str, float | None], undefined: Mapping[str, str] | None = None
) -> list[common_pb2.Metric]:
    """Metrics as they travel; a value that is not finite goes without value and with a reason."""
    reasons = undefined or {}
    return [_write_metric(name, value, reasons.get(name, "")) for name, value in metrics.items()][: limits.MAX_METRICS]


def _write_metric(name: str, value: float | None, reason: str) -> common_pb2.Metric:
    if value is None or not math.isfinite(value):
        return common_pb2.Metric(name=name, undefined_reason=reason or "not a finite number")
    return common_pb2.Metric(name=name, value=value)


def read_metrics(messages: Sequence[common_pb2.Metric]) -> dict[str, float | None]:
    """Metrics from the network."""
    if len(messages) > limits.MAX_METRICS:
        raise InvalidRequest(f"{len(messages)} metrics; at most {limits.MAX_METRICS}", field="metrics")
    return {_metric_name(message): _metric_value(message) for message in messages}


def read_undefined(messages: Sequence[common_pb2.Metric]) -> dict[str, str]:
    """Why metrics that a client sent, and `read_metrics` took, have no value, by name.

    Where a value is no number, the sender need not say why.

    Raises:
        InvalidRequest: a metric has neither a value nor the reason.
    """
    return {message.name: reason for message in messages if (reason := _undefined_reason(message))}


def _undefined_reason(message: common_pb2.Metric) -> str:
    if _metric_value(message) is not None:
        return ""
    if not message.HasField("value") and not message.undefined_reason:
        words = f"metric {message.name} has neither a value nor the reason why it has none"
        raise InvalidRequest(words, field="metrics")
    return limits.clip_reason(message.undefined_reason, limits.MAX_UNDEFINED_REASON_BYTES)


def _metric_name(message: common_pb2.Metric) -> str:
    if not message.name or not limits.is_plain_text(message.name, 64):
        raise InvalidRequest("a metric's name has 1 to 64 bytes and no control characters", field="metrics")
    return message.name


def _metric_value(message: common_pb2.Metric) -> float | None:
    return message.value if message.HasField("value") and math.isfinite(message.value) else None


def write_encodings(encodings: Iterable[Encoding]) -> list[common_pb2.Encoding.ValueType]:
    """Encodings as they travel, in their order."""
    return [_ENCODING_TO_WIRE[encoding] for encoding in encodings]


def read_encodings(numbers: Iterable[int]) -> list[Encoding]:
    """Encodings from the network, in their order, without those that are not known here. Raw is always among them."""
    known = [_ENCODING_FROM_WIRE[number] for number in numbers if number in _ENCODING_FROM_WIRE]
    return known if Encoding.RAW in known else [*known, Encoding.RAW]


def write_entry(entry: TensorEntry, encoded: Encoded) -> transfer_pb2.TensorEntry:
    """One entry of a manifest as it travels."""
    spec = common_pb2.TensorSpec(name=entry.name, dtype=_DTYPE_TO_WIRE[entry.dtype], shape=entry.shape)
    return transfer_pb2.TensorEntry(
        spec=spec,
        digest=write_digest(entry.digest),
        encoding=_ENCODING_TO_WIRE[encoded.encoding],
        encoded_size_bytes=encoded.size_bytes,
    )


def read_entry(message: transfer_pb2.TensorEntry) -> TensorEntry:
    """One entry, whose values travel raw, of a manifest from the network, checked by itself."""
    return read_encoded_entry(message, _RAW_ALONE)[0]


def read_encoded_entry(message: transfer_pb2.TensorEntry, allowed: Collection[Encoding]) -> tuple[TensorEntry, Encoded]:
    """One entry of a manifest from the network, checked by itself, and how its values travel."""
    spec, sent = message.spec, message.digest  # asked for once: each time, protobuf makes another object for it
    dtype = _read_dtype(spec)
    entry = TensorEntry(spec.name, dtype, tuple(spec.shape), Digest(sent.sha256, sent.size_bytes))
    encoding = _ENCODING_FROM_WIRE.get(message.encoding)
    if encoding is None or encoding not in allowed:
        raise InvalidManifest(f"tensor {entry.name}: encoding was not negotiated", tensor=entry.name)
    check_entry(entry)
    encoded = Encoded(encoding, message.encoded_size_bytes)
    check_encoded(encoded, entry)
    return entry, encoded


def manifest_parts(
    manifest: Manifest, encoded: Mapping[str, Encoded] | None = None
) -> Iterator[transfer_pb2.ManifestPart]:
    """The manifest in parts, each within the bounds on tensors and bytes. What is not among `encoded` travels raw."""
    known = encoded or {}
    part, part_bytes = transfer_pb2.ManifestPart(), 0
    for entry in manifest:
        message = write_entry(entry, known.get(entry.name) or Encoded(Encoding.RAW, entry.size_bytes))
        size = message.ByteSize() + 8
        full = len(part.entries) == limits.MAX_TENSORS_PER_PART or part_bytes + size > limits.MAX_PART_BYTES
        if part.entries and full:
            yield part
            part, part_bytes = transfer_pb2.ManifestPart(), 0
        part.entries.append(message)
        part_bytes += size
    yield part


def read_part(part: transfer_pb2.ManifestPart) -> list[TensorEntry]:
    """The entries of one part, whose values travel raw, from the network."""
    return [entry for entry, _ in read_encoded_part(part, _RAW_ALONE)]


def read_encoded_part(
    part: transfer_pb2.ManifestPart, allowed: Collection[Encoding]
) -> list[tuple[TensorEntry, Encoded]]:
    """The entries of one part from the network, and how their values travel."""
    if len(part.entries) > limits.MAX_TENSORS_PER_PART:
        raise InvalidManifest(f"a part has at most {limits.MAX_TENSORS_PER_PART} tensors, this one {len(part.entries)}")
    return [read_encoded_entry(entry, allowed) for entry in part.entries]


def write_chunk(chunk: Chunk) -> transfer_pb2.Chunk:
    """A chunk as it travels."""
    return transfer_pb2.Chunk(write_offset=chunk.write_offset, crc32c=chunk.crc32c, data=bytes(chunk.data))


def read_chunk(message: transfer_pb2.Chunk) -> Chunk:
    """A chunk from the network; `fedstream.body.admit_chunk` checks it."""
    return Chunk(message.write_offset, message.crc32c, message.data)


def read_indexes(indexes: Iterable[int], num_tensors: int) -> list[int]:
    """Tensor indexes from the network: ascending and within a manifest of `num_tensors`."""
    checked: list[int] = []
    for index in indexes:
        if index >= num_tensors or (checked and index <= checked[-1]):
            message = f"tensor indexes must ascend and stay below {num_tensors}; {index} does not"
            raise InvalidRequest(message, field="tensors")
        checked.append(index)
    return checked
