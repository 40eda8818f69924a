"""One client's part in one round."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fedstream.outcomes import Outcome
from fedstream.plan import Plan
from fedstream.progress import Progress


class Stage(enum.Enum):
    """Where a participation is. Legal transitions:

    OFFERED -> WORKING | ENDED
    WORKING -> FINISHING | ENDED
    FINISHING -> WORKING (the check did not come to its end) | ENDED
    ENDED (completed) -> ENDED (quarantined), by the checks against the cohort when the round closes
    ENDED (completed) -> WORKING, when its stored update is found damaged at start-up
    """

    OFFERED = "offered"
    WORKING = "working"
    FINISHING = "finishing"
    ENDED = "ended"


@dataclass(slots=True)
class Participation:
    """One client's part in one round. `rank` is the position in the cohort, from 0, fixed when the offers are made.

    `metrics` are those of its update, and `undefined` is why some of them have no value, by name. `last_seen` is from
    when its silence counts: from the offer on, or from when this process took it up, as long as it was not `heard`.
    """

    client: str
    rank: int
    offer_id: str
    upload_id: str
    plan: Plan
    claimed_examples: int
    offered_at: float
    deadline: float
    lease_until: float
    last_seen: float
    stage: Stage = Stage.OFFERED
    outcome: Outcome | None = None
    reason: str = ""
    ended_at: float | None = None
    progress: Progress = field(default_factory=Progress)
    num_examples: int = 0
    weight: float = 0.0
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    committed_size: int = 0
    body_size_bytes: int = 0
    undefined: Mapping[str, str] = field(default_factory=dict)
    heard: bool = False

    @property
    def is_outstanding(self) -> bool:
        """Whether it has not ended."""
        return self.stage is not Stage.ENDED

    def end(self, outcome: Outcome, reason: str, now: float) -> None:
        """Record how it ended."""
        self.stage, self.outcome, self.reason = Stage.ENDED, outcome, reason
        self.ended_at = now


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """How many offers of a round ended how: `offered` is `outstanding` and all outcomes added up."""

    offered: int
    outstanding: int
    by_outcome: Mapping[Outcome, int]

    def __getitem__(self, outcome: Outcome) -> int:
        return self.by_outcome[outcome]


def count_outcomes(participations: Iterable[Participation]) -> OutcomeCounts:
    """The counts of a round."""
    counter = Counter(participation.outcome for participation in participations)
    by_outcome = {outcome: counter[outcome] for outcome in Outcome}
    return OutcomeCounts(sum(counter.values()), counter[None], by_outcome)
