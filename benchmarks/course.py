"""How a federation went, whoever's it was."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.processes import Peak


@dataclass(frozen=True, slots=True)
class Course:
    """What was measured of a run.

    `ends` are the instants, in seconds, at which aggregations ended. Processor seconds are per round, 0 where nobody
    looked.
    """

    ends: Sequence[float]
    peak: Peak
    server_cpu_seconds: float = 0.0
    client_cpu_seconds: float = 0.0

    @property
    def rounds(self) -> list[float]:
        """Seconds from the end of one aggregation to the end of the next, so the first round is none of them."""
        return [later - earlier for earlier, later in itertools.pairwise(self.ends)]
