"""What a state machine wants said to a client. Whoever owns the connection turns these into messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedserver.coordinator.participation import Participation
from fedstream.manifest import ModelRef
from fedstream.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class MakeOffer:
    """Offer the round to the client, or repeat the offer after a reconnect."""

    round_number: int
    base: ModelRef
    participation: Participation
    lease_seconds: float

    @property
    def client(self) -> str:
        return self.participation.client


@dataclass(frozen=True, slots=True)
class Confirm:
    """The agreement stands, with the participation's plan and deadline."""

    participation: Participation
    lease_seconds: float

    @property
    def client(self) -> str:
        return self.participation.client


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The offer no longer stands."""

    client: str
    offer_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RenewLease:
    """A sign of progress was taken note of."""

    client: str
    offer_id: str
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop working on the offer."""

    client: str
    offer_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TellWaiting:
    """What the server waits for, and since when (seconds of the monotonic clock)."""

    client: str
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class TellRoundOutcome:
    """How a round ended. `outcome` is `None` for a client without a part in it."""

    client: str
    round_number: int
    succeeded: bool
    reason: str
    outcome: Outcome | None
    outcome_reason: str
    global_model: ModelRef
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class TellFederationOutcome:
    """How the federation ended; nothing follows it."""

    client: str
    reason: str
    last: ModelRef
    best: ModelRef
    metrics: Mapping[str, float | None]


Effect = MakeOffer | Confirm | Withdraw | RenewLease | Cancel | TellWaiting | TellRoundOutcome | TellFederationOutcome
