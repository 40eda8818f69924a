"""Fine-tuning, scoring and saving the brain MRI network. Importing this imports tensorflow."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from fedstream.plan import Plan
from fedtask.brain_mri.activations import (
    Activations,
    DiskStore,
    FeatureExamples,
    ImageExamples,
    MemoryStore,
)
from fedtask.brain_mri.folded import folded, multiplies_bfloat16
from fedtask.brain_mri.model import build_network
from fedtask.brain_mri.settings import BrainMriSettings
from fedtask.frameworks import keras, tf
from fedtask.images.image_set import ImageSet
from fedtask.images.site import Site
from fedtask.keras_model import assign_weights, load_file, prepare_devices, save_model
from fedtask.keras_training import Examples, Floats, Trainer, balanced_weights, fine_tune
from fedtask.progress import Progress
from fedtask.task import FineTuned, Report, Weights

_PREPARATION_COST = 3.0
"""Time to compute one image's features, in units of one image in one epoch of training on them (measured)."""


class Training:
    """One network, and what is done with it. Not safe for threads."""

    def __init__(self, settings: BrainMriSettings) -> None:
        prepare_devices()
        self._settings = settings
        self.network = build_network(settings)
        optimizer = functools.partial(keras.optimizers.Adam, epsilon=settings.adam_epsilon)
        loss, upper = keras.losses.BinaryCrossentropy(reduction=None), self.network.upper
        fast = folded(upper, tf.bfloat16 if _in_bfloat16(settings) else tf.float32)
        self._trainer = Trainer(upper, loss, optimizer, functools.partial(fast, training=True))
        self._activations: dict[Path | None, Activations] = {}

    def fine_tune(self, site: Site, base: Weights, plan: Plan, report: Report, cache_folder: Path | None) -> FineTuned:
        """See `fedtask.task.Task.fine_tune`. Features are kept in `cache_folder`, or in memory if that is `None`."""
        assign_weights(self.network.full, base)
        progress, train, val = self._prepare(site, base, plan, report, cache_folder)
        balanced = self._settings.class_weights == "balanced"
        label_weights = balanced_weights(train.labels, num_classes=2) if balanced else None
        return fine_tune(self._trainer, self.network.full, base, train, val, plan, label_weights, progress)

    def predict(self, images: ImageSet, weights: Weights) -> Floats:
        """Probabilities of class 1, `float32 [n]`."""
        assign_weights(self.network.full, weights)
        return self._trainer.predict(self._examples(images, weights, None))[:, 0]

    def features(self, images: ImageSet, weights: Weights) -> Floats:
        """What the frozen part makes of images as they are, `float32 [n, ...]`; some part must be frozen."""
        assign_weights(self.network.full, weights)
        return np.asarray(self._examples(images, weights, None).plain_batch(np.arange(len(images))), np.float32)

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        """Write `stem.keras` and `stem.h5`."""
        assign_weights(self.network.full, weights)
        return save_model(self.network.full, folder, stem)

    def read_model(self, path: Path) -> Weights:
        """Weights of a model file, in schema order."""
        return load_file(self.network.full, path)

    def _prepare(
        self, site: Site, base: Weights, plan: Plan, report: Report, cache_folder: Path | None
    ) -> tuple[Progress, Examples, Examples]:
        train = self._examples(site.train, base, cache_folder)
        val = self._examples(site.val, base, cache_folder)
        if self.network.lower is None:
            return Progress(report, plan.epochs), train, val
        activations, variants = self._activations[cache_folder], self._settings.num_variants
        num_train, num_val = len(activations.missing(site.train, variants)), len(activations.missing(site.val, 1))
        cost = _PREPARATION_COST * (num_train + num_val)
        progress = Progress(report, plan.epochs, cost / (cost + plan.epochs * len(site.train)))
        part = num_train / max(1, num_train + num_val)
        activations.prepare(site.train, variants, lambda done: progress.preparing(part * done))
        activations.prepare(site.val, 1, lambda done: progress.preparing(part + (1 - part) * done))
        return progress, train, val

    def _examples(self, images: ImageSet, weights: Weights, cache_folder: Path | None) -> Examples:
        strength = self._settings.augmentation
        if self.network.lower is None:
            return ImageExamples(images, strength)
        if cache_folder not in self._activations:
            store = DiskStore(cache_folder) if cache_folder is not None else MemoryStore()
            self._activations[cache_folder] = Activations(self.network, store, strength)
        activations = self._activations[cache_folder]
        activations.use(weights)
        return FeatureExamples(images, activations, self._settings.num_variants)


def _in_bfloat16(settings: BrainMriSettings) -> bool:
    if settings.products == "auto":
        # Where BatchNorm is trained too, rounding reaches its statistics, and nobody has measured what that does.
        return settings.batch_norm == "frozen" and multiplies_bfloat16()
    return settings.products == "bfloat16"
