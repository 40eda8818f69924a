"""The outcomes of offers are those of the contract, in its order."""

from __future__ import annotations

import pytest

from fedstream.outcomes import Outcome
from fedstream.v1 import admin_pb2, negotiation_pb2

pytestmark = pytest.mark.numpy_task


def test_outcomes_are_those_that_a_client_can_be_told() -> None:
    assert negotiation_pb2.Outcome.keys() == ["OUTCOME_UNSPECIFIED", *(f"OUTCOME_{one.name}" for one in Outcome)]


def test_outcomes_are_those_that_an_operator_sees_counted() -> None:
    fields = [field.name for field in admin_pb2.OutcomeCounts.DESCRIPTOR.fields]
    assert fields == ["offered", "outstanding", *(one.value for one in Outcome)]
