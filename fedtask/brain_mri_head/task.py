"""The head of the brain MRI model as a `fedtask.task.Task` that programs in any language can train.

Sites learn on features: numbers that the frozen backbone gave for their images, made once by `fedclient features`. So
no site needs Keras, what travels is a dense layer of a few kilobytes, and still the whole model is scored and exported.
With backbone=none, features are whatever the sites agree on, and the holdout is a features file too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from fedstream.dtypes import DataType
from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning, TensorSpec
from fedtask.brain_mri_head.backbone import Backbone
from fedtask.brain_mri_head.features import PLAIN, SAFETENSORS, Features, Labelled, read_features
from fedtask.brain_mri_head.settings import NONE, read_head_settings
from fedtask.brain_mri_head.training import Head, balanced_weights, train
from fedtask.checkpoints import in_schema_order
from fedtask.division import divide, limited
from fedtask.metrics import binary_evaluation
from fedtask.progress import Progress
from fedtask.task import Evaluation, FineTuned, Report, ReportWords, SiteOptions, SiteSummary, TaskError, Weights

KERNEL, BIAS = "head/kernel", "head/bias"
"""As in `brain_mri`, whose last layer it is."""

FILE_NAME = "features"
_VAL_EVERY = 7
"""One example in seven validates where a file has none for it: near the 15% of the other tasks, and of every class."""


class BrainMriHead:
    """Logistic regression on features; see `fedtask.task.Task` for the members."""

    report_words = ReportWords(example="image", loss="cross-entropy")

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = read_head_settings(settings)
        self._backbone = Backbone(self._settings)
        self._site: Features | None = None
        self._holdout: Labelled | None = None

    def meaning(self) -> TaskMeaning:
        return self._settings.meaning()

    def schema(self) -> ModelSchema:
        kernel = TensorSpec(KERNEL, DataType.FLOAT32, (self._settings.num_features, 1))
        return ModelSchema((kernel, TensorSpec(BIAS, DataType.FLOAT32, (1,))))

    def default_plan(self) -> Plan:
        chosen = self._settings
        return Plan(chosen.epochs, chosen.batch_size, chosen.learning_rate, chosen.patience, seed=0)

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        """A random kernel by `seed`, spread as Glorot and Bengio (2010) do, and a bias of zero."""
        if source not in {None, "random"}:
            raise TaskError("the head begins by chance; name the backbone with --task-set backbone and backbone_file")
        width = self._settings.num_features
        bound = np.sqrt(6 / (width + 1))
        kernel = np.random.default_rng(seed).uniform(-bound, bound, (width, 1))
        return {KERNEL: kernel.astype(np.float32), BIAS: np.zeros(1, np.float32)}

    def open_site(self, options: SiteOptions) -> SiteSummary:
        """`options.folder` is a features file, or a folder with `features.safetensors` or `features.features`."""
        if options.classes:
            raise TaskError("a features file has the classes already: give --classes to `fedclient features` instead")
        features = self._generated("train") if options.folder is None else self._read(options.folder)
        site = _shard(features, options) if options.num_shards > 1 else _with_val(features)
        chosen = limited(site.train.y, options.max_examples, options.division_seed)
        self._site = site = replace(site, train=site.train.take(chosen))
        if not len(site.train):
            raise TaskError("there is no training example in the features file")
        counts = {"train": self._counts(site.train), "val": self._counts(site.val)}
        return SiteSummary(len(site.train), counts, synthetic=site.generated)

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        if self._site is None:
            raise TaskError("open_site comes before fine_tune")
        examples = self._site.train
        head = self._head(base)
        base_scores = head.scores(self._site.val, "base_")
        balanced = self._settings.class_weights == "balanced"
        label_weights = balanced_weights(examples.y) if balanced else np.ones(2)
        trained = train(head, examples, self._site.val, plan, label_weights, Progress(report, plan.epochs))
        weights = trained.weights.astype(np.float32)
        metrics = {**trained.history[trained.best_epoch - 1], **base_scores}
        return FineTuned({KERNEL: weights[:-1, None], BIAS: weights[-1:]}, len(examples), metrics, trained.history)

    def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        """A folder of images, or a features file, of which both parts count."""
        if self._settings.backbone != NONE and (folder is None or not _names_features(folder)):
            self._holdout = None
            return self._backbone.open_holdout(folder, classes)
        features = self._generated("holdout") if folder is None else self._read(folder)
        self._holdout = features.every
        counts = {"holdout": self._counts(self._holdout)}
        return SiteSummary(len(self._holdout), counts, synthetic=features.generated)

    def evaluate(self, weights: Weights) -> Evaluation:
        if self._holdout is None:
            return self._backbone.evaluate(weights)
        probabilities = self._head(weights).probabilities(self._holdout.x)
        names, positive = self._settings.class_names, self._settings.positive_class
        scores = probabilities if positive == names[1] else 1 - probabilities
        return binary_evaluation(self._holdout.y, scores, names, positive)

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        """Write the head as `stem.safetensors` and, where it is not a site that does it, the whole model for Keras.

        A site has features and no backbone, and downloads nothing.
        """
        path = folder / f"{stem}{SAFETENSORS}"
        save_file({name: np.asarray(values, order="C") for name, values in weights.items()}, path)
        whole = self._settings.backbone != NONE and self._site is None
        return [path, *(self._backbone.export(weights, folder, stem) if whole else ())]

    def read_model(self, path: Path) -> Weights:
        """Read the head of a `.safetensors` file, or of a Keras file of the whole model."""
        if path.suffix != SAFETENSORS:
            whole = self._backbone.read_model(path)
            return {spec.name: whole[spec.name] for spec in self.schema()}
        try:
            tensors = load_file(path)
        except Exception as error:  # the reader's errors for no file and for bad content have no common parent
            raise TaskError(f"{path} is no .safetensors file that can be read: {error}") from error
        return in_schema_order(self.schema(), tensors, path)

    def _head(self, weights: Weights) -> Head:
        joined = np.append(weights[KERNEL].ravel(), weights[BIAS]).astype(np.float64)
        return Head(joined, self._settings.adam_epsilon)

    def _read(self, path: Path) -> Features:
        features = read_features(_file_in(path) if path.is_dir() else path)
        if features.meaning != self.meaning().canonical_bytes():
            raise TaskError(
                f"{path} was made for another federation: it means {_shown(features.meaning)}, and this one "
                f"{_shown(self.meaning().canonical_bytes())}. Make it again with `fedclient features` and its settings"
            )
        if features.train.x.shape[1] != self._settings.num_features:
            raise TaskError(f"{path} has {features.train.x.shape[1]} features, not {self._settings.num_features}")
        return features

    def _generated(self, purpose: str) -> Features:
        """Two clouds of points that overlap a little, the same each time."""
        if self._settings.backbone != NONE:
            raise TaskError("name a features file: `fedclient features --data phantom` makes one of generated images")
        num, width = self._settings.generated, self._settings.num_features
        rng = np.random.default_rng([0, purpose == "holdout"])
        y = np.arange(num) % 2
        direction = np.random.default_rng(1).standard_normal(width)
        x = rng.standard_normal((num, width)) + np.outer(2 * y - 1, 2 * direction / np.linalg.norm(direction))
        every = Labelled(x.astype(np.float32), y.astype(np.int64))
        return Features(every, every.take(y > 1), self.meaning().canonical_bytes(), generated=True)

    def _counts(self, examples: Labelled) -> dict[str, int]:
        return dict(zip(self._settings.class_names, np.bincount(examples.y, minlength=2).tolist(), strict=True))


def _names_features(path: Path) -> bool:
    named = path.suffix in {SAFETENSORS, PLAIN}
    return named or path.is_file() or (path.is_dir() and _file_in(path).is_file())


def _file_in(folder: Path) -> Path:
    plain = folder / f"{FILE_NAME}.features"
    return plain if plain.is_file() else folder / f"{FILE_NAME}{SAFETENSORS}"


def _shown(meaning: bytes) -> str:
    return " | ".join(meaning.decode("utf-8", "replace").replace("\t", ",").splitlines()[1:])


def _shard(features: Features, options: SiteOptions) -> Features:
    """One part of the training examples; the file's validation examples are the coordinator's."""
    train = features.train
    shards = divide(train.y, options.num_shards, options.division, options.division_seed)
    empty = train.take(np.zeros(len(train), bool))
    part = train.take(shards[options.shard])
    return _with_val(Features(part, empty, features.meaning, features.generated))


def _with_val(features: Features) -> Features:
    """With validation examples, split off by label and place where the file has none and there are enough."""
    every = features.train
    if len(features.val) or len(every) < 2 * _VAL_EVERY:
        return features
    by_label = np.argsort(every.y, kind="stable")
    in_val = np.zeros(len(every), bool)
    in_val[by_label[_VAL_EVERY - 1 :: _VAL_EVERY]] = True
    return Features(every.take(~in_val), every.take(in_val), features.meaning, features.generated)
