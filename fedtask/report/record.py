"""What a report is made of: plain facts about one federation, in JSON and back.

The server fills a `FederationRecord` from its state and has `fedtask.report.render` make the report of it in its worker
process. Names and reasons in it may come from clients: they are untrusted text, escaped where they are shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, PlainSerializer, with_config

from fedstream.outcomes import Outcome
from fedstream.plan import Plan
from fedtask.adapters import adapter
from fedtask.metrics import evaluation_from_json, evaluation_to_json
from fedtask.task import Evaluation

OUTCOMES = tuple(outcome.value for outcome in Outcome)
"""How an offer can end, in words."""


def _without_nan(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


Metrics = Annotated[Mapping[str, float | None], PlainSerializer(_without_nan)]
"""Metric name to value; a value that JSON cannot hold (NaN, infinite) is written as null."""

_Evaluation = Annotated[
    Evaluation,
    PlainSerializer(evaluation_to_json),
    BeforeValidator(lambda value: value if isinstance(value, Evaluation) else evaluation_from_json(value)),
]
_Settings = Annotated[Mapping[str, str], PlainSerializer(dict)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class PlanRecord:
    """The hyper-parameters offered to clients; the fields of `fedstream.plan.Plan`."""

    epochs: int
    batch_size: int
    learning_rate: float
    early_stopping_patience: int
    seed: int
    settings: _Settings = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> PlanRecord:
        """The record of a plan."""
        return cls(
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            early_stopping_patience=plan.early_stopping_patience,
            seed=plan.seed,
            settings=dict(plan.settings),
        )


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class DataDescription:
    """A labelled set of the coordinator: its examples per class, its known defects, and where it came from.

    `source` is a short name for people, such as the folder's name; `skipped` counts files left out, by reason.
    """

    counts: Mapping[str, int]
    weaknesses: tuple[str, ...] = ()
    synthetic: bool = False
    source: str = ""
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_examples(self) -> int:
        """Examples of all classes."""
        return sum(self.counts.values())


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Contribution:
    """What became of one client's offer in one round.

    `outcome` is one of `OUTCOMES`. `num_examples` and `metrics` are what the client sent: metrics of its trained model
    on its own images, with `base_accuracy` and `base_loss` of the model it received; `undefined` is why it gives no
    value for some. `weight` is its share of the aggregate, 0 to 1, `None` if it is not in it. `epochs` is what was
    agreed; `upload_bytes` what was committed of its update; `seconds` runs from the offer to its end.
    """

    client_name: str
    rank: int
    outcome: str
    reason: str = ""
    num_examples: int | None = None
    weight: float | None = None
    metrics: Metrics = field(default_factory=dict)
    epochs: int | None = None
    upload_bytes: int = 0
    seconds: float | None = None
    undefined: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"{self.outcome!r} is no outcome of an offer; it is one of {', '.join(OUTCOMES)}")

    @property
    def accuracy(self) -> float | None:
        """The trained model's accuracy on the client's own validation images, else on what it calls `accuracy`."""
        return _share(self.metrics.get("val_accuracy", self.metrics.get("accuracy")))

    @property
    def base_accuracy(self) -> float | None:
        """Accuracy of the model that it received, on the same images."""
        return _share(self.metrics.get("base_accuracy"))


def _share(value: float | None) -> float | None:
    """`value`, unless it is no share of 1: clients may send any number, and what cannot be counts as not given."""
    return value if value is not None and 0 <= value <= 1 else None


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round: how it ended and why, its model's scores on the holdout, and every offer made in it, by rank.

    `evaluation` is `None` where there is none, and `evaluation_reason` then says why. `bytes_received` and `bytes_sent`
    are the server's, updates and models, since the round before was over: a model may be fetched before the next opens.
    `holdout_id` tells the holdout of the evaluation from another; empty where there is none, or it is not known.
    `duration_seconds` is from the opening until its model was scored, for some time after it was `closed`. `opened` is
    `None` in a round of an earlier version; the time in which no server ran lies before it.
    """

    number: int
    succeeded: bool
    reason: str
    duration_seconds: float
    opened: datetime | None = None
    closed: datetime | None = None
    evaluation: _Evaluation | None = None
    evaluation_reason: str = ""
    holdout_id: str = ""
    bytes_received: int = 0
    bytes_sent: int = 0
    contributions: tuple[Contribution, ...] = ()

    @property
    def offered(self) -> int:
        """Offers made."""
        return len(self.contributions)

    @property
    def counts(self) -> dict[str, int]:
        """Offers by outcome, every one of `OUTCOMES` named; they add up to `offered`."""
        ended = Counter(one.outcome for one in self.contributions)
        return {outcome: ended[outcome] for outcome in OUTCOMES}


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class ClientRecord:
    """A client as the server knew it when the federation had ended, before clients were told so.

    `state` is `declined` for one turned away at the handshake, for `reason`.
    """

    name: str
    state: str
    reason: str = ""
    num_examples: int | None = None
    software: str = ""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file that was written: `digest` is sha256 in hex, `description` says which model it is."""

    name: str
    digest: str
    size_bytes: int
    description: str = ""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class FederationRecord:
    """Everything a report says about one federation.

    `outcome` is `finished`, `stopped` or `failed`, with its reason. `started` is the first start, also of a server that
    was started again. `duration_seconds` is the time in which a server ran: down-time is not counted, nor, of a server
    that was killed, the time since the last round's end.
    `best_round` is the successful round whose model was kept as best, chosen as `best_chosen_by` says; `None` if there
    is none. `early_stop_reason` is set if it ended before `rounds_planned` because it no longer got better.
    `test_evaluation` is the best model's, on a set that was looked at once, at the end. `seeds` and `versions` are by
    name. `positive_class` is empty for a task that has none; `unit` is what one example is, in the singular, and
    `loss_name` what the loss is, empty where nothing is known of it. `settings` are those of the task that were given;
    all others have its defaults. `training_data_synthetic` is about the clients' data.
    `notes` are further sentences for the reader.
    """

    federation_name: str
    task_name: str
    model: str
    strategy: str
    plan: PlanRecord
    started: datetime
    ended: datetime
    duration_seconds: float
    outcome: str
    outcome_reason: str
    rounds_planned: int
    rounds: tuple[RoundRecord, ...] = ()
    best_round: int | None = None
    best_chosen_by: str = "accuracy on the holdout"
    early_stop_reason: str | None = None
    positive_class: str = ""
    unit: str = "example"
    loss_name: str = ""
    holdout: DataDescription | None = None
    test: DataDescription | None = None
    test_evaluation: _Evaluation | None = None
    clients: tuple[ClientRecord, ...] = ()
    training_data_synthetic: bool = False
    model_files: tuple[ModelFile, ...] = ()
    settings: _Settings = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.best_round is not None and not any(one.number == self.best_round for one in self.succeeded):
            raise ValueError(f"round {self.best_round} cannot be the best one: no round of that number succeeded")

    @property
    def succeeded(self) -> tuple[RoundRecord, ...]:
        """The rounds that made a global model."""
        return tuple(one for one in self.rounds if one.succeeded)

    @property
    def best(self) -> RoundRecord | None:
        """The round of the best global model."""
        return next((one for one in self.rounds if one.number == self.best_round), None)

    @property
    def last_round(self) -> int | None:
        """Number of the last round that made a global model."""
        return max((one.number for one in self.succeeded), default=None)

    @property
    def bytes_received(self) -> int:
        """Bytes of updates from clients, all rounds."""
        return sum(one.bytes_received for one in self.rounds)

    @property
    def bytes_sent(self) -> int:
        """Bytes of models to clients, all rounds."""
        return sum(one.bytes_sent for one in self.rounds)

    @property
    def synthetic(self) -> bool:
        """Whether any of its data was generated."""
        sets = [described for described in (self.holdout, self.test) if described is not None]
        return self.training_data_synthetic or any(described.synthetic for described in sets)


def headline_evaluation(record: FederationRecord) -> tuple[Evaluation | None, str]:
    """The evaluation that the report leads with, and the name of its set: the test set if there is one."""
    if record.test_evaluation is not None:
        return record.test_evaluation, "test set"
    return (record.best.evaluation if record.best else None), "holdout"


def record_to_json(record: FederationRecord) -> dict[str, Any]:
    """`record` as plain JSON types; `record_from_json` gives an equal one back if its metrics are finite."""
    document: dict[str, Any] = adapter(FederationRecord).dump_python(record, mode="json")
    return document


def record_from_json(document: Mapping[str, Any]) -> FederationRecord:
    """The record that `record_to_json` wrote.

    Raises:
        ValueError: a field is missing, unknown or of the wrong kind; the message names each.
    """
    return adapter(FederationRecord).validate_python(document)
