"""What rows hold as JSON: written from the types of the domain, and checked when it is read."""

from __future__ import annotations

from typing import TypeVar

from fedserver.store.database import RESTORE
from fedserver.store.errors import StateError
from fedtask.adapters import adapter

T = TypeVar("T")


def row_text(kind: type[T], value: T) -> str:
    """A value as it is stored; a mapping of any kind becomes an object."""
    return adapter(kind).dump_json(value, fallback=dict, warnings="none").decode()


def read_row(kind: type[T], text: str, table: str) -> T:
    """The value that `row_text` made `text` of.

    Raises:
        StateError: the row, which is of that table, is damaged.
    """
    try:
        value: T = adapter(kind).validate_json(text)
    except ValueError as error:
        why = " ".join(str(error).split())[:200]
        raise StateError(f"a row of table {table} in the state database is damaged ({why}); {RESTORE}") from error
    return value
