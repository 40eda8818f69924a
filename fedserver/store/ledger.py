"""The ledger: one entry per round that is over, each with the hash of the one before.

An entry is canonical JSON: UTF-8 without white space between tokens, the keys of every object in the order of their
code points, no character escaped that JSON allows as it is, integers in decimal, every other number as the shortest
decimal that reads back as the same float64 (as Python's `repr` writes it), and neither NaN nor infinity. Its hash is
the sha256 of these bytes. `previous` in it is the hash of the entry before, in lower-case hexadecimal; 64 zeros in the
first.

The chain shows any change to those who know the hash of the last entry: whoever can write the file can also make the
whole chain anew. `fedserver verify` prints that hash, and the server logs it after every round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedserver.store.database import Database
from fedserver.store.journal import Statement

FORMAT = "fedstream ledger v1"
FIRST_PREVIOUS = "0" * 64


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """An entry as it is stored. `entry` is its canonical JSON; `hash` was its sha256 when it was written."""

    number: int
    entry: str
    hash: bytes

    def fields(self) -> dict[str, Any]:
        """The entry's fields.

        Raises:
            ValueError: it is no JSON object.
        """
        fields = json.loads(self.entry)
        if not isinstance(fields, dict):
            raise ValueError("the entry is no JSON object")
        return fields


def canonical_json(fields: Mapping[str, Any]) -> str:
    """The one way to write `fields`; see the module's docstring.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_of(entry: str) -> bytes:
    """sha256 of an entry's bytes."""
    return hashlib.sha256(entry.encode()).digest()


def appending(number: int, fields: Mapping[str, Any]) -> Statement:
    """What makes an entry durable."""
    entry = canonical_json(fields)
    return Statement("INSERT OR REPLACE INTO ledger VALUES (?, ?, ?)", (number, entry, hash_of(entry)))


def last_hash(database: Database) -> str:
    """The hash of the last entry, in hexadecimal."""
    rows = database.query("SELECT hash FROM ledger ORDER BY number DESC LIMIT 1")
    return rows[0][0].hex() if rows else FIRST_PREVIOUS


def ledger(database: Database) -> list[LedgerRow]:
    """All entries, oldest first."""
    return [LedgerRow(*row) for row in database.query("SELECT number, entry, hash FROM ledger ORDER BY number")]
