"""The error tree and `errors.proto` agree, reason by reason. A moment."""

from __future__ import annotations

import ast
import inspect
import re
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from fedstream import errors
from fedstream.errors import PROTOCOL_ERRORS, LimitExceeded, ProtocolError, SchemaMismatch
from fedstream.v1 import errors_pb2

pytestmark = pytest.mark.numpy_task

PROTO = Path(__file__).parents[3] / "protos/fedstream/v1/errors.proto"


def test_reasons_are_those_of_the_contract_and_no_others() -> None:
    prefix = "ERROR_REASON_"
    values = errors_pb2.ErrorReason.DESCRIPTOR.values
    contract = [value.name.removeprefix(prefix) for value in values if value.number]
    assert sorted(PROTOCOL_ERRORS) == sorted(contract)
    assert len(PROTOCOL_ERRORS) == 27


def test_status_codes_are_those_that_the_contract_names_in_its_comments() -> None:
    if not PROTO.exists():
        pytest.skip("the .proto files are not beside these tests")
    documented = re.findall(r"// ([A-Z_]+)\. [^\n]*\n(?:  //[^\n]*\n)*  ERROR_REASON_(\w+) = \d+;", PROTO.read_text())
    assert {reason: code for code, reason in documented} == {
        reason: kind.code for reason, kind in PROTOCOL_ERRORS.items()
    }


@pytest.mark.parametrize("kind", PROTOCOL_ERRORS.values())
def test_each_error_is_of_the_codes_the_protocol_uses(kind: type[ProtocolError]) -> None:
    allowed = (
        "INVALID_ARGUMENT NOT_FOUND ALREADY_EXISTS FAILED_PRECONDITION ABORTED OUT_OF_RANGE DATA_LOSS UNAUTHENTICATED "
        "PERMISSION_DENIED RESOURCE_EXHAUSTED"
    )
    assert kind.code in allowed.split()
    assert grpc.StatusCode[kind.code].name == kind.code


def test_the_tree_drawn_in_the_docstring_names_every_error() -> None:
    drawn = set(re.findall(r"\b[A-Z]\w+\b", (inspect.getdoc(errors) or "").split("`errors.proto`")[0]))
    classes = {node.name for node in ast.parse(inspect.getsource(errors)).body if isinstance(node, ast.ClassDef)}
    assert classes <= drawn
    assert {name for name in drawn if name in vars(errors)} == classes


def test_error_carries_its_message_and_facts_as_text() -> None:
    error = SchemaMismatch("not the same", tensor="a", place=3)
    assert (error.message, str(error), error.metadata) == (
        "not the same",
        "not the same",
        {"tensor": "a", "place": "3"},
    )


def test_limit_exceeded_says_when_to_come_back() -> None:
    assert LimitExceeded("full").retry_after == timedelta(seconds=30)
    error = LimitExceeded("full", timedelta(seconds=2), limit="streams")
    assert (error.retry_after, error.metadata) == (timedelta(seconds=2), {"limit": "streams"})
