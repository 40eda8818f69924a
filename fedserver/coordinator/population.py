"""Who may join a round: every client that has said hello, and what is known of it."""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fedstream import limits

STOPPED_REASON = "was connected when the server stopped"
MAX_STRANGERS = 1_000
"""How many clients that are gone and were never in a global model are remembered: so many of those that were declined,
of those that left and of those that were disconnected, the newest of each. Names come from the network, and whoever
makes up new ones must fill neither memory nor disk; a record takes at most about 2 KB. All that are connected, or were
in a global model, are remembered."""


class ClientState(enum.Enum):
    """Where a client stands. Legal transitions:

    (new) -> CONNECTED | DECLINED
    CONNECTED -> DISCONNECTED | LEFT
    DISCONNECTED, DECLINED, LEFT -> CONNECTED | DECLINED

    Whoever was CONNECTED when a server was killed is DISCONNECTED for the next one.
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
    """One client's record. Times are unix seconds, for people; `last_seen` is of its last sign of life."""

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
    """All clients, by name; of those that came to nothing, the newest `MAX_STRANGERS` of each kind.

    Args:
        changed: is told the name of a client whose record is new, has changed or is forgotten.
    """

    def __init__(self, changed: Callable[[str], None] = lambda _name: None) -> None:
        self._changed = changed
        self._clients: dict[str, Client] = {}  # the one that changed last comes last
        self._completed: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Client]:
        return iter(sorted(self._clients.values(), key=lambda client: client.name))

    def __getitem__(self, name: str) -> Client:
        return self._clients[name]

    def __contains__(self, name: object) -> bool:
        return name in self._clients

    def recall(self, client: Client) -> None:
        """Remember a client of an earlier process. It is not connected, and what it says of itself now counts more."""
        known = self._clients.get(client.name)
        if known is not None:
            known.first_seen = client.first_seen
            self._changed(client.name)
            return
        was_connected = client.state is ClientState.CONNECTED
        state, reason = (ClientState.DISCONNECTED, STOPPED_REASON) if was_connected else (client.state, client.reason)
        completed = self._completed[client.name]
        self._clients[client.name] = replace(client, state=state, reason=reason, rounds_completed=completed)
        self._forget_strangers(state)

    def connect(self, introduction: Introduction, now: float) -> Client:
        """A client is welcome, for the first time or again."""
        return self._record(introduction, ClientState.CONNECTED, "", now)

    def decline(self, introduction: Introduction, reason: str, now: float) -> Client:
        """A client cannot take part. One that is connected under the same name stays as it is."""
        known = self._clients.get(introduction.name)
        if known is not None and known.state is ClientState.CONNECTED:
            return known
        return self._record(introduction, ClientState.DECLINED, limits.clip_reason(reason), now)

    def disconnect(self, name: str, state: ClientState, reason: str) -> None:
        """A client's stream ended: by its will (`LEFT`) or not (`DISCONNECTED`).

        When that was noticed is no sign of life: a loss is noticed a minute after a client fell silent, and one that
        says good-bye was `seen` when it did.
        """
        client = self._clients[name]
        if client.state is ClientState.CONNECTED:
            client.state, client.reason = state, reason
            self._note_change(client)

    def credit(self, name: str) -> None:
        """An update of this client is in a global model. After a restart the client may not be back yet."""
        self._completed[name] += 1
        if name in self._clients:
            self._clients[name].rounds_completed = self._completed[name]

    def seen(self, name: str, now: float) -> None:
        """A client gave a sign of life; one that is not known has no record to note it in."""
        if name in self._clients:
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
        self._note_change(known)
        return known

    def _note_change(self, client: Client) -> None:
        self._clients[client.name] = self._clients.pop(client.name)
        self._changed(client.name)
        self._forget_strangers(client.state)

    def _forget_strangers(self, state: ClientState) -> None:
        if state is ClientState.CONNECTED:
            return
        strangers = [one.name for one in self._clients.values() if one.state is state and not one.rounds_completed]
        for name in strangers[: max(0, len(strangers) - MAX_STRANGERS)]:
            del self._clients[name]
            self._changed(name)


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
