"""A round at work as rows: enough, at every instant, for a new process to go on where the last one was.

Instants of the steady clock mean nothing to another process, so rows hold spans: how long ago something was, how much
time is left. The time during which no server ran is in none of them, and counts against no deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedserver.coordinator.participation import Participation, Stage
from fedserver.coordinator.round import COMING_BACK_SECONDS, Round, RoundRules
from fedserver.store.database import Database
from fedserver.store.journal import Statement
from fedserver.store.rows import read_row, row_text
from fedserver.store.uploads import UploadState
from fedstream.manifest import ModelRef
from fedstream.outcomes import Outcome
from fedstream.plan import Plan


@dataclass(frozen=True, slots=True)
class ParticipationRow:
    """A participation as it is stored; spans in seconds."""

    client: str
    rank: int
    offer_id: str
    upload_id: str
    plan: Plan
    claimed_examples: int
    stage: Stage
    outcome: Outcome | None
    reason: str
    seconds_since_offer: float
    seconds_left: float
    seconds_taken: float | None
    num_examples: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    committed_size: int = 0
    body_size_bytes: int = 0
    undefined: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A round that is at work, as it is stored; spans in seconds. `closed_because` is empty until it closes."""

    number: int
    base_version: int
    base_sha256_hex: str
    rules: RoundRules
    seconds_open: float
    closed_because: str = ""


def keeping(round_: Round, now: float) -> list[Statement]:
    """What makes a round durable as it is now, with its offers, how its parts ended, and its close.

    Parts whose update is being checked are left out: how they end may be on its way to their rows already, and what
    stands there till then is where a check that a crash ends begins anew.
    """
    parts = [part for part in round_.participations if part.stage is not Stage.FINISHING]
    return [_round_statement(round_, now), *(keeping_part(round_, part, now) for part in parts)]


def keeping_part(round_: Round, part: Participation, now: float) -> Statement:
    """What makes the state of one client's part durable; of none whose update is being checked, as in `keeping`."""
    assert part.stage is not Stage.FINISHING, "its end may be on the way to its row"
    row = ParticipationRow(
        client=part.client,
        rank=part.rank,
        offer_id=part.offer_id,
        upload_id=part.upload_id,
        plan=part.plan,
        claimed_examples=part.claimed_examples,
        stage=part.stage,
        outcome=part.outcome,
        reason=part.reason,
        seconds_since_offer=now - part.offered_at,
        seconds_left=part.deadline - now,
        seconds_taken=part.ended_at - part.offered_at if part.ended_at is not None else None,
        num_examples=part.num_examples,
        metrics=dict(part.metrics),
        committed_size=part.committed_size,
        body_size_bytes=part.body_size_bytes,
        undefined=dict(part.undefined),
    )
    sql = "INSERT OR REPLACE INTO participations VALUES (?, ?, ?, ?)"
    return Statement(sql, (round_.number, part.rank, part.upload_id, row_text(ParticipationRow, row)))


def concluding(record_text: str, number: int, model_sha256: bytes | None) -> list[Statement]:
    """What makes a round's record durable; with it, the round is over, and what did not finish uploading is void."""
    unfinished = (number, UploadState.OPEN.value)
    return [
        Statement("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?)", (number, model_sha256, record_text)),
        Statement("DELETE FROM open_rounds WHERE number = ?", (number,)),
        Statement("DELETE FROM uploads WHERE round = ? AND state = ?", unfinished),
    ]


def noting_late(number: int, rank: int, reason: str) -> Statement:
    """What makes durable that an update came after its part in a round had ended; the last word counts."""
    return Statement("INSERT OR REPLACE INTO late_updates VALUES (?, ?, ?)", (number, rank, reason))


def late_updates(database: Database, number: int) -> dict[int, str]:
    """What became of updates that came after their part in a round had ended, by rank."""
    return dict(database.query("SELECT rank, reason FROM late_updates WHERE round = ? ORDER BY rank", number))


def received_bytes(database: Database, number: int) -> int:
    """How many bytes of a round's updates are committed."""
    size: int = database.query("SELECT coalesce(sum(committed_size), 0) FROM uploads WHERE round = ?", number)[0][0]
    return size


def _round_statement(round_: Round, now: float) -> Statement:
    row = RoundRow(
        number=round_.number,
        base_version=round_.base.version,
        base_sha256_hex=round_.base.digest.hex,
        rules=round_.rules,
        seconds_open=now - round_.opened,
        closed_because=round_.reason,
    )
    return Statement("INSERT OR REPLACE INTO open_rounds VALUES (?, ?)", (round_.number, row_text(RoundRow, row)))


@dataclass(frozen=True, slots=True)
class UnfinishedRound:
    """A round that an earlier process left at work."""

    row: RoundRow
    participations: Sequence[ParticipationRow]

    def revive(self, base: ModelRef, now: float) -> Round:
        """The round as it was, with fresh leases, and time for everybody to find this server.

        Whoever is still there has had no chance to say so, and may have finished all that it had to do.
        """
        parts = [_revived(row, self.row.rules, now) for row in self.participations]
        round_ = Round(self.row.number, base, self.row.rules, parts, opened=now - self.row.seconds_open)
        if self.row.closed_because:
            round_.closed, round_.reason = now, self.row.closed_because
        return round_


def _revived(row: ParticipationRow, rules: RoundRules, now: float) -> Participation:
    offered_at = now - row.seconds_since_offer
    return Participation(
        client=row.client,
        rank=row.rank,
        offer_id=row.offer_id,
        upload_id=row.upload_id,
        plan=row.plan,
        claimed_examples=row.claimed_examples,
        offered_at=offered_at,
        deadline=now + max(row.seconds_left, COMING_BACK_SECONDS),
        lease_until=now + max(rules.lease_seconds, COMING_BACK_SECONDS),
        last_seen=now,
        stage=row.stage,
        outcome=row.outcome,
        reason=row.reason,
        ended_at=offered_at + row.seconds_taken if row.seconds_taken is not None else None,
        num_examples=row.num_examples,
        metrics=row.metrics,
        committed_size=row.committed_size,
        body_size_bytes=row.body_size_bytes,
        undefined=row.undefined,
    )


def unfinished(database: Database) -> UnfinishedRound | None:
    """The round that an earlier process left at work, if any.

    Raises:
        StateError: a row is damaged.
    """
    rows = database.query("SELECT number, row FROM open_rounds ORDER BY number DESC LIMIT 1")
    if not rows:
        return None
    number, text = rows[0]
    sql = "SELECT row FROM participations WHERE round = ? ORDER BY rank"
    parts: list[ParticipationRow] = [
        read_row(ParticipationRow, part, "participations") for (part,) in database.query(sql, number)
    ]
    return UnfinishedRound(read_row(RoundRow, text, "open_rounds"), parts)


def part_of_upload(database: Database, upload_id: str) -> tuple[int, ParticipationRow] | None:
    """The round and the part in it that an upload belongs to, as last recorded; `None` if none is known."""
    rows = database.query("SELECT round, row FROM participations WHERE upload_id = ?", upload_id)
    return (rows[0][0], read_row(ParticipationRow, rows[0][1], "participations")) if rows else None
