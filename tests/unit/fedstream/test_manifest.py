"""Manifests: the byte form that names a model, and every way in which one from the network is refused. A moment."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fedstream.dtypes import DataType
from fedstream.errors import InvalidManifest, ProtocolError, SchemaMismatch
from fedstream.manifest import (
    Digest,
    Manifest,
    TensorEntry,
    check_entry,
    check_manifest,
    entry_of,
    manifest_of,
    parse_canonical,
    raw_bytes,
    require_names,
)
from fedstream.schema import ModelSchema, TensorSpec
from tests.unit.fedstream.examples import AWKWARD, entry, random_weights

pytestmark = pytest.mark.numpy_task

SCHEMA = ModelSchema(
    (
        TensorSpec("kernel", DataType.FLOAT32, (1, 2)),
        TensorSpec("step", DataType.INT64, ()),
        TensorSpec("empty", DataType.BFLOAT16, (2, 0)),
    )
)
WEIGHTS = {
    "kernel": np.array([[1.0, -2.0]], np.float32),
    "step": np.array(3, np.int64),
    "empty": np.zeros((2, 0), DataType.BFLOAT16.numpy),
}
KERNEL_BYTES = b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
STEP_BYTES = b"\x03\x00\x00\x00\x00\x00\x00\x00"
TEXT = (
    b"fedstream model v1\n"
    b"kernel\tF32\t1,2\tee4ac73c2bd27756ab82780f27c73a7bc4d3f0bb6acb37e008bc27eccd7e588b\n"
    b"step\tI64\t\t35be322d094f9d154a8aba4733b8497f180353bd7ae7b0a15f90b586b549f28b\n"
    b"empty\tBF16\t2,0\te3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
)


def refused(act: object, *arguments: object) -> tuple[type[ProtocolError], str, dict[str, str]]:
    """Error type, message and metadata with which a call ends."""
    with pytest.raises(ProtocolError) as caught:
        act(*arguments)  # type: ignore[operator]
    return type(caught.value), caught.value.message, caught.value.metadata


def test_raw_bytes_are_little_endian_and_row_major_whatever_the_layout_in_memory() -> None:
    assert bytes(raw_bytes(WEIGHTS["kernel"])) == KERNEL_BYTES
    assert bytes(raw_bytes(WEIGHTS["step"])) == STEP_BYTES
    assert bytes(raw_bytes(WEIGHTS["empty"])) == b""
    turned = np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3))
    assert bytes(raw_bytes(turned)) == bytes.fromhex("000001000200030004000500")
    assert bytes(raw_bytes(np.arange(6, dtype=np.int16)[::2])) == bytes.fromhex("000002000400")


def test_raw_bytes_of_values_in_a_row_are_no_copy() -> None:
    values = np.zeros(4, np.float32)
    view = raw_bytes(values)
    values[0] = 1.0
    assert bytes(view[:4]) == b"\x00\x00\x80\x3f"


def test_canonical_bytes_of_a_model_are_these() -> None:
    manifest = manifest_of(SCHEMA, WEIGHTS)
    assert manifest.canonical_bytes() == TEXT
    assert manifest.model_digest() == Digest(hashlib.sha256(TEXT).digest(), len(TEXT))
    assert (manifest.size_bytes, [one.size_bytes for one in manifest]) == (16, [8, 8, 0])


def test_parse_of_canonical_bytes_gives_the_manifest_back() -> None:
    for manifest in (manifest_of(SCHEMA, WEIGHTS), manifest_of(AWKWARD, random_weights()), Manifest(())):
        assert parse_canonical(manifest.canonical_bytes()) == manifest


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"fedstream model v1",
        b"fedstream model v2\n",
        b"fedstream schema v1\n",
        TEXT[:-1],
        TEXT + b"\n",
        TEXT + b"x",
        b"\xff" + TEXT,
        b"\xef\xbb\xbf" + TEXT,
        TEXT.replace(b"\n", b"\r\n"),
        TEXT.replace(b"F32", b"f32"),
        TEXT.replace(b"F32", b"F31"),
        TEXT.replace(b"1,2", b"1,-2"),
        TEXT.replace(b"1,2", b"1,2,"),
        TEXT.replace(b"1,2", b"+1,2"),
        TEXT.replace(b"1,2", b"01,2"),
        TEXT.replace(b"1,2", b"1, 2"),
        TEXT.replace(b"1,2", b"1_0,2"),
        TEXT.replace(b"1,2", "\u0661,2".encode()),
        TEXT.replace(b"1,2", b"9" * 5_000),
        TEXT.replace(b"1,2", b"9" * 4_000),
        TEXT.replace(b"1,2", b",".join([b"1"] * 33)),
        TEXT.replace(b"ee4a", b"EE4A"),
        TEXT.replace(b"ee4a", b"ee 4a"),
        TEXT.replace(b"ee4a", b"4a"),
        TEXT.replace(b"ee4a", b"zz4a"),
        TEXT.replace(b"kernel", b""),
        TEXT.replace(b"kernel", b"k" * 257),
        TEXT.replace(b"kernel", b"ker\x00nel"),
        TEXT.replace(b"kernel", b"kernel\t"),
        TEXT.replace(b"kernel\tF32", b"kernel F32"),
    ],
)
def test_parse_of_anything_but_canonical_bytes_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidManifest):
        parse_canonical(text)


def test_digest_names_its_bytes_by_sha256_and_size() -> None:
    digest = Digest.of(KERNEL_BYTES)
    assert digest == Digest(hashlib.sha256(KERNEL_BYTES).digest(), 8)
    assert Digest.of(memoryview(np.zeros(3, np.float64))).size_bytes == 24  # bytes, not elements
    assert (str(digest), digest.hex[:12], len(digest.hex)) == ("ee4ac73c2bd2", "ee4ac73c2bd2", 64)


def test_indexes_changed_from_a_base_are_those_whose_entry_it_lacks() -> None:
    base = manifest_of(SCHEMA, WEIGHTS)
    other = manifest_of(SCHEMA, {**WEIGHTS, "step": np.array(4, np.int64)})
    assert (base.indexes_changed_from(base), other.indexes_changed_from(base)) == ([], [1])
    assert base.indexes_changed_from(Manifest(())) == [0, 1, 2]
    swapped = Manifest((replace(base.entries[0], name="step"), replace(base.entries[1], name="kernel")))
    assert swapped.indexes_changed_from(base) == [0, 1]  # the same values under another name are another tensor


# An entry by itself.


@pytest.mark.parametrize(
    "sound",
    [
        entry(),
        entry(shape=(), size_bytes=4),
        entry(shape=(0,), size_bytes=0),
        entry(shape=(1,) * 32, size_bytes=4),
        entry("n" * 256),
        entry("ü" * 128),
        entry("../../etc/passwd"),
        entry("a b 'quoted' <b>"),
        entry(shape=(2**34,), size_bytes=2**36),
    ],
)
def test_entry_within_its_bounds_is_taken(sound: TensorEntry) -> None:
    check_entry(sound)


@pytest.mark.parametrize(
    "name",
    ["", "a\x00b", "a\tb", "a\nb", "a\r", "\x1b[2J", "a\x7f", "a\x85b", "n" * 257, "ü" * 129, "x" * 2**20],
    ids=lambda name: repr(name[:12]),
)
def test_entry_with_a_malformed_name_is_refused_without_repeating_all_of_it(name: str) -> None:
    kind, message, metadata = refused(check_entry, entry(name))
    assert kind is InvalidManifest
    assert message == f"tensor name {name[:80]!r} is empty, too long or has control characters"
    assert metadata == {"tensor": name[:80]}


TOO_LARGE = "tensor kernel is larger than the 68719476736 bytes that a model may have"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (entry(shape=(1,) * 33, size_bytes=4), "tensor kernel has 33 axes; at most 32 are allowed"),
        (entry(shape=(-2, -3)), "tensor kernel has an axis of negative length"),
        (entry(shape=(2**63, 2), size_bytes=0), TOO_LARGE),
        (entry(shape=(2**63, 2), size_bytes=2**66), TOO_LARGE),
        (entry(shape=(2**63, 0), size_bytes=0), TOO_LARGE),
        (entry(shape=(2**64 - 1,) * 32, size_bytes=4), TOO_LARGE),
        (entry(shape=(2**34 + 1,), size_bytes=2**36 + 4), TOO_LARGE),
        (entry(size_bytes=23), "tensor kernel declares 23 bytes, its dtype and shape make 24"),
        (entry(size_bytes=25), "tensor kernel declares 25 bytes, its dtype and shape make 24"),
        (entry(size_bytes=0), "tensor kernel declares 0 bytes, its dtype and shape make 24"),
        (entry(dtype=DataType.FLOAT64), "tensor kernel declares 24 bytes, its dtype and shape make 48"),
        (entry(shape=(0,), size_bytes=4), "tensor kernel declares 4 bytes, its dtype and shape make 0"),
        (entry(sha256=b""), "tensor kernel has a sha256 of 0 bytes instead of 32"),
        (entry(sha256=b"\x11" * 31), "tensor kernel has a sha256 of 31 bytes instead of 32"),
        (entry(sha256=b"\x11" * 33), "tensor kernel has a sha256 of 33 bytes instead of 32"),
    ],
)
def test_entry_that_breaks_one_rule_is_refused_with_that_rule(broken: TensorEntry, message: str) -> None:
    assert refused(check_entry, broken) == (InvalidManifest, message, {"tensor": "kernel"})


# A manifest against the schema.

ENTRIES = manifest_of(SCHEMA, WEIGHTS).entries


def test_manifest_that_fits_the_schema_is_taken() -> None:
    assert check_manifest(ENTRIES, SCHEMA) == Manifest(ENTRIES)
    assert check_manifest([], ModelSchema(())) == Manifest(())


def test_manifest_with_one_flawed_entry_is_refused_before_anything_is_compared() -> None:
    kind, message, _ = refused(check_manifest, [entry("stranger"), replace(ENTRIES[0], name="a\0")], SCHEMA)
    assert (kind, message) == (InvalidManifest, r"tensor name 'a\x00' is empty, too long or has control characters")


def test_manifest_with_an_unknown_tensor_is_refused_by_its_name() -> None:
    message = "tensor stranger is not in the federation's schema"
    expected = (SchemaMismatch, message, {"tensor": "stranger"})
    assert refused(check_manifest, [*ENTRIES, entry("stranger")], SCHEMA) == expected


@pytest.mark.parametrize("left_out", range(3))
def test_manifest_without_a_tensor_is_refused_by_its_name(left_out: int) -> None:
    name = ENTRIES[left_out].name
    rest = [one for one in ENTRIES if one.name != name]
    assert refused(check_manifest, rest, SCHEMA) == (SchemaMismatch, f"tensor {name} is missing", {"tensor": name})


def test_manifest_with_a_tensor_twice_is_refused() -> None:
    expected = (InvalidManifest, "a tensor name stands twice in the manifest", {})
    assert refused(check_manifest, [*ENTRIES, ENTRIES[0]], SCHEMA) == expected
    assert refused(require_names, SCHEMA, ["kernel", "kernel", "step", "empty"]) == expected


def test_manifest_with_a_tensor_in_the_place_of_another_is_refused() -> None:
    message = "tensor kernel is missing"
    doubled = [ENTRIES[1], ENTRIES[1], ENTRIES[2]]
    assert refused(check_manifest, doubled, SCHEMA) == (SchemaMismatch, message, {"tensor": "kernel"})


def test_manifest_in_another_order_is_refused_at_the_first_place_that_differs() -> None:
    kind, message, metadata = refused(check_manifest, [ENTRIES[0], ENTRIES[2], ENTRIES[1]], SCHEMA)
    assert (kind, message) == (
        SchemaMismatch,
        "tensor empty should be step int64 () trainable but is empty bfloat16 (2, 0) trainable",
    )
    assert metadata == {
        "tensor": "empty",
        "mine": "step int64 () trainable",
        "yours": "empty bfloat16 (2, 0) trainable",
    }


@pytest.mark.parametrize(
    ("changed", "yours"),
    [
        (replace(ENTRIES[0], shape=(2, 1)), "kernel float32 (2, 1) trainable"),
        (replace(ENTRIES[0], shape=(2,)), "kernel float32 (2,) trainable"),
        (replace(ENTRIES[0], dtype=DataType.INT32), "kernel int32 (1, 2) trainable"),
        (replace(ENTRIES[0], dtype=DataType.FLOAT64, shape=(1,)), "kernel float64 (1,) trainable"),
    ],
)
def test_manifest_with_another_dtype_or_shape_is_refused_with_both(changed: TensorEntry, yours: str) -> None:
    mine = "kernel float32 (1, 2) trainable"
    expected = (
        SchemaMismatch,
        f"tensor kernel should be {mine} but is {yours}",
        {"tensor": "kernel", "mine": mine, "yours": yours},
    )
    assert refused(check_manifest, [changed, *ENTRIES[1:]], SCHEMA) == expected


# Weights at hand.


@pytest.mark.parametrize(
    ("values", "yours"),
    [
        (np.zeros((2, 1), np.float32), "float32 (2, 1)"),
        (np.zeros((1, 2), np.float64), "float64 (1, 2)"),
        (np.zeros((1, 2), ">f4"), ">f4 (1, 2)"),
        (np.zeros((), np.float32), "float32 ()"),
    ],
)
def test_entry_of_values_that_are_not_as_specified_is_refused_with_both(values: np.ndarray, yours: str) -> None:
    kind, message, metadata = refused(entry_of, SCHEMA["kernel"], values)
    assert (kind, message) == (SchemaMismatch, f"tensor kernel should be float32 (1, 2) but is {yours}")
    assert metadata == {"tensor": "kernel", "mine": "kernel float32 (1, 2) trainable", "yours": yours}


def test_manifest_of_weights_with_other_names_is_refused() -> None:
    lacking = {name: values for name, values in WEIGHTS.items() if name != "step"}
    assert refused(manifest_of, SCHEMA, lacking)[:2] == (SchemaMismatch, "tensor step is missing")
    strange = {**WEIGHTS, "more": WEIGHTS["step"]}
    assert refused(manifest_of, SCHEMA, strange)[:2] == (
        SchemaMismatch,
        "tensor more is not in the federation's schema",
    )


def test_manifest_of_weights_in_any_order_is_in_schema_order() -> None:
    turned = dict(reversed(WEIGHTS.items()))
    assert manifest_of(SCHEMA, turned).canonical_bytes() == TEXT
