"""Tables in a terminal, however narrow: text is wrapped between words, and short columns stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

_LONGEST_WORD = 12
"""So long a word stays whole in a narrow terminal, as numbers do. A longer one is folded, as a site's name may be."""

_BETWEEN = 2
"""Cells between two columns."""


def compact_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    """A table without lines between its rows, nor columns that say nothing of any of them.

    What sites say stands in it as it is, on whatever console.
    """
    rows = list(rows)
    told = [place for place in range(len(columns)) if not rows or any(row[place] for row in rows)]
    return _Compact(title, [[columns[place], *(row[place] for row in rows)] for place in told])


@dataclass(frozen=True, slots=True)
class _Compact:
    """`columns` are the texts of each, its heading first. How wide they are is known when it is shown."""

    title: str
    columns: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.padding = (0, _BETWEEN - 1, 0, 0)  # and one for the line between columns, of which nothing is drawn
        room = options.max_width - _BETWEEN * (len(self.columns) - 1)
        for (column, *_), width in zip(self.columns, _widths(self.columns, room), strict=True):
            table.add_column(column, overflow="fold", max_width=width)
        for row in list(zip(*self.columns, strict=True))[1:]:
            table.add_row(*map(Text, row))  # plain strings would be read as rich's markup: [/data/val] as a closing tag
        yield Text(self.title, "table.title")  # of its own: as the table's it would be wrapped to how wide that is
        yield table
        yield Text()


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """How wide columns are, in cells: as their longest word, and each with a fair share of what is left for the rest.

    Where there is no room for the words either, all the same: rich makes the widest of them narrower then.
    """
    widths = [min(_LONGEST_WORD, max(cell_len(word) for text in texts for word in text.split())) for texts in columns]
    lacking = [max(map(cell_len, texts)) - width for texts, width in zip(columns, widths, strict=True)]
    left = max(0, room - sum(widths))
    in_need = sorted(range(len(columns)), key=lacking.__getitem__)
    for num_sharing, place in zip(range(len(columns), 0, -1), in_need, strict=True):
        share = min(lacking[place], left // num_sharing)
        widths[place] += share
        left -= share
    return widths
