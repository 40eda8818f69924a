"""What was measured: a table for people, and JSON with everything needed to compare it later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import describe_machine, versions

LATEST = Path(__file__).parent / "results" / "latest.json"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table.

    `figures` are its columns, by heading, which names the unit; `samples` the single measurements behind them, in the
    order in which they were made; `note` says what a reader must know to understand them.
    """

    name: str
    figures: Mapping[str, float | str]
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """What one part of the benchmarks found."""

    title: str
    lines: Sequence[Line]


def show(table: Table) -> None:
    """Print a table; a figure that a line does not have is left out."""
    headings = list(dict.fromkeys(heading for line in table.lines for heading in line.figures))
    rows = [["", *headings], *(_cells(line, headings) for line in table.lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings) + 1)]
    print(f"\n{table.title}")
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print("  " + "   ".join([first.ljust(widths[0]), *cells]))
    for line in table.lines:
        if line.note:
            print(f"  {line.name}: {line.note}")
    print(flush=True)


def _cells(line: Line, headings: Sequence[str]) -> list[str]:
    return [line.name, *(_shown(line.figures.get(heading, "")) for heading in headings)]


def _shown(figure: float | str) -> str:
    if isinstance(figure, str):
        return figure
    if isinstance(figure, int) or abs(figure) >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.2f}"


def keep(tables: Mapping[str, Table], command: Sequence[str]) -> Path:
    """Write all tables of one run, by part, in place of those of the run before."""
    LATEST.parent.mkdir(exist_ok=True)
    facts = {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "machine": describe_machine(LATEST.parent),
        "versions": versions(),
        "parts": {part: asdict(table) for part, table in tables.items()},
    }
    LATEST.write_text(json.dumps(facts, indent=2) + "\n")
    return LATEST
