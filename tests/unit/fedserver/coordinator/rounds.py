"""Rounds to try things on: three clients, 100 s, a lease of 10 s."""

from __future__ import annotations

from typing import Any

from fedserver.coordinator.participation import Participation
from fedserver.coordinator.round import Picked, Round, RoundRules
from fedstream.manifest import Digest, ModelRef
from fedstream.outcomes import Outcome
from fedstream.plan import Plan

BASE = ModelRef(6, Digest(b"\x06" * 32, 100))
PLAN = Plan(epochs=5, batch_size=32, learning_rate=1e-4, early_stopping_patience=2, seed=1)
OPENED = 1_000.0
RULES = RoundRules(min_clients=2, reporting_goal=3, timeout_seconds=100.0, longest_seconds=150.0, lease_seconds=10.0)


def picked(client: str) -> Picked:
    """An offer to a client, with ids made of its name."""
    return Picked(client, PLAN, claimed_examples=40, offer_id=f"offer-{client}", upload_id=f"upload-{client}")


def open_round(clients: str = "abc", now: float = OPENED, **rules: Any) -> Round:
    """Round 7, with one client per letter."""
    given = {name: rules.get(name, getattr(RULES, name)) for name in RoundRules.__dataclass_fields__}
    return Round.open(7, BASE, RoundRules(**given), [picked(client) for client in clients], now)


def part_of(round_: Round, client: str) -> Participation:
    """The client's part."""
    part = round_.of_client(client)
    assert part is not None
    return part


def accept(round_: Round, *clients: str, now: float = OPENED) -> None:
    """Every client takes its offer."""
    for client in clients:
        round_.accept(client, f"offer-{client}", now)


def complete(round_: Round, *clients: str, now: float = OPENED) -> None:
    """Every client takes its offer and brings its update in."""
    accept(round_, *clients, now=now)
    for client in clients:
        round_.begin_finish(f"upload-{client}")
        round_.complete(f"upload-{client}", 40, {"loss": 0.5}, now)


def ends(round_: Round) -> dict[str, tuple[Outcome | None, str]]:
    """Client to outcome and reason."""
    return {part.client: (part.outcome, part.reason) for part in round_.participations}
