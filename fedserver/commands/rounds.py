"""`fedserver rounds`."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedserver.commands.admin import CALL_SECONDS, administration, seconds_since, show_json, span
from fedstream.v1 import admin_pb2, negotiation_pb2

_OUTCOMES = ("completed", "quarantined", "declined", "withdrawn", "failed", "expired", "cancelled")


def show_rounds(state: Path, number: int | None, *, as_json: bool) -> None:
    """List all rounds, or show one."""
    with administration(state) as stub:
        if number is not None:
            detail = stub.GetRound(admin_pb2.GetRoundRequest(number=number), timeout=CALL_SECONDS)
            if as_json:
                show_json(detail)
            else:
                Console().print(participation_table(detail, time.time()))
            return
        request = admin_pb2.ListRoundsRequest()
        listed = stub.ListRounds(request, timeout=CALL_SECONDS)
        while listed.next_page_token:
            request.page_token = listed.next_page_token
            page = stub.ListRounds(request, timeout=CALL_SECONDS)
            listed.rounds.extend(page.rounds)
            listed.next_page_token = page.next_page_token
        if as_json:
            show_json(listed)
        else:
            Console().print(_rounds_table(list(listed.rounds)))


def _rounds_table(rounds: list[admin_pb2.Round]) -> Table:
    table = Table(title="Rounds (offered = all outcomes added up)", title_justify="left")
    for column in ("round", "result", "offered", *_OUTCOMES, "accuracy", "loss", "received", "sent", "why"):
        table.add_column(column)
    for one in rounds:
        metrics = {metric.name: metric.value for metric in one.metrics if metric.HasField("value")}
        over = one.phase == admin_pb2.ROUND_PHASE_DONE
        table.add_row(
            str(one.number),
            ("new model" if one.succeeded else "no model") if over else "at work",
            str(one.counts.offered),
            *(str(getattr(one.counts, outcome)) for outcome in _OUTCOMES),
            _decimal(metrics.get("accuracy")),
            _decimal(metrics.get("loss")),
            _megabytes(one.bytes_received),
            _megabytes(one.bytes_sent),
            one.reason,
        )
    return table


def participation_table(detail: admin_pb2.GetRoundResponse, now: float) -> Table:
    """One round with each client's part in it."""
    title = f"Round {detail.round.number}: {detail.round.reason}"
    table = Table(title=title, title_justify="left")
    for column in ("rank", "site", "outcome", "doing", "upload", "examples", "weight", "time", "last seen", "why"):
        table.add_column(column)
    for part in detail.participations:
        outcome = negotiation_pb2.Outcome.Name(part.outcome).removeprefix("OUTCOME_").lower()
        at_work = part.outcome == negotiation_pb2.OUTCOME_UNSPECIFIED
        table.add_row(
            str(part.rank),
            part.client_name,
            "at work" if at_work else outcome,
            _doing(part) if at_work else "",
            f"{_megabytes(part.committed_size)} of {_megabytes(part.body_size_bytes)}" if part.body_size_bytes else "",
            str(part.num_examples or ""),
            f"{part.weight:.3f}" if part.weight else "",
            span(part.duration.ToTimedelta().total_seconds()),
            f"{seconds_since(part.last_seen, now)} ago" if part.HasField("last_seen") else "",
            "" if at_work else part.reason,
        )
    return table


def _doing(part: admin_pb2.Participation) -> str:
    phase = negotiation_pb2.Phase.Name(part.phase).removeprefix("PHASE_").lower()
    if part.phase == negotiation_pb2.PHASE_TRAINING:
        return f"{phase}, epoch {part.epoch} of {part.epochs}"
    return "has its offer" if part.phase == negotiation_pb2.PHASE_UNSPECIFIED else f"{phase}, {part.fraction:.0%}"


def _decimal(value: float | None) -> str:
    return f"{value:.4f}" if value is not None else ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
