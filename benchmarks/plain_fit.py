"""Fine-tuning of brain MRI as one would write it with Keras alone: what the task's own training is compared with.

Images are decoded once and stay in memory. In every epoch they are augmented anew, beside the training, and pass
through the whole network, of which the same layers are trained as in the task, with the same optimiser.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.epochs import Fit, Moment, fit_of
from fedstream.plan import Plan
from fedtask.brain_mri.model import build_network
from fedtask.brain_mri.settings import BrainMriSettings
from fedtask.images.image_set import ImageSet
from fedtask.keras_model import assign_weights, read_weights
from fedtask.task import Weights


class PlainFit:
    """One model, compiled once, and fitted as often as is wanted, from weights that are given each time."""

    def __init__(self, settings: BrainMriSettings, plan: Plan) -> None:
        self._model, self._plan = build_network(settings).full, plan
        optimizer = keras.optimizers.Adam(plan.learning_rate, epsilon=settings.adam_epsilon)
        self._model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])

    def fit(self, images: ImageSet, base: Weights) -> Fit:
        """Fine-tune from `base`."""
        assign_weights(self._model, base)
        data, clock = _augmented(images, self._plan), _Clock()
        began = Moment.now()
        self._model.fit(data, epochs=self._plan.epochs, callbacks=[clock], verbose=0)
        return fit_of(began, clock.ended, read_weights(self._model))


class _Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes when each epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[Moment] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.ended.append(Moment.now())


def _augmented(images: ImageSet, plan: Plan) -> Any:
    pixels, labels = images.load(range(len(images))), images.labels[:, None].astype(np.float32)
    change = keras.Sequential(_changes(plan.seed))
    data = tf.data.Dataset.from_tensor_slices((pixels, labels)).shuffle(len(images), seed=plan.seed)
    return (
        data.batch(plan.batch_size)
        .map(lambda batch, wanted: (change(tf.cast(batch, tf.float32), training=True), wanted), tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def _changes(seed: int) -> list[Any]:
    """Keras's own layers, with the ranges of `fedtask.brain_mri.augmentation`."""
    layers = keras.layers
    return [
        layers.RandomFlip("horizontal", seed=seed),
        layers.RandomRotation(0.2 / (2 * math.pi), fill_mode="constant", seed=seed),
        layers.RandomTranslation(0.06, 0.06, fill_mode="constant", seed=seed),
        layers.RandomContrast(0.2, value_range=(0, 255), seed=seed),
        layers.RandomBrightness(12 / 255, value_range=(0, 255), seed=seed),
    ]
