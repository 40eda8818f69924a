"""A client's training history for people: one row per epoch, kept as a CSV file."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

HistoryRow = Mapping[str, float | None]
"""One epoch: `round`, `epoch` (within the fine-tune, from 1), `loss`, `accuracy`, `val_loss`, `val_accuracy`, ..."""


def write_csv(rows: Sequence[HistoryRow], path: Path) -> None:
    """Write `rows` as CSV: `round`, `epoch`, then the other columns as they first come up. `None` is an empty field.

    The file is replaced at once or not at all, and not synced: whoever has the rows can write them again.
    """
    columns = list(dict.fromkeys(itertools.chain(("round", "epoch"), *rows)))
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def read_csv(path: Path) -> list[HistoryRow]:
    """The rows that `write_csv` wrote; a field that was empty is `None`, also where a row had no such column."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)]
