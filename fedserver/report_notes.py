"""What a reader of the report must know beside its tables: of what its words are not true for all rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from fedserver.store.database import Database
from fedserver.store.ledger import methods
from fedserver.store.scores import comparable
from fedstream.plan import Plan
from fedtask.report import RoundRecord

_MOST_NAMED = 10


def note_of_others(records: Sequence[RoundRecord], holdout: str) -> str:
    """Where not all scores are of the holdout that the report describes; else empty."""
    scored, compared = [record for record in records if record.evaluation is not None], comparable(records, holdout)
    if not holdout and scored:
        return (
            f"The last start was given no holdout: scores are of rounds up to {scored[-1].number}, on one that is not "
            "described here."
        )
    others = sorted({record.number for record in scored} - {record.number for record in compared})
    if not others:
        return ""
    return (
        f"Scored on another holdout than the one described here: {_named(others)}. Such "
        "scores cannot be compared with the others, among which alone the best model was chosen."
    )


def notes_of_methods(database: Database, strategy: str, plan: Plan) -> Iterator[str]:
    """Where rounds were run with another strategy or plan than the last start has, with which they were."""
    by_strategy: dict[str, list[int]] = defaultdict(list)
    by_plan: dict[str, list[int]] = defaultdict(list)
    for number, used, offered in methods(database):
        if used != strategy:
            by_strategy[used].append(number)
        if others := [_setting(name, value) for name, value in offered.items() if value != getattr(plan, name)]:
            by_plan[", ".join(others)].append(number)
    for used, numbers in by_strategy.items():
        yield f"Aggregated with another strategy than the one described here: {_named(numbers)}, with {used}."
    for other, numbers in by_plan.items():
        yield f"Trained by another plan than the one described here: {_named(numbers)}, with {other}."


def _setting(name: str, value: Any) -> str:
    shown = ", ".join(f"{key}={one}" for key, one in value.items()) or "none" if isinstance(value, dict) else value
    return f"{name.replace('_', ' ')} {shown}"


def _named(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    return f"round{'s' if len(numbers) > 1 else ''} {', '.join(str(number) for number in numbers[:_MOST_NAMED])}{more}"
