"""Brain MRI, tumour or no tumour, as a `fedtask.task.Task`.

Tensorflow takes seconds to import and is not needed to say what a task means: it is imported with the model.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning
from fedtask.brain_mri.phantom import write_phantom
from fedtask.brain_mri.settings import BrainMriSettings, read_brain_mri_settings
from fedtask.images.folders import patients
from fedtask.images.image_set import ImageSet
from fedtask.images.site import Site, open_holdout, open_site
from fedtask.metrics import binary_evaluation
from fedtask.task import Evaluation, FineTuned, Report, ReportWords, SiteOptions, SiteSummary, TaskError, Weights

if TYPE_CHECKING:
    from fedtask.brain_mri.training import Training

_PHANTOM_HOLDOUT_SHARE = 1 / 3
"""Holdout images of the phantom, per training image: enough that its interval is some points wide."""


class BrainMri:
    """Fine-tunes MobileNetV2 on slices in folders named by class. Settings: `fedtask.brain_mri.settings`."""

    report_words = ReportWords(example="image", loss="cross-entropy")
    reads_class_folders = True

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = read_brain_mri_settings(settings)
        self._site: Site | None = None
        self._holdout: ImageSet | None = None
        self._patients: npt.NDArray[np.int64] | None = None
        self._cache_folder: Path | None = None

    def meaning(self) -> TaskMeaning:
        size = self._settings.image_size
        preprocessing = f"rgb {size}x{size} bilinear; x / 127.5 - 1"
        return TaskMeaning(self._settings.class_names, self._settings.positive_class, preprocessing)

    def schema(self) -> ModelSchema:
        return self._training.network.schema

    def default_plan(self) -> Plan:
        chosen = self._settings
        return Plan(chosen.epochs, chosen.batch_size, chosen.learning_rate, chosen.patience, seed=0)

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        """See `fedtask.brain_mri.backbone.initial_weights`."""
        from fedtask.brain_mri.backbone import initial_weights

        return initial_weights(self._settings, seed, source)

    def open_site(self, options: SiteOptions) -> SiteSummary:
        folder = options.folder if options.folder is not None else self._phantom(options.cache_folder)
        options = replace(options, folder=folder)
        self._cache_folder = options.cache_folder
        self._site = open_site(options, self._settings.class_names, self._settings.image_size, options.division_seed)
        return self._site.summary

    def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        folder = folder if folder is not None else self._phantom(None) / "val"
        self._holdout, summary = open_holdout(folder, classes, self._settings.class_names, self._settings.image_size)
        self._patients = patients(folder, self._holdout.paths)
        return summary

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        if self._site is None:
            raise TaskError("open_site comes before fine_tune")
        cache = self._cache_folder / "activations" if self._cache_folder is not None else None
        return self._training.fine_tune(self._site, base, plan, report, cache)

    def evaluate(self, weights: Weights) -> Evaluation:
        if self._holdout is None:
            raise TaskError("open_holdout comes before evaluate")
        probabilities = self._training.predict(self._holdout, weights)
        names, positive = self._settings.class_names, self._settings.positive_class
        scores = probabilities if positive == names[1] else 1 - probabilities
        return binary_evaluation(self._holdout.labels, scores, names, positive, self._patients)

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        """Write `stem.keras` and `stem.h5`, which plain Keras loads and which take images of 0 to 255."""
        return self._training.export(weights, folder, stem)

    def read_model(self, path: Path) -> Weights:
        """Read a `.keras`, `.h5` or `.weights.h5` file of the same network."""
        return self._training.read_model(path)

    @property
    def opened_site(self) -> tuple[ImageSet, ImageSet]:
        """The images of the site that was opened: for training, and for validation."""
        if self._site is None:
            raise TaskError("open_site comes before its images")
        return self._site.train, self._site.val

    def frozen_features(self, images: ImageSet, weights: Weights) -> npt.NDArray[np.float32]:
        """What the frozen part makes of images as they are, `float32 [n, ...]`, of the precision of float16."""
        return self._training.features(images, weights)

    @functools.cached_property
    def _training(self) -> Training:
        from fedtask.brain_mri.training import Training

        return Training(self._settings)

    def _phantom(self, cache_folder: Path | None) -> Path:
        chosen = self._settings
        num_val = max(8, round(chosen.phantom_images * _PHANTOM_HOLDOUT_SHARE))
        folder = (cache_folder or shared_temporary_folder()) / f"phantom-{_recipe(chosen)}"
        return write_phantom(
            folder, chosen.phantom_images, num_val, chosen.phantom_difficulty, chosen.phantom_seed, chosen.image_size
        )


def shared_temporary_folder() -> Path:
    """A folder of this user's own that later processes find again: a worker may be killed before it could tidy up.

    Raises:
        TaskError: it is there and belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"fedstream-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
        raise TaskError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own")
    return folder


def _recipe(settings: BrainMriSettings) -> str:
    parts = (settings.phantom_images, settings.phantom_difficulty, settings.phantom_seed, settings.image_size)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
