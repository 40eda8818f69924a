"""Which model is the best, and when no better one comes. A moment."""

from __future__ import annotations

import math

import pytest

from fedserver.coordinator.scoreboard import Scoreboard
from fedstream.manifest import Digest, ModelRef

pytestmark = pytest.mark.numpy_task


def ref(version: int) -> ModelRef:
    return ModelRef(version, Digest(bytes([version]) * 32, 1))


def course(patience: int, *scores: tuple[float | None, float | None]) -> Scoreboard:
    scoreboard = Scoreboard(patience)
    for version, (accuracy, loss) in enumerate(scores, start=1):
        scoreboard.record(ref(version), {"accuracy": accuracy, "loss": loss})
    return scoreboard


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([(None, 0.1), (0.5, 0.7)], "accuracy on the holdout, then loss"),
        ([(None, 0.7), (None, 0.6)], "the lowest loss on the holdout"),
        ([(None, None), (None, None)], "being the first, since none has a score"),
    ],
    ids=["accuracy", "loss alone", "neither"],
)
def test_scoreboard_says_by_what_the_best_model_is_the_best(
    scores: list[tuple[float | None, float | None]], words: str
) -> None:
    assert course(0, *scores).criterion == words


def test_scoreboard_before_any_score_has_no_best_and_goes_on() -> None:
    scoreboard = Scoreboard(1)
    assert (scoreboard.best, scoreboard.best_metrics, scoreboard.why_stopping()) == (None, None, None)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 0.7), (0.6, 0.9)], 2),  # accuracy counts first
        ([(0.6, 0.7), (0.6, 0.6)], 2),  # then loss
        ([(0.6, 0.6), (0.6, 0.6)], 1),  # the first of equals
        ([(0.6, 0.6), (0.5, 0.1)], 1),
        ([(None, 0.6), (None, 0.5), (None, 0.7)], 2),  # a task without accuracy
        ([(None, None), (None, 0.5)], 2),
        ([(0.5, math.nan), (0.5, 9.0), (0.5, math.nan)], 2),  # a diverged model is never the best
        ([(None, math.nan), (None, 9.0)], 2),
        ([(None, math.inf), (None, math.nan), (None, 9.0)], 3),
    ],
)
def test_best_model_is_the_first_of_the_highest_accuracy_then_lowest_loss(
    scores: list[tuple[float | None, float | None]], best: int
) -> None:
    scoreboard = course(0, *scores)
    accuracy, loss = scores[best - 1]
    assert scoreboard.best == ref(best)
    assert (scoreboard.best_metrics, scoreboard.why_stopping()) == ({"accuracy": accuracy, "loss": loss}, None)


def test_scoreboard_stops_after_patience_rounds_without_better_and_names_the_best() -> None:
    worse = (0.5, 0.6)
    assert course(2, (0.9, 0.1), worse).why_stopping() is None
    stopping = "early stopping: no better holdout score for 2 rounds; the best was round 1"
    assert course(2, (0.9, 0.1), worse, worse).why_stopping() == stopping
    assert course(2, (0.9, 0.1), worse, (0.95, 0.1), worse).why_stopping() is None
    assert course(0, (0.9, 0.1), *[worse] * 50).why_stopping() is None
