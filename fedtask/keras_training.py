"""Training and scoring a Keras classifier on examples given batch by batch. Importing this imports tensorflow.

A loop of its own rather than `Model.fit`: it can be cancelled inside an epoch, an error while a batch is read reaches
the caller as it was raised, a compiled step serves every round, and the order of everything random is plain to see.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedstream.plan import Plan
from fedtask.frameworks import keras, tf
from fedtask.keras_model import read_weights, schema_of
from fedtask.progress import Progress
from fedtask.task import FineTuned, Metrics, Weights

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

EVALUATION_BATCH = 64


class Examples(Protocol):
    """Labelled inputs of a model. Batches are arrays or tensors `[len(indices), ...]` in the order of the indices."""

    @property
    def labels(self) -> Labels:
        """`int64 [n]`."""

    def training_batch(self, indices: Indices, rng: np.random.Generator) -> Any:
        """Inputs as training sees them: augmented, by chances drawn from `rng`."""

    def plain_batch(self, indices: Indices) -> Any:
        """Inputs as they are."""


@dataclass(frozen=True, slots=True)
class Trained:
    """How a fine-tune went: metrics per epoch that was run, and the epoch, from 1, whose weights the model now has."""

    history: Sequence[Metrics]
    best_epoch: int

    @property
    def best_metrics(self) -> Metrics:
        """Metrics of that epoch."""
        return self.history[self.best_epoch - 1]


class Trainer:
    """Trains one Keras model again and again, with fresh optimiser state each time.

    Args:
        model: gives `[n, 1]` (probability of label 1) or `[n, num_classes]` (probabilities).
        loss: a Keras loss with `reduction=None`, which gives one number per example.
        make_optimizer: called once with the learning rate; its state is reset before each fine-tune.
        forward: from a batch to the model's outputs in training; without it, the model itself.
    """

    def __init__(
        self,
        model: Any,
        loss: Any,
        make_optimizer: Callable[[float], Any] = keras.optimizers.Adam,
        forward: Callable[[Any], Any] | None = None,
    ) -> None:
        self._model = model
        self._training_forward = forward or functools.partial(model, training=True)
        self._loss = loss
        self._optimizer = make_optimizer(1e-3)
        self._optimizer.build(model.trainable_variables)
        self._fresh = [np.array(variable.value.numpy()) for variable in self._optimizer.variables]
        self._moving = _moving_variables(model)
        # XLA made training seven to eight times slower on a CPU. The batch axis is left open: one trace serves all.
        inputs = tf.TensorSpec([None, *model.inputs[0].shape[1:]], tf.float32)
        numbers = tf.TensorSpec([None], tf.float32)
        self._step = tf.function(self._train_batch, input_signature=[inputs, numbers, numbers], jit_compile=False)
        self._forward = tf.function(self._predict_batch, input_signature=[inputs], jit_compile=False)

    def train(
        self, train: Examples, val: Examples, plan: Plan, label_weights: Floats | None, progress: Progress
    ) -> Trained:
        """Fine-tune the model as it is. `label_weights`, `float32 [num_classes]`, multiply the loss by label.

        With patience and validation examples, ends in the epoch of the lowest validation loss; else in the last one.

        Raises:
            Cancelled: `progress` raised it; the model is left half trained.
        """
        self._reset(plan)
        rng = np.random.default_rng([plan.seed, 0x7EA1])
        history: list[Metrics] = []
        best = _Best()
        for epoch in range(1, plan.epochs + 1):
            scores = self._run_epoch(train, plan.batch_size, label_weights, rng, epoch, progress)
            history.append({**scores, **self.scores(val, "val_")})
            progress.epoch_ended(epoch, history[-1])
            if plan.early_stopping_patience and len(val.labels):
                best.offer(epoch, history[-1]["val_loss"], self._moving)
                if epoch - best.epoch >= plan.early_stopping_patience:
                    break
        return Trained(history, best.restore(self._moving) or len(history))

    def predict(self, examples: Examples, progress: Callable[[float], None] | None = None) -> Floats:
        """The model's outputs for plain inputs, `float32 [n, num_outputs]`."""
        num = len(examples.labels)
        outputs = [np.zeros((0, self._model.outputs[0].shape[-1]), np.float32)]
        for start in range(0, num, EVALUATION_BATCH):
            batch = examples.plain_batch(np.arange(start, min(start + EVALUATION_BATCH, num)))
            outputs.append(np.asarray(self._forward(tf.cast(batch, tf.float32))))
            if progress is not None:
                progress(min(start + EVALUATION_BATCH, num) / num)
        return np.concatenate(outputs)

    def scores(self, examples: Examples, prefix: str = "") -> dict[str, float | None]:
        """Mean loss, unweighted, and accuracy; `None` where there is no example."""
        if not len(examples.labels):
            return {f"{prefix}loss": None, f"{prefix}accuracy": None}
        outputs = self.predict(examples)
        loss = self._loss(examples.labels[:, None].astype(np.float32), outputs)
        hits = predicted_labels(outputs) == examples.labels
        return {f"{prefix}loss": float(np.mean(loss)), f"{prefix}accuracy": float(hits.mean())}

    def _reset(self, plan: Plan) -> None:
        for variable, fresh in zip(self._optimizer.variables, self._fresh, strict=True):
            variable.assign(fresh)
        self._optimizer.learning_rate.assign(plan.learning_rate)
        keras.utils.set_random_seed(plan.seed % 2**32)
        for place, state in enumerate(_random_states(self._model)):
            # Dropout and the like draw from a state of their own that goes on from fine-tune to fine-tune.
            state.assign(np.array([plan.seed % 2**32, place], np.uint32))

    def _run_epoch(
        self,
        train: Examples,
        batch_size: int,
        label_weights: Floats | None,
        rng: np.random.Generator,
        epoch: int,
        progress: Progress,
    ) -> dict[str, float | None]:
        order = rng.permutation(len(train.labels))
        # Batches of nearly equal size: a last batch of one or two would count as much as a full one, and its BatchNorm
        # statistics would be worthless.
        batches = np.array_split(order, -(-len(order) // batch_size))
        loss_sum = hits = 0.0
        for number, indices in enumerate(batches, 1):
            labels = train.labels[indices]
            weights = np.ones(len(labels), np.float32) if label_weights is None else label_weights[labels]
            batch = tf.cast(train.training_batch(indices, rng), tf.float32)
            loss, outputs = self._step(batch, labels.astype(np.float32), weights)
            loss_sum += float(loss) * len(labels)
            hits += float((predicted_labels(np.asarray(outputs)) == labels).sum())
            progress.training(epoch, number / len(batches))
        return {"loss": loss_sum / len(order), "accuracy": hits / len(order)}

    def _train_batch(self, inputs: Any, labels: Any, weights: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            outputs = self._training_forward(inputs)
            loss = tf.reduce_mean(self._loss(labels[:, None], outputs) * weights)
        variables = self._model.trainable_variables
        self._optimizer.apply(tape.gradient(loss, variables), variables)
        return loss, outputs

    def _predict_batch(self, inputs: Any) -> Any:
        return self._model(inputs, training=False)


def fine_tune(
    trainer: Trainer,
    model: Any,
    base: Weights,
    train: Examples,
    val: Examples,
    plan: Plan,
    label_weights: Floats | None,
    progress: Progress,
) -> FineTuned:
    """A whole fine-tune from `base`, as `fedtask.task.Task` wants it.

    `model` is the one that `trainer` trains, or one that holds it as a part. Its weights are `base` already.
    """
    base_scores = trainer.scores(val, "base_")
    started = time.monotonic()
    trained = trainer.train(train, val, plan, label_weights, progress)
    images = len(trained.history) * len(train.labels)
    metrics = {
        **trained.best_metrics,
        **base_scores,
        "images_per_second": images / (time.monotonic() - started),
    }
    values = read_weights(model)
    # Frozen tensors are handed back as they came: their bytes, and so their digests, are the base's.
    weights = {spec.name: values[spec.name] if spec.trainable else base[spec.name] for spec in schema_of(model)}
    return FineTuned(weights, len(train.labels), metrics, trained.history)


class _Best:
    """The weights of the epoch with the lowest validation loss so far."""

    def __init__(self) -> None:
        self.epoch = 0
        self._loss: float | None = None
        self._values: list[np.ndarray] = []

    def offer(self, epoch: int, loss: float | None, variables: Sequence[Any]) -> None:
        # The first epoch is taken whatever its loss: a loss that is not a number compares as better than nothing.
        if self._loss is None or (loss is not None and loss < self._loss):
            self.epoch, self._loss = epoch, loss
            self._values = [np.array(variable.value.numpy()) for variable in variables]

    def restore(self, variables: Sequence[Any]) -> int:
        """Put the kept values back and return their epoch; 0, and nothing happens, if none were offered."""
        for variable, values in zip(variables, self._values, strict=False):
            variable.assign(values)
        return self.epoch


def predicted_labels(outputs: Floats) -> Labels:
    """Labels for outputs `[n, 1]` (above one half is label 1) or `[n, num_classes]` (the largest)."""
    if outputs.shape[-1] == 1:
        return (outputs[:, 0] > 0.5).astype(np.int64)
    return np.asarray(outputs.argmax(axis=-1), np.int64)


def balanced_weights(labels: Labels, num_classes: int) -> Floats:
    """Weights `float32 [num_classes]` that give every class present the same total, and examples a mean of 1."""
    counts = np.bincount(labels, minlength=num_classes)
    present = counts > 0
    return np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0).astype(np.float32)


def _moving_variables(model: Any) -> list[Any]:
    """What training changes: a superset costs a copy only, so all weights but those of frozen layers."""
    frozen = {id(v) for layer in model.layers if not layer.trainable for v in layer.weights}
    return [variable for variable in model.weights if id(variable) not in frozen]


def _random_states(model: Any) -> list[Any]:
    weights = {id(variable) for variable in model.weights}
    return [v for v in model.variables if id(v) not in weights and v.path.endswith("seed_generator_state")]
