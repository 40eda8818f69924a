"""A model's table of contents: every tensor with its digest, in schema order, and the digest of the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedstream.dtypes import DataType
from fedstream.errors import InvalidManifest, SchemaMismatch
from fedstream.schema import ModelSchema, TensorSpec


@dataclass(frozen=True, slots=True)
class Digest:
    """sha256 (32 bytes) and size of a sequence of bytes: together they name it."""

    sha256: bytes
    size_bytes: int

    @classmethod
    def of(cls, data: bytes | memoryview) -> Digest:
        """The digest of `data`."""
        return cls(hashlib.sha256(data).digest(), memoryview(data).nbytes)

    @property
    def hex(self) -> str:
        """The sha256 as 64 lower-case hexadecimal digits."""
        return self.sha256.hex()

    def __str__(self) -> str:
        return self.hex[:12]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The name of a published global model: the round that made it (0 for the initial one), and its model digest."""

    version: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor's name, type, shape and the digest of its values (little-endian, row-major)."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]
    digest: Digest

    @property
    def size_bytes(self) -> int:
        """Bytes of the values, unencoded."""
        return self.digest.size_bytes

    def canonical_line(self) -> bytes:
        """The tensor's line in the canonical description; see `Manifest.canonical_bytes`."""
        shape = ",".join(str(length) for length in self.shape)
        return f"{self.name}\t{self.dtype.value}\t{shape}\t{self.digest.hex}\n".encode()


