"""Which scores of rounds can be compared: those on the same holdout; and the best model on each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedserver.coordinator.scoreboard import Scoreboard
from fedstream.manifest import Digest, ModelRef
from fedtask.report import RoundRecord


def comparable(records: Sequence[RoundRecord], holdout: str = "") -> list[RoundRecord]:
    """The rounds that were scored on this holdout; on that of the last scored one if there is none now."""
    groups = by_holdout(records, holdout)
    if holdout:
        return groups.get(holdout, [])
    return max(groups.values(), key=lambda scored: scored[-1].number, default=[])


def by_holdout(records: Iterable[RoundRecord], holdout: str = "") -> dict[str, list[RoundRecord]]:
    """The rounds that were scored, by what they were scored on.

    Of those that an earlier version has recorded it is not known: they count as if they were on that of the first round
    of which it is, and on `holdout` if it is of none.
    """
    scored = [record for record in records if record.evaluation is not None]
    unknown = next((record.holdout_id for record in scored if record.holdout_id), holdout)
    groups: dict[str, list[RoundRecord]] = {}
    for record in scored:
        groups.setdefault(record.holdout_id or unknown, []).append(record)
    return groups


def best_versions(records: Iterable[RoundRecord]) -> set[int]:
    """The version of the best model by its scores on each holdout."""
    found = [_best_of(scored) for scored in by_holdout(records).values()]
    return {best.version for best in found if best is not None}


def _best_of(scored: Iterable[RoundRecord]) -> ModelRef | None:
    scoreboard = Scoreboard(patience=0)
    for record in scored:
        if record.evaluation is not None:
            scoreboard.record(ModelRef(record.number, Digest(b"", 0)), record.evaluation.metrics)
    return scoreboard.best
