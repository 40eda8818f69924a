"""Whether the federation gets better: its best model so far, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedserver.coordinator.effects import ModelRef


@dataclass(slots=True)
class Progress:
    """Best global model by holdout loss. `patience` is rounds without a better loss before stopping, 0 for never.

    Loss, not accuracy, decides: it still moves when a small holdout's accuracy no longer does.
    """

    patience: int
    best: ModelRef | None = None
    best_loss: float = math.inf
    rounds_without_better: int = 0

    def record(self, model: ModelRef, loss: float | None) -> None:
        """Take in a new global model's holdout loss; `None` if there was no evaluation."""
        if loss is None:
            return
        if loss < self.best_loss:
            self.best, self.best_loss, self.rounds_without_better = model, loss, 0
        else:
            self.rounds_without_better += 1

    def why_stopping(self) -> str | None:
        """Why no further round is worth opening, or `None`."""
        if not self.patience or self.best is None or self.rounds_without_better < self.patience:
            return None
        return f"early stopping: no better holdout loss for {self.patience} rounds; best was round {self.best.version}"
