"""A base class for federating a Keras classifier of one's own: give it a model and a way to load arrays.

See docs/own_task.md for a whole example. Tensorflow is imported when the model is built, not before.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning
from fedtask.division import divide, limited
from fedtask.metrics import EPSILON, binary_evaluation, require_finite
from fedtask.progress import Progress
from fedtask.settings import option, read_settings
from fedtask.task import Evaluation, FineTuned, Report, ReportWords, SiteOptions, SiteSummary, TaskError, Weights

if TYPE_CHECKING:
    from fedtask.keras_training import Trainer

Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Inputs `[n, ...]`, numbers of any kind, and labels `[n]`, integers from 0 below the number of classes."""

VAL_FRACTION = 0.15
_SLACK = 1e-3
"""By which probabilities may miss 0, 1 and a sum of 1: as far as half precision rounds."""

RANDOM = "random"


@dataclass(frozen=True, slots=True)
class KerasSettings:
    """Settings that every Keras task has. Further ones: a dataclass that inherits from this one."""

    epochs: int = option(5, "most local epochs of the default plan", low=1, high=100_000)
    batch_size: int = option(32, "batch size of the default plan", low=1)
    learning_rate: float = option(1e-3, "learning rate of the default plan", low=1e-9, high=100)
    patience: int = option(
        0, "epochs without a better validation loss until a fine-tune stops; 0 for never", low=0, high=100_000
    )


