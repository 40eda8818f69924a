"""Drawing up a round: its rules, and what each client of the cohort is offered."""

from __future__ import annotations

import secrets
from dataclasses import replace

from fedserver.coordinator.population import Client
from fedserver.coordinator.round import Picked, Round, RoundRules
from fedserver.federation import Federation, ref_of


def draw_up(federation: Federation, number: int, cohort: list[Client]) -> Round:
    """A new round for a cohort. Nobody knows of it before it is durable, and then taken up."""
    rules, picked = _rules(federation, len(cohort)), _picked(federation, number, cohort)
    return Round.open(number, ref_of(federation.model), rules, picked, federation.now)


def _rules(federation: Federation, cohort_size: int) -> RoundRules:
    config = federation.config
    return RoundRules(
        min_clients=config.min_clients,
        reporting_goal=min(config.reporting_goal or cohort_size, cohort_size),
        timeout_seconds=config.round_timeout_seconds,
        longest_seconds=config.longest_round_seconds or 2 * config.round_timeout_seconds,
        lease_seconds=config.lease_seconds,
        update_encoding=config.update_encoding,
        plan=federation.plan,
    )


def _picked(federation: Federation, number: int, cohort: list[Client]) -> list[Picked]:
    return [
        Picked(
            client=client.name,
            plan=replace(federation.plan, seed=plan_seed(federation.config.seed, number, rank)),
            claimed_examples=client.introduction.num_examples,
            offer_id=f"{number}-{rank}-{secrets.token_hex(4)}",
            upload_id=secrets.token_hex(16),
        )
        for rank, client in enumerate(cohort)
    ]


def plan_seed(seed: int, round_number: int, rank: int) -> int:
    """The seed of one client's fine-tune: repeatable, and different for every client of a round."""
    return seed * 1_000_003 + round_number * 1_009 + rank
