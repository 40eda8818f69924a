"""Who may join a round: every client that has said hello, and what is known of it."""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


class ClientState(enum.Enum):
    """Where a client stands. Legal transitions:

    (new) -> CONNECTED | DECLINED
    CONNECTED -> DISCONNECTED | LEFT
    DISCONNECTED, DECLINED, LEFT -> CONNECTED | DECLINED
    """

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    DECLINED = "declined"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a client said of itself in its hello. Spans in seconds; `None` where it said nothing."""

    name: str
    num_examples: int
    software: str
    epoch_seconds: float | None = None
    max_epochs: int | None = None
    max_training_seconds: float | None = None
    synthetic_data: bool = False


@dataclass(slots=True)
class Client:
    """One client's record. Times are unix seconds, for people."""

    introduction: Introduction
    state: ClientState
    first_seen: float
    last_seen: float
    reason: str = ""
    rounds_completed: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        return self.introduction.name


class Population:
    """All clients, by name."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._completed: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Client]:
        return iter(sorted(self._clients.values(), key=lambda client: client.name))

    def __getitem__(self, name: str) -> Client:
        return self._clients[name]

    def __contains__(self, name: object) -> bool:
        return name in self._clients

    def connect(self, introduction: Introduction, now: float) -> Client:
        """A client is welcome, for the first time or again."""
        return self._record(introduction, ClientState.CONNECTED, "", now)

    def decline(self, introduction: Introduction, reason: str, now: float) -> Client:
        """A client cannot take part. One that is connected under the same name stays as it is."""
        known = self._clients.get(introduction.name)
        if known is not None and known.state is ClientState.CONNECTED:
            return known
        return self._record(introduction, ClientState.DECLINED, reason, now)

    def disconnect(self, name: str, state: ClientState, reason: str, now: float) -> None:
        """A client's stream ended: by its will (`LEFT`) or not (`DISCONNECTED`)."""
        client = self._clients[name]
        if client.state is ClientState.CONNECTED:
            client.state, client.reason, client.last_seen = state, reason, now

    def credit(self, name: str) -> None:
        """An update of this client is in a global model. After a restart the client may not be back yet."""
        self._completed[name] += 1
        if name in self._clients:
            self._clients[name].rounds_completed = self._completed[name]

    def seen(self, name: str, now: float) -> None:
        """A client gave a sign of life."""
        self._clients[name].last_seen = now

    @property
    def connected(self) -> list[Client]:
        """Those that can be given an offer, by name."""
        return [client for client in self if client.state is ClientState.CONNECTED]

    def _record(self, introduction: Introduction, state: ClientState, reason: str, now: float) -> Client:
        known = self._clients.get(introduction.name)
        if known is None:
            completed = self._completed[introduction.name]
            known = Client(introduction, state, first_seen=now, last_seen=now, rounds_completed=completed)
            self._clients[introduction.name] = known
        known.introduction, known.state, known.reason, known.last_seen = introduction, state, reason, now
        return known


def select_cohort(clients: list[Client], cohort_size: int, seed: int, round_number: int) -> list[Client]:
    """Who is picked for a round, in the order that fixes each one's rank: by name.

    Args:
        clients: those that can be picked.
        cohort_size: how many to pick at most; 0 for all.
        seed: of the federation; the same seed, round and clients give the same cohort.
        round_number: from 1.
    """
    by_name = sorted(clients, key=lambda client: client.name)
    if not cohort_size or len(by_name) <= cohort_size:
        return by_name
    generator = random.Random(f"cohort/{seed}/{round_number}")  # noqa: S311 - repeatable, not secret
    return sorted(generator.sample(by_name, cohort_size), key=lambda client: client.name)
