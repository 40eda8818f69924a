"""The rows of the report's tables, worked out from the record; the page only lays them out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from fedtask.metrics import leading
from fedtask.report import words
from fedtask.report.record import Contribution, FederationRecord, RoundRecord
from fedtask.task import Evaluation

CROSS_ENTROPY = "cross-entropy"

_MEANINGS = {
    "loss": "how far the predicted probabilities are from the truth (cross-entropy); 0 is perfect",
    "accuracy": "share of right answers",
    "balanced_accuracy": "mean of sensitivity and specificity; 50% is guessing, whatever the mix of classes",
    "sensitivity": "share of the positive class that is found",
    "specificity": "share of the other class that is cleared",
    "precision": "share of positive answers that are right, at the mix of classes here",
    "f1": "sensitivity and precision in one number (harmonic mean)",
    "auc": "chance that a positive example gets a higher score than another one; 0.5 is guessing",
    "brier_score": "mean squared error of the probabilities; 0 is perfect",
    "expected_calibration_error": "mean distance between promised probability and truth; 0 is perfect",
}
_TITLES = {"f1": "F1", "auc": "AUC", "brier_score": "Brier score"}


def title(name: str) -> str:
    """What the metric `name` is called at the head of a row or a picture: one of a task's own as the task calls it."""
    return _TITLES.get(name, name.replace("_", " ").capitalize() if name in _MEANINGS else name)


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of one evaluation, as text; `reason` says why there is none."""

    value: str
    interval: str
    reason: str


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A metric with its meaning, and one score per evaluation."""

    title: str
    meaning: str
    scores: tuple[Score, ...]


def scores_of(rounds: Sequence[RoundRecord]) -> list[str]:
    """The scores of global models that are shown over time, of those that have a number in any round."""
    scores = [one.evaluation.metrics for one in rounds if one.evaluation]
    return leading(name for each in scores for name, value in each.items() if is_number(value))


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether there is a value, and a finite one."""
    return value is not None and math.isfinite(value)


def score_rows(evaluations: Sequence[Evaluation], loss_name: str = "") -> list[ScoreRow]:
    """Every metric that any of `evaluations` has, in their order. `loss_name` is what the loss is, if that is known."""
    meanings = _MEANINGS if loss_name == CROSS_ENTROPY else _MEANINGS | {"loss": _unknown_loss(loss_name)}
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation.metrics)
    return [
        ScoreRow(
            title(name),
            meanings.get(name, ""),
            tuple(_score(evaluation, name) for evaluation in evaluations),
        )
        for name in names
    ]


def _unknown_loss(loss_name: str) -> str:
    return f"{loss_name}; the lower the better" if loss_name else "what training makes smaller; the lower the better"


def _score(evaluation: Evaluation, name: str) -> Score:
    value, interval = evaluation.metrics.get(name), evaluation.intervals.get(name)
    between = words.interval_of(name, interval) if interval else ""
    reason = "" if value is not None else evaluation.undefined.get(name, "not measured")
    return Score(words.score(name, value), between, reason)


@dataclass(frozen=True, slots=True)
class SiteRow:
    """What one client did in the round of the best model.

    `received` is the accuracy of the model it was sent, `trained` of the one it sent back, `best` of the best global
    model where the next round offered it to this client; all on the client's own images.
    """

    name: str
    outcome: str
    num_examples: int | None
    weight: float | None
    epochs: int | None
    received: float | None
    trained: float | None
    best: float | None


def site_rows(record: FederationRecord) -> list[SiteRow]:
    """The clients of the best round, by rank."""
    if record.best is None:
        return []
    after = next((one for one in record.rounds if one.number > record.best.number), None)
    seen_next = {one.client_name: one.base_accuracy for one in after.contributions} if after else {}
    return [
        SiteRow(
            name=one.client_name,
            outcome=one.outcome,
            num_examples=one.num_examples,
            weight=one.weight,
            epochs=one.epochs,
            received=one.base_accuracy,
            trained=one.accuracy,
            best=seen_next.get(one.client_name),
        )
        for one in sorted(record.best.contributions, key=lambda one: one.rank)
    ]


def mean(values: Iterable[float | None]) -> float | None:
    """The plain mean of those that are there; `None` without any."""
    there = [value for value in values if is_number(value)]
    return math.fsum(there) / len(there) if there else None


@dataclass(frozen=True, slots=True)
class ClientRow:
    """What became of one client over the whole federation."""

    name: str
    state: str
    reason: str
    offered: int
    completed: int
    num_examples: int | None
    mean_weight: float | None
    upload_bytes: int
    software: str


def client_rows(record: FederationRecord) -> list[ClientRow]:
    """Every client that was declined, joined, or was ever made an offer, by name."""
    known = {one.name: one for one in record.clients}
    offers = _offers_by_client(record.rounds)
    rows = []
    for name in sorted({*known, *offers}):
        client, made = known.get(name), offers.get(name, [])
        completed = [one for one in made if one.outcome == "completed"]
        told = next((one.num_examples for one in reversed(made) if one.num_examples is not None), None)
        rows.append(
            ClientRow(
                name=name,
                state=client.state if client else "",
                reason=client.reason if client else "",
                offered=len(made),
                completed=len(completed),
                num_examples=told if told is not None or client is None else client.num_examples,
                mean_weight=mean(one.weight for one in completed),
                upload_bytes=sum(one.upload_bytes for one in made),
                software=client.software if client else "",
            )
        )
    return rows


def _offers_by_client(rounds: Sequence[RoundRecord]) -> dict[str, list[Contribution]]:
    offers: dict[str, list[Contribution]] = {}
    for each in rounds:
        for one in each.contributions:
            offers.setdefault(one.client_name, []).append(one)
    return offers


@dataclass(frozen=True, slots=True)
class Incident:
    """Offers to one client that did not end in an update of the global model, for one reason."""

    client_name: str
    outcome: str
    reason: str
    rounds: str


def incidents(record: FederationRecord) -> list[Incident]:
    """Every offer that was not completed, those alike in client, outcome and reason together, by first round."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for each in record.rounds:
        for one in sorted(each.contributions, key=lambda one: one.rank):
            if one.outcome != "completed":
                reason = re.sub(rf"\bround {each.number}\b", "the round", one.reason)  # or none would be like another
                found.setdefault((one.client_name, one.outcome, reason), []).append(each.number)
    return [Incident(*key, rounds=words.rounds(numbers)) for key, numbers in found.items()]


def setbacks(record: FederationRecord) -> list[str]:
    """A sentence for each reason why rounds failed, or made a model that was not scored."""
    found: dict[str, list[int]] = {}
    for one in record.rounds:
        if not one.succeeded:
            found.setdefault(f"failed: {one.reason or 'no reason was recorded'}", []).append(one.number)
        elif one.evaluation is None and one.evaluation_reason:
            found.setdefault(f"not scored: {one.evaluation_reason}", []).append(one.number)
    sentences = ((words.rounds(numbers), what) for what, numbers in found.items())
    return [f"{which.capitalize()} {what}{'' if what.endswith('.') else '.'}" for which, what in sentences]
