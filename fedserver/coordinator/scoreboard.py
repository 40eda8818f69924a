"""Whether the federation gets better: its best model so far, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedstream.manifest import ModelRef
from fedstream.scores import score_of


@dataclass(slots=True)
class Scoreboard:
    """The best global model by its holdout score.

    `patience` is rounds without a better one before stopping, 0 for never.
    """

    patience: int
    best: ModelRef | None = None
    best_metrics: Mapping[str, float | None] | None = None
    rounds_without_better: int = 0

    def record(self, model: ModelRef, metrics: Mapping[str, float | None]) -> None:
        """Take in a new global model's holdout metrics."""
        if self.best_metrics is None or score_of(metrics) > score_of(self.best_metrics):
            self.best, self.best_metrics, self.rounds_without_better = model, metrics, 0
        else:
            self.rounds_without_better += 1

    @property
    def criterion(self) -> str:
        """What the best model is the best by, in words."""
        accuracy, loss = score_of(self.best_metrics or {})
        if accuracy > -math.inf:
            return "accuracy on the holdout, then loss"
        # Any model with an accuracy would have been better than one without: no model has one.
        return "the lowest loss on the holdout" if loss > -math.inf else "being the first, since none has a score"

    def why_stopping(self) -> str | None:
        """Why no further round is worth opening, or `None`."""
        if not self.patience or self.best is None or self.rounds_without_better < self.patience:
            return None
        best = self.best.version
        return f"early stopping: no better holdout score for {self.patience} rounds; the best was round {best}"
