"""Manifests and weights files of any model survive every form they take; any bytes else end in the right error. 5 s."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstream import limits, wire
from fedstream.dtypes import DataType
from fedstream.errors import InvalidManifest, ProtocolError
from fedstream.manifest import check_manifest, manifest_of, parse_canonical
from fedstream.schema import ModelSchema, TensorRole, TensorSpec
from fedstream.v1 import common_pb2, transfer_pb2
from fedstream.weights_file import WeightsFile, WeightsFileError, file_parts
from tests.unit.fedstream.examples import random_weights, same_bits

pytestmark = pytest.mark.numpy_task

NAMES = (
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=60)
    .filter(limits.is_tensor_name)
    .filter(lambda name: name != "__metadata__")
)
SPECS = st.builds(
    TensorSpec,
    NAMES,
    st.sampled_from(DataType),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.booleans(),
    st.sampled_from(TensorRole),
)
SCHEMAS = st.lists(SPECS, max_size=6, unique_by=lambda spec: spec.name).map(lambda specs: ModelSchema(tuple(specs)))


@given(SCHEMAS, st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_any_model_survives_every_form_it_takes(schema: ModelSchema, seed: int) -> None:
    weights = random_weights(schema, seed)
    manifest = manifest_of(schema, weights)
    assert parse_canonical(manifest.canonical_bytes()) == manifest
    parts = [transfer_pb2.ManifestPart.FromString(part.SerializeToString()) for part in wire.manifest_parts(manifest)]
    assert check_manifest([entry for part in parts for entry in wire.read_part(part)], schema) == manifest
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        path.write_bytes(b"".join(file_parts(manifest, weights)))
        file = WeightsFile(path)
        assert same_bits(file.weights(), weights)
        assert file.manifest() == manifest
        with safetensors.safe_open(path, "np") as theirs:
            assert sorted(theirs.keys()) == sorted(weights)
            assert same_bits({name: theirs.get_tensor(name) for name in weights}, weights)


@given(SCHEMAS)
@settings(max_examples=100, deadline=None)
def test_any_schema_survives_the_wire_with_its_digest(schema: ModelSchema) -> None:
    sent = [
        common_pb2.TensorSpec.FromString(spec.SerializeToString())
        for part in wire.schema_parts(schema)
        for spec in part
    ]
    received = ModelSchema(tuple(wire.read_spec(spec) for spec in sent))
    assert (received, received.digest()) == (schema, schema.digest())
    assert schema.differences(received) == []


@given(SCHEMAS, SCHEMAS)
@settings(max_examples=100, deadline=None)
def test_schemas_differ_exactly_where_their_digests_do(one: ModelSchema, other: ModelSchema) -> None:
    assert bool(one.differences(other)) == (one.digest() != other.digest()) == (one != other)
    assert len(one.differences(other)) == len(other.differences(one))


LINES = st.lists(
    st.sampled_from(
        ["name", "\t", "\n", "F32", "BF16", "2", ",", "-1", "0", " ", "ab" * 32, "fedstream model v1\n", "\0"]
    ),
    max_size=25,
).map("".join)


@given(st.binary(max_size=80) | LINES.map(str.encode) | LINES.map(lambda text: f"fedstream model v1\n{text}".encode()))
@settings(max_examples=400, deadline=None)
def test_canonical_text_of_anybody_is_refused_or_comes_back_byte_for_byte(text: bytes) -> None:
    with contextlib.suppress(InvalidManifest):
        assert parse_canonical(text).canonical_bytes() == text


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_manifest_part_of_anybody_is_read_or_refused_by_the_protocol(data: bytes) -> None:
    with contextlib.suppress(DecodeError, ProtocolError):
        wire.read_part(transfer_pb2.ManifestPart.FromString(data))


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.integers() | st.floats() | st.sampled_from(["F32", "U8", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": JSON | st.just("F32"),
        "shape": JSON | st.lists(st.integers(-2, 4), max_size=3),
        "data_offsets": JSON | st.lists(st.integers(-1, 32), min_size=2, max_size=2),
    },
)


@given(header=JSON | st.dictionaries(st.text(max_size=4), FIELDS | JSON, max_size=4), data=st.binary(max_size=32))
@settings(max_examples=400, deadline=None)
def test_weights_file_of_anybody_is_read_or_refused_and_nothing_else(header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        with contextlib.suppress(WeightsFileError):
            weights = WeightsFile(path).weights()
            assert sum(values.nbytes for values in weights.values()) == len(data)
            assert WeightsFile(path).manifest().size_bytes == len(data)


@given(st.sampled_from(DataType), st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 2**64 - 1))
@settings(max_examples=300, deadline=None)
def test_entry_of_any_declared_shape_and_size_is_refused_unless_they_agree(
    dtype: DataType, shape: list[int], size_bytes: int
) -> None:
    message = transfer_pb2.TensorEntry(
        spec=common_pb2.TensorSpec(name="t", dtype=common_pb2.DataType.Value(f"DATA_TYPE_{dtype.name}"), shape=shape),
        digest=common_pb2.Digest(sha256=b"\x00" * 32, size_bytes=size_bytes),
        encoding=common_pb2.ENCODING_RAW,
        encoded_size_bytes=size_bytes,
    )
    with contextlib.suppress(InvalidManifest):
        entry = wire.read_entry(message)
        assert np.prod([float(length) for length in shape]) * dtype.itemsize == entry.size_bytes == size_bytes
        assert size_bytes <= limits.MAX_MODEL_BYTES
