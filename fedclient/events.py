"""What a server says in a negotiation, and what a client says, in the client's own words. Spans are in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedstream.encodings import Encoding
from fedstream.manifest import ModelRef
from fedstream.plan import Plan
from fedstream.schema import TaskMeaning, TensorDifference


@dataclass(frozen=True, slots=True)
class TaskOnOffer:
    """What a federation learns, as its server describes it."""

    federation_name: str
    task_name: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FederationOnOffer:
    """All that a server says before anybody says hello.

    `protocol` is the lowest and the highest version it speaks. `meaning` is `None` and `schema_sha256` empty while it
    still prepares its model. `encodings` are those of updates, best first. `server_time` is its wall clock when it
    answered, Unix time in seconds; `None` if it does not say.
    """

    task: TaskOnOffer
    protocol: tuple[int, int]
    meaning: TaskMeaning | None
    schema_sha256: bytes
    encodings: tuple[Encoding, ...]
    server_time: float | None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The client is in the population, on these terms. `protocol` is the version that the session uses."""

    protocol: int
    max_chunk_bytes: int
    window_bytes: int
    encoding: Encoding
    rounds: int
    client_name: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The client cannot take part. In `differences`, `mine` is the client's tensor and `yours` the federation's."""

    message: str
    differences: tuple[TensorDifference, ...] = ()
    more_differences: int = 0
    server_meaning: TaskMeaning | None = None
    client_meaning: TaskMeaning | None = None


@dataclass(frozen=True, slots=True)
class SchemaQuery:
    """The server wants to see the client's schema."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the server waits for."""

    reason: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A proposal to take part in a round."""

    offer_id: str
    upload_id: str
    round: int
    base: ModelRef
    plan: Plan
    time_remaining_seconds: float
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The agreement stands, with this plan."""

    offer_id: str
    plan: Plan
    time_remaining_seconds: float
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """The offer no longer stands."""

    offer_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseRenewal:
    """The server took note of a sign of progress."""

    offer_id: str
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What is being worked on for the offer is no longer wanted."""

    offer_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """How a round ended; `outcome` is this client's part in it, as a lower-case word, empty if it had none."""

    round: int
    succeeded: bool
    reason: str
    outcome: str
    outcome_reason: str
    global_model: ModelRef | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FederationOutcome:
    """How the federation ended."""

    reason: str
    last: ModelRef
    best: ModelRef
    metrics: Mapping[str, float | None] = field(default_factory=dict)


Event = (
    Welcome
    | Declined
    | SchemaQuery
    | Waiting
    | Offer
    | Confirmation
    | Withdrawal
    | LeaseRenewal
    | Cancellation
    | RoundOutcome
    | FederationOutcome
)
