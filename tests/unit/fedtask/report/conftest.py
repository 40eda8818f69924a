"""A small federation to report on: three rounds, two clients, one of which fails once, and a third that is declined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from fedtask.metrics import binary_evaluation
from fedtask.report import (
    ClientRecord,
    Contribution,
    DataDescription,
    FederationRecord,
    ModelFile,
    PlanRecord,
    RoundRecord,
)
from fedtask.task import Evaluation

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


def evaluation(wrong: int) -> Evaluation:
    """40 examples, half of each class, of which `wrong` positive ones are missed."""
    labels = np.repeat([0, 1], 20)
    scores = np.where(labels == 1, 0.9, 0.2)
    scores[20 : 20 + wrong] = 0.3
    return binary_evaluation(labels, scores, ("no", "yes"), "yes")


def contribution(name: str, rank: int, accuracy: float, weight: float) -> Contribution:
    """An update that went into the global model."""
    return Contribution(
        client_name=name,
        rank=rank,
        outcome="completed",
        num_examples=round(100 * weight),
        weight=weight,
        metrics={"val_accuracy": accuracy, "base_accuracy": accuracy - 0.25},
        epochs=3,
        upload_bytes=1000,
        seconds=12.5,
    )


def three_rounds() -> tuple[RoundRecord, ...]:
    """Wrong answers on the holdout: 4, 1, 2; so the second is best."""
    north, south = contribution("north", 0, 0.75, 0.25), contribution("south", 1, 1.0, 0.75)
    expired = Contribution("south", 1, "expired", "no sign of life for 60 s", upload_bytes=400)
    alone = contribution("north", 0, 0.875, 1.0)
    made = [(4, (north, south)), (1, (north, south)), (2, (alone, expired))]
    return tuple(
        RoundRecord(
            number=number,
            succeeded=True,
            reason="reporting goal met",
            duration_seconds=30.0,
            closed=START.replace(minute=number),
            evaluation=evaluation(wrong),
            bytes_received=sum(one.upload_bytes for one in offers),
            bytes_sent=5000,
            contributions=offers,
        )
        for number, (wrong, offers) in enumerate(made, start=1)
    )


def regression_rounds(loss: bool = True) -> tuple[RoundRecord, ...]:
    """Three rounds of a task that foretells numbers: the third is best, and nobody gives an accuracy."""
    site = Contribution("north", 0, "completed", num_examples=25, weight=1.0, metrics={"val_mse": 2.0}, epochs=3)
    scores = [{"mse": 4.0 / number, "r2": 1 - 1.5 / number} for number in (1, 2, 3)]
    return tuple(
        replace(
            one,
            evaluation=Evaluation({"loss": each["mse"], **each} if loss else each, 50),
            contributions=(site,),
        )
        for one, each in zip(three_rounds(), scores, strict=True)
    )


@pytest.fixture(name="make_record")
def _make_record() -> Callable[..., FederationRecord]:
    """Builds the federation above; keyword arguments replace fields."""

    def make(**fields: Any) -> FederationRecord:
        facts: dict[str, Any] = {
            "federation_name": "spring",
            "task_name": "brain_mri",
            "model": "MobileNetV2 224x224",
            "strategy": "fedavg",
            "plan": PlanRecord(3, 32, 1e-4, 2, 11, {"fine_tune": "head"}),
            "started": START,
            "ended": START.replace(minute=5),
            "duration_seconds": 93.5,
            "outcome": "finished",
            "outcome_reason": "all rounds were run",
            "rounds_planned": 3,
            "rounds": three_rounds(),
            "best_round": 2,
            "positive_class": "yes",
            "unit": "image",
            "loss_name": "cross-entropy",
            "holdout": DataDescription({"no": 20, "yes": 20}, ("Slices of one patient may fall on both sides.",)),
            "clients": (
                ClientRecord("north", "idle", "", 25, "fedclient 0.1.0"),
                ClientRecord("other", "declined", "its model differs: head/kernel", 30, "fedclient 0.1.0"),
            ),
            "model_files": (ModelFile("GLOBAL_MODEL.keras", "ab" * 32, 9_400_000, "best model"),),
            "settings": {"min_clients": "2"},
            "seeds": {"federation": 7},
            "versions": {"fedstream": "0.1.0"},
        }
        return FederationRecord(**(facts | fields))

    return make
