"""What the codec does with values that have two forms. A moment."""

from __future__ import annotations

import math

import pytest

from fedstream import wire
from fedstream.manifest import Digest, Manifest
from fedstream.plan import Plan
from fedstream.schema import TensorRole
from fedstream.v1 import common_pb2, transfer_pb2

pytestmark = pytest.mark.numpy_task


def test_plan_survives_the_wire() -> None:
    plan = Plan(10, 32, 1e-4, 3, 2**64 - 1, {"fine_tune": "head", "größe": ""})
    sent = common_pb2.Plan.FromString(wire.write_plan(plan).SerializeToString())
    assert wire.read_plan(sent) == plan
    assert wire.read_plan(wire.write_plan(Plan(1, 1, 0.5, 0, 0))) == Plan(1, 1, 0.5, 0, 0)


def test_digest_survives_the_wire() -> None:
    digest = Digest(b"\x07" * 32, 2**63)
    assert wire.read_digest(common_pb2.Digest.FromString(wire.write_digest(digest).SerializeToString())) == digest


def test_metrics_that_are_no_numbers_travel_without_value_and_with_the_reason() -> None:
    metrics = {"loss": 0.5, "auc": None, "accuracy": math.nan, "f1": math.inf, "zero": 0.0}
    sent = wire.write_metrics(metrics, {"auc": "only one class"})
    assert [(one.name, one.HasField("value"), one.undefined_reason) for one in sent] == [
        ("loss", True, ""),
        ("auc", False, "only one class"),
        ("accuracy", False, "not a finite number"),
        ("f1", False, "not a finite number"),
        ("zero", True, ""),
    ]
    assert wire.read_metrics(sent) == {"loss": 0.5, "auc": None, "accuracy": None, "f1": None, "zero": 0.0}


def test_reasons_why_metrics_have_no_value_are_read_short_and_on_one_line() -> None:
    sent = wire.write_metrics({"loss": 0.5, "auc": None, "f1": None}, {"auc": "only\none class", "f1": "é" * 100})
    not_needed = common_pb2.Metric(name="b", value=1, undefined_reason="why")
    assert wire.read_undefined([*sent, not_needed]) == {"auc": "only one class", "f1": "é" * 64}
    not_a_number = common_pb2.Metric(name="loss", value=math.nan, undefined_reason="it diverged")
    assert wire.read_undefined([not_a_number]) == {"loss": "it diverged"}
    assert wire.read_undefined([common_pb2.Metric(name="loss", value=math.nan)]) == {}


def test_metrics_beyond_64_are_left_out() -> None:
    sent = wire.write_metrics({f"m{number}": 1.0 for number in range(70)})
    assert [one.name for one in sent] == [f"m{number}" for number in range(64)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metric_of_somebody_who_sends_no_number_is_none(value: float) -> None:
    assert wire.read_metrics([common_pb2.Metric(name="loss", value=value)]) == {"loss": None}


def test_role_unspecified_or_unknown_is_read_as_a_weight() -> None:
    for role in (common_pb2.TENSOR_ROLE_UNSPECIFIED, 99):
        spec = common_pb2.TensorSpec(name="t", dtype=common_pb2.DATA_TYPE_FLOAT32, role=role)  # type: ignore[arg-type]
        assert wire.read_spec(spec).role is TensorRole.WEIGHT


def test_manifest_without_tensors_is_one_empty_part() -> None:
    assert list(wire.manifest_parts(Manifest(()))) == [transfer_pb2.ManifestPart()]


def test_indexes_are_given_back_in_order() -> None:
    assert wire.read_indexes([0, 3, 4], 5) == [0, 3, 4]
    assert wire.read_indexes([], 0) == []
