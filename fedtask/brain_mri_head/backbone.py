"""The frozen backbone of the whole model, with its weights: makes features of images, and takes a head back on.

It is an object of `brain_mri` with fine_tune=head, so images, holdout, scores and exported files are the same.
Tensorflow is imported at the first use of a network, not before.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from fedtask.brain_mri.task import BrainMri
from fedtask.brain_mri_head.features import Features, Labelled
from fedtask.brain_mri_head.settings import IMAGENET, RANDOM, HeadSettings
from fedtask.images.image_set import ImageSet
from fedtask.task import Evaluation, SiteOptions, SiteSummary, TaskError, Weights

_SEED = 0
"""Of the random backbone, which has to be the same at all sites."""


class Backbone:
    """The whole model, of which the head is given with each call. Settings: `fedtask.brain_mri_head.settings`."""

    def __init__(self, settings: HeadSettings) -> None:
        self._settings = settings
        self._whole = BrainMri(settings.of_whole_model)

    def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        """As `fedtask.task.Task.open_holdout`: a folder of images."""
        return self._whole.open_holdout(folder, classes)

    def evaluate(self, head: Weights) -> Evaluation:
        """Score the whole model on the opened holdout."""
        return self._whole.evaluate({**self._frozen, **head})

    def export(self, head: Weights, folder: Path, stem: str) -> list[Path]:
        """Write the whole model, for plain Keras, as `stem.keras` and `stem.h5`."""
        return self._whole.export({**self._frozen, **head}, folder, stem)

    def read_model(self, path: Path) -> Weights:
        """Every tensor of a file of the whole model."""
        return self._whole.read_model(path)

    def features_of(self, options: SiteOptions) -> tuple[Features, SiteSummary]:
        """Features of a site's images, train and val."""
        summary = self._whole.open_site(options)
        train, val = (self._labelled(images) for images in self._whole.opened_site)
        return Features(train, val, self._settings.meaning().canonical_bytes(), summary.synthetic), summary

    def _labelled(self, images: ImageSet) -> Labelled:
        return Labelled(self._whole.frozen_features(images, self._frozen), images.labels)

    @functools.cached_property
    def _frozen(self) -> Weights:
        """Every tensor of the whole model; the head's are by chance, and always replaced."""
        chosen = self._settings.backbone
        if chosen == IMAGENET:
            return self._whole.initial_weights(_SEED, None)
        return self._whole.initial_weights(_SEED, RANDOM if chosen == RANDOM else self._checked_file(chosen))

    def _checked_file(self, wanted: str) -> str:
        path = Path(self._settings.backbone_file)
        if not path.is_file():
            raise TaskError(f"the backbone {wanted} is needed here: name its file with --task-set backbone_file=FILE")
        if file_digest(path) != wanted:
            raise TaskError(f"{path} is {file_digest(path)}, and not {wanted}, whose features the sites have")
        return str(path)


def file_digest(path: Path) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
