"""docs/protocol.md against code and protos: its tables cannot go stale, and its rules can be cited. A moment."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from fedserver.conformance.rules import RULES, Level
from fedstream import limits
from fedstream.dtypes import DataType
from fedstream.errors import PROTOCOL_ERRORS
from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2
from fedtask.linear import Linear
from tests.wire import text

pytestmark = pytest.mark.numpy_task

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
RULE = re.compile(r"^- \*\*(R-([A-Z]+)-(\d+))\*\* ", flags=re.MULTILINE)
CITED = re.compile(r"\bR-[A-Z]+-\d+\b")
GUIDE = ROOT / "docs" / "write-a-client.md"
DOCUMENTS = [ROOT / "docs" / "protocol.md", GUIDE]


def table(first_column: str) -> list[list[str]]:
    """The rows of the table whose heading begins so, without the heading, each cell stripped."""
    (block,) = re.findall(rf"^\| {re.escape(first_column)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PROTOCOL, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]


def words(cell: str) -> list[str]:
    """What stands in `code` in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def metadata_in_proto() -> Mapping[str, list[str]]:
    """The metadata keys that the comment of each reason names."""
    proto = (ROOT / "protos/fedstream/v1/errors.proto").read_text()
    found = re.findall(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = [1-9]\d*;", proto)
    return {reason: _metadata_named(comment) for comment, reason in found}


def _metadata_named(comment: str) -> list[str]:
    named = re.search(r"metadata ([^.;]*?)(?:, for a read|[.;])", re.sub(r"\s*//\s*", " ", comment))
    return words(named[1]) if named else []


# The tables.


def test_error_table_is_that_of_the_code_and_of_the_contract() -> None:
    documented = {words(row[0])[0]: (words(row[1])[0], words(row[2])) for row in table("reason")}
    metadata = metadata_in_proto()
    assert documented == {reason: (kind.code, metadata[reason]) for reason, kind in PROTOCOL_ERRORS.items()}


def test_error_table_says_what_to_do_on_each() -> None:
    assert [row[0] for row in table("reason") if not row[3]] == []


def test_limits_table_is_that_of_the_code() -> None:
    documented = {words(row[0])[0]: int(row[1].replace(",", "")) for row in table("name")}
    assert documented == {name: value for name, value in vars(limits).items() if name.isupper() and name[0] != "_"}


def test_table_of_element_types_is_that_of_the_code() -> None:
    rows = [row[start : start + 3] for row in table("element type") for start in (0, 3) if row[start]]
    documented = {words(row[0])[0]: (words(row[1])[0], int(row[2])) for row in rows}
    assert documented == {f"DATA_TYPE_{one.name}": (one.value, one.itemsize) for one in DataType}


def test_table_of_messages_has_every_kind_of_both_sides() -> None:
    documented = {(row[1], words(row[0])[0]) for row in table("message")}
    sides = {"client": negotiation_pb2.NegotiateRequest, "server": negotiation_pb2.NegotiateResponse}
    kinds = {
        (side, field.name) for side, kind in sides.items() for field in kind.DESCRIPTOR.oneofs_by_name["kind"].fields
    }
    assert documented == kinds


def test_table_of_outcomes_has_every_outcome() -> None:
    assert [words(row[0])[0] for row in table("outcome")] == [
        name.removeprefix("OUTCOME_") for name, number in negotiation_pb2.Outcome.items() if number
    ]


def test_every_call_encoding_and_upload_state_is_documented() -> None:
    services = (negotiation_pb2.DESCRIPTOR, transfer_pb2.DESCRIPTOR)
    calls = [call.name for file in services for service in file.services_by_name.values() for call in service.methods]
    encodings = [name.removeprefix("ENCODING_") for name, number in common_pb2.Encoding.items() if number]
    states = [name.removeprefix("UPLOAD_STATE_") for name, number in transfer_pb2.UploadState.items() if number]
    # `with _ZSTD` stands for those that are in a frame.
    missing = [name for name in (*calls, *encodings, *states) if name.replace("_ZSTD", "") not in PROTOCOL]
    assert missing == []


# The rules.


def test_rules_are_numbered_from_1_without_a_gap() -> None:
    by_area: dict[str, list[int]] = defaultdict(list)
    for _, area, number in RULE.findall(PROTOCOL):
        by_area[area].append(int(number))
    assert by_area
    assert {
        area: numbers for area, numbers in by_area.items() if sorted(numbers) != [*range(1, len(numbers) + 1)]
    } == {}


def test_every_obligation_stands_in_a_rule_with_an_id() -> None:
    blocks = re.split(r"\n(?=\n|- |\| |#)", PROTOCOL)
    assert [block for block in blocks if "MUST" in block and not RULE.match(block.lstrip("\n"))] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_rule_that_is_cited_exists(path: Path) -> None:
    known = {rule for rule, _, _ in RULE.findall(PROTOCOL)}
    assert sorted(set(CITED.findall(path.read_text())) - known) == []


def test_every_rule_that_names_an_error_has_a_malformed_message_or_a_session() -> None:
    blocks = re.split(r"\n(?=\n|- |\| |#)", PROTOCOL)
    rules = [(RULE.match(block.lstrip("\n")), re.search(r"Otherwise:\s+`[A-Z_]+`", block)) for block in blocks]
    with_error = {rule[1] for rule, error in rules if rule and error}
    tried = {case["rule"] for case in text.read("malformed.txt")}
    in_sessions = {"R-HEL-1", "R-UP-8"}  # tests/wire/vectors/negotiation.txt: out of order, and what nobody knows
    assert with_error - tried == in_sessions
    assert tried <= {rule for rule, _, _ in RULE.findall(PROTOCOL)}


def test_conformance_judges_by_rules_of_the_document_in_its_order() -> None:
    documented = [rule for rule, _, _ in RULE.findall(PROTOCOL)]
    judged = [rule.name for rule in RULES if rule.level is Level.MUST]
    assert sorted({rule.name for rule in RULES} - set(documented)) == []
    assert [rule for rule in documented if rule in judged] == judged


# The guide.


def test_guide_describes_the_task_that_it_lets_a_server_learn() -> None:
    guide, task = " ".join(GUIDE.read_text().split()), Linear({})
    weights, bias = task.schema()
    assert (weights.shape, bias.shape, weights.dtype, bias.dtype) == ((10,), (), DataType.FLOAT32, DataType.FLOAT32)
    assert f"`{weights.name}` F32 (10), then `{bias.name}` F32 ()" in guide
    assert f"begins with `{task.schema().digest().hex()[:8]}`" in guide
    assert f"the preprocessing `{task.meaning().preprocessing}`" in guide


# The links.


def anchors(document: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> Iterable[str]:
    """Relative links that lead nowhere."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text()):
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            yield f"{target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert list(broken_links(path)) == []
