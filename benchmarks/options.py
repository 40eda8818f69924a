"""What a person may ask of every part."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import Size


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure. `chosen` sizes and `rounds` are the part's own where they are not given.

    `num_sites` is how many wait in the part `sites`, `num_seeds` how many federations the part `encodings` runs with
    each encoding. `folder` is for files that are written on the way: on the disk whose fsync is to be measured.
    """

    repeats: int
    rounds: int | None
    chosen: Sequence[str]
    folder: Path
    num_sites: int
    num_seeds: int = 1

    def sizes(self, usual: Sequence[str]) -> list[Size]:
        """The sizes to measure."""
        return [Size.parse(text) for text in self.chosen or usual]

    def say(self, text: str) -> None:
        """Tell how far it is."""
        print(f"  {text}", file=sys.stderr, flush=True)
