"""Why the server declined this client, laid out for the person who can mend it."""

from __future__ import annotations

from collections.abc import Sequence

from fedclient.events import Declined
from fedstream.schema import TaskMeaning, TensorDifference, TensorSpec


def describe_declined(declined: Declined) -> str:
    """The server's message, and below it what differs, side by side."""
    blocks = [f"the server declined this client: {declined.message}"]
    if declined.differences:
        blocks.append(_difference_table(declined.differences, declined.more_differences))
    if declined.server_meaning is not None and declined.client_meaning is not None:
        blocks.append(_meaning_table(declined.server_meaning, declined.client_meaning))
    return "\n\n".join(blocks)


def _difference_table(differences: Sequence[TensorDifference], more: int) -> str:
    rows = [("tensor", "this client", "the federation")]
    rows += [(_name(one), _kind(one.mine), _kind(one.yours)) for one in differences]
    table = _table(rows)
    return f"{table}\n... and {more} more" if more else table


def _name(difference: TensorDifference) -> str:
    spec = difference.mine or difference.yours
    return spec.name if spec is not None else "?"


def _kind(spec: TensorSpec | None) -> str:
    return spec.describe().removeprefix(spec.name).strip() if spec is not None else "(none)"


def _meaning_table(server: TaskMeaning, client: TaskMeaning) -> str:
    rows = [
        ("", "this client", "the federation"),
        ("classes, in order", ", ".join(client.class_names), ", ".join(server.class_names)),
        ("positive class", client.positive_class, server.positive_class),
        ("preprocessing", client.preprocessing, server.preprocessing),
    ]
    table = _table(rows)
    if client.class_names == server.class_names or len(client.class_names) != len(server.class_names):
        return table
    pairs = list(zip(server.class_names, client.class_names, strict=True))
    if any(ours != theirs and ours in server.class_names for theirs, ours in pairs):
        return table  # with a name that means another class there, the option would flip labels
    option = ",".join(f"{theirs}={ours}" for theirs, ours in pairs)
    return f"{table}\n\nIf only the folders here have other names, add:  --classes {option}"


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip() for row in rows)
