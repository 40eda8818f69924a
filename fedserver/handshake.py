"""Whether a client may take part, decided before any weight moves."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from fedserver.coordinator.population import Introduction
from fedstream import limits
from fedstream.errors import InvalidRequest
from fedstream.schema import ModelSchema, TaskMeaning, TensorDifference, TensorSpec


class DeclineReason(enum.Enum):
    """Kinds of a polite no."""

    PROTOCOL = "protocol"
    SCHEMA = "schema"
    MEANING = "meaning"
    NAME = "name"
    EXAMPLES = "examples"


@dataclass(frozen=True, slots=True)
class Decline:
    """Why a client cannot take part. `message` is for people and says what to do.

    `meanings` are the federation's and the client's, where these differ.
    """

    reason: DeclineReason
    message: str
    differences: Sequence[TensorDifference] = ()
    more_differences: int = 0
    meanings: tuple[TaskMeaning, TaskMeaning] | None = None


def check_introduction(
    introduction: Introduction, protocol_min: int, protocol_max: int, max_examples: int | None = None
) -> Decline | None:
    """Check version, name and number of examples, of which a site may have `max_examples`."""
    if not protocol_min <= limits.PROTOCOL_VERSION <= protocol_max:
        ours = limits.PROTOCOL_VERSION
        side = "the client" if protocol_max < ours else "the server"
        message = (
            f"this server speaks protocol version {ours}, the client {protocol_min} to {protocol_max}: upgrade {side}"
        )
        return Decline(DeclineReason.PROTOCOL, message)
    if not limits.is_client_name(introduction.name):
        message = (
            "a name has 1 to 64 characters of a-z A-Z 0-9 . _ - and starts with a letter or digit: give another --name"
        )
        return Decline(DeclineReason.NAME, message)
    if introduction.num_examples < 1:
        return Decline(DeclineReason.EXAMPLES, "the client has no training examples: check its data folder")
    if max_examples is not None and introduction.num_examples > max_examples:
        message = (
            f"the client has {introduction.num_examples:,} training examples, and a site of this federation at most "
            f"{max_examples:,}: train on fewer with --max-examples, or ask the coordinator to raise its own"
        )
        return Decline(DeclineReason.EXAMPLES, message)
    return None


def check_meaning(server: TaskMeaning, client: TaskMeaning) -> Decline | None:
    """Check class names, their order, the positive class and the preprocessing."""
    if client == server:
        return None
    return Decline(DeclineReason.MEANING, _meaning_message(server, client), meanings=(server, client))


def _meaning_message(server: TaskMeaning, client: TaskMeaning) -> str:
    if server.class_names != client.class_names:
        ours, theirs = ", ".join(server.class_names), ", ".join(client.class_names)
        lists = f"this federation's classes are {ours}, in that order; the client's are {theirs}"
        return f"{lists}. {_advice_on_classes(server.class_names, client.class_names)}"
    if server.positive_class != client.positive_class:
        ours, theirs = server.positive_class, client.positive_class
        return f"the positive class is {ours} here and {theirs} at the client: set the client's task to {ours}"
    ours, theirs = server.preprocessing, client.preprocessing
    return f"preprocessing differs: here `{ours}`, at the client `{theirs}`; use the same task version and settings"


def _advice_on_classes(server: Sequence[str], client: Sequence[str]) -> str:
    if not _are_renamed(server, client):
        return "A class would be taken for another one: use the same task, version and settings on both sides"
    pairs = ",".join(f"{mine}={yours}" for mine, yours in zip(server, client, strict=True))
    return (
        f"If its folders only have other names, start it with --classes {pairs} "
        "(each class of the federation = the client's folder for it)"
    )


def _are_renamed(server: Sequence[str], client: Sequence[str]) -> bool:
    """Whether the client's classes may be the federation's under other names, in the same order.

    Not if one of its names means another class to the federation: `--classes no=yes,yes=no` would flip every label.
    """
    if len(server) != len(client):
        return False
    return all(mine == yours or yours not in server for mine, yours in zip(server, client, strict=True))


class TheirTensors:
    """A client's schema as it comes in, part by part.

    Of tensors that the federation does not have, only as many are kept as a decline shows: so what a client sends takes
    no more memory than the federation's own schema and a few tensors more.
    """

    def __init__(self, server: ModelSchema) -> None:
        self._server = server
        self._kept: dict[str, TensorSpec] = {}
        self._num_strange = 0

    def add(self, specs: Sequence[TensorSpec]) -> None:
        """The next of them.

        Raises:
            InvalidRequest: a name stands twice, or there are too many.
        """
        for spec in specs:
            if spec.name in self._kept:
                raise InvalidRequest(f"tensor name {spec.name!r} stands twice in the schema", field="tensors")
            if spec.name not in self._server:
                self._num_strange += 1
            if spec.name in self._server or self._num_strange <= limits.MAX_SHOWN_DIFFERENCES:
                self._kept[spec.name] = spec
        if self._num_strange + len(self._kept) > limits.MAX_TENSORS:
            raise InvalidRequest(f"a schema has at most {limits.MAX_TENSORS} tensors", field="tensors")

    def compare(self) -> Decline:
        """What differs, once all of them came.

        Raises:
            ValueError: they make no schema.
        """
        passed_over = max(0, self._num_strange - limits.MAX_SHOWN_DIFFERENCES)
        return compare_schemas(self._server, ModelSchema(tuple(self._kept.values())), passed_over)


def compare_schemas(server: ModelSchema, client: ModelSchema, passed_over: int = 0) -> Decline:
    """Name the tensors on which two schemas with different digests disagree; so many of the client's were not kept."""
    differences = server.differences(client)
    if not differences:
        message = "the client's schema_sha256 is not the digest of the schema that it sent, which is the federation's"
        return Decline(DeclineReason.SCHEMA, f"{message}: see R-SCH-2 of docs/protocol.md for the text to digest")
    shown = differences[: limits.MAX_SHOWN_DIFFERENCES]
    count = len(differences) + passed_over
    message = (
        f"the client's model differs from the federation's in {count} tensors. The first: "
        f"{_describe(shown[0])}. Use the same task, version and settings on both sides"
    )
    return Decline(DeclineReason.SCHEMA, message, shown, count - len(shown))


def _describe(difference: TensorDifference) -> str:
    ours = difference.mine.describe() if difference.mine else "no such tensor"
    theirs = difference.yours.describe() if difference.yours else "no such tensor"
    return f"server has {ours}, client has {theirs}"
