"""The ledger against itself, and against the tables that say the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedserver.aggregation import strategy_named
from fedserver.store.database import Database
from fedserver.store.ledger import FIRST_PREVIOUS, Entry, LedgerRow, hash_of, ledger
from fedserver.verification.findings import Difference


@dataclass(frozen=True, slots=True)
class Books:
    """What is written of the rounds that are over, read at one instant.

    `records` has each round's record as text and the sha256 of its model; `versions` the sha256 of each model.
    """

    rows: Sequence[LedgerRow]
    records: Mapping[int, tuple[str, bytes | None]]
    versions: Mapping[int, bytes]

    @classmethod
    def read(cls, database: Database) -> Books:
        """Read them."""
        with database.snapshot():
            rounds = database.query("SELECT number, record, model_sha256 FROM rounds")
            versions = dict(database.query("SELECT version, sha256 FROM versions"))
            return cls(ledger(database), {number: (text, sha256) for number, text, sha256 in rounds}, versions)


@dataclass(frozen=True, slots=True)
class Page:
    """A round's entry, `None` if it cannot be read, and what is wrong with it before any file was looked at."""

    number: int
    entry: Entry | None
    differences: Sequence[Difference]


def read_pages(books: Books) -> list[Page]:
    """Every entry, checked against its hash, the one before, and the other tables."""
    pages: list[Page] = []
    previous, base = FIRST_PREVIOUS, _hex(books.versions.get(0))
    for place, row in enumerate(books.rows, start=1):
        entry, found = _read(row)
        if row.number != place and (not pages or row.number != pages[-1].number + 1):
            found.append(Difference("ledger", f"the entry before round {row.number} is missing"))
        if entry is not None:
            found += [*_chained(row, entry, previous), *_as_in_tables(row.number, entry, books, base), *_weights(entry)]
            base = entry.aggregate.model_digest if entry.aggregate is not None else base
        pages.append(Page(row.number, entry, found))
        previous = row.hash.hex()
    return pages


def missing_entries(books: Books) -> list[Difference]:
    """Rounds that are over and have no entry."""
    known = {row.number for row in books.rows}
    return [Difference("ledger", f"round {number} has no entry") for number in sorted(books.records.keys() - known)]


def _read(row: LedgerRow) -> tuple[Entry | None, list[Difference]]:
    found: list[Difference] = []
    now = hash_of(row.text)
    if now != row.hash:
        found.append(Difference("entry", f"it was changed: its sha256 is {now.hex()}, not {row.hash.hex()}"))
    try:
        return row.entry(), found
    except ValueError as error:
        return None, [*found, Difference("entry", f"it cannot be read: {' '.join(str(error).split())}")]


def _chained(row: LedgerRow, entry: Entry, previous: str) -> Iterator[Difference]:
    if entry.round != row.number:
        yield Difference("entry.round", f"it is {entry.round}, but the entry stands at {row.number}")
    if entry.previous != previous:
        yield Difference("entry.previous", f"it is {entry.previous}, but the entry before has the hash {previous}")


def _as_in_tables(number: int, entry: Entry, books: Books, base: str) -> Iterator[Difference]:
    aggregate = entry.aggregate.model_digest if entry.aggregate is not None else "none"
    if number not in books.records:
        yield Difference("rounds", "the round's record is missing")
    else:
        text, model = books.records[number]
        if hashlib.sha256(text.encode()).hexdigest() != entry.record_sha256:
            yield Difference("rounds.record", "it was changed: its sha256 is not the entry's record_sha256")
        if _hex(model) != aggregate:
            yield Difference("entry.aggregate", f"it is {aggregate}, but the round's row has {_hex(model)}")
    if entry.base.model_digest != base:
        yield Difference("entry.base", f"it is {entry.base.model_digest}, but the model before this round was {base}")
    stored = _hex(books.versions.get(number))
    if entry.aggregate is not None and stored != aggregate:
        yield Difference("entry.aggregate", f"it is {aggregate}, but the model of version {number} is {stored}")


def _weights(entry: Entry) -> Iterator[Difference]:
    """What a strategy makes of the number of examples is known."""
    try:
        strategy = strategy_named(entry.strategy)
    except ValueError as error:
        yield Difference("entry.strategy", str(error))
        return
    for member, update, recorded in entry.admitted:
        weight = strategy.weight(member.rank, update.num_examples)
        if weight != recorded:
            what = f"it is {recorded!r}, but {entry.strategy} gives {weight!r} for {update.num_examples} examples"
            yield Difference(f"entry.cohort[{member.rank}].update.weight", what)


def _hex(sha256: bytes | None) -> str:
    return sha256.hex() if sha256 is not None else "none"
