"""A preview for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from fedclient.preview.contract import Kind, content, fields_of, kinds
from fedclient.preview.messages import Facts, reply_to_default_plan, travelling
from fedstream.sizes import size

NEVER = (
    "images, or what the network makes of any one of them",
    "names and paths of files and folders, on this machine or of patients",
    "examples per class, files that could not be read, and warnings about the data",
    "the training history, plots and models that are kept in the out folder",
    "private keys, and settings other than those shown above",
    "logs",
)
"""What no message has a field for."""

_REALLY = {Kind("Negotiate", "hello")}
_UNKNOWN = "(the contract has this message, but this version has no example of it)"


def as_lines(facts: Facts, messages: Mapping[Kind, Message], learns: str) -> Iterator[str]:
    """The preview, line by line."""
    config = facts.config
    yield f"What would leave this machine if `fedclient run` were started with these settings, to learn {learns}."
    yield f"Nothing of it has been sent. This site is called {config.name}."
    for kind in kinds():
        yield ""
        yield f"{kind.call} {kind.kind}".strip() + (
            "" if kind in _REALLY else "   (identifiers and values are examples)"
        )
        yield from _fields(kind, messages)
    yield ""
    reply = reply_to_default_plan(facts).WhichOneof("kind")
    yield f"To an offer of the task's own plan, with an hour for it, this site would answer: {reply}."
    yield ""
    yield from _tensors(facts)
    yield "Trained weights can reveal something of the images behind them to a determined reader."
    yield ""
    yield f"Metrics that may leave (--report): {config.reporting.describe()}."
    yield "With every call, gRPC says its own version, and the server sees the address that the call comes from."
    yield ""
    yield "Never sent:"
    yield from (f"  - {one}" for one in NEVER)


def _fields(kind: Kind, messages: Mapping[Kind, Message]) -> Iterator[str]:
    if kind not in messages:
        yield f"  {_UNKNOWN}"
        return
    for field in fields_of(content(kind, messages[kind])):
        yield f"  {field.path} = {field.value}" if field.value is not None else f"  {field.path}   (nothing)"


def _tensors(facts: Facts) -> Iterator[str]:
    schema = facts.site.description.schema
    moving = travelling(schema)
    total = sum(spec.size_bytes for spec in moving)
    yield f"Tensors whose values an update brings: {len(moving)} of {len(schema)}, {size(total)} unencoded."
    yield from (f"  {spec.describe()}, {spec.size_bytes} bytes" for spec in moving)


def as_json(facts: Facts, messages: Mapping[Kind, Message], learns: str) -> dict[str, Any]:
    """The preview as one object."""
    return {
        "name": facts.config.name,
        "learns": learns,
        "messages": [
            {
                "call": kind.call,
                "kind": kind.kind,
                "as_sent": kind in _REALLY,
                "fields": {one.path: one.value for one in fields_of(content(kind, messages[kind]))}
                if kind in messages
                else None,
            }
            for kind in kinds()
        ],
        "tensors": [
            {"name": spec.name, "dtype": spec.dtype.name.lower(), "shape": spec.shape, "size_bytes": spec.size_bytes}
            for spec in travelling(facts.site.description.schema)
        ],
        "reply": reply_to_default_plan(facts).WhichOneof("kind"),
        "metrics": facts.config.reporting.describe(),
        "never": list(NEVER),
    }