class KerasTask:
    """A `fedtask.task.Task` around a Keras classifier. Sub-classes say what is learned, on what.

    To be set: `class_names`, in label order. To be written: `build_model` and `load`. The rest may be left as it is:
    `positive_class` (the last class), `preprocessing` (what the inputs are, in words: sites whose words differ are not
    let in), `settings_type`, `report_words`, `generate`, `make_optimizer`.
    """

    class_names: ClassVar[Sequence[str]]
    positive_class: ClassVar[str | None] = None
    preprocessing: ClassVar[str] = "inputs as they are"
    settings_type: ClassVar[type[KerasSettings]] = KerasSettings
    report_words: ClassVar[ReportWords] = ReportWords(loss="cross-entropy")

    def build_model(self) -> Any:
        """A new Keras model: outputs `[n, 1]` with a sigmoid, for two classes, or `[n, num_classes]` with a softmax.

        Layers with `trainable=False` are frozen: they travel once and are never changed.
        """
        raise NotImplementedError(f"{type(self).__name__} has no build_model")

    def load(self, folder: Path) -> Arrays:
        """The examples in `folder`: a site's `train` or `val`, or the holdout.

        Raises:
            TaskError: there are none; the message says what was looked for.
        """
        raise NotImplementedError(f"{type(self).__name__} has no load")

    def generate(self, purpose: str) -> Arrays:
        """Generated examples for `train` or `holdout`, the same each time, where no folder is given."""
        raise TaskError(f"{type(self).__name__} generates no data: name a folder")

    def make_optimizer(self, learning_rate: float) -> Any:
        """A new optimiser; its state is reset before each fine-tune."""
        from fedtask.frameworks import keras

        return keras.optimizers.Adam(learning_rate)

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = read_settings(self.settings_type, settings)
        self._train: _ArrayExamples | None = None
        self._val: _ArrayExamples | None = None
        self._holdout: _ArrayExamples | None = None

    def meaning(self) -> TaskMeaning:
        return TaskMeaning(tuple(self.class_names), self._positive, self.preprocessing)

    def schema(self) -> ModelSchema:
        from fedtask.keras_model import schema_of

        return schema_of(self._model)

    def default_plan(self) -> Plan:
        chosen = self.settings
        return Plan(chosen.epochs, chosen.batch_size, chosen.learning_rate, chosen.patience, seed=0)

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        """Random weights by `seed` (`None` or `random`), or those of the model file `source`."""
        from fedtask.keras_model import build_repeatably, read_weights

        if source not in {None, RANDOM}:
            return self.read_model(Path(source))
        return read_weights(build_repeatably(self.build_model, seed))

    def open_site(self, options: SiteOptions) -> SiteSummary:
        if options.classes:
            raise TaskError("this task reads no folders by class, so that --classes has no meaning for it")
        examples = self._checked(
            self.generate("train") if options.folder is None else self.load(options.folder / "train"), "train"
        )
        if options.num_shards > 1:
            shards = divide(examples.labels, options.num_shards, options.division, options.division_seed)
            examples = examples.take(shards[options.shard])
        val = options.folder / "val" if options.folder is not None and options.num_shards == 1 else None
        if val is not None and val.exists():
            self._train, self._val = examples, self._checked(self.load(val), "val")
        else:
            self._train, self._val = _split(examples)
        chosen = limited(self._train.labels, options.max_examples, options.division_seed)
        self._train = self._train.take(chosen)
        counts = {"train": self._counts(self._train), "val": self._counts(self._val)}
        warnings = [*_gaps("train", self._train), *_gaps("val", self._val)]
        return SiteSummary(len(self._train.labels), counts, warnings=warnings, synthetic=options.folder is None)

    def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        arrays = self.generate("holdout") if folder is None else self.load(folder)
        self._holdout = self._checked(arrays, "holdout")
        counts = {"holdout": self._counts(self._holdout)}
        warnings = _gaps("holdout", self._holdout)
        return SiteSummary(len(self._holdout.labels), counts, warnings=warnings, synthetic=folder is None)

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        from fedtask.keras_model import assign_weights
        from fedtask.keras_training import fine_tune

        if self._train is None or self._val is None:
            raise TaskError("open_site comes before fine_tune")
        self._require_fitting(self._train)
        assign_weights(self._model, base)
        progress = Progress(report, plan.epochs)
        return fine_tune(self._trainer, self._model, base, self._train, self._val, plan, None, progress)

    def evaluate(self, weights: Weights) -> Evaluation:
        from fedtask.keras_model import assign_weights

        if self._holdout is None:
            raise TaskError("open_holdout comes before evaluate")
        self._require_fitting(self._holdout)
        assign_weights(self._model, weights)
        outputs = _probabilities(self._trainer.predict(self._holdout))
        if len(self.class_names) > 2:
            require_finite(outputs)  # NaN would be taken for the first class
            return _evaluation(self._holdout.labels, outputs, tuple(self.class_names))
        of_last = outputs[:, -1]
        scores = of_last if self._positive == self.class_names[1] else 1 - of_last
        return binary_evaluation(self._holdout.labels, scores, tuple(self.class_names), self._positive)

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        """Write `stem.keras` and `stem.h5`."""
        from fedtask.keras_model import assign_weights, save_model

        assign_weights(self._model, weights)
        return save_model(self._model, folder, stem)

    def read_model(self, path: Path) -> Weights:
        """Read a `.keras`, `.h5` or `.weights.h5` file of the same model."""
        from fedtask.keras_model import load_file

        return load_file(self._model, path)

    @property
    def _positive(self) -> str:
        return self.positive_class or self.class_names[-1]

    @functools.cached_property
    def _model(self) -> Any:
        from fedtask.keras_model import build_repeatably, prepare_devices

        prepare_devices()
        model = build_repeatably(self.build_model, seed=0)
        if not getattr(model, "outputs", None):
            message = "build_model gave a model whose inputs and outputs are not known before it is called"
            raise TaskError(f"{message}: build it with keras.Sequential and keras.Input, or as a functional model")
        num_outputs = model.outputs[0].shape[-1]
        if num_outputs != len(self.class_names) and (num_outputs, len(self.class_names)) != (1, 2):
            raise TaskError(f"the model has {num_outputs} outputs for {len(self.class_names)} classes")
        return model

    @functools.cached_property
    def _trainer(self) -> Trainer:
        from fedtask.frameworks import keras
        from fedtask.keras_training import Trainer

        one_output = self._model.outputs[0].shape[-1] == 1
        kind = keras.losses.BinaryCrossentropy if one_output else keras.losses.SparseCategoricalCrossentropy
        return Trainer(self._model, kind(reduction=None), self.make_optimizer)

    def _require_fitting(self, examples: _ArrayExamples) -> None:
        """Say in the task's words what tensorflow would say in its own."""
        wanted, given = self._model.input_shape, examples.inputs.shape
        if not isinstance(wanted, tuple):
            return  # a model of several inputs
        if len(wanted) != len(given) or any(w not in (None, g) for w, g in zip(wanted[1:], given[1:], strict=True)):
            shape = ", ".join("any" if size is None else str(size) for size in wanted[1:])
            raise TaskError(f"the model takes inputs [n, {shape}]; load gave {['n', *given[1:]]}".replace("'", ""))

    def _checked(self, arrays: Any, what: str) -> _ArrayExamples:
        if not isinstance(arrays, tuple | list) or len(arrays) != 2:
            gave = "None" if arrays is None else f"a {type(arrays).__name__}"
            raise TaskError(f"{what}: load gave {gave}; wanted inputs [n, ...] and labels [n], two arrays")
        inputs, labels = np.asarray(arrays[0]), np.asarray(arrays[1])
        if not len(labels) or labels.shape != inputs.shape[:1]:
            shapes = f"inputs {list(inputs.shape)} and labels {list(labels.shape)}"
            raise TaskError(f"{what}: load gave {shapes}; wanted [n, ...] and [n] with n of 1 or more")
        if not np.isin(labels, np.arange(len(self.class_names))).all():
            raise TaskError(f"{what}: a label is none of 0 to {len(self.class_names) - 1}")
        return _ArrayExamples(inputs, labels.astype(np.int64))

    def _counts(self, examples: _ArrayExamples) -> dict[str, int]:
        counts = np.bincount(examples.labels, minlength=len(self.class_names))
        return dict(zip(self.class_names, counts.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _ArrayExamples:
    """`fedtask.keras_training.Examples` in memory."""

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]

    def take(self, indices: npt.NDArray[np.int64]) -> _ArrayExamples:
        return _ArrayExamples(self.inputs[indices], self.labels[indices])

    def training_batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[Any]:
        return self.inputs[indices]

    def plain_batch(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return self.inputs[indices]


def _gaps(what: str, examples: _ArrayExamples) -> list[str]:
    """Whether inputs hold NaN, as a table with gaps does. No refusal: a model may be made for it."""
    inputs = examples.inputs
    if not np.issubdtype(inputs.dtype, np.floating):
        return []
    num_bad = len(inputs) - int(np.isfinite(inputs).all(axis=tuple(range(1, inputs.ndim))).sum())
    if not num_bad:
        return []
    told = f"{what}: {num_bad} of {len(inputs)} examples hold NaN or infinity, as where a value is missing"
    return [f"{told}; unless the model replaces it, every weight becomes NaN, and no server takes that"]


def _split(examples: _ArrayExamples) -> tuple[_ArrayExamples, _ArrayExamples]:
    """Train and validation examples: of each class the same share, drawn by a fixed chance."""
    in_val = np.zeros(len(examples.labels), bool)
    for label in np.unique(examples.labels):
        members = np.random.default_rng(int(label)).permutation(np.flatnonzero(examples.labels == label))
        in_val[members[: int(len(members) * VAL_FRACTION)]] = True
    return examples.take(np.flatnonzero(~in_val)), examples.take(np.flatnonzero(in_val))


def _probabilities(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Outputs, if they can be probabilities; NaN is let pass: of a site's validation it is seen in the loss."""
    sums = outputs.sum(axis=1) if outputs.shape[1] > 1 else np.ones(len(outputs))
    if (outputs < -_SLACK).any() or (outputs > 1 + _SLACK).any() or (abs(sums - 1) > _SLACK).any():
        raise TaskError("the model's outputs are no probabilities: let its last layer end in a sigmoid or a softmax")
    return outputs


def _evaluation(
    labels: npt.NDArray[np.int64], outputs: npt.NDArray[np.float32], class_names: tuple[str, ...]
) -> Evaluation:
    """Loss, accuracy and confusion for more than two classes."""
    num = len(class_names)
    predicted = outputs.argmax(axis=1)
    confusion = np.bincount(labels * num + predicted, minlength=num * num).reshape(num, num)
    loss = -np.log(np.clip(outputs[np.arange(len(labels)), labels], EPSILON, 1.0)).mean()
    return Evaluation(
        metrics={"loss": float(loss), "accuracy": float((predicted == labels).mean())},
        num_examples=len(labels),
        class_names=class_names,
        confusion=confusion.tolist(),
    )
