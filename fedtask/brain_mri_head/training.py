"""Fine-tuning the head on features: logistic regression with Adam, in numpy, the same in every language to a rounding.

docs/brain_mri.md writes down what another language must do alike. Adam is that of D. P. Kingma, J. Ba, "Adam: a method
for stochastic optimization", ICLR 2015, with the bias corrections in the step size, as in Keras.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedstream.plan import Plan
from fedtask.brain_mri_head.features import Labelled
from fedtask.metrics import EPSILON
from fedtask.progress import Progress
from fedtask.task import Metrics

Floats = npt.NDArray[np.float64]

_BETA_1, _BETA_2 = 0.9, 0.999


@dataclass(slots=True)
class Head:
    """`weights` is `float64 [d + 1]`, the bias last; Adam's state begins at zero."""

    weights: Floats
    epsilon: float
    _m: Floats = field(init=False)
    _v: Floats = field(init=False)
    _steps: int = 0

    def __post_init__(self) -> None:
        self._m, self._v = np.zeros_like(self.weights), np.zeros_like(self.weights)

    def probabilities(self, x: npt.NDArray[np.float32]) -> Floats:
        """Of label 1, `float64 [n]`."""
        logits = x.astype(np.float64) @ self.weights[:-1] + self.weights[-1]
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float64)  # exp would overflow

    def step(self, batch: Labelled, label_weights: Floats, learning_rate: float) -> Floats:
        """One step of Adam; returns the probabilities before it."""
        p = self.probabilities(batch.x)
        error = (p - batch.y) * label_weights[batch.y] / len(batch)
        gradient = np.append(error @ batch.x.astype(np.float64), error.sum())
        self._steps += 1
        self._m += (1 - _BETA_1) * (gradient - self._m)
        self._v += (1 - _BETA_2) * (gradient * gradient - self._v)
        rate = learning_rate * np.sqrt(1 - _BETA_2**self._steps) / (1 - _BETA_1**self._steps)
        self.weights -= rate * self._m / (np.sqrt(self._v) + self.epsilon)
        return p

    def scores(self, examples: Labelled, prefix: str) -> dict[str, float | None]:
        """Mean cross-entropy and accuracy; `None` where there is no example."""
        if not len(examples):
            return {f"{prefix}loss": None, f"{prefix}accuracy": None}
        losses, hits = judge(self.probabilities(examples.x), examples.y)
        return {f"{prefix}loss": float(losses.mean()), f"{prefix}accuracy": float(hits.mean())}


@dataclass(frozen=True, slots=True)
class Trained:
    """`weights` as in `Head`, of epoch `best_epoch`, counted from 1; `history` has one row per epoch that was run."""

    weights: Floats
    history: Sequence[Metrics]
    best_epoch: int


def train(
    head: Head, train_set: Labelled, val: Labelled, plan: Plan, label_weights: Floats, progress: Progress
) -> Trained:
    """Fine-tune `head`. With patience and validation examples it ends in the epoch of the lowest validation loss.

    Raises:
        Cancelled: `progress` raised it.
    """
    stops_early = plan.early_stopping_patience > 0 and len(val) > 0
    history: list[Metrics] = []
    best, best_loss, best_epoch = head.weights.copy(), np.inf, 0
    for epoch in range(1, plan.epochs + 1):
        row = _run_epoch(head, train_set, plan, label_weights, epoch, progress) | head.scores(val, "val_")
        history.append(row)
        progress.epoch_ended(epoch, row)
        loss = row["val_loss"]
        if not stops_early or loss is None or loss < best_loss:
            best, best_loss, best_epoch = head.weights.copy(), np.inf if loss is None else loss, epoch
        elif epoch - best_epoch >= plan.early_stopping_patience:
            break
    return Trained(best, history, best_epoch)


def _run_epoch(
    head: Head, examples: Labelled, plan: Plan, label_weights: Floats, epoch: int, progress: Progress
) -> dict[str, float | None]:
    order = epoch_order(plan.seed, epoch, len(examples))
    batches = np.array_split(order, -(-len(order) // plan.batch_size))
    loss_sum = hit_sum = 0.0
    for number, indices in enumerate(batches, 1):
        batch = examples.take(indices)
        losses, hits = judge(head.step(batch, label_weights, plan.learning_rate), batch.y)
        loss_sum, hit_sum = loss_sum + float(losses.sum()), hit_sum + float(hits.sum())
        progress.training(epoch, number / len(batches))
    return {"loss": loss_sum / len(order), "accuracy": hit_sum / len(order)}


def epoch_order(seed: int, epoch: int, num: int) -> npt.NDArray[np.int64]:
    """The order of the examples in an epoch, `int64 [num]`: needs no generator that each language has otherwise."""
    keys = [hashlib.sha256(f"{seed} {epoch} {index}".encode()).digest() for index in range(num)]
    return np.array(sorted(range(num), key=keys.__getitem__), np.int64)


def judge(p: Floats, y: npt.NDArray[np.int64]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Cross-entropy of each example, and whether it is on the right side of one half."""
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    return -np.where(y == 1, np.log(clipped), np.log1p(-clipped)), (p > 0.5) == y


def balanced_weights(y: npt.NDArray[np.int64]) -> Floats:
    """Weights by label, `float64 [2]`, that give both classes the same total, and examples a mean of 1."""
    counts = np.bincount(y, minlength=2)
    present = counts > 0
    return np.where(present, len(y) / (present.sum() * np.maximum(counts, 1)), 0.0).astype(np.float64)