@dataclass(frozen=True)  # without slots, so that what is asked for again and again can be kept
class Manifest:
    """Every tensor of a model, in order."""

    entries: tuple[TensorEntry, ...]

    def __iter__(self) -> Iterator[TensorEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def size_bytes(self) -> int:
        """Bytes of all values, unencoded."""
        return sum(entry.size_bytes for entry in self.entries)

    def canonical_bytes(self) -> bytes:
        """The byte form that is hashed: a header line, then one tab-separated line per tensor, in order."""
        return self._canonical

    @cached_property
    def _canonical(self) -> bytes:
        return b"fedstream model v1\n" + b"".join(entry.canonical_line() for entry in self.entries)

    def model_digest(self) -> Digest:
        """The digest of the canonical description: it names the model, values included."""
        return self._digest

    @cached_property
    def _digest(self) -> Digest:
        return Digest.of(self._canonical)

    def by_name(self) -> Mapping[str, TensorEntry]:
        """Tensor name to entry."""
        return self._by_name

    @cached_property
    def _by_name(self) -> Mapping[str, TensorEntry]:
        return {entry.name: entry for entry in self.entries}

    def indexes_changed_from(self, base: Manifest) -> list[int]:
        """Indexes, ascending, of the tensors whose values `base` does not have under the same name."""
        known = base.by_name()
        return [index for index, entry in enumerate(self.entries) if known.get(entry.name) != entry]


def manifest_of(schema: ModelSchema, weights: Mapping[str, np.ndarray]) -> Manifest:
    """The manifest of `weights`, in schema order.

    Raises:
        SchemaMismatch: a tensor is missing, not in the schema, or of another dtype or shape.
    """
    return Manifest(tuple(entry for entry, _ in described(schema, weights)))


def described(schema: ModelSchema, weights: Mapping[str, np.ndarray]) -> Iterator[tuple[TensorEntry, np.ndarray]]:
    """Every tensor of `weights` with its entry, in schema order, each looked at when its turn comes.

    Raises:
        SchemaMismatch: as `manifest_of`.
    """
    require_names(schema, weights.keys())
    for spec in schema:
        values = weights[spec.name]
        yield entry_of(spec, values), values


def entry_of(spec: TensorSpec, values: np.ndarray) -> TensorEntry:
    """The manifest entry of one tensor.

    Raises:
        SchemaMismatch: `values` has another dtype or shape than `spec`.
    """
    if values.shape != spec.shape or values.dtype != spec.dtype.numpy:
        yours = f"{values.dtype} {values.shape}"
        message = f"tensor {spec.name} should be {spec.dtype.name.lower()} {spec.shape} but is {yours}"
        raise SchemaMismatch(message, tensor=spec.name, mine=spec.describe(), yours=yours)
    return TensorEntry(spec.name, spec.dtype, spec.shape, Digest.of(raw_bytes(values)))


def raw_bytes(values: np.ndarray) -> memoryview:
    """The tensor's values as they travel: little-endian, row-major; without a copy where they are laid out so."""
    # A bfloat16 array offers no buffer of its own, and a scalar none that can be cast: view them as flat bytes.
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def check_entry(entry: TensorEntry) -> None:
    """Check one entry as it came from the network, before anything is allocated for it.

    Raises:
        InvalidManifest: the name is malformed, there are too many axes, the tensor is too large, the size does not fit
            dtype and shape, or the sha256 has not 32 bytes.
    """
    spec = TensorSpec(entry.name, entry.dtype, entry.shape)
    flaw = spec.flaw()
    if flaw is not None:
        raise InvalidManifest(flaw, tensor=entry.name[:80])
    if spec.size_bytes != entry.size_bytes:
        message = f"tensor {entry.name} declares {entry.size_bytes} bytes, its dtype and shape make {spec.size_bytes}"
        raise InvalidManifest(message, tensor=entry.name)
    if len(entry.digest.sha256) != 32:
        message = f"tensor {entry.name} has a sha256 of {len(entry.digest.sha256)} bytes instead of 32"
        raise InvalidManifest(message, tensor=entry.name)


def check_manifest(entries: Sequence[TensorEntry], schema: ModelSchema) -> Manifest:
    """A manifest from the network, checked against the federation's schema.

    Raises:
        InvalidManifest: a rule of the spec is broken.
        SchemaMismatch: tensors are missing, unknown, out of order, or of another dtype or shape.
    """
    for entry in entries:
        check_entry(entry)
    require_names(schema, [entry.name for entry in entries])
    for entry, spec in zip(entries, schema, strict=True):
        if (entry.name, entry.dtype, entry.shape) != (spec.name, spec.dtype, spec.shape):
            yours = TensorSpec(entry.name, entry.dtype, entry.shape, spec.trainable, spec.role).describe()
            message = f"tensor {entry.name} should be {spec.describe()} but is {yours}"
            raise SchemaMismatch(message, tensor=entry.name, mine=spec.describe(), yours=yours)
    return Manifest(tuple(entries))


def require_names(schema: ModelSchema, names: Iterable[str]) -> None:
    """Check that `names` are those of the schema, each once.

    Raises:
        SchemaMismatch: one is missing or unknown.
        InvalidManifest: one stands twice.
    """
    given = list(names)
    unknown = [name for name in given if name not in schema]
    if unknown:
        raise SchemaMismatch(f"tensor {unknown[0]} is not in the federation's schema", tensor=unknown[0])
    held = set(given)
    missing = [spec.name for spec in schema if spec.name not in held]
    if missing:
        raise SchemaMismatch(f"tensor {missing[0]} is missing", tensor=missing[0])
    if len(given) != len(schema):
        raise InvalidManifest("a tensor name stands twice in the manifest")


def parse_canonical(text: bytes) -> Manifest:
    """The manifest whose `canonical_bytes` are `text`.

    Raises:
        InvalidManifest: `text` is no canonical description.
    """
    try:
        header, *lines = text.decode().split("\n")
    except UnicodeDecodeError as error:
        raise InvalidManifest("this is no canonical description of a model: it is not UTF-8") from error
    if header != "fedstream model v1" or not lines or lines.pop() != "":
        raise InvalidManifest("this is no canonical description of a model")
    return Manifest(tuple(_parse_line(line) for line in lines))


def _parse_line(line: str) -> TensorEntry:
    try:
        name, dtype_name, shape_text, sha256_hex = line.split("\t")
        shape = tuple(int(length) for length in shape_text.split(",")) if shape_text else ()
        spec = TensorSpec(name, DataType(dtype_name), shape)
        entry = TensorEntry(name, spec.dtype, shape, Digest(bytes.fromhex(sha256_hex), spec.size_bytes))
    except ValueError as error:
        raise InvalidManifest(f"line {line[:80]!r} is not of a canonical description") from error
    check_entry(entry)
    if entry.canonical_line() != f"{line}\n".encode():  # such as a length written 007, which Python reads as well
        raise InvalidManifest(f"line {line[:80]!r} is not in canonical form")
    return entry
