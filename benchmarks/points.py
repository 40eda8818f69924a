"""What `benchmarks.scaling` measures, and `benchmarks.scaling_picture` draws."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.rows import Size


@dataclass(frozen=True, slots=True)
class Point:
    """One size, measured. `is_bare` says whether its sites are bare ones."""

    size: Size
    is_bare: bool
    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """Seconds per round."""
        return statistics.median(self.seconds)
