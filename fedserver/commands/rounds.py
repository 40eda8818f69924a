"""`fedserver rounds`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import RenderableType

from fedserver.commands.admin import (
    CALL_SECONDS,
    administration,
    console,
    is_running,
    reading,
    seconds_since,
    show_json,
    span,
)
from fedserver.commands.tables import compact_table
from fedserver.exit_codes import ExitCode, fail
from fedserver.services.round_messages import write_detail, write_records
from fedserver.store.history import History
from fedstream.sizes import part_of, size
from fedstream.v1 import admin_pb2, negotiation_pb2
from fedtask.report import OUTCOMES


def show_rounds(state: Path, number: int | None, *, as_json: bool) -> None:
    """List all rounds, or show one; from the state directory where no server runs."""
    message = _detail(state, number) if number is not None else _listing(state)
    if as_json:
        show_json(message)
    elif isinstance(message, admin_pb2.GetRoundResponse):
        console().print(participation_table(message, time.time()))
    else:
        console().print(_rounds_table(message.rounds))


def _listing(state: Path) -> admin_pb2.ListRoundsResponse:
    if not is_running(state):
        with reading(state) as reader:
            database = reader.database
            rounds = [one for record in History(database) for one in write_records(database, [record])]
            return admin_pb2.ListRoundsResponse(rounds=rounds)
    with administration(state) as stub:
        request = admin_pb2.ListRoundsRequest()
        listed = stub.ListRounds(request, timeout=CALL_SECONDS)
        while listed.next_page_token:
            request.page_token = listed.next_page_token
            page = stub.ListRounds(request, timeout=CALL_SECONDS)
            listed.rounds.extend(page.rounds)
            listed.next_page_token = page.next_page_token
        return listed


def _detail(state: Path, number: int) -> admin_pb2.GetRoundResponse:
    if is_running(state):
        with administration(state) as stub:
            return stub.GetRound(admin_pb2.GetRoundRequest(number=number), timeout=CALL_SECONDS)
    with reading(state) as reader:
        record = History(reader.database).of_number(number)
        if record is not None:
            return write_detail(reader.database, record)
    raise fail(f"there is no round {number} in {state}", ExitCode.BAD_CONFIGURATION)


def _rounds_table(rounds: Iterable[admin_pb2.Round]) -> RenderableType:
    columns = ("round", "result", "offers", "accuracy", "loss", "received", "sent", "why")
    return compact_table("Rounds", columns, map(_round_row, rounds))


def _round_row(one: admin_pb2.Round) -> Sequence[str]:
    metrics = {metric.name: metric.value for metric in one.metrics if metric.HasField("value")}
    over = one.phase == admin_pb2.ROUND_PHASE_DONE
    return (
        str(one.number),
        ("new model" if one.succeeded else "no model") if over else "at work",
        _counts(one.counts),
        _decimal(metrics.get("accuracy")),
        _decimal(metrics.get("loss")),
        size(one.bytes_received),
        size(one.bytes_sent),
        one.reason,
    )


def _counts(counts: admin_pb2.OutcomeCounts) -> str:
    """`4 = 3 completed + 1 expired`."""
    parts = [(getattr(counts, outcome), outcome) for outcome in ("outstanding", *OUTCOMES)]
    shown = " + ".join(f"{number} {outcome}" for number, outcome in parts if number)
    return f"{counts.offered} = {shown}" if shown else str(counts.offered)


def participation_table(detail: admin_pb2.GetRoundResponse, now: float) -> RenderableType:
    """One round with each client's part in it."""
    number = detail.round.number
    title = f"Round {number}: {detail.round.reason.removeprefix(f'round {number}: ')}"
    columns = ("rank", "site", "outcome", "upload", "examples", "weight", "time", "seen", "doing or why")
    return compact_table(title, columns, (_part_row(part, now) for part in detail.participations))


def _part_row(part: admin_pb2.Participation, now: float) -> Sequence[str]:
    outcome = negotiation_pb2.Outcome.Name(part.outcome).removeprefix("OUTCOME_").lower()
    at_work = part.outcome == negotiation_pb2.OUTCOME_UNSPECIFIED
    went_well = part.outcome == negotiation_pb2.OUTCOME_COMPLETED
    return (
        str(part.rank),
        part.client_name,
        "at work" if at_work else outcome,
        part_of(part.committed_size, part.body_size_bytes) if part.body_size_bytes else "",
        str(part.num_examples or ""),
        f"{part.weight:.3f}" if part.weight else "",
        span(part.duration.ToTimedelta().total_seconds()),
        f"{seconds_since(part.last_seen, now)} ago" if part.HasField("last_seen") else "",
        "; ".join(filter(None, (_doing(part) if at_work else "" if went_well else part.reason, part.late_update))),
    )


def _doing(part: admin_pb2.Participation) -> str:
    phase = negotiation_pb2.Phase.Name(part.phase).removeprefix("PHASE_").lower()
    if part.phase == negotiation_pb2.PHASE_TRAINING:
        return f"{phase}, epoch {part.epoch} of {part.epochs}"
    return "has its offer" if part.phase == negotiation_pb2.PHASE_UNSPECIFIED else f"{phase}, {part.fraction:.0%}"


def _decimal(value: float | None) -> str:
    return f"{value:.4f}" if value is not None else ""
