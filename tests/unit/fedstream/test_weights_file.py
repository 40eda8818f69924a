"""Weights files: what any safetensors reader makes of ours, and hostile files that must end in one error. 1 s."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from fedstream.dtypes import DataType
from fedstream.manifest import Manifest, manifest_of
from fedstream.schema import ModelSchema, TensorSpec
from fedstream.weights_file import FileSpan, WeightsFile, WeightsFileError, file_parts, header_of
from tests.support.this_process import mapped_mib, open_files
from tests.unit.fedstream.examples import AWKWARD, random_weights, same_bits

pytestmark = pytest.mark.numpy_task

PAIR = ModelSchema((TensorSpec("flags", DataType.BOOL, (3,)), TensorSpec("bias", DataType.FLOAT32, (2,))))
PAIR_WEIGHTS = {"flags": np.array([True, False, True]), "bias": np.array([1.0, -2.0], np.float32)}
PAIR_HEADER = (
    b'{"flags":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]},'
    b'"bias":{"dtype":"F32","shape":[2],"data_offsets":[3,11]}}'
)


def write(folder: Path, schema: ModelSchema, weights: dict[str, np.ndarray]) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(b"".join(file_parts(manifest_of(schema, weights), weights)))
    return path


def test_weights_file_of_two_tensors_is_these_bytes(tmp_path: Path) -> None:
    padding = b" " * (-len(PAIR_HEADER) % 8)
    length = (len(PAIR_HEADER) + len(padding)).to_bytes(8, "little")
    expected = length + PAIR_HEADER + padding + bytes.fromhex("0100010000803f000000c0")
    assert write(tmp_path, PAIR, PAIR_WEIGHTS).read_bytes() == expected


@pytest.mark.parametrize("name_length", range(1, 18))
def test_header_of_any_length_is_filled_up_so_that_values_start_on_a_multiple_of_8(name_length: int) -> None:
    schema = ModelSchema((TensorSpec("n" * name_length, DataType.INT8, ()),))
    header = header_of(manifest_of(schema, random_weights(schema)))
    assert (len(header) % 8, int.from_bytes(header[:8], "little")) == (0, len(header) - 8)


def test_safetensors_library_reads_what_we_write(tmp_path: Path) -> None:
    weights = random_weights()
    path = write(tmp_path, AWKWARD, weights)
    with safetensors.safe_open(path, "np") as file:
        read = {spec.name: file.get_tensor(spec.name) for spec in AWKWARD}
        assert (sorted(file.keys()), file.metadata()) == (sorted(weights), None)
    assert same_bits(read, weights)


def test_safetensors_library_reads_our_notes(tmp_path: Path) -> None:
    manifest = manifest_of(PAIR, PAIR_WEIGHTS)
    path = tmp_path / "noted.safetensors"
    path.write_bytes(header_of(manifest, {"round": "3"}) + bytes.fromhex("0100010000803f000000c0"))
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"round": "3"}
    assert WeightsFile(path).names == ["flags", "bias"]


def test_we_read_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    weights = {spec.name: np.ascontiguousarray(random_weights()[spec.name]).reshape(spec.shape) for spec in AWKWARD}
    safetensors.numpy.save_file(weights, tmp_path / "theirs.safetensors", {"by": "them"})
    read = WeightsFile(tmp_path / "theirs.safetensors").weights()
    assert same_bits({name: read[name] for name in weights}, weights)


def test_weights_file_read_back_is_bit_for_bit_the_same_in_the_same_order(tmp_path: Path) -> None:
    weights = random_weights()
    file = WeightsFile(write(tmp_path, AWKWARD, weights))
    assert same_bits(file.weights(), weights)
    assert file.manifest() == manifest_of(AWKWARD, weights)
    assert (file.names, "scalar" in file, "nothing" in file) == ([spec.name for spec in AWKWARD], True, False)


def test_weights_file_that_holds_what_is_expected_is_the_same_as_without_expecting_it(tmp_path: Path) -> None:
    weights = random_weights()
    path, entries = write(tmp_path, AWKWARD, weights), manifest_of(AWKWARD, weights).entries
    known, read = WeightsFile(path, entries), WeightsFile(path)
    assert (known.names, known.metadata) == (read.names, read.metadata)
    assert [known.span(name) for name in known.names] == [read.span(name) for name in read.names]
    assert same_bits(known.weights(), weights)


def test_weights_file_is_what_it_is_and_not_what_is_expected(tmp_path: Path) -> None:
    path = write(tmp_path, PAIR, PAIR_WEIGHTS)
    assert WeightsFile(path, manifest_of(AWKWARD, random_weights()).entries).names == ["flags", "bias"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsFileError, match="should have"):
        WeightsFile(path, manifest_of(PAIR, PAIR_WEIGHTS).entries)


def test_values_of_a_weights_file_cannot_be_written(tmp_path: Path) -> None:
    array = WeightsFile(write(tmp_path, PAIR, PAIR_WEIGHTS)).array("bias")
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1.0


def test_tensors_on_demand_are_bit_for_bit_those_of_the_file_in_its_order(tmp_path: Path) -> None:
    weights = random_weights()
    tensors = WeightsFile(write(tmp_path, AWKWARD, weights)).on_demand()
    assert same_bits(dict(tensors), weights)
    assert (len(tensors), "scalar" in tensors, "nothing" in tensors) == (len(weights), True, False)
    with pytest.raises(KeyError):
        tensors["nothing"]


# A tensor of every size around that from which it is mapped, behind one of an odd size.
SIZES = (3, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 5 << 20)
SIZED = ModelSchema(tuple(TensorSpec(f"t{size}", DataType.UINT8, (size,)) for size in SIZES))


def sized_weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(4)
    return {spec.name: generator.integers(0, 256, spec.shape, np.uint8) for spec in SIZED}


def test_tensor_on_demand_of_any_size_is_the_same_and_cannot_be_written(tmp_path: Path) -> None:
    weights = sized_weights()
    tensors = WeightsFile(write(tmp_path, SIZED, weights)).on_demand()
    assert same_bits(dict(tensors), weights)
    for name in tensors:
        with pytest.raises(ValueError, match="read-only"):
            tensors[name][0] = 1


def test_tensor_on_demand_outlives_its_file(tmp_path: Path) -> None:
    weights = sized_weights()
    path = write(tmp_path, SIZED, weights)
    kept = dict(WeightsFile(path).on_demand())
    path.unlink()
    assert same_bits(kept, weights)


@pytest.mark.parametrize("size", SIZES)
def test_tensor_on_demand_of_a_file_cut_short_since_is_an_error(tmp_path: Path, size: int) -> None:
    path = write(tmp_path, SIZED, sized_weights())
    file = WeightsFile(path)
    span = file.span(f"t{size}")
    os.truncate(path, span.offset + span.length - 1)
    with pytest.raises(WeightsFileError, match=f"is damaged: it was cut short at or before tensor t{size}"):
        file.on_demand()[f"t{size}"]


def test_tensors_on_demand_leave_memory_when_they_are_let_go(tmp_path: Path) -> None:
    schema = ModelSchema(tuple(TensorSpec(f"t{i}", DataType.FLOAT32, (1 << 20,)) for i in range(8)))  # 4 MiB each
    file = WeightsFile(write(tmp_path, schema, {spec.name: np.ones(spec.shape, np.float32) for spec in schema}))
    before = mapped_mib(tmp_path)
    total = sum(float(values.sum()) for values in file.on_demand().values())
    assert mapped_mib(tmp_path) - before < 6
    views = file.weights()
    assert sum(float(values.sum()) for values in views.values()) == total == 8 * 2**20
    assert mapped_mib(tmp_path) - before > 26  # what it would be otherwise, so that this test can fail


def test_weights_file_let_go_gives_its_descriptors_back(tmp_path: Path) -> None:
    path = write(tmp_path, SIZED, sized_weights())
    before = open_files(tmp_path)
    file = WeightsFile(path)
    kept = [dict(file.on_demand()), file.weights()]
    assert open_files(tmp_path) > before
    del file, kept
    assert open_files(tmp_path) == before


def test_span_of_each_tensor_is_where_its_bytes_stand(tmp_path: Path) -> None:
    weights = random_weights()
    path = write(tmp_path, AWKWARD, weights)
    file, content = WeightsFile(path), path.read_bytes()
    for spec in AWKWARD:
        span = file.span(spec.name)
        assert (span.path, span.length) == (path, spec.size_bytes)
        assert content[span.offset : span.offset + span.length] == weights[spec.name].tobytes()
    assert file.span("empty") == FileSpan(path, file.span("größe/重み:0").offset, 0)


def test_weights_file_without_tensors_is_whole(tmp_path: Path) -> None:
    file = WeightsFile(write(tmp_path, ModelSchema(()), {}))
    assert (file.names, file.manifest()) == ([], Manifest(()))


def test_weights_file_after_a_change_on_disk_has_another_manifest(tmp_path: Path) -> None:
    path = write(tmp_path, PAIR, PAIR_WEIGHTS)
    before = WeightsFile(path).manifest()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    after = WeightsFile(path).manifest()
    assert (after.entries[0], after.indexes_changed_from(before)) == (before.entries[0], [1])


# Hostile files.


def file_of(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(**changes: Any) -> dict[str, Any]:
    """A sound header of one tensor of 8 bytes, but for what is given."""
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def two(first: list[int], second: list[int]) -> dict[str, Any]:
    return {
        "a": {"dtype": "U8", "shape": [first[1] - first[0]], "data_offsets": first},
        "b": {"dtype": "U8", "shape": [second[1] - second[0]], "data_offsets": second},
    }


EIGHT = b"\x00" * 8
HOSTILE: dict[str, bytes] = {
    "no bytes": b"",
    "seven bytes": b"\x00" * 7,
    "header of no bytes": file_of(b""),
    "header longer than the format allows": file_of(b"{}", length=(100 << 20) + 1),
    "header as long as can be said": file_of(b"{}", length=2**64 - 1),
    "header longer than the file": file_of(b"{}" + b" " * 6, length=9),
    "header cut short": file_of(json.dumps(one()).encode()[:-3]),
    "header ends in its padding": file_of(b"{}" + b" " * 6, length=16),
    "not JSON": file_of(b"PK\x03\x04...."),
    "not UTF-8": file_of(b'{"\xff":1}'),
    "UTF-16": file_of("{}".encode("utf-16")),
    "two values": file_of(b"{} {}"),
    "a list": file_of(b"[]"),
    "null": file_of(b"null"),
    "a number": file_of(b"17"),
    "a string": file_of(b'"{}"'),
    "nested without end": file_of(b'{"a":' * 200_000),
    "a list nested without end": file_of(b"[" * 200_000 + b"]" * 200_000),
    "field is a list": file_of({"t": []}),
    "field is null": file_of({"t": None}),
    "field is a string": file_of({"t": "F32"}),
    "field lacks its dtype": file_of({"t": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT),
    "field lacks its shape": file_of({"t": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT),
    "field lacks its offsets": file_of({"t": {"dtype": "F32", "shape": [2]}}, EIGHT),
    "dtype unknown": file_of(one(dtype="F8_E4M3"), EIGHT),
    "dtype is a list": file_of(one(dtype=["F32"]), EIGHT),
    "dtype is very long": file_of(one(dtype="F" * 100_000), EIGHT),
    "shape is null": file_of(one(shape=None), EIGHT),
    "shape is a number": file_of(one(shape=2), EIGHT),
    "shape is a string": file_of(one(shape="2"), EIGHT),
    "axis is a fraction": file_of(one(shape=[2.0]), EIGHT),
    "axis is true": file_of(one(shape=[2, True]), EIGHT),
    "axis is a string": file_of(one(shape=["2"]), EIGHT),
    "axis is negative twice": file_of(one(shape=[-1, -2]), EIGHT),
    "axis is infinite": file_of(b'{"t":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}', EIGHT),
    "axis beyond int64 beside an empty one": file_of(one(shape=[2**63, 0], data_offsets=[0, 0])),
    "axis of 5,000 digits": file_of(
        b'{"t":{"dtype":"F32","shape":[' + b"9" * 5_000 + b'],"data_offsets":[0,8]}}', EIGHT
    ),
    "33 axes": file_of(one(shape=[2] + [1] * 32), EIGHT),
    "size overflows 64 bits to what is there": file_of(one(shape=[2**62, 2**1]), EIGHT),
    "offsets are null": file_of(one(data_offsets=None), EIGHT),
    "offsets are one": file_of(one(data_offsets=[8]), EIGHT),
    "offsets are three": file_of(one(data_offsets=[0, 8, 8]), EIGHT),
    "offsets are strings": file_of(one(data_offsets=["0", "8"]), EIGHT),
    "offsets are fractions": file_of(one(data_offsets=[0.0, 8.0]), EIGHT),
    "offsets are of two kinds": file_of({**two([0, 4], [4, 8]), "c": {**one()["t"], "data_offsets": [None, 1]}}, EIGHT),
    "offsets are negative": file_of(one(data_offsets=[-8, 0]), EIGHT),
    "offsets go backwards": file_of(one(data_offsets=[8, 0]), EIGHT),
    "offsets are too close": file_of(one(data_offsets=[0, 7]), EIGHT),
    "offsets are too far apart": file_of(one(data_offsets=[0, 9]), EIGHT + b"\x00"),
    "tensors overlap": file_of(two([0, 4], [3, 8]), EIGHT),
    "tensors share their bytes": file_of(two([0, 4], [0, 4]), EIGHT[:4]),
    "hole before the first": file_of(one(data_offsets=[1, 9]), EIGHT + b"\x00"),
    "hole between tensors": file_of(two([0, 3], [4, 8]), EIGHT),
    "data cut short": file_of(one(), EIGHT[:-1]),
    "data missing": file_of(one()),
    "data too long": file_of(one(), EIGHT + b"\x00"),
    "data after no tensors": file_of(b"{}", b"\x00"),
    "name twice": file_of(
        b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        EIGHT,
    ),
    "field twice": file_of(b'{"t":{"dtype":"U8","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
    "name is empty": file_of({"": one()["t"]}, EIGHT),
    "name with NUL": file_of({"a\x00": one()["t"]}, EIGHT),
    "name is half a character": file_of({"\ud800": one()["t"]}, EIGHT),
    "name is very long": file_of({"n" * 2**20: one()["t"]}, EIGHT),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_ends_in_a_short_error_that_names_it_and_in_no_other(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(WeightsFileError, match=r"hostile\.safetensors is (not a weights file|damaged)") as caught:
        WeightsFile(path)
    assert len(str(caught.value)) < 700


def test_sound_header_that_the_hostile_ones_are_made_of_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.safetensors"
    path.write_bytes(file_of(one(), EIGHT))
    assert WeightsFile(path).array("t").tolist() == [0.0, 0.0]
    path.write_bytes(file_of(two([0, 3], [3, 8]), EIGHT))
    assert {name: len(values) for name, values in WeightsFile(path).weights().items()} == {"a": 3, "b": 5}


def test_weights_file_cut_at_every_byte_is_refused(tmp_path: Path) -> None:
    content = write(tmp_path, PAIR, PAIR_WEIGHTS).read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsFileError):
            WeightsFile(path)


def test_weights_file_with_any_byte_of_its_header_flipped_is_refused_or_read_without_another_error(
    tmp_path: Path,
) -> None:
    content = write(tmp_path, PAIR, PAIR_WEIGHTS).read_bytes()
    path = tmp_path / "flipped.safetensors"
    outcomes = {"refused": 0, "read": 0}
    for place in range(len(content) - 11):
        for bit in (0x01, 0x20, 0x80):
            flipped = bytearray(content)
            flipped[place] ^= bit
            path.write_bytes(flipped)
            outcomes[_read(path)] += 1
    assert outcomes["refused"] > 5 * outcomes["read"]  # what is read has another name, or another type as wide


def _read(path: Path) -> str:
    try:
        WeightsFile(path).manifest()
    except WeightsFileError:
        return "refused"
    return "read"


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None], ids=["a folder", "nothing"])
def test_weights_file_that_cannot_be_opened_is_the_systems_error(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "none")
    with pytest.raises(OSError, match="none"):
        WeightsFile(tmp_path / "none")
