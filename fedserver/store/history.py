"""The rounds that are over: their records as rows, and a sequence that reads them when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from fedserver.store.database import Database
from fedserver.store.rows import read_row, row_text
from fedtask.report import RoundRecord

_AT_ONCE = 20
"""A query for each record alone would pass over all before it as often."""


def record_text(record: RoundRecord) -> str:
    """A round's record as it is stored."""
    return row_text(RoundRecord, record)


def read_record(database: Database, number: int) -> RoundRecord | None:
    """The record of a round; `None` if there is none.

    Raises:
        StateError: the row is damaged.
    """
    rows = database.query("SELECT record FROM rounds WHERE number = ?", number)
    return read_row(RoundRecord, rows[0][0], "rounds") if rows else None


def read_records(database: Database, start: int, count: int) -> list[RoundRecord]:
    """The rounds that are over, oldest first, from the place `start`, from 0: so many, or as there are.

    Raises:
        StateError: a row is damaged.
    """
    texts = database.query("SELECT record FROM rounds ORDER BY number LIMIT ? OFFSET ?", count, start)
    return [read_row(RoundRecord, text, "rounds") for (text,) in texts]


class History(Sequence[RoundRecord]):
    """All rounds that are over, oldest first. Only the last one is held: a record of 8 clients takes some 10 KB, and a
    federation may have thousands.

    Used by the thread that appends, but for slices of neighbours: others may take them as well. These are read from the
    database, which all threads may use, and need nothing from here but the length; rows are only ever added behind.

    Args:
        database: where they are.

    Raises:
        StateError: when a row is read that is damaged.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._length = int(database.query("SELECT count(*) FROM rounds")[0][0])
        self._last = read_records(database, self._length - 1, 1)[0] if self._length else None

    def append(self, record: RoundRecord) -> None:
        """A round more is over; its row is written."""
        self._length, self._last = self._length + 1, record

    def of_number(self, number: int) -> RoundRecord | None:
        """The round of that number, or the last one for 0; `None` if it is not over, or never was."""
        if self._last is None or number in (0, self._last.number):
            return self._last
        return read_record(self._database, number) if number < self._last.number else None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[RoundRecord]:
        """All, of which a few are held at a time: those of many rounds and sites would fill the memory."""
        for start in range(0, self._length, _AT_ONCE):
            yield from self[start : start + _AT_ONCE]

    @overload
    def __getitem__(self, place: int) -> RoundRecord: ...
    @overload
    def __getitem__(self, place: slice) -> list[RoundRecord]: ...
    def __getitem__(self, place: int | slice) -> RoundRecord | list[RoundRecord]:
        wanted = range(self._length)[place]
        if isinstance(wanted, int):
            if self._last is not None and wanted == self._length - 1:
                return self._last
            return read_records(self._database, wanted, 1)[0]
        if wanted.step != 1:
            return [self[each] for each in wanted]
        return read_records(self._database, wanted.start, len(wanted))
