"""What reads and writes dataclasses as JSON, checked: pydantic's adapters."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

_MADE: dict[Any, TypeAdapter[Any]] = {}


def adapter(kind: type[T]) -> TypeAdapter[T]:
    """The one of a type, made once, when it is first asked for: that takes as long as a thousand uses of it, and at
    import a server's first answer would wait for all of them.
    """
    if kind not in _MADE:
        _MADE[kind] = TypeAdapter(kind)
    return _MADE[kind]
