"""Schemas: the byte form that is hashed, what differs between two, and tensors that cannot be. A moment."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from fedstream import limits
from fedstream.dtypes import DataType
from fedstream.schema import ModelSchema, TaskMeaning, TensorDifference, TensorRole, TensorSpec

pytestmark = pytest.mark.numpy_task

KERNEL = TensorSpec("dense/kernel", DataType.FLOAT32, (3, 4))
BIAS = TensorSpec("dense/bias", DataType.FLOAT32, (4,))
MEAN = TensorSpec("norm/mean", DataType.FLOAT64, (4,), trainable=False, role=TensorRole.STATISTIC)
STEP = TensorSpec("step", DataType.INT64, (), trainable=False)
SCHEMA = ModelSchema((KERNEL, BIAS, MEAN, STEP))
TEXT = (
    b"fedstream schema v1\n"
    b"dense/kernel\tF32\t3,4\ttrainable\tweight\n"
    b"dense/bias\tF32\t4\ttrainable\tweight\n"
    b"norm/mean\tF64\t4\tfrozen\tstatistic\n"
    b"step\tI64\t\tfrozen\tweight\n"
)


def test_canonical_bytes_of_a_schema_are_these() -> None:
    assert SCHEMA.canonical_bytes() == TEXT
    assert SCHEMA.digest() == hashlib.sha256(TEXT).digest()
    assert SCHEMA.digest().hex() == "2bd76e547db5fab295c1ee6137587271923212d66114234bf847bf0aa51534e1"


def test_canonical_bytes_of_a_schema_without_tensors_are_the_header() -> None:
    assert ModelSchema(()).canonical_bytes() == b"fedstream schema v1\n"


def test_canonical_bytes_of_names_beyond_ascii_are_utf8() -> None:
    schema = ModelSchema((TensorSpec("größe", DataType.BFLOAT16, (0, 2)),))
    assert schema.canonical_bytes() == b"fedstream schema v1\ngr\xc3\xb6\xc3\x9fe\tBF16\t0,2\ttrainable\tweight\n"


@pytest.mark.parametrize(
    "changed",
    [
        replace(KERNEL, name="dense/kernel2"),
        replace(KERNEL, dtype=DataType.FLOAT16),
        replace(KERNEL, shape=(4, 3)),
        replace(KERNEL, shape=(34,)),
        replace(KERNEL, trainable=False),
        replace(KERNEL, role=TensorRole.STATISTIC),
    ],
)
def test_digest_after_any_change_of_a_tensor_is_another(changed: TensorSpec) -> None:
    assert ModelSchema((changed, BIAS, MEAN, STEP)).digest() != SCHEMA.digest()


def test_digest_after_a_change_of_order_is_another() -> None:
    assert ModelSchema((BIAS, KERNEL, MEAN, STEP)).digest() != SCHEMA.digest()


def test_schema_as_a_collection_has_its_tensors_in_order_and_by_name() -> None:
    assert (len(SCHEMA), list(SCHEMA)) == (4, [KERNEL, BIAS, MEAN, STEP])
    assert (SCHEMA["step"], "step" in SCHEMA, "steps" in SCHEMA) == (STEP, True, False)
    assert SCHEMA.size_bytes == 4 * 12 + 4 * 4 + 8 * 4 + 8


def test_differences_of_equal_schemas_are_none() -> None:
    assert SCHEMA.differences(ModelSchema(SCHEMA.tensors)) == []


def test_differences_by_name_come_in_my_order_then_those_that_only_you_have() -> None:
    kernel, extra = replace(KERNEL, shape=(3, 5)), replace(BIAS, name="extra")
    assert SCHEMA.differences(ModelSchema((extra, kernel, BIAS, STEP))) == [
        TensorDifference(KERNEL, kernel),
        TensorDifference(MEAN, None),
        TensorDifference(None, extra),
    ]


def test_differences_of_order_alone_are_told_by_place() -> None:
    yours = ModelSchema((BIAS, KERNEL, MEAN, STEP))
    assert SCHEMA.differences(yours) == [TensorDifference(KERNEL, BIAS), TensorDifference(BIAS, KERNEL)]


def test_schema_with_a_name_twice_is_refused_by_that_name() -> None:
    with pytest.raises(ValueError, match="'dense/bias' stands twice"):
        ModelSchema((KERNEL, BIAS, MEAN, replace(BIAS, shape=(9,))))


FLAWED = {
    "no name": (replace(BIAS, name=""), "tensor name '' is empty, too long or has control characters"),
    "tab": (replace(BIAS, name="a\tb"), r"tensor name 'a\tb' is empty, too long or has control characters"),
    "newline": (replace(BIAS, name="a\nb"), r"tensor name 'a\nb' is empty, too long or has control characters"),
    "lone surrogate": (
        replace(BIAS, name="\ud800"),
        r"tensor name '\ud800' is empty, too long or has control characters",
    ),
    "taken name": (
        replace(BIAS, name="__metadata__"),
        "a tensor cannot be called __metadata__: the safetensors format keeps that name for itself",
    ),
    "axes": (replace(BIAS, shape=(1,) * 33), "tensor dense/bias has 33 axes; at most 32 are allowed"),
    "negative": (replace(BIAS, shape=(-2, -3)), "tensor dense/bias has an axis of negative length"),
    "too large": (
        replace(BIAS, shape=(2**34 + 1,)),
        "tensor dense/bias is larger than the 68719476736 bytes that a model may have",
    ),
    "huge beside an empty axis": (
        replace(BIAS, shape=(2**63, 0)),
        "tensor dense/bias is larger than the 68719476736 bytes that a model may have",
    ),
}


@pytest.mark.parametrize("kind", FLAWED)
def test_schema_with_a_tensor_that_cannot_be_is_refused_with_the_reason(kind: str) -> None:
    spec, flaw = FLAWED[kind]
    assert spec.flaw() == flaw
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        ModelSchema((KERNEL, spec))
    assert str(caught.value) == flaw


@pytest.mark.parametrize(
    "spec",
    [
        replace(BIAS, shape=(2**34,)),
        replace(BIAS, shape=(1,) * 32),
        replace(BIAS, shape=(0, 2**34)),
        replace(BIAS, name="../../etc/passwd"),
        replace(BIAS, name="n" * 256),
    ],
)
def test_tensor_at_the_very_bounds_has_no_flaw(spec: TensorSpec) -> None:
    assert spec.flaw() is None


def test_schema_whose_tensors_are_too_large_together_is_refused() -> None:
    half = replace(BIAS, shape=(2**33,))
    ModelSchema((half, replace(half, name="b")))
    with pytest.raises(ValueError, match="a model of 3 tensors and 68719476740 bytes is too large"):
        ModelSchema((half, replace(half, name="b"), replace(half, name="c", shape=())))


def test_schema_with_too_many_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TENSORS", 3)
    with pytest.raises(ValueError, match="a model of 4 tensors and 104 bytes is too large: at most 3 and 68719476736"):
        ModelSchema((KERNEL, BIAS, MEAN, STEP))


def test_tensor_described_for_people_says_all_that_counts() -> None:
    assert [spec.describe() for spec in SCHEMA] == [
        "dense/kernel float32 (3, 4) trainable",
        "dense/bias float32 (4,) trainable",
        "norm/mean float64 (4,) frozen statistic",
        "step int64 () frozen",
    ]


def test_canonical_bytes_of_a_meaning_are_these() -> None:
    meaning = TaskMeaning(("no", "yes"), "yes", "rgb 224x224; x / 127.5 - 1")
    text = b"fedstream meaning v1\nno\tyes\nyes\nrgb 224x224; x / 127.5 - 1\n"
    assert (meaning.canonical_bytes(), meaning.digest()) == (text, hashlib.sha256(text).digest())


def test_digest_of_a_meaning_with_its_classes_in_another_order_is_another() -> None:
    one, other = TaskMeaning(("no", "yes"), "yes", "-"), TaskMeaning(("yes", "no"), "yes", "-")
    assert one.digest() != other.digest()
